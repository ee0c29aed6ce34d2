#include "client/show.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/json.h"
#include "worker/proto.h"

struct show {
	enum show_mode mode;
	bool colours;
	struct text out;
	uint64_t written;
	unsigned long line;
	struct json_out json;
	char *json_buf;
};

struct show *show_new(enum show_mode mode, bool colours)
{
	struct show *s = text_alloc(sizeof *s);

	s->mode = mode;
	s->colours = colours && mode == SHOW_TERM;
	return s;
}

void show_free(struct show *s)
{
	if (s == NULL)
		return;
	text_fini(&s->out);
	free(s->json_buf);
	free(s);
}

enum show_mode show_mode(const struct show *s)
{
	return s->mode;
}

void show_at_line(struct show *s, unsigned long line)
{
	s->line = line;
}

const char *show_paint(const struct show *s, enum show_colour c)
{
	static const char *const seq[] = {
		[SHOW_PLAIN] = "\033[0m", [SHOW_DIM] = "\033[2m", [SHOW_RED] = "\033[31m",
		[SHOW_GREEN] = "\033[32m", [SHOW_PERSON] = "\033[1;36m", [SHOW_GROUP] = "\033[35m",
	};

	return s->colours ? seq[c] : "";
}

static void add_tinted(struct show *s, enum show_colour c, const char *text)
{
	text_puts(&s->out, show_paint(s, c));
	text_puts(&s->out, text);
	if (c != SHOW_PLAIN)
		text_puts(&s->out, show_paint(s, SHOW_PLAIN));
}

#define FORMAT(var, fmt)					\
	do {							\
		va_list ap_;					\
								\
		va_start(ap_, fmt);				\
		if (vasprintf(&(var), fmt, ap_) < 0)		\
			abort();				\
		va_end(ap_);					\
	} while (0)

void show_line(struct show *s, const char *fmt, ...)
{
	char *text;

	FORMAT(text, fmt);
	if (s->mode != SHOW_JSON) {
		text_puts(&s->out, text);
		text_puts(&s->out, "\n");
	}
	free(text);
}

void show_tinted(struct show *s, enum show_colour c, const char *fmt, ...)
{
	char *text;

	FORMAT(text, fmt);
	if (s->mode != SHOW_JSON) {
		add_tinted(s, c, text);
		text_puts(&s->out, "\n");
	}
	free(text);
}

/* To standard error, with what was queued before it ahead of it where that is possible. */
static void say_aside(struct show *s, const char *line)
{
	struct pollfd p = { .fd = STDOUT_FILENO, .events = POLLOUT };

	while (s->out.len > 0 && poll(&p, 1, 0) == 1 && p.revents == POLLOUT)
		if (show_write(s, STDOUT_FILENO) != 0)
			break;
	fprintf(stderr, "%s\n", line);
}

static void event_aside(struct show *s)
{
	struct text t = { 0 };

	json_close(&s->json, '}');
	text_clean(&t, TEXT_JSON, s->json.buf, s->json.len);
	say_aside(s, t.s);
	text_fini(&t);
}

void show_note(struct show *s, const char *fmt, ...)
{
	struct json_out *w;
	char *text, *line;

	FORMAT(text, fmt);
	if (s->mode == SHOW_TERM) {
		show_tinted(s, SHOW_DIM, "* %s", text);
	} else if ((w = show_event(s, "note", strlen(text) * 6 + 64)) != NULL) {
		json_kv_str(w, "text", text);
		event_aside(s);
	} else if (asprintf(&line, "parley: %s", text) > 0) {
		say_aside(s, line);
		free(line);
	}
	free(text);
}

static void error_event(struct show *s, const char *what, int err, const char *errmsg,
    uint64_t retry_ms)
{
	struct json_out *w = show_event(s, "error", (strlen(what) + strlen(errmsg)) * 6 + 256);

	json_kv_str(w, "text", what);
	if (s->line > 0)
		json_kv_int(w, "line", (int64_t)s->line);
	if (err != 0) {
		json_kv_int(w, "errno", err);
		json_kv_str(w, "errmsg", errmsg);
	}
	if (retry_ms > 0)
		json_kv_int(w, "retry_ms", (int64_t)retry_ms);
	event_aside(s);
}

