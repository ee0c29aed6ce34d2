/*
 * A pushdown scanner with one state byte, so that a session's whole parse fits in its record.
 *
 * A frame that begins and ends in the buffer, as nearly all do, is taken by whole(): straight
 * code, with the plain bytes of strings skipped many at a time. It only ever says yes. Whatever it
 * does not like, or does not see the end of, goes byte by byte through step(), which says what is
 * wrong, and where, however the stream was cut. There the struct is copied to a local for the
 * length of a call, which keeps its fields in registers.
 *
 * What is refused early: a number such as 01 at its 1, \u0000 at its last digit, a lone low
 * surrogate at its second digit (no byte that follows could mend it), and a frame that has
 * reached MAX without its closing brace.
 */
#include "worker/base/frame.h"

#include <string.h>

#include "worker/base/scan.h"

enum {
	ST_IDLE,		/* between frames; zero, so that zero bytes are a fresh scanner */
	ST_FIRST_KEY,		/* after { : a key or } */
	ST_KEY,			/* after , in an object: a key */
	ST_COLON,		/* after a key */
	ST_FIRST_ELEM,		/* after [ : a value or ] */
	ST_VALUE,		/* after : or , in an array: a value */
	ST_AFTER,		/* after a value: , or the closing bracket */
	ST_LITERAL,		/* in true, false, null: cp indexes the byte due in literals[] */
	ST_MINUS, ST_ZERO, ST_INT, ST_DOT, ST_FRAC, ST_EXP, ST_EXP_SIGN, ST_EXP_INT,
	ST_STRING,		/* from here on: inside a string */
	ST_ESCAPE,		/* after a backslash */
	ST_HEX,			/* in \uXXXX */
	ST_PAIR_SLASH,		/* after a high surrogate: \ */
	ST_PAIR_U,		/* then u */
	ST_PAIR_HEX,		/* then the low surrogate's digits */
	ST_UTF8			/* continuation bytes due; cp holds the next one's bounds */
};

enum why {
	WHY_GOOD, WHY_START, WHY_SYNTAX, WHY_KEY, WHY_COLON, WHY_VALUE, WHY_CLOSE, WHY_LITERAL,
	WHY_NUMBER, WHY_CONTROL, WHY_ESCAPE, WHY_NUL, WHY_SURROGATE, WHY_UTF8, WHY_DEPTH,
	WHY_VALUES, WHY_LONG
};

static const char *const why_text[] = {
	[WHY_GOOD] = "nothing is wrong",
	[WHY_START] = "a frame must start with {",
	[WHY_SYNTAX] = "a comma or a closing bracket is missing",
	[WHY_KEY] = "a member's name in double quotes was expected",
	[WHY_COLON] = "a colon was expected after a member's name",
	[WHY_VALUE] = "a value was expected",
	[WHY_CLOSE] = "a closing bracket does not match the open one",
	[WHY_LITERAL] = "a word that is not true, false or null",
	[WHY_NUMBER] = "a number is written wrongly",
	[WHY_CONTROL] = "a control character stands in a string; it must be escaped",
	[WHY_ESCAPE] = "an unknown escape in a string",
	[WHY_NUL] = "the character U+0000 is not allowed",
	[WHY_SURROGATE] = "half of a surrogate pair in a string",
	[WHY_UTF8] = "a string is not valid UTF-8",
	[WHY_DEPTH] = "nested deeper than 16 levels",
	[WHY_VALUES] = "too many values in one frame",
	[WHY_LONG] = "the frame is too long"
};

#define SUB_KEY 0x80u		/* in f->sub: the string in progress is a member's name */
#define SUB_DUE 0x0fu		/* in f->sub: digits or continuation bytes still due */

/* What may follow a lead byte of UTF-8: bounds of the first continuation, the lower in the high
 * byte. The bounds are what excludes overlong forms, surrogates and what lies past U+10FFFF. */
#define BOUNDS(lo, hi) ((uint32_t)(lo) << 8 | (hi))

static const char literals[] = "true\0false\0null";

static inline int is_space(unsigned char c)
{
	return c <= ' ' && (c == ' ' || c == '\n' || c == '\r' || c == '\t');
}

static inline int is_digit(unsigned char c)
{
	return c >= '0' && c <= '9';
}

