/*
 * Fuzz target: the frame scanner and the JSON door behind it.
 *
 * What must hold for any bytes:
 *   - the scanner finds the same frames, and stops at the same byte, however the input is cut;
 *   - it agrees with a validator written differently (recursive, over the whole text), also on
 *     which byte is the first that cannot be right;
 *   - json_parse() accepts each frame found, but for repeated names and numbers out of range,
 *     and refuses what holds no whole frame;
 *   - what is read from a frame and written again reads the same.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/frame.h"
#include "worker/base/json.h"
#include "worker/base/shape.h"

#define MAX_FRAME 6000	/* small, so that it is met */
#define MAX_EVENTS 40000	/* {} is the shortest frame */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define must(cond) do { if (!(cond)) { \
	fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); abort(); } } while (0)

/* What a run saw: the ends of frames, then how it stopped. */
struct trace {
	size_t n, start[MAX_EVENTS], end[MAX_EVENTS];
	enum frame_rc rc;	/* MORE or BAD */
	size_t at;		/* of the bad byte */
	int idle;
};

/*
 * The other validator.
 */
struct text {
	const unsigned char *s;
	size_t at, len, start;
	unsigned depth, values;
	enum frame_rc rc;	/* ONE while all is well */
};

static int stop(struct text *t, enum frame_rc rc)
{
	if (t->rc == FRAME_ONE)
		t->rc = rc;
	return -1;
}

static int peek(struct text *t)
{
	if (t->at - t->start >= MAX_FRAME)
		return stop(t, FRAME_BAD);
	return t->at < t->len ? t->s[t->at] : stop(t, FRAME_MORE);
}

/* Takes a byte between LO and HI. */
static int take(struct text *t, int lo, int hi)
{
	int c = peek(t);

	if (c < 0)
		return c;
	if (c < lo || c > hi)
		return stop(t, FRAME_BAD);
	t->at++;
	return c;
}

static void space(struct text *t)
{
	int c;

	while ((c = peek(t)) == ' ' || c == '\t' || c == '\n' || c == '\r')
		t->at++;
}

static int hex(struct text *t, const char *allowed)
{
	int c = peek(t);

	if (c < 0)
		return c;
	if (c == 0 || strchr(allowed, c) == NULL)
		return stop(t, FRAME_BAD);
	t->at++;
	return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

static const char any[] = "0123456789abcdefABCDEF";

static int unit(struct text *t, const char *second)
{
	int a = hex(t, second != NULL ? "dD" : any), b, c, d;

	if (a < 0)
		return a;
	b = hex(t, second != NULL ? second : any);
	c = b < 0 ? b : hex(t, any);
	d = c < 0 ? c : hex(t, any);
	if (d >= 0 && (a | b | c | d) == 0) {
		t->at--;
		return stop(t, FRAME_BAD);
	}
	return d < 0 ? d : a << 12 | b << 8 | c << 4 | d;
}

/* \uXXXX behind the u: a high surrogate takes a low one along. */
static int escape_u(struct text *t)
{
	size_t from = t->at;
	int second;

	if (from + 1 < t->len && (t->s[from] | 0x20) == 'd' && t->at + 1 - t->start < MAX_FRAME) {
		second = t->s[from + 1];
		if (second == '8' || second == '9' || (second | 0x20) == 'a' ||
		    (second | 0x20) == 'b') {
			t->at += 2;
			if (hex(t, any) < 0 || hex(t, any) < 0 || take(t, '\\', '\\') < 0 ||
			    take(t, 'u', 'u') < 0)
				return -1;
			return unit(t, "cdefCDEF");
		}
		if ((second | 0x20) >= 'c' && (second | 0x20) <= 'f') {
			t->at++;
			return stop(t, FRAME_BAD);
		}
	}
	return unit(t, NULL) < 0 ? -1 : 0;
}

static int utf8(struct text *t)
{
	static const struct { int lo, hi, lo2, hi2, more; } rows[] = {	/* RFC 3629, section 4 */
		{ 0xc2, 0xdf, 0x80, 0xbf, 0 }, { 0xe0, 0xe0, 0xa0, 0xbf, 1 },
		{ 0xe1, 0xec, 0x80, 0xbf, 1 }, { 0xed, 0xed, 0x80, 0x9f, 1 },
		{ 0xee, 0xef, 0x80, 0xbf, 1 }, { 0xf0, 0xf0, 0x90, 0xbf, 2 },
		{ 0xf1, 0xf3, 0x80, 0xbf, 2 }, { 0xf4, 0xf4, 0x80, 0x8f, 2 }
	};
	int c = peek(t);

	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		if (c < rows[i].lo || c > rows[i].hi)
			continue;
		t->at++;
		if (take(t, rows[i].lo2, rows[i].hi2) < 0)
			return -1;
		for (int k = 0; k < rows[i].more; k++)
			if (take(t, 0x80, 0xbf) < 0)
				return -1;
		return 0;
	}
	return stop(t, FRAME_BAD);
}

