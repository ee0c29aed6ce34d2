#include "client/seen.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/text.h"

/* A record is the same in memory and in the file (which never leaves the machine). */
struct seen_rec {
	unsigned char key[16];		/* hash of the mid, which may be of any length */
	uint64_t at_ms;
};

#define SEEN_SLOTS (SEEN_MAX * 2)	/* open addressing, at most half full */
#define SEEN_LIFE_MS ((uint64_t)SEEN_DAYS * 24 * 3600 * 1000)

/*
 * rec[] is a ring of the newest SEEN_MAX, oldest at head. The table holds ring positions + 1.
 * Deleting from it closes the gap by moving later entries back, so no tombstones pile up.
 */
struct seen {
	struct seen_rec *rec;
	uint32_t *slot;
	uint32_t head, count;
	uint32_t unsaved;		/* the newest that the file lacks */
	uint64_t written;		/* records in the file */
	char *path;
	int fd;
	char why[160];
};

static uint32_t home_of(const unsigned char key[16])
{
	uint32_t h;

	memcpy(&h, key, sizeof h);
	return h % SEEN_SLOTS;
}

static uint32_t find_slot(const struct seen *s, const unsigned char key[16])
{
	uint32_t i = home_of(key);

	while (s->slot[i] != 0 && memcmp(s->rec[s->slot[i] - 1].key, key, 16) != 0)
		i = (i + 1) % SEEN_SLOTS;
	return i;
}

static void drop_oldest(struct seen *s)
{
	uint32_t gap = find_slot(s, s->rec[s->head].key), i = gap;

	s->slot[gap] = 0;
	for (;;) {
		uint32_t want;

		i = (i + 1) % SEEN_SLOTS;
		if (s->slot[i] == 0)
			break;
		want = home_of(s->rec[s->slot[i] - 1].key);
		/* may the entry at i stand in the gap, that is: is its home not within (gap, i]? */
		if ((i + SEEN_SLOTS - want) % SEEN_SLOTS >= (i + SEEN_SLOTS - gap) % SEEN_SLOTS) {
			s->slot[gap] = s->slot[i];
			s->slot[i] = 0;
			gap = i;
		}
	}
	s->head = (s->head + 1) % SEEN_MAX;
	s->count--;
	if (s->unsaved > s->count)
		s->unsaved = s->count;
}

static bool insert(struct seen *s, const struct seen_rec *r)
{
	uint32_t at, i = find_slot(s, r->key);

	if (s->slot[i] != 0)
		return false;
	if (s->count == SEEN_MAX) {
		drop_oldest(s);
		i = find_slot(s, r->key);
	}
	at = (s->head + s->count) % SEEN_MAX;
	s->rec[at] = *r;
	s->slot[i] = at + 1;
	s->count++;
	return true;
}

static void complain(struct seen *s, const char *what)
{
	snprintf(s->why, sizeof s->why, "%s: %s", what, strerror(errno));
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

static int write_records(struct seen *s, int fd, uint32_t from, uint32_t n)
{
	while (n > 0) {
		uint32_t at = (s->head + from) % SEEN_MAX;
		uint32_t run = at + n > SEEN_MAX ? SEEN_MAX - at : n;
		const char *p = (const char *)&s->rec[at];
		size_t left = run * sizeof s->rec[0];

		while (left > 0) {
			ssize_t w = write(fd, p, left);

			if (w < 0 && errno != EINTR)
				return -1;
			p += w > 0 ? w : 0;
			left -= w > 0 ? (size_t)w : 0;
		}
		from += run;
		n -= run;
	}
	return 0;
}

/* The file again with only what is remembered. A crash leaves the old one or the new one. */
static void rewrite(struct seen *s)
{
	struct text tmp = { 0 };
	int fd;

	text_printf(&tmp, "%s.new", s->path);
	fd = open(tmp.s, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0 || write_records(s, fd, 0, s->count) != 0 || rename(tmp.s, s->path) != 0) {
		complain(s, tmp.s);
		if (fd >= 0)
			close(fd);
	} else {
		if (s->fd >= 0)
			close(s->fd);
		s->fd = fd;
		s->written = s->count;
		s->unsaved = 0;
	}
	text_fini(&tmp);
}

static void load(struct seen *s, uint64_t now_ms)
{
	struct seen_rec r[256];
	size_t have = 0;
	bool stale = false;
	struct stat st;

	s->fd = open(s->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (s->fd < 0) {
		complain(s, s->path);
		return;
	}
	for (;;) {
		ssize_t n = read(s->fd, (char *)r + have, sizeof r - have);
		size_t full;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		have += (size_t)n;
		full = have / sizeof r[0];
		for (size_t i = 0; i < full; i++) {
			if (r[i].at_ms + SEEN_LIFE_MS < now_ms)
				stale = true;
			else
				insert(s, &r[i]);
		}
		memmove(r, r + full, have % sizeof r[0]);
		have %= sizeof r[0];
	}
	if (fstat(s->fd, &st) == 0)
		s->written = (uint64_t)st.st_size / sizeof r[0];
	/* a torn last record would shift all that come after it */
	if (stale || have != 0 || s->written > s->count)
		rewrite(s);
}

struct seen *seen_open(const char *path, uint64_t now_ms)
{
	struct seen *s = text_alloc(sizeof *s);

	s->rec = text_alloc(SEEN_MAX * sizeof s->rec[0]);
	s->slot = text_alloc(SEEN_SLOTS * sizeof s->slot[0]);
	s->fd = -1;
	if (path != NULL) {
		s->path = text_copy(path);
		load(s, now_ms);
	}
	return s;
}

void seen_free(struct seen *s)
{
	if (s == NULL)
		return;
	if (s->fd >= 0)
		close(s->fd);
	free(s->path);
	free(s->rec);
	free(s->slot);
	free(s);
}

bool seen_add(struct seen *s, const char *mid, size_t len, uint64_t now_ms)
{
	struct seen_rec r = { .at_ms = now_ms };

	crypto_generichash(r.key, sizeof r.key, (const unsigned char *)mid, len, NULL, 0);
	while (s->count > 0 && s->unsaved < s->count &&
	    s->rec[s->head].at_ms + SEEN_LIFE_MS < now_ms)
		drop_oldest(s);
	if (!insert(s, &r))
		return false;
	s->unsaved++;
	return true;
}

void seen_save(struct seen *s, size_t later)
{
	uint32_t n;

	if (s->unsaved <= later)
		return;
	n = s->unsaved - (uint32_t)later;
	if (s->fd >= 0 && write_records(s, s->fd, s->count - s->unsaved, n) != 0)
		complain(s, s->path);
	s->unsaved = (uint32_t)later;
	s->written += n;
	if (s->fd >= 0 && later == 0 && s->written > 2 * (uint64_t)SEEN_MAX)
		rewrite(s);
}

const char *seen_why(struct seen *s)
{
	static char said[sizeof s->why];

	if (s->why[0] == '\0')
		return NULL;
	memcpy(said, s->why, sizeof said);
	s->why[0] = '\0';
	return said;
}