/* One reason for every caller: the value of enum why doubles as "stop". */
static inline enum why go(struct frame *f, unsigned state)
{
	f->state = (uint8_t)state;
	return WHY_GOOD;
}

static inline enum why open_level(struct frame *f, int object)
{
	if (f->depth == FRAME_MAX_DEPTH)
		return WHY_DEPTH;
	if (object)
		f->stack |= (uint16_t)(1u << f->depth);
	else
		f->stack &= (uint16_t)~(1u << f->depth);
	f->depth++;
	return go(f, object ? ST_FIRST_KEY : ST_FIRST_ELEM);
}

static inline int in_object(const struct frame *f)
{
	return f->stack >> (f->depth - 1) & 1;
}

static inline enum why close_level(struct frame *f, unsigned char c)
{
	if (in_object(f) != (c == '}'))
		return WHY_CLOSE;
	f->depth--;
	return go(f, f->depth > 0 ? ST_AFTER : ST_IDLE);
}

static inline enum why begin_string(struct frame *f, unsigned key)
{
	f->sub = (uint8_t)key;
	return go(f, ST_STRING);
}

static enum why begin_literal(struct frame *f, uint32_t at)
{
	f->cp = at + 1;
	return go(f, ST_LITERAL);
}

static inline enum why begin_value(struct frame *f, unsigned char c, unsigned max_values)
{
	enum why why;

	switch (c) {
	case '"':
		why = begin_string(f, 0);
		break;
	case '{':
	case '[':
		why = open_level(f, c == '{');
		break;
	case '-':
		why = go(f, ST_MINUS);
		break;
	case '0':
		why = go(f, ST_ZERO);
		break;
	case 't':
		why = begin_literal(f, 0);
		break;
	case 'f':
		why = begin_literal(f, 5);
		break;
	case 'n':
		why = begin_literal(f, 11);
		break;
	default:
		if (!is_digit(c))
			return WHY_VALUE;
		why = go(f, ST_INT);
	}
	if (why == WHY_GOOD && ++f->values > max_values)
		return WHY_VALUES;
	return why;
}

static inline enum why after_value(struct frame *f, unsigned char c)
{
	if (c == ',')
		return go(f, in_object(f) ? ST_KEY : ST_VALUE);
	if (c == '}' || c == ']')
		return close_level(f, c);
	return is_space(c) ? go(f, ST_AFTER) : WHY_SYNTAX;
}

/* The byte behind a number that may end here. A digit or a letter there means a bad number. */
static inline enum why end_number(struct frame *f, unsigned char c)
{
	if (c == ',' || c == '}' || c == ']' || is_space(c))
		return after_value(f, c);
	return WHY_NUMBER;
}

static enum why number_byte(struct frame *f, unsigned char c)
{
	int digit = is_digit(c);

	switch (f->state) {
	case ST_MINUS:
		return digit ? go(f, c == '0' ? ST_ZERO : ST_INT) : WHY_NUMBER;
	case ST_INT:
		if (digit)
			return WHY_GOOD;
		/* fall through */
	case ST_ZERO:
		if (c == '.')
			return go(f, ST_DOT);
		return c == 'e' || c == 'E' ? go(f, ST_EXP) : end_number(f, c);
	case ST_DOT:
		return digit ? go(f, ST_FRAC) : WHY_NUMBER;
	case ST_FRAC:
		if (digit)
			return WHY_GOOD;
		return c == 'e' || c == 'E' ? go(f, ST_EXP) : end_number(f, c);
	case ST_EXP:
		if (c == '+' || c == '-')
			return go(f, ST_EXP_SIGN);
		/* fall through */
	case ST_EXP_SIGN:
		return digit ? go(f, ST_EXP_INT) : WHY_NUMBER;
	default:			/* ST_EXP_INT */
		return digit ? WHY_GOOD : end_number(f, c);
	}
}

static enum why begin_utf8(struct frame *f, unsigned char c)
{
	unsigned due = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;

	if (c < 0xc2 || c > 0xf4)
		return WHY_UTF8;
	f->cp = c == 0xe0 ? BOUNDS(0xa0, 0xbf) : c == 0xed ? BOUNDS(0x80, 0x9f) :
	    c == 0xf0 ? BOUNDS(0x90, 0xbf) : c == 0xf4 ? BOUNDS(0x80, 0x8f) : BOUNDS(0x80, 0xbf);
	f->sub = (uint8_t)((f->sub & SUB_KEY) | due);
	return go(f, ST_UTF8);
}