static int string(struct text *t)
{
	int c;

	if (take(t, '"', '"') < 0)
		return -1;
	while ((c = peek(t)) != '"') {
		if (c < 0x20)
			return c < 0 ? c : stop(t, FRAME_BAD);
		if (c >= 0x80) {
			if (utf8(t) < 0)
				return -1;
			continue;
		}
		t->at++;
		if (c != '\\')
			continue;
		c = peek(t);
		if (c < 0)
			return c;
		if (c == 0 || strchr("\"\\/bfnrtu", c) == NULL)
			return stop(t, FRAME_BAD);
		t->at++;
		if (c == 'u' && escape_u(t) < 0)
			return -1;
	}
	t->at++;
	return 0;
}

static int digits(struct text *t)
{
	int c;

	if (take(t, '0', '9') < 0)
		return -1;
	while ((c = peek(t)) >= '0' && c <= '9')
		t->at++;
	return c;
}

static int number(struct text *t)
{
	int c = peek(t);

	if (c == '-') {
		t->at++;
		c = peek(t);
	}
	if (c == '0') {
		t->at++;
		c = peek(t);
	} else {
		c = digits(t);
	}
	if (c == '.') {
		t->at++;
		c = digits(t);
	}
	if (c == 'e' || c == 'E') {
		t->at++;
		c = peek(t);
		if (c == '+' || c == '-')
			t->at++;
		c = digits(t);
	}
	return c;
}

static int word(struct text *t, const char *w)
{
	for (; *w != '\0'; w++)
		if (take(t, *w, *w) < 0)
			return -1;
	return peek(t);
}

static int value(struct text *t);

static int members(struct text *t, int object)
{
	int close = object ? '}' : ']', c;

	if (t->depth == FRAME_MAX_DEPTH)
		return stop(t, FRAME_BAD);
	t->depth++;
	t->at++;
	space(t);
	if (peek(t) != close) {
		for (;;) {
			space(t);
			if (object) {
				if (string(t) < 0)
					return -1;
				space(t);
				if (take(t, ':', ':') < 0)
					return -1;
				space(t);
			}
			if (value(t) < 0)
				return -1;
			space(t);
			c = peek(t);
			if (c == close)
				break;
			if (take(t, ',', ',') < 0)
				return -1;
		}
	}
	t->at++;
	t->depth--;
	return 0;
}

static int value(struct text *t)
{
	int c = peek(t);

	if (c < 0)
		return c;
	if (strchr("\"{[-0123456789tfn", c) == NULL || c == 0 ||
	    ++t->values > FRAME_MAX_VALUES)
		return stop(t, FRAME_BAD);
	if (c == '"')
		return string(t);
	if (c == '{' || c == '[')
		return members(t, c == '{');
	if (c == 't' || c == 'f' || c == 'n')
		return word(t, c == 't' ? "true" : c == 'f' ? "false" : "null");
	return number(t);
}

static void judge(struct trace *tr, const uint8_t *data, size_t len)
{
	struct text t = { .s = data, .len = len, .rc = FRAME_ONE };

	memset(tr, 0, sizeof *tr);
	for (;;) {
		while (t.at < len && memchr(" \t\r\n", data[t.at], 5) != NULL)
			t.at++;
		t.start = t.at;
		t.values = 1;
		tr->idle = t.at == len;
		if (t.at == len)
			t.rc = FRAME_MORE;
		else if (data[t.at] != '{')
			t.rc = FRAME_BAD;
		if (t.rc != FRAME_ONE || members(&t, 1) < 0)
			break;
		must(tr->n < MAX_EVENTS);
		tr->start[tr->n] = t.start;
		tr->end[tr->n++] = t.at;
	}
	tr->rc = t.rc;
	tr->at = t.at;
}

/*
 * The scanner, fed in pieces out of a buffer that holds exactly what it may see.
 */
typedef size_t cut_fn(size_t at, size_t len, uint32_t *seed);

