#include "client/home.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/text.h"

struct home {
	struct text dir;
	int lock;
};

static void add_escaped(struct text *t, const char *s)
{
	bool first = true;

	for (; *s != '\0'; s++, first = false) {
		unsigned char c = (unsigned char)*s;

		if (c <= ' ' || c == 0x7f || c == '/' || c == '%' || (c == '.' && first))
			text_printf(t, "%%%02X", c);
		else
			text_add(t, s, 1);
	}
	if (first)
		text_puts(t, "%");
}

static bool find_root(struct text *t, const char *root)
{
	const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");

	if (root != NULL)
		text_puts(t, root);
	else if (base != NULL && base[0] == '/')
		text_printf(t, "%s/parley", base);
	else if (home != NULL && home[0] == '/')
		text_printf(t, "%s/.local/state/parley", home);
	return t->len > 0;
}

/* mkdir -p: every folder that is made here is the user's alone. */
static int make_folders(char *path)
{
	for (char *p = path + 1;; p++) {
		char c = *p;

		if (c != '/' && c != '\0')
			continue;
		*p = '\0';
		if (mkdir(path, 0700) != 0 && errno != EEXIST && (c == '\0' || errno != EROFS)) {
			*p = c;
			return -1;
		}
		*p = c;
		if (c == '\0')
			return 0;
	}
}

struct home *home_open(const char *root, const char *server, const char *account,
    char why_r[HOME_WHY])
{
	struct home *h = text_alloc(sizeof *h);
	char *path;

	h->lock = -1;
	if (!find_root(&h->dir, root)) {
		snprintf(why_r, HOME_WHY, "neither HOME nor XDG_STATE_HOME is set");
		goto fail;
	}
	text_puts(&h->dir, "/");
	add_escaped(&h->dir, server);
	text_puts(&h->dir, "/");
	add_escaped(&h->dir, account);
	if (make_folders(h->dir.s) != 0) {
		snprintf(why_r, HOME_WHY, "%.180s: %s", h->dir.s, strerror(errno));
		goto fail;
	}
	path = home_path(h, "lock");
	h->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	free(path);
	if (h->lock < 0) {
		snprintf(why_r, HOME_WHY, "%.180s/lock: %s", h->dir.s, strerror(errno));
		goto fail;
	}
	if (flock(h->lock, LOCK_EX | LOCK_NB) != 0) {
		snprintf(why_r, HOME_WHY, "%.180s is in use by another parley", h->dir.s);
		goto fail;
	}
	return h;
fail:
	home_free(h);
	return NULL;
}

void home_free(struct home *h)
{
	if (h == NULL)
		return;
	if (h->lock >= 0)
		close(h->lock);
	text_fini(&h->dir);
	free(h);
}

char *home_path(const struct home *h, const char *file)
{
	struct text t = { 0 };

	text_printf(&t, "%s/%s", h->dir.s, file);
	return t.s;
}
