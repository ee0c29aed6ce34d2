#include "client/outbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/text.h"

enum { F_CID, F_AT, F_KIND, F_ID, F_NAME, F_LABEL, F_TIME, F_TEXT, F_COUNT };

struct outbox {
	struct outbox_msg **msg;
	size_t count, cap, bytes;
	size_t dead;			/* lines in the file that no longer matter */
	char *path;
	int fd;
	char why[160];
};

static void add_field(struct text *t, const char *s)
{
	for (;;) {
		size_t n = strcspn(s, "\t\n\r\\");

		text_add(t, s, n);
		s += n;
		if (*s == '\0')
			return;
		text_puts(t, *s == '\t' ? "\\t" : *s == '\n' ? "\\n" : *s == '\r' ? "\\r" : "\\\\");
		s++;
	}
}

/* Undoes add_field() in place. */
static void read_field(char *s)
{
	char *to = s;

	for (; *s != '\0'; s++) {
		if (*s != '\\' || s[1] == '\0') {
			*to++ = *s;
			continue;
		}
		s++;
		*to++ = *s == 't' ? '\t' : *s == 'n' ? '\n' : *s == 'r' ? '\r' : *s;
	}
	*to = '\0';
}

static void put_record(struct text *t, const struct outbox_msg *m)
{
	text_puts(t, "+\t");
	add_field(t, m->cid);
	text_printf(t, "\t%llu\t%s\t%lld\t", (unsigned long long)m->at_ms, m->group ? "g" : "u",
	    (long long)m->id);
	add_field(t, m->name);
	text_puts(t, "\t");
	add_field(t, m->label);
	text_puts(t, "\t");
	add_field(t, m->time);
	text_puts(t, "\t");
	add_field(t, m->text);
	text_puts(t, "\n");
}

static size_t msg_bytes(const struct outbox_msg *m)
{
	return sizeof *m + strlen(m->text) + strlen(m->label) + strlen(m->name) + 128;
}

static void msg_free(struct outbox_msg *m)
{
	free(m->cid);
	free(m->name);
	free(m->label);
	free(m->time);
	free(m->text);
	free(m);
}

static void append(struct outbox *o, const struct outbox_msg *m, bool fresh)
{
	struct outbox_msg *c = text_alloc(sizeof *c);

	*c = (struct outbox_msg){
		.cid = text_copy(m->cid), .at_ms = m->at_ms, .group = m->group, .id = m->id,
		.name = text_copy(m->name), .label = text_copy(m->label),
		.time = text_copy(m->time), .text = text_copy(m->text), .fresh = fresh,
	};
	if (o->count == o->cap) {
		o->cap = o->cap ? o->cap * 2 : 64;
		o->msg = text_resize(o->msg, o->cap * sizeof o->msg[0]);
	}
	o->msg[o->count++] = c;
	o->bytes += msg_bytes(c);
}

static void forget(struct outbox *o, size_t i)
{
	struct outbox_msg *m = o->msg[i];

	o->bytes -= msg_bytes(m);
	memmove(&o->msg[i], &o->msg[i + 1], (o->count - i - 1) * sizeof o->msg[0]);
	o->count--;
	msg_free(m);
}

static int write_all(int fd, const char *s, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, s, len);

		if (n < 0 && errno != EINTR)
			return -1;
		s += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static void complain(struct outbox *o, const char *what)
{
	snprintf(o->why, sizeof o->why, "%s: %s", what, strerror(errno));
}

static void load_line(struct outbox *o, char *line)
{
	char *f[F_COUNT] = { 0 }, *p = line + 2;
	int n = 0;

	if (strncmp(line, "-\t", 2) == 0) {
		struct outbox_msg *m;

		read_field(p);
		m = outbox_find(o, p);
		for (size_t i = 0; m != NULL && i < o->count; i++)
			if (o->msg[i] == m) {
				forget(o, i);
				break;
			}
		return;
	}
	if (strncmp(line, "+\t", 2) != 0)
		return;
	while (n < F_COUNT && p != NULL) {
		f[n++] = strsep(&p, "\t");
		read_field(f[n - 1]);
	}
	if (n != F_COUNT || outbox_find(o, f[F_CID]) != NULL || o->count >= OUTBOX_MAX)
		return;
	append(o, &(struct outbox_msg){
		.cid = f[F_CID], .at_ms = strtoull(f[F_AT], NULL, 10),
		.group = f[F_KIND][0] == 'g', .id = text_id(f[F_ID]), .name = f[F_NAME],
		.label = f[F_LABEL], .time = f[F_TIME], .text = f[F_TEXT],
	}, false);
}