void show_error(struct show *s, int err, const char *errmsg, uint64_t retry_ms,
    const char *fmt, ...)
{
	struct text t = { 0 };
	char *what;

	if (errmsg == NULL || errmsg[0] == '\0')
		errmsg = proto_errmsg((enum proto_errno)err);
	FORMAT(what, fmt);
	if (s->mode == SHOW_JSON) {
		error_event(s, what, err, errmsg, retry_ms);
		free(what);
		return;
	}
	if (s->mode == SHOW_TEXT)
		text_puts(&t, "parley: ");
	if (s->mode == SHOW_TEXT && s->line > 0)
		text_printf(&t, "line %lu: ", s->line);
	text_puts(&t, what);
	if (err != 0) {
		text_puts(&t, ": ");
		text_clean(&t, TEXT_SHOWN, errmsg, strlen(errmsg));
		text_printf(&t, " (errno %d)", err);
	}
	if (retry_ms > 0)
		text_printf(&t, ", again in %.1f s", (double)retry_ms / 1000);
	if (s->mode == SHOW_TERM)
		show_tinted(s, SHOW_RED, "! %s", t.s);
	else
		say_aside(s, t.s);
	text_fini(&t);
	free(what);
}

/* [14:03], with the day where it is not today; scripts always get all of it. */
static void add_when(struct show *s, const struct show_msg *m)
{
	uint64_t now = clock_wall_ms();
	char when[20], today[20];

	if (m->ts_ms == 0) {
		text_puts(&s->out, "[");
		text_clean(&s->out, TEXT_SHOWN, m->time, strlen(m->time));
		text_puts(&s->out, "]");
		return;
	}
	clock_text(m->ts_ms, when);
	clock_text(now, today);
	if (s->mode == SHOW_TERM && memcmp(when, today, 10) == 0)
		text_printf(&s->out, "[%.5s]", when + 11);
	else if (s->mode == SHOW_TERM)
		text_printf(&s->out, "[%.16s]", when);
	else
		text_printf(&s->out, "[%s]", when);
}

static void add_party(struct json_out *w, const char *key, int64_t id, const char *name)
{
	json_key(w, key);
	json_open(w, '{');
	json_kv_int(w, "id", id);
	if (name[0] != '\0')
		json_kv_str(w, "name", name);
	json_close(w, '}');
}

static void message_event(struct show *s, const struct show_msg *m)
{
	struct json_out *w = show_event(s, "message", 6 * (m->text_len + strlen(m->time) +
	    strlen(m->from_name) + strlen(m->to_name) + strlen(m->mid)) + 512);

	add_party(w, "from", m->from, m->from_name);
	add_party(w, m->group ? "group" : "to", m->to, m->to_name);
	json_kv_text(w, "text", m->text, m->text_len);
	json_kv_str(w, "time", m->time);
	if (m->ts_ms > 0)
		json_kv_int(w, "ts", (int64_t)m->ts_ms);
	if (m->mid[0] != '\0')
		json_kv_str(w, "mid", m->mid);
	json_kv_bool(w, "waiting", m->waiting);
	show_event_end(s);
}

void show_message(struct show *s, const struct show_msg *m)
{
	struct text t = { 0 };

	if (s->mode == SHOW_JSON) {
		message_event(s, m);
		return;
	}
	add_when(s, m);
	text_puts(&s->out, " ");
	if (m->group) {
		text_puts(&t, "#");
		if (m->to_name[0] != '\0')
			text_name(&t, m->to_name);
		else
			text_printf(&t, "%lld", (long long)m->to);
		add_tinted(s, SHOW_GROUP, t.s);
		text_puts(&s->out, " ");
		text_clear(&t);
	}
	text_name(&t, m->from_name);
	add_tinted(s, SHOW_PERSON, t.s);
	text_puts(&s->out, ": ");
	text_clean(&s->out, TEXT_SHOWN, m->text, m->text_len);
	text_puts(&s->out, "\n");
	text_fini(&t);
}

struct json_out *show_event(struct show *s, const char *name, size_t need)
{
	if (s->mode != SHOW_JSON)
		return NULL;
	s->json_buf = text_resize(s->json_buf, need + 128);
	json_out_init(&s->json, s->json_buf, need + 128);
	json_open(&s->json, '{');
	json_kv_str(&s->json, "event", name);
	return &s->json;
}

void show_event_end(struct show *s)
{
	json_close(&s->json, '}');
	if (s->json.over)
		return;
	text_clean(&s->out, TEXT_JSON, s->json.buf, s->json.len);
	text_puts(&s->out, "\n");
}

uint64_t show_queued(const struct show *s)
{
	return s->written + s->out.len;
}

uint64_t show_written(const struct show *s)
{
	return s->written;
}

int show_write(struct show *s, int fd)
{
	/* a pipe that is writable takes PIPE_BUF bytes without blocking, not more for sure */
	size_t len = s->out.len > PIPE_BUF ? PIPE_BUF : s->out.len;
	ssize_t n = write(fd, s->out.s, len);

	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -1;
	text_drop(&s->out, (size_t)n);
	s->written += (uint64_t)n;
	return 0;
}
