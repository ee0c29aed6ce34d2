/*
 * show.h - what the person or the script gets to see: lines of text, or JSON lines.
 *
 * Scope   renders into a queue; the shell's loop writes it out when the other side takes it, so a
 *         stopped terminal or a full pipe never blocks the connection. Everything that came over
 *         the wire is cleaned here (text.h). Three modes: SHOW_TERM (a terminal: short times,
 *         notes and errors among the lines, colours where asked), SHOW_TEXT (a script: results
 *         and messages on standard output, notes and errors on standard error) and SHOW_JSON (the
 *         same, one JSON object a line).
 * Units   bytes of output, counted from the start: show_queued() and show_written() say which
 *         lines have reached the other side.
 * Owner   struct show owns its queue.
 * Errors  show_write() answers -1 when standard output is gone.
 */
#ifndef PARLEY_CLIENT_SHOW_H
#define PARLEY_CLIENT_SHOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_out;

#define SHOW_HIGH (1u << 20)	/* queued bytes past which nothing more should be read */

enum show_mode { SHOW_TERM, SHOW_TEXT, SHOW_JSON };

enum show_colour { SHOW_PLAIN, SHOW_DIM, SHOW_RED, SHOW_GREEN, SHOW_PERSON, SHOW_GROUP };

struct show;

struct show_msg {
	bool group, waiting;		/* waiting: from before this login */
	int64_t from, to;		/* ids; to is the group's where group */
	const char *from_name, *to_name;	/* to_name "" where unknown */
	const char *text, *time;
	size_t text_len;
	uint64_t ts_ms;			/* 0: unknown */
	const char *mid;
};

struct show *show_new(enum show_mode mode, bool colours);
void show_free(struct show *s);
enum show_mode show_mode(const struct show *s);
/* The number of the input line that errors belong to; 0 for none. */
void show_at_line(struct show *s, unsigned long line);

/* A line of result; not for SHOW_JSON. The text must be clean. */
void show_line(struct show *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same in a colour (terminals only). */
void show_tinted(struct show *s, enum show_colour c, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Something that the person should know: a dim line, or standard error. */
void show_note(struct show *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/*
 * A thing asked for did not happen. ERR is the server's errno or 0 where we say so ourselves;
 * ERRMSG (as received, may be NULL) and RETRY_MS (0: none) are the server's.
 */
void show_error(struct show *s, int err, const char *errmsg, uint64_t retry_ms,
    const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void show_message(struct show *s, const struct show_msg *m);

/*
 * Begins {"event": NAME ...}: NULL unless SHOW_JSON. NEED bounds the bytes that are added before
 * show_event_end() queues the line.
 */
struct json_out *show_event(struct show *s, const char *name, size_t need);
void show_event_end(struct show *s);

uint64_t show_queued(const struct show *s);
uint64_t show_written(const struct show *s);
/* Writes what FD takes without blocking; the caller's poll() said that it takes something. */
int show_write(struct show *s, int fd);

/* The escape sequence that starts a colour, "" where there are none. */
const char *show_paint(const struct show *s, enum show_colour c);

#endif
