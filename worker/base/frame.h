/*
 * frame.h - bytes to frames: finds where one JSON object ends, however the stream was cut.
 *
 * Scope   a resumable, validating scanner. It checks RFC 8259 syntax, UTF-8, escapes (no lone
 *         surrogate, no \u0000), depth and the number of values as each byte arrives, so that
 *         what cannot become a frame is refused at the first wrong byte and not at a closing
 *         brace that may never come. It knows no sockets and keeps no bytes: the caller's
 *         buffer holds them, contiguous. A frame that lies there whole is taken in one go; in all
 *         others no byte is looked at more than twice, however the stream was cut.
 * Units   bytes. Offsets count from the start of the caller's buffer.
 * Owner   struct frame is plain data that the caller embeds (copy it to move a session).
 * Errors  enum frame_rc; after FRAME_BAD the stream cannot be trusted and frame_next() answers
 *         FRAME_BAD for ever.
 * Source  RFC 8259; RFC 3629; a plain frame of 154 bytes takes about 25 ns.
 */
#ifndef PARLEY_BASE_FRAME_H
#define PARLEY_BASE_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_MAX_DEPTH  16	/* levels of { and [, the frame's own included */
#define FRAME_MAX_VALUES 512	/* values in one frame, the frame itself included */
#define FRAME_LARGE_VALUES 16384	/* the same for a client's reader */

enum frame_rc {
	FRAME_MORE = 0,		/* all of the buffer was looked at; no frame ends in it yet */
	FRAME_ONE = 1,		/* a frame stands at [start, end) */
	FRAME_BAD = -1		/* no frame can come of this; frame_why() says what was wrong */
};

struct frame {
	uint32_t pos;		/* bytes of the buffer already looked at */
	uint32_t start;		/* where the frame in progress begins (valid while depth > 0) */
	uint32_t cp;		/* code point being gathered from \u escapes or UTF-8 */
	uint16_t stack;		/* bit i: level i is an object (else an array) */
	uint16_t values;	/* values seen in this frame */
	uint8_t depth;		/* open levels */
	uint8_t state;		/* private to frame.c */
	uint8_t sub;		/* private to frame.c: digits or continuation bytes still due */
	uint8_t bad;		/* enum of the reason, 0 while good */
};

#define FRAME_LONGS 4
#define FRAME_LONG  24	/* bytes, quotes included, that make a string a long one */

/*
 * What else was seen of a frame that lay whole in the buffer, so that nobody has to look again:
 * string values that are long (the first few; offsets from the frame's brace, quotes included), and
 * whether it is simple, as most are: no object or array in it, only plain ASCII in its names, no
 * number that a double might not hold. All zero: not known.
 */
struct frame_seen {
	uint8_t nlongs;
	bool simple;
	struct { uint32_t at, end; } longs[FRAME_LONGS];
};

/* Starts afresh at offset 0. All zero bytes are a fresh scanner, too. */
void frame_init(struct frame *f);

/*
 * Looks at buf[f->pos .. len) until a frame is complete, at most MAX bytes long counted from its
 * brace. Between frames runs of space, tab, CR, LF and NUL are skipped. On FRAME_ONE, [*start_r,
 * *end_r) is the frame and the next call goes on behind it.
 */
enum frame_rc frame_next(struct frame *f, const char *buf, size_t len, size_t max,
    size_t *start_r, size_t *end_r);

/* The same, and what else was seen of the frame. */
enum frame_rc frame_find(struct frame *f, const char *buf, size_t len, size_t max,
    size_t *start_r, size_t *end_r, struct frame_seen *seen_r);

/* The same with another limit of values (at most 65,534): what a client allows its server. */
enum frame_rc frame_next_values(struct frame *f, const char *buf, size_t len, size_t max,
    unsigned max_values, size_t *start_r, size_t *end_r);

/* Where, between frames, the next one begins: at the first byte that is no white space. LEN: not
 * here, or one has begun, or the stream is bad. */
size_t frame_gap(const struct frame *f, const char *buf, size_t len);

/* True when nothing of a frame has begun: bytes before f->pos may be dropped. */
int frame_idle(const struct frame *f);

/* The caller dropped N bytes from the front of its buffer (N <= pos, and <= start inside one). */
void frame_shift(struct frame *f, size_t n);

/* A sentence that says what was wrong; valid for ever. */
const char *frame_why(const struct frame *f);

#endif