static inline enum why utf8_byte(struct frame *f, unsigned char c)
{
	if (c < f->cp >> 8 || c > (f->cp & 0xff))
		return WHY_UTF8;
	f->cp = BOUNDS(0x80, 0xbf);
	return go(f, (--f->sub & SUB_DUE) != 0 ? ST_UTF8 : ST_STRING);
}

static enum why escape_byte(struct frame *f, unsigned char c)
{
	if (c != 'u')
		return c != 0 && strchr("\"\\/bfnrt", c) != NULL ? go(f, ST_STRING) : WHY_ESCAPE;
	f->cp = 0;
	f->sub = (uint8_t)((f->sub & SUB_KEY) | 4);
	return go(f, ST_HEX);
}

static enum why hex_byte(struct frame *f, unsigned char c)
{
	unsigned digit = c | 0x20;
	unsigned due;
	int pair = f->state == ST_PAIR_HEX;

	if (is_digit(c))
		digit = c - '0';
	else if (digit >= 'a' && digit <= 'f')
		digit -= 'a' - 10;
	else
		return WHY_ESCAPE;
	f->cp = f->cp << 4 | digit;
	due = --f->sub & SUB_DUE;
	if (pair && due == 3 && f->cp != 0xd)
		return WHY_SURROGATE;
	if (due == 2 && (f->cp >> 2 == 0xdc >> 2) != pair)
		return WHY_SURROGATE;
	if (due != 0)
		return WHY_GOOD;
	if (f->cp == 0)
		return WHY_NUL;
	return go(f, f->cp >> 10 == 0xd800 >> 10 ? ST_PAIR_SLASH : ST_STRING);
}

static enum why string_byte(struct frame *f, unsigned char c)
{
	switch (f->state) {
	case ST_STRING:
		if (c == '"')
			return go(f, (f->sub & SUB_KEY) != 0 ? ST_COLON : ST_AFTER);
		if (c == '\\')
			return go(f, ST_ESCAPE);
		if (c >= 0x80)
			return begin_utf8(f, c);
		return c < 0x20 ? (c == 0 ? WHY_NUL : WHY_CONTROL) : WHY_GOOD;
	case ST_UTF8:
		return utf8_byte(f, c);
	case ST_ESCAPE:
		return escape_byte(f, c);
	case ST_PAIR_SLASH:
		return c == '\\' ? go(f, ST_PAIR_U) : WHY_SURROGATE;
	case ST_PAIR_U:
		if (c != 'u')
			return WHY_SURROGATE;
		escape_byte(f, c);
		return go(f, ST_PAIR_HEX);
	default:			/* ST_HEX, ST_PAIR_HEX */
		return hex_byte(f, c);
	}
}

static inline enum why literal_byte(struct frame *f, unsigned char c)
{
	if (literals[f->cp] != '\0')
		return c == (unsigned char)literals[f->cp++] ? WHY_GOOD : WHY_LITERAL;
	if (c == ',' || c == '}' || c == ']' || is_space(c))
		return after_value(f, c);
	return WHY_LITERAL;
}

/* One byte inside a frame. */
static inline enum why step(struct frame *f, unsigned char c, unsigned max_values)
{
	if (f->state >= ST_STRING)
		return string_byte(f, c);
	if (f->state >= ST_MINUS)
		return number_byte(f, c);
	if (f->state == ST_LITERAL)
		return literal_byte(f, c);
	if (f->state == ST_AFTER)
		return after_value(f, c);
	if (is_space(c))
		return WHY_GOOD;
	switch (f->state) {
	case ST_FIRST_KEY:
		if (c == '}')
			return close_level(f, c);
		/* fall through */
	case ST_KEY:
		return c == '"' ? begin_string(f, SUB_KEY) : WHY_KEY;
	case ST_COLON:
		return c == ':' ? go(f, ST_VALUE) : WHY_COLON;
	case ST_FIRST_ELEM:
		if (c == ']')
			return close_level(f, c);
		/* fall through */
	default:			/* ST_VALUE */
		return begin_value(f, c, max_values);
	}
}

