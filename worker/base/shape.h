/*
 * shape.h - frames that look like an earlier one: the parser's work, remembered.
 *
 * Scope   a client says the same thing again and again: the same names in the same order, with other
 *         numbers and texts between them. A shape is what such frames have in common, byte for
 *         byte, taken from one that frame_find() and json_parse() have accepted. A frame that fits a
 *         shape needs neither: only the values between are looked at. It gives the members that they
 *         would have given, and the same frames fit that they would have accepted.
 * Limits  simple frames (frame.h) of few members, numbers that are integers of at most 15 digits.
 *         A few shapes are kept, the least used go first.
 * Owner   the table is opaque, one a thread. What a match gives points into the frame's text, or into
 *         the table (names, values that are part of the shape), and is valid until the next
 *         shape_learn().
 * Errors  no match is no error: the frame goes the long way.
 */
#ifndef PARLEY_BASE_SHAPE_H
#define PARLEY_BASE_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/base/json.h"

#define SHAPE_MEMBERS 12

struct frame;
struct shapes;

struct shape_found {
	const char *text;		/* the frame */
	size_t len;
	int32_t cookie;			/* as given to shape_learn() */
	unsigned nothers;
};

struct shapes *shapes_new(void);		/* NULL: out of memory */
void shapes_free(struct shapes *t);

/*
 * Is there a whole frame at the scanner's place (between frames only) that fits a shape, and is not
 * longer than MAX? Then the scanner goes on behind it, each value goes to KNOWN[its tag] unless
 * it is null, and members of tag 0 go to OTHERS (SHAPE_MEMBERS of room), in order. Values are not
 * for json_count() and its like: their tok is -1. Else nothing has changed.
 */
bool shape_next(struct shapes *t, struct frame *f, const char *buf, size_t len, size_t max,
    struct shape_found *found, struct json_val *known, struct json_pair *others);

/*
 * Remembers the shape of a simple frame with these members. TAG says of each what its name means
 * to the caller, 0: nothing; COOKIE goes with it. The value of member number FIXED (-1: none) becomes
 * part of the shape. What does not fit the limits is not remembered.
 */
void shape_learn(struct shapes *t, const char *text, size_t len, const struct json_pair *pairs,
    const uint8_t *tags, size_t n, int fixed, int32_t cookie);

#endif
