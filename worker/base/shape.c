/*
 * A shape is a text with holes. The literal parts are compared, the holes are scanned: a string's
 * hole ends at its closing quote, a number's at its last digit.
 */
#include "worker/base/shape.h"

#include <stdlib.h>
#include <string.h>

#include "worker/base/frame.h"
#include "worker/base/scan.h"

#define SHAPES     16u
#define TEXT       192u
#define DIGITS     15
#define TRIES      3		/* frames that fit as far as a text: a long one is not read so often */

enum hole { HOLE_END, HOLE_STRING, HOLE_NUMBER };

struct part { uint8_t len, hole; };		/* that much literal text, then a hole */

struct place {				/* of a member, in the shape's text */
	uint8_t key_at, key_len, tag;
	uint8_t hole;			/* its value is in hole number `val_at`; HOLE_END: in the text */
	uint8_t val_at, val_len, val_type;
};

struct shape {
	uint64_t used;
	int32_t cookie;
	uint8_t n, parts;
	struct part part[SHAPE_MEMBERS + 1];
	struct place place[SHAPE_MEMBERS];
	char text[TEXT];
};

struct shapes {
	uint64_t clock;
	unsigned n, last;
	struct shape v[SHAPES];
};

struct span { const char *p; uint32_t len; };

struct shapes *shapes_new(void)
{
	return calloc(1, sizeof(struct shapes));
}

void shapes_free(struct shapes *t)
{
	free(t);
}

static inline bool same(const char *a, const char *b, size_t n)
{
	uint64_t x, y;
	size_t i;

	if (n < 8) {
		for (i = 0; i < n; i++)
			if (a[i] != b[i])
				return false;
		return true;
	}
	for (i = 0; i + 8 < n; i += 8) {
		memcpy(&x, a + i, 8);
		memcpy(&y, b + i, 8);
		if (x != y)
			return false;
	}
	memcpy(&x, a + n - 8, 8);		/* the last ones, some of them once more */
	memcpy(&y, b + n - 8, 8);
	return x == y;
}

/* Behind an integer; NULL: none, or one that is not written as shapes want it. */
static inline const char *skip_integer(const char *p, const char *end)
{
	const char *first;

	if (p < end && *p == '-')
		p++;
	first = p;
	while (p < end && *p >= '0' && *p <= '9')
		p++;
	return p == first || p - first > DIGITS || (*first == '0' && p - first > 1) ? NULL : p;
}

/* Behind the frame at P, its holes in HOLES. NULL: it does not fit; *DEEP_R: after a text was read. */
static const char *fit(const struct shape *s, const char *p, const char *end, struct span *holes,
    bool *deep_r)
{
	const char *text = s->text;
	bool odd;

	for (unsigned i = 0; ; i++) {
		size_t n = s->part[i].len;
		const char *from;

		if ((size_t)(end - p) < n || !same(p, text, n))
			return NULL;
		p += n;
		text += n;
		from = p;
		if (s->part[i].hole == HOLE_STRING) {
			*deep_r = true;
			if ((p = scan_string(p, end, &odd)) == NULL)
				return NULL;
			holes[i] = (struct span){ from - 1, (uint32_t)(p - from) + 1 };
		} else if (s->part[i].hole == HOLE_NUMBER) {
			if ((p = skip_integer(p, end)) == NULL)
				return NULL;
			holes[i] = (struct span){ from, (uint32_t)(p - from) };
		} else {
			return p;
		}
	}
}

static void fill(const struct shape *s, const struct span *holes, struct shape_found *f,
    struct json_val *known, struct json_pair *others)
{
	f->cookie = s->cookie;
	f->nothers = 0;
	for (unsigned i = 0; i < s->n; i++) {
		const struct place *pl = &s->place[i];
		struct json_val *v = &known[pl->tag];

		if (pl->tag == 0) {
			struct json_val *k = &others[f->nothers].key;

			k->raw = s->text + pl->key_at;
			k->len = pl->key_len;
			k->tok = -1;
			k->type = JSON_STRING;
			v = &others[f->nothers++].val;
		} else if (pl->val_type == JSON_NULL) {
			continue;
		}
		v->raw = pl->hole != HOLE_END ? holes[pl->val_at].p : s->text + pl->val_at;
		v->len = pl->hole != HOLE_END ? holes[pl->val_at].len : pl->val_len;
		v->tok = -1;
		v->type = (enum json_type)pl->val_type;
	}
}