/* ---- a frame in one go ---- */

static inline const char *skip_space(const char *p, const char *end)
{
	while (p < end && is_space((unsigned char)*p))
		p++;
	return p;
}

const char *frame_skip_odd(const char *p, const char *end)
{
	struct frame s = { .state = ST_STRING };

	do {
		if (p == end || string_byte(&s, (unsigned char)*p++) != WHY_GOOD)
			return NULL;
	} while (s.state != ST_STRING);
	return p;
}

/* Behind a run of digits; NULL where there is none. */
static inline const char *skip_digits(const char *p, const char *end)
{
	const char *from = p;

	while (p < end && is_digit((unsigned char)*p))
		p++;
	return p == from ? NULL : p;
}

/* Behind the number at P; what follows it is the caller's to look at. ODD: a double may not hold it. */
static inline const char *skip_number(const char *p, const char *end, bool *odd_r)
{
	const char *all = p, *from;

	if (*p == '-')
		p++;
	from = p;
	p = skip_digits(p, end);
	if (p == NULL || (*from == '0' && p - from > 1))
		return NULL;
	if (p < end && *p == '.' && (p = skip_digits(p + 1, end)) == NULL)
		return NULL;
	if (p < end && (*p | 0x20) == 'e') {
		*odd_r = true;
		p++;
		p = skip_digits(p + (p < end && (*p == '+' || *p == '-')), end);
	}
	if (p != NULL && p - all > 300)
		*odd_r = true;
	return p;
}

static const char *skip_literal(const char *p, const char *end)
{
	size_t left = (size_t)(end - p);

	if (left >= 4 && (memcmp(p, "true", 4) == 0 || memcmp(p, "null", 4) == 0))
		return p + 4;
	return left >= 5 && memcmp(p, "false", 5) == 0 ? p + 5 : NULL;
}

/* The value of a member stands behind its name and a colon. NULL: not so. */
static ALWAYS_INLINE const char *skip_name(const char *p, const char *end, bool *odd_r)
{
	if (p == end || *p != '"')
		return NULL;
	p = scan_string(p + 1, end, odd_r);
	if (p == NULL)
		return NULL;
	p = skip_space(p, end);
	return p == end || *p != ':' ? NULL : skip_space(p + 1, end);
}

static ALWAYS_INLINE const char *skip_simple(const char *p, const char *end, const char *frame,
    struct frame_seen *seen, bool *odd_r)
{
	const char *from = p;
	bool any;

	if (*p != '"')
		return *p == '-' || is_digit((unsigned char)*p) ? skip_number(p, end, odd_r) :
		    skip_literal(p, end);
	p = scan_string(p + 1, end, &any);
	if (p != NULL && p - from >= FRAME_LONG && seen->nlongs < FRAME_LONGS) {
		seen->longs[seen->nlongs].at = (uint32_t)(from - frame);
		seen->longs[seen->nlongs++].end = (uint32_t)(p - frame);
	}
	return p;
}

/* Behind the frame at P, *VALUES_R of them in it; NULL: step() must look at it. */
static const char *whole(const char *p, const char *end, unsigned max_values, uint16_t *values_r,
    struct frame_seen *seen)
{
	const char *frame = p++;
	uint32_t objects = 1, depth = 1, values = 1;	/* bit i of objects: level i is one */
	bool odd = false, first = true;

	seen->simple = true;
	for (;;) {
		p = skip_space(p, end);
		if (!first || p == end || (*p != '}' && *p != ']')) {
			if ((objects & 1) != 0 && (p = skip_name(p, end, &odd)) == NULL)
				return NULL;
			if (p == end || ++values > max_values)
				return NULL;
			first = *p == '{' || *p == '[';
			if (first) {
				if (depth++ == FRAME_MAX_DEPTH)
					return NULL;
				objects = objects << 1 | (*p++ == '{');
				seen->simple = false;
				continue;
			}
			if ((p = skip_simple(p, end, frame, seen, &odd)) == NULL)
				return NULL;
		}
		for (p = skip_space(p, end); p != end && *p != ','; p = skip_space(p, end)) {
			if (*p++ != ((objects & 1) != 0 ? '}' : ']'))
				return NULL;
			if (--depth == 0) {
				seen->simple = seen->simple && !odd;
				*values_r = (uint16_t)values;
				return p;
			}
			objects >>= 1;
		}
		if (p++ == end)
			return NULL;
		first = false;
	}
}