/* Writes the file anew with the open messages only; a crash leaves the old one or the new one. */
static int rewrite(struct outbox *o)
{
	struct text tmp = { 0 }, all = { 0 };
	int fd, rc = OUTBOX_EFILE;

	text_printf(&tmp, "%s.new", o->path);
	for (size_t i = 0; i < o->count; i++)
		put_record(&all, o->msg[i]);
	fd = open(tmp.s, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0 || write_all(fd, all.s, all.len) != 0 || fdatasync(fd) != 0 ||
	    rename(tmp.s, o->path) != 0) {
		complain(o, tmp.s);
		if (fd >= 0)
			close(fd);
		goto out;
	}
	if (o->fd >= 0)
		close(o->fd);
	o->fd = fd;
	o->dead = 0;
	rc = OUTBOX_OK;
out:
	text_fini(&tmp);
	text_fini(&all);
	return rc;
}

static void load(struct outbox *o)
{
	FILE *f = fopen(o->path, "re");
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;

	while (f != NULL && (n = getline(&line, &cap, f)) > 0) {
		if (line[n - 1] != '\n')
			break;
		line[n - 1] = '\0';
		if (strlen(line) == (size_t)n - 1)
			load_line(o, line);
	}
	free(line);
	if (f != NULL)
		fclose(f);
	rewrite(o);		/* drops what is closed and a torn last line, opens for appending */
}

struct outbox *outbox_open(const char *path)
{
	struct outbox *o = text_alloc(sizeof *o);

	o->fd = -1;
	if (path != NULL) {
		o->path = text_copy(path);
		load(o);
	}
	return o;
}

void outbox_free(struct outbox *o)
{
	if (o == NULL)
		return;
	for (size_t i = 0; i < o->count; i++)
		msg_free(o->msg[i]);
	if (o->fd >= 0)
		close(o->fd);
	free(o->msg);
	free(o->path);
	free(o);
}

int outbox_add(struct outbox *o, const struct outbox_msg *m)
{
	struct text line = { 0 };
	int rc = OUTBOX_OK;

	if (o->count >= OUTBOX_MAX || o->bytes + msg_bytes(m) > OUTBOX_MAX_BYTES)
		return OUTBOX_EFULL;
	if (o->path != NULL) {
		put_record(&line, m);
		if (o->fd < 0 && rewrite(o) != OUTBOX_OK)
			rc = OUTBOX_EFILE;
		else if (write_all(o->fd, line.s, line.len) != 0 || fdatasync(o->fd) != 0) {
			complain(o, o->path);
			close(o->fd);		/* a torn line must not glue to the next one */
			o->fd = -1;
			rc = OUTBOX_EFILE;
		}
		text_fini(&line);
	}
	append(o, m, true);
	return rc;
}

size_t outbox_count(const struct outbox *o)
{
	return o->count;
}

struct outbox_msg *outbox_at(struct outbox *o, size_t i)
{
	return i < o->count ? o->msg[i] : NULL;
}

struct outbox_msg *outbox_find(struct outbox *o, const char *cid)
{
	for (size_t i = 0; i < o->count; i++)
		if (strcmp(o->msg[i]->cid, cid) == 0)
			return o->msg[i];
	return NULL;
}

void outbox_close(struct outbox *o, struct outbox_msg *m)
{
	struct text line = { 0 };
	size_t i = 0;

	while (o->msg[i] != m)
		i++;
	text_puts(&line, "-\t");
	add_field(&line, m->cid);
	text_puts(&line, "\n");
	forget(o, i);
	/* without the line the message would only be sent again, and dropped as known */
	if (o->fd >= 0 && write_all(o->fd, line.s, line.len) != 0) {
		complain(o, o->path);
		close(o->fd);
		o->fd = -1;
	}
	text_fini(&line);
	o->dead += 2;
	if (o->fd >= 0 && o->count == 0 && o->dead >= 64) {
		if (ftruncate(o->fd, 0) == 0)
			o->dead = 0;
	} else if (o->path != NULL && o->dead > 4096 && o->dead > 2 * o->count) {
		rewrite(o);
	}
}

bool outbox_same_lane(const struct outbox_msg *a, const struct outbox_msg *b)
{
	return a->group == b->group && a->id == b->id && text_same_name(a->name, b->name);
}

const char *outbox_why(struct outbox *o)
{
	static char said[sizeof o->why];

	if (o->why[0] == '\0')
		return NULL;
	memcpy(said, o->why, sizeof said);
	o->why[0] = '\0';
	return said;
}