static void scan(struct trace *tr, const uint8_t *data, size_t len, cut_fn *cut, uint32_t seed)
{
	struct frame f;
	size_t dropped = 0, seen = 0, start, end, keep;
	enum frame_rc rc = FRAME_MORE;
	char *buf;

	memset(tr, 0, sizeof *tr);
	frame_init(&f);
	do {
		seen = cut(seen, len, &seed);
		buf = malloc(seen - dropped + 1);
		must(buf != NULL);
		memcpy(buf + 1, data + dropped, seen - dropped);
		while ((rc = frame_next(&f, buf + 1, seen - dropped, MAX_FRAME, &start, &end)) ==
		    FRAME_ONE) {
			must(tr->n < MAX_EVENTS);
			tr->start[tr->n] = dropped + start;
			tr->end[tr->n++] = dropped + end;
		}
		free(buf);
		keep = rc == FRAME_BAD ? 0 : frame_idle(&f) ? f.pos : f.start;
		frame_shift(&f, keep);
		dropped += keep;
	} while (rc != FRAME_BAD && seen < len);
	tr->rc = rc;
	tr->at = dropped + f.pos;
	tr->idle = frame_idle(&f);
	must(rc != FRAME_BAD || frame_next(&f, "{}", 2, MAX_FRAME, &start, &end) == FRAME_BAD);
}

static size_t cut_none(size_t at, size_t len, uint32_t *seed)
{
	(void)at;
	(void)seed;
	return len;
}

static size_t cut_bytes(size_t at, size_t len, uint32_t *seed)
{
	(void)seed;
	return at < len ? at + 1 : len;
}

static size_t cut_random(size_t at, size_t len, uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	at += 1 + (*seed >> 16) % 40;
	return at < len ? at : len;
}

static void same(const struct trace *a, const struct trace *b)
{
	must(a->n == b->n);
	must(memcmp(a->start, b->start, a->n * sizeof *a->start) == 0);
	must(memcmp(a->end, b->end, a->n * sizeof *a->end) == 0);
	must(a->rc == b->rc);
	must(a->rc != FRAME_BAD || a->at == b->at);
	must(a->rc == FRAME_BAD || a->idle == b->idle);
}

/*
 * Reading and writing.
 */
static void copy_value(const struct json *j, struct json_out *w, const struct json_val *v);

static void copy_text(struct json_out *w, const struct json_val *v)
{
	char *text = malloc(v->len);
	size_t len;

	must(text != NULL);
	must(json_text(v, text, v->len, &len) == JSON_OK);	/* quotes make room for the NUL */
	must(json_utf8_valid(text, len));
	json_put_text(w, text, len);
	free(text);
}

static void copy_members(const struct json *j, struct json_out *w, const struct json_val *v)
{
	struct json_it it = json_it(j, v);
	struct json_val key, val;
	size_t n = 0;

	json_open(w, *v->raw);
	while (json_next(j, &it, &key, &val)) {
		if (key.type == JSON_STRING) {
			copy_text(w, &key);
			json_raw(w, ":", 1);
			w->comma = false;
		}
		copy_value(j, w, &val);
		n++;
	}
	must(n == json_count(j, v));
	json_close(w, *v->raw == '{' ? '}' : ']');
}

static void copy_value(const struct json *j, struct json_out *w, const struct json_val *v)
{
	int64_t n;
	bool b;

	switch (v->type) {
	case JSON_OBJECT:
	case JSON_ARRAY:
		copy_members(j, w, v);
		break;
	case JSON_STRING:
		copy_text(w, v);
		break;
	case JSON_BOOL:
		must(json_bool(v, &b) == JSON_OK);
		json_put_bool(w, b);
		break;
	case JSON_NUMBER:
		if (json_int(v, &n) == JSON_OK && !(n == 0 && *v->raw == '-')) {
			json_put_int(w, n);
			must(w->over || memcmp(w->buf + w->len - v->len, v->raw, v->len) == 0);
		} else {
			json_put_raw(w, v->raw, v->len);
		}
		break;
	default:
		must(v->type == JSON_NULL);
		json_put_raw(w, v->raw, v->len);
	}
}

/* Written by us it is in its shortest form, so writing what was written changes nothing. */
static void copy_twice(struct json *j, size_t len)
{
	size_t cap = len * 6 + 16;
	char *one = malloc(cap), *two = malloc(cap);
	struct json_val root = json_root(j);
	struct json_out w;

	must(one != NULL && two != NULL);
	json_out_init(&w, one, cap);
	copy_value(j, &w, &root);
	must(!w.over);
	len = w.len;
	must(json_parse(j, one, len) == JSON_OK);
	root = json_root(j);
	json_out_init(&w, two, cap);
	copy_value(j, &w, &root);
	must(!w.over && w.len == len && memcmp(one, two, len) == 0);
	free(one);
	free(two);
}

static bool same_text(const struct json_val *a, const struct json_val *b)
{
	return a->type == b->type && a->len == b->len && memcmp(a->raw, b->raw, a->len) == 0;
}