/* ---- byte by byte ---- */

size_t frame_gap(const struct frame *f, const char *buf, size_t len)
{
	size_t at = f->pos;

	if (f->depth > 0 || f->bad != WHY_GOOD)
		return len;
	while (at < len && (is_space((unsigned char)buf[at]) || buf[at] == '\0'))
		at++;
	return at;
}

/* Skips what may stand between frames and begins one. */
static enum why find_start(struct frame *f, const char *buf, size_t len)
{
	size_t at = frame_gap(f, buf, len);

	f->pos = (uint32_t)at;
	if (at == len)
		return WHY_GOOD;
	if (buf[at] != '{')
		return WHY_START;
	f->start = f->pos++;
	f->values = 1;
	return open_level(f, 1);
}

static enum frame_rc stop(struct frame *f, const struct frame *s, enum why why)
{
	*f = *s;
	f->bad = (uint8_t)why;
	return why == WHY_GOOD ? FRAME_MORE : FRAME_BAD;
}

static enum frame_rc find(struct frame *f, const char *buf, size_t len, size_t max,
    unsigned max_values, size_t *start_r, size_t *end_r, struct frame_seen *seen)
{
	struct frame s = *f;
	enum why why = s.bad;
	bool fresh = s.depth == 0;
	size_t at, end;

	if (why == WHY_GOOD && fresh)
		why = find_start(&s, buf, len);
	if (why != WHY_GOOD || s.depth == 0)
		return stop(f, &s, why);
	end = len - s.start > max ? s.start + max : len;
	if (fresh) {
		const char *p = whole(buf + s.start, buf + end, max_values, &s.values, seen);

		if (p != NULL) {
			*start_r = s.start;
			*end_r = (size_t)(p - buf);
			f->values = s.values;
			f->pos = (uint32_t)*end_r;
			return FRAME_ONE;
		}
		*seen = (struct frame_seen){ 0 };
	}
	for (at = s.pos; at < end; at++) {
		if (s.state == ST_STRING) {
			at = (size_t)(scan_plain(buf + at, buf + end) - buf);
			if (at == end)
				break;
		}
		why = step(&s, (unsigned char)buf[at], max_values);
		if (why != WHY_GOOD)
			break;
		if (s.depth == 0) {
			s.pos = (uint32_t)at + 1;
			*start_r = s.start;
			*end_r = s.pos;
			*f = s;
			return FRAME_ONE;
		}
	}
	s.pos = (uint32_t)at;
	if (why == WHY_GOOD && at - s.start >= max)
		why = WHY_LONG;
	return stop(f, &s, why);
}

enum frame_rc frame_next_values(struct frame *f, const char *buf, size_t len, size_t max,
    unsigned max_values, size_t *start_r, size_t *end_r)
{
	struct frame_seen seen;

	seen.nlongs = 0;
	return find(f, buf, len, max, max_values, start_r, end_r, &seen);
}

enum frame_rc frame_next(struct frame *f, const char *buf, size_t len, size_t max,
    size_t *start_r, size_t *end_r)
{
	return frame_next_values(f, buf, len, max, FRAME_MAX_VALUES, start_r, end_r);
}

enum frame_rc frame_find(struct frame *f, const char *buf, size_t len, size_t max,
    size_t *start_r, size_t *end_r, struct frame_seen *seen_r)
{
	seen_r->nlongs = 0;
	seen_r->simple = false;
	return find(f, buf, len, max, FRAME_MAX_VALUES, start_r, end_r, seen_r);
}

void frame_init(struct frame *f)
{
	memset(f, 0, sizeof *f);
}

int frame_idle(const struct frame *f)
{
	return f->depth == 0 && f->bad == WHY_GOOD;
}

void frame_shift(struct frame *f, size_t n)
{
	f->pos -= (uint32_t)n;
	if (f->depth > 0)
		f->start -= (uint32_t)n;
}

const char *frame_why(const struct frame *f)
{
	return why_text[f->bad < sizeof why_text / sizeof *why_text ? f->bad : WHY_SYNTAX];
}