bool shape_next(struct shapes *t, struct frame *f, const char *buf, size_t len, size_t max,
    struct shape_found *found, struct json_val *known, struct json_pair *others)
{
	size_t at = frame_gap(f, buf, len);
	const char *p = buf + at, *end = buf + (len - at > max ? at + max : len);
	struct span holes[SHAPE_MEMBERS + 1];

	if (at == len)
		return false;
	for (unsigned k = 0, i = t->last, deep = 0; k < t->n && deep < TRIES; k++, i = (i + 1) % t->n) {
		bool far = false;
		const char *behind = fit(&t->v[i], p, end, holes, &far);

		deep += far;
		if (behind == NULL)
			continue;
		t->last = i;
		t->v[i].used = ++t->clock;
		found->text = p;
		found->len = (size_t)(behind - p);
		fill(&t->v[i], holes, found, known, others);
		f->pos = (uint32_t)(behind - buf);
		f->values = (uint16_t)(t->v[i].n + 1);
		return true;
	}
	return false;
}

static bool is_short_integer(const struct json_val *v)
{
	return v->type == JSON_NUMBER && skip_integer(v->raw, v->raw + v->len) == v->raw + v->len;
}

/* Adds [FROM, TO) to the shape's text, followed by a hole. */
static bool add_part(struct shape *s, size_t *at, const char *from, const char *to, enum hole hole)
{
	size_t n = (size_t)(to - from);

	if (n > TEXT - *at)
		return false;
	memcpy(s->text + *at, from, n);
	*at += n;
	s->part[s->parts++] = (struct part){ (uint8_t)n, (uint8_t)hole };
	return true;
}

static bool make(struct shape *s, const char *text, size_t len, const struct json_pair *pairs,
    const uint8_t *tags, size_t n, int fixed)
{
	const char *from = text, *gone = text;		/* gone: text + bytes that holes took away */
	size_t at = 0;

	for (size_t i = 0; i < n; i++) {
		const struct json_val *k = &pairs[i].key, *v = &pairs[i].val;
		struct place *pl = &s->place[i];
		unsigned quote = v->type == JSON_STRING;

		if (v->raw + v->len - gone > (ptrdiff_t)TEXT && (int)i == fixed)
			return false;
		if (k->raw + k->len - gone > (ptrdiff_t)TEXT)
			return false;
		*pl = (struct place){ .key_at = (uint8_t)(k->raw - gone), .key_len = (uint8_t)k->len,
		    .tag = tags[i], .val_type = (uint8_t)v->type };
		if ((int)i != fixed && (quote || is_short_integer(v))) {
			pl->hole = quote ? HOLE_STRING : HOLE_NUMBER;
			pl->val_at = s->parts;
			if (!add_part(s, &at, from, v->raw + quote, (enum hole)pl->hole))
				return false;
			from = v->raw + v->len;
			gone += from - (v->raw + quote);
			continue;
		}
		if (((int)i != fixed && v->type == JSON_NUMBER) || v->raw + v->len - gone > (ptrdiff_t)TEXT)
			return false;
		pl->val_at = (uint8_t)(v->raw - gone);
		pl->val_len = (uint8_t)v->len;
	}
	s->n = (uint8_t)n;
	return add_part(s, &at, from, text + len, HOLE_END);
}

void shape_learn(struct shapes *t, const char *text, size_t len, const struct json_pair *pairs,
    const uint8_t *tags, size_t n, int fixed, int32_t cookie)
{
	struct shape s = { .cookie = cookie, .used = t->clock };
	unsigned to = 0;

	if (n > SHAPE_MEMBERS || !make(&s, text, len, pairs, tags, n, fixed))
		return;
	if (t->n < SHAPES)
		to = t->n++;
	else
		for (unsigned i = 1; i < SHAPES; i++)
			if (t->v[i].used < t->v[to].used)
				to = i;
	t->v[to] = s;
}