/* What the scanner has seen of a frame changes nothing but the time that parsing takes. */
static void parse_seen(const struct json *plain, const char *text, size_t len, int rc)
{
	static struct json_pair want[FRAME_MAX_VALUES], got[FRAME_MAX_VALUES];
	static struct json *j;
	struct frame_seen seen;
	struct frame f;
	size_t n, start, end;

	if (j == NULL)
		must((j = json_new(0)) != NULL);
	frame_init(&f);
	must(frame_find(&f, text, len, len, &start, &end, &seen) == FRAME_ONE && end - start == len);
	must(json_parse_seen(j, text, len, &seen) == rc);
	if (rc != JSON_OK)
		return;
	n = json_members(plain, want, FRAME_MAX_VALUES);
	must(json_members(j, got, FRAME_MAX_VALUES) == n);
	for (size_t i = 0; i < n; i++)
		must(got[i].key.raw == want[i].key.raw && got[i].key.len == want[i].key.len &&
		    got[i].val.raw == want[i].val.raw && got[i].val.len == want[i].val.len &&
		    got[i].val.type == want[i].val.type && got[i].val.tok == want[i].val.tok);
	for (size_t i = 0; i < n; i++)
		must(json_count(j, &got[i].val) == json_count(plain, &want[i].val));
}

/* A frame that fits the shape of an earlier one says what the parser says of it. */
static void parse_shaped(const struct json *plain, const char *text, size_t len, int rc)
{
	static struct json_pair want[FRAME_MAX_VALUES];
	static uint8_t tags[FRAME_MAX_VALUES];
	static struct shapes *shapes;
	struct frame_seen seen;
	struct json_pair others[SHAPE_MEMBERS];
	struct json_val known[7] = { 0 };
	struct shape_found got;
	struct frame f;
	size_t n = rc == JSON_OK ? json_members(plain, want, FRAME_MAX_VALUES) : 0, start, end;
	char *copy = malloc(len + 1);		/* ends where the frame does */

	if (shapes == NULL)
		must((shapes = shapes_new()) != NULL);
	must(copy != NULL);
	memcpy(copy + 1, text, len);
	frame_init(&f);
	if (shape_next(shapes, &f, copy + 1, len, len, &got, known, others)) {
		must(rc == JSON_OK && got.len == len && f.values == n + 1 && f.pos == len);
		for (size_t i = 0, k = 0; i < n; i++) {
			if (i < 7 && i > 0) {
				must(want[i].val.type == JSON_NULL ? known[i].type == JSON_NONE :
				    same_text(&known[i], &want[i].val));
				continue;
			}
			must(same_text(&others[k].key, &want[i].key) && same_text(&others[k].val, &want[i].val));
			must(++k <= got.nothers);
		}
		must(!shape_next(shapes, &f, copy + 1, len, len, &got, known, others));
	}
	frame_init(&f);
	must(!shape_next(shapes, &f, copy + 1, len - 1, len, &got, known, others));
	frame_init(&f);
	must(frame_find(&f, text, len, len, &start, &end, &seen) == FRAME_ONE);
	for (size_t i = 0; i < n; i++)
		tags[i] = i < 7 ? (uint8_t)i : 0;
	if (rc == JSON_OK && seen.simple)
		shape_learn(shapes, text, len, want, tags, n, (int)(len % 5) - 1, 0);
	free(copy);
}

static void check_frames(const struct trace *tr, const char *data)
{
	static struct json *trusting, *strict;
	int rc;

	if (trusting == NULL) {
		trusting = json_new(0);
		strict = json_new(JSON_UNTRUSTED);
		must(trusting != NULL && strict != NULL);
	}
	for (size_t i = 0; i < tr->n; i++) {
		const char *text = data + tr->start[i];
		size_t len = tr->end[i] - tr->start[i];

		rc = json_parse(trusting, text, len);
		must(rc == JSON_OK || rc == JSON_EREPEAT || rc == JSON_ERANGE);
		parse_seen(trusting, text, len, rc);
		parse_shaped(trusting, text, len, rc);
		must(json_parse(strict, text, len) == rc);
		must(json_parse(strict, text, len - 1) == JSON_ESYNTAX);
		if (rc == JSON_OK)
			copy_twice(trusting, len);
	}
	if (tr->n == 0 && tr->rc == FRAME_BAD && tr->at < MAX_FRAME)
		must(json_parse(strict, data, tr->at + 1) == JSON_ESYNTAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct trace whole, other;

	if (size > 2 * MAX_EVENTS)
		size = 2 * MAX_EVENTS;
	scan(&whole, data, size, cut_none, 0);
	judge(&other, data, size);
	same(&whole, &other);
	scan(&other, data, size, cut_bytes, 0);
	same(&whole, &other);
	for (uint32_t seed = 1; seed <= 3; seed++) {
		scan(&other, data, size, cut_random, seed + (uint32_t)size);
		same(&whole, &other);
	}
	check_frames(&whole, (const char *)data);
	return 0;
}
