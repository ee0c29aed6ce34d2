/*
 * jsmn only makes tokens: it accepts much that is not JSON. So it sees nothing that the scanner
 * of frame.c has not accepted, and what is left to check here needs the whole text: repeated
 * names and the range of numbers.
 *
 * After the parse two fields of jsmn's tokens get a new meaning, for walking without searching:
 *   parent  in objects and arrays: the index of the first token behind them
 *   size    in member names: KEY_PLAIN, or KEY_ESCAPED where the text holds a backslash
 */
#include "worker/base/json.h"

#define JSMN_STATIC
#define JSMN_STRICT
#define JSMN_PARENT_LINKS
#include <jsmn.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/frame.h"

enum { KEY_PLAIN = 1, KEY_ESCAPED = 2 };

#define FEW 16			/* names up to which each is compared with each */

/* A place of the table that finds repeated names in large objects; old marks count as empty. */
struct seen {
	uint32_t mark;
	int32_t tok;
};

struct json {
	const char *text;
	const char *why;
	struct seen *seen;	/* a power of two of places, at least twice the names */
	uint32_t nseen, mark;
	uint32_t max_values;
	int flags;
	int ntok, max_tok;
	jsmntok_t tok[];
};

struct json *json_new(int flags)
{
	uint32_t values = (flags & JSON_LARGE) != 0 ? FRAME_LARGE_VALUES : FRAME_MAX_VALUES;
	size_t max_tok = (size_t)values * 2;	/* each value but the first may have a name */
	struct json *j = calloc(1, sizeof *j + max_tok * sizeof *j->tok);

	if (j == NULL)
		return NULL;
	j->nseen = values * 2;
	j->seen = calloc(j->nseen, sizeof *j->seen);
	if (j->seen == NULL) {
		free(j);
		return NULL;
	}
	j->flags = flags;
	j->max_values = values;
	j->max_tok = (int)max_tok;
	j->why = "nothing was read yet";
	return j;
}

void json_free(struct json *j)
{
	if (j == NULL)
		return;
	free(j->seen);
	free(j);
}

/*
 * The meaning of a string's text, byte by byte. The text is known to be well formed.
 */
struct reader {
	const char *p, *end;
	unsigned char out[4];
	unsigned at, n;
};

static unsigned hex4(const char *p)
{
	unsigned n = 0;

	for (int i = 0; i < 4; i++) {
		unsigned c = (unsigned char)p[i];

		n = n << 4 | (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
	}
	return n;
}

static unsigned put_utf8(unsigned char *out, uint32_t cp)
{
	if (cp < 0x80) {
		out[0] = (unsigned char)cp;
		return 1;
	}
	if (cp < 0x800) {
		out[0] = (unsigned char)(0xc0 | cp >> 6);
		out[1] = (unsigned char)(0x80 | (cp & 0x3f));
		return 2;
	}
	if (cp < 0x10000) {
		out[0] = (unsigned char)(0xe0 | cp >> 12);
		out[1] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
		out[2] = (unsigned char)(0x80 | (cp & 0x3f));
		return 3;
	}
	out[0] = (unsigned char)(0xf0 | cp >> 18);
	out[1] = (unsigned char)(0x80 | (cp >> 12 & 0x3f));
	out[2] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
	out[3] = (unsigned char)(0x80 | (cp & 0x3f));
	return 4;
}

/* Decodes the escape at *P (behind its backslash) and moves *P past it. Bytes made. */
static unsigned unescape(const char **p, const char *end, unsigned char out[4])
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	char c = *(*p)++;
	const char *hit;
	uint32_t cp;

	if (c != 'u') {
		hit = strchr(from, c);
		out[0] = (unsigned char)(hit != NULL ? to[hit - from] : c);
		return 1;
	}
	if (end - *p < 4)
		return 0;
	cp = hex4(*p);
	*p += 4;
	if (cp >> 10 == 0xd800 >> 10 && end - *p >= 6) {
		cp = 0x10000 + ((cp & 0x3ff) << 10 | (hex4(*p + 2) & 0x3ff));
		*p += 6;
	}
	return put_utf8(out, cp);
}

/* The next byte of the meaning, -1 at the end. */
static int read_byte(struct reader *r)
{
	while (r->at == r->n) {
		if (r->p == r->end)
			return -1;
		r->at = 0;
		if (*r->p != '\\' || r->end - r->p < 2) {
			r->n = 0;
			return (unsigned char)*r->p++;
		}
		r->p++;
		r->n = unescape(&r->p, r->end, r->out);
	}
	return r->out[r->at++];
}

static bool same_meaning(const char *a, size_t alen, const char *b, size_t blen)
{
	struct reader ra = { .p = a, .end = a + alen };
	struct reader rb = { .p = b, .end = b + blen };
	int c;

	do {
		c = read_byte(&ra);
		if (c != read_byte(&rb))
			return false;
	} while (c >= 0);
	return true;
}

static size_t tok_len(const jsmntok_t *t)
{
	return (size_t)(t->end - t->start);
}

static int behind(const struct json *j, int t)
{
	const jsmntok_t *tok = &j->tok[t];

	return tok->type == JSMN_OBJECT || tok->type == JSMN_ARRAY ? tok->parent : t + 1;
}

static int fail(struct json *j, int rc, const char *why)
{
	j->why = why;
	j->ntok = 0;
	return rc;
}

/*
 * Numbers. Overflow is decided from the digits: 1.7976931348623158e308 has 309 digits before
 * the point, so only a number of just that size needs a close look.
 */
#define BIG_DIGITS 309

/* The exponent written at P, which is at the e; clamped, for it may have any number of digits. */
static int64_t written_exponent(const char *p, const char *end)
{
	bool minus = false;
	int64_t n = 0;

	if (p == end)
		return 0;
	p++;
	if (p < end && (*p == '-' || *p == '+'))
		minus = *p++ == '-';
	for (; p < end; p++)
		if (n < (int64_t)1 << 40)
			n = n * 10 + (*p - '0');
	return minus ? -n : n;
}

/* Does a double hold D.DDD... times ten to the 308th? The digits are written out as an integer,
 * because strtod() looks at the locale for its point. */
static bool close_to_limit_fits(const char *digits, const char *end)
{
	char text[BIG_DIGITS + 1];
	size_t n = 0;

	for (; digits < end && n < BIG_DIGITS; digits++)
		if (*digits != '.')
			text[n++] = *digits;
	while (n < BIG_DIGITS)
		text[n++] = '0';
	text[n] = '\0';
	return !isinf(strtod(text, NULL));
}

static bool number_fits(const char *p, const char *end)
{
	const char *digits_end = p, *first = NULL, *point = NULL;
	int64_t places;

	if (*p == '-')
		p++;
	for (digits_end = p; digits_end < end && (*digits_end | 0x20) != 'e'; digits_end++) {
		if (*digits_end == '.')
			point = digits_end;
		else if (first == NULL && *digits_end != '0')
			first = digits_end;
	}
	if (digits_end == end && end - p < BIG_DIGITS)
		return true;
	if (first == NULL)
		return true;		/* zero, whatever its exponent */
	if (point == NULL)
		point = digits_end;
	/* digits before the point once the exponent has moved it, leading zeros not counted */
	places = (first < point ? point - first : point - first + 1) +
	    written_exponent(digits_end, end);
	if (places != BIG_DIGITS)
		return places < BIG_DIGITS;
	return close_to_limit_fits(first, digits_end);
}

/* Gives containers their `behind` link, names their mark, and checks the numbers. */
static int walk_tokens(struct json *j)
{
	int open[FRAME_MAX_DEPTH], depth = 0;

	for (int i = 0; i < j->ntok; i++) {
		jsmntok_t *t = &j->tok[i];
		const char *s = j->text + t->start;

		while (depth > 0 && t->start >= j->tok[open[depth - 1]].end)
			j->tok[open[--depth]].parent = i;
		if (t->type == JSMN_OBJECT || t->type == JSMN_ARRAY) {
			if (depth == FRAME_MAX_DEPTH)
				return fail(j, JSON_ESYNTAX, "nested deeper than 16 levels");
			open[depth++] = i;
		} else if (t->type == JSMN_STRING && t->size > 0) {
			t->size = memchr(s, '\\', tok_len(t)) != NULL ? KEY_ESCAPED : KEY_PLAIN;
		} else if (t->type == JSMN_PRIMITIVE && (*s == '-' || (*s >= '0' && *s <= '9')) &&
		    !number_fits(s, j->text + t->end)) {
			return fail(j, JSON_ERANGE, "a number is too large for a double");
		}
	}
	while (depth > 0)
		j->tok[open[--depth]].parent = j->ntok;
	return JSON_OK;
}

static bool same_name(const struct json *j, int a, int b)
{
	const jsmntok_t *ta = &j->tok[a], *tb = &j->tok[b];
	const char *sa = j->text + ta->start, *sb = j->text + tb->start;

	if (ta->size == KEY_PLAIN && tb->size == KEY_PLAIN)
		return tok_len(ta) == tok_len(tb) && memcmp(sa, sb, tok_len(ta)) == 0;
	return same_meaning(sa, tok_len(ta), sb, tok_len(tb));
}

/* Names of which each has a length, a first or a last letter of its own are soon told apart. */
static bool may_repeat(const struct json *j)
{
	uint64_t had = 0, bit;

	for (int t = 1; t < j->ntok; t += 2) {
		const char *s = j->text + j->tok[t].start;
		unsigned len = (unsigned)tok_len(&j->tok[t]);

		/* An empty name counts its quotes. */
		bit = UINT64_C(1) << (s[0] + 7u * (unsigned)s[(int)len - 1] + 11u * len) % 64;
		if ((had & bit) != 0)
			return true;
		had |= bit;
	}
	return false;
}

static bool repeats_among_few(const struct json *j, int obj)
{
	int names[FEW], count = j->tok[obj].size;

	for (int i = 0, t = obj + 1; i < count; i++, t = behind(j, t + 1)) {
		for (int k = 0; k < i; k++)
			if (same_name(j, names[k], t))
				return true;
		names[i] = t;
	}
	return false;
}

/* FNV-1a over the meaning. */
static uint32_t hash_name(const struct json *j, int t)
{
	const char *s = j->text + j->tok[t].start;
	struct reader r = { .p = s, .end = s + tok_len(&j->tok[t]) };
	uint32_t h = 2166136261u;
	int c;

	while ((c = read_byte(&r)) >= 0)
		h = (h ^ (unsigned)c) * 16777619u;
	return h ^ h >> 15;
}

static bool repeats_among_many(struct json *j, int obj)
{
	int count = j->tok[obj].size;

	j->mark++;
	for (int i = 0, t = obj + 1; i < count; i++, t = behind(j, t + 1)) {
		uint32_t at = hash_name(j, t) & (j->nseen - 1);

		for (; j->seen[at].mark == j->mark; at = (at + 1) & (j->nseen - 1))
			if (same_name(j, j->seen[at].tok, t))
				return true;
		j->seen[at] = (struct seen){ j->mark, t };
	}
	return false;
}

static int check_names(struct json *j)
{
	for (int i = 0; i < j->ntok; i++) {
		if (j->tok[i].type != JSMN_OBJECT || j->tok[i].size < 2)
			continue;
		if (j->tok[i].size <= FEW ? repeats_among_few(j, i) : repeats_among_many(j, i))
			return fail(j, JSON_EREPEAT, "a name stands twice in one object");
	}
	return JSON_OK;
}

/* Only for text that no scanner has seen: one frame, and nothing else but space around it. */
static int validate(struct json *j, const char **text, size_t *len)
{
	struct frame f;
	size_t start, end, more;
	enum frame_rc rc;

	frame_init(&f);
	rc = frame_next_values(&f, *text, *len, UINT32_MAX, j->max_values, &start, &end);
	if (rc == FRAME_MORE)
		return fail(j, JSON_ESYNTAX, "the text ends too early");
	if (rc == FRAME_BAD)
		return fail(j, JSON_ESYNTAX, frame_why(&f));
	for (more = end; more < *len; more++)
		if ((*text)[more] == '\0' || strchr(" \t\r\n", (*text)[more]) == NULL)
			return fail(j, JSON_ESYNTAX, "something follows the object");
	*text += start;
	*len = end - start;
	return JSON_OK;
}

/*
 * jsmn stops where it is told that the text ends and goes on from there. So long strings, whose ends
 * are known, are not read again: what it would make of each is put among its tokens here.
 */
static int tokenize(struct json *j, const char *text, size_t len, const struct frame_seen *seen)
{
	jsmn_parser parser;

	jsmn_init(&parser);
	for (unsigned i = 0; i < seen->nlongs; i++) {
		int rc = jsmn_parse(&parser, text, seen->longs[i].at, j->tok, (unsigned)j->max_tok);

		if (rc != JSMN_ERROR_PART || parser.toknext >= (unsigned)j->max_tok || parser.toksuper < 0)
			return rc < 0 ? rc : JSMN_ERROR_INVAL;
		j->tok[parser.toksuper].size++;
		j->tok[parser.toknext++] = (jsmntok_t){ .type = JSMN_STRING, .parent = parser.toksuper,
		    .start = (int)seen->longs[i].at + 1, .end = (int)seen->longs[i].end - 1 };
		parser.pos = seen->longs[i].end;
	}
	return jsmn_parse(&parser, text, len, j->tok, (unsigned)j->max_tok);
}

/* What walk_tokens() and check_names() do, for a simple frame: names and values take turns. */
static int walk_simple(struct json *j)
{
	j->tok[0].parent = j->ntok;
	for (int t = 1; t < j->ntok; t += 2)
		j->tok[t].size = KEY_PLAIN;
	return may_repeat(j) ? check_names(j) : JSON_OK;
}

int json_parse_seen(struct json *j, const char *text, size_t len, const struct frame_seen *seen)
{
	int rc;

	j->text = text;
	j->ntok = tokenize(j, text, len, seen);
	if (j->ntok == JSMN_ERROR_NOMEM)
		return fail(j, JSON_ESYNTAX, "too many values in one frame");
	if (j->ntok <= 0 || j->tok[0].type != JSMN_OBJECT)
		return fail(j, JSON_ESYNTAX, "not a JSON object");
	if (seen->simple && j->ntok == j->tok[0].size * 2 + 1) {
		rc = walk_simple(j);
	} else {
		rc = walk_tokens(j);
		if (rc == JSON_OK)
			rc = check_names(j);
	}
	if (rc == JSON_OK)
		j->why = "nothing is wrong";
	return rc;
}

int json_parse(struct json *j, const char *text, size_t len)
{
	static const struct frame_seen nothing;
	int rc;

	if (len > INT32_MAX)
		return fail(j, JSON_ESYNTAX, "the text is too long");
	if ((j->flags & JSON_UNTRUSTED) != 0 && (rc = validate(j, &text, &len)) != JSON_OK)
		return rc;
	return json_parse_seen(j, text, len, &nothing);
}

const char *json_why(const struct json *j)
{
	return j->why;
}

/*
 * Access.
 */
static inline enum json_type type_of(const jsmntok_t *tok, char first)
{
	switch (tok->type) {
	case JSMN_OBJECT:
		return JSON_OBJECT;
	case JSMN_ARRAY:
		return JSON_ARRAY;
	case JSMN_STRING:
		return JSON_STRING;
	default:
		return first == 'n' ? JSON_NULL : first == 't' || first == 'f' ? JSON_BOOL : JSON_NUMBER;
	}
}

static inline void value_to(const struct json *j, int t, struct json_val *v_r)
{
	const jsmntok_t *tok = &j->tok[t];
	const char *raw = j->text + tok->start;
	unsigned quotes = tok->type == JSMN_STRING;

	v_r->raw = raw - quotes;
	v_r->len = (uint32_t)(tok->end - tok->start) + 2 * quotes;
	v_r->tok = t;
	v_r->type = type_of(tok, *raw);
}

static struct json_val value_at(const struct json *j, int t)
{
	static const struct json_val none = { .raw = "", .tok = -1, .type = JSON_NONE };
	struct json_val v;

	if (t < 0 || t >= j->ntok)
		return none;
	value_to(j, t, &v);
	return v;
}

struct json_val json_root(const struct json *j)
{
	return value_at(j, 0);
}

size_t json_count(const struct json *j, const struct json_val *v)
{
	bool holds = v->type == JSON_OBJECT || v->type == JSON_ARRAY;

	return holds && v->tok >= 0 && v->tok < j->ntok ? (size_t)j->tok[v->tok].size : 0;
}

struct json_it json_it(const struct json *j, const struct json_val *v)
{
	return (struct json_it){ .tok = v->tok + 1, .left = (int32_t)json_count(j, v),
	    .object = v->type == JSON_OBJECT };
}

bool json_next(const struct json *j, struct json_it *it, struct json_val *key_r,
    struct json_val *val_r)
{
	if (it->left <= 0)
		return false;
	it->left--;
	if (key_r != NULL)
		*key_r = value_at(j, it->object ? it->tok : -1);
	if (it->object)
		it->tok++;
	*val_r = value_at(j, it->tok);
	it->tok = behind(j, it->tok);
	return true;
}

size_t json_members(const struct json *j, struct json_pair *pairs, size_t cap)
{
	size_t count = j->ntok > 0 ? (size_t)j->tok[0].size : 0, n;
	int t = 1;

	for (n = 0; n < count && n < cap; n++) {
		value_to(j, t, &pairs[n].key);
		value_to(j, t + 1, &pairs[n].val);
		t = behind(j, t + 1);
	}
	return n;
}

bool json_get(const struct json *j, const struct json_val *obj, const char *name,
    struct json_val *val_r)
{
	size_t len = strlen(name);
	int left = obj->type == JSON_OBJECT ? (int)json_count(j, obj) : 0;

	for (int t = obj->tok + 1; left > 0; left--, t = behind(j, t + 1)) {
		const jsmntok_t *k = &j->tok[t];
		const char *s = j->text + k->start;

		if (k->size == KEY_PLAIN ? tok_len(k) == len && memcmp(s, name, len) == 0 :
		    same_meaning(s, tok_len(k), name, len)) {
			*val_r = value_at(j, t + 1);
			if (val_r->type != JSON_NULL)
				return true;
			break;
		}
	}
	*val_r = value_at(j, -1);
	return false;
}

bool json_is(const struct json_val *v, const char *text)
{
	size_t len = strlen(text);

	if (v->type != JSON_STRING)
		return false;
	if (memchr(v->raw, '\\', v->len) != NULL) {
		struct reader r = { .p = v->raw + 1, .end = v->raw + v->len - 1 };

		for (; *text != '\0'; text++)
			if (read_byte(&r) != (unsigned char)*text)
				return false;
		return read_byte(&r) < 0;
	}
	return v->len == len + 2 && memcmp(v->raw + 1, text, len) == 0;
}

int json_int(const struct json_val *v, int64_t *n_r)
{
	const char *p = v->raw, *end = v->raw + v->len;
	uint64_t n = 0, limit = INT64_MAX;
	bool minus = false;

	if (v->type != JSON_NUMBER)
		return JSON_ETYPE;
	if (*p == '-') {
		minus = true;
		limit++;
		p++;
	}
	for (const char *safe = p + 18; p < end; p++) {		/* so many digits fit, whatever they are */
		unsigned d = (unsigned char)*p - '0';

		if (d > 9)
			return JSON_ETYPE;
		if (p >= safe && n > (limit - d) / 10)
			return JSON_ERANGE;
		n = n * 10 + d;
	}
	*n_r = minus ? (int64_t)(0 - n) : (int64_t)n;
	return JSON_OK;
}

int json_bool(const struct json_val *v, bool *b_r)
{
	if (v->type != JSON_BOOL)
		return JSON_ETYPE;
	*b_r = *v->raw == 't';
	return JSON_OK;
}

int json_text(const struct json_val *v, char *out, size_t cap, size_t *len_r)
{
	const char *p = v->raw + 1, *end = v->raw + v->len - 1;
	unsigned char made[4];
	size_t len = 0;

	if (v->type != JSON_STRING)
		return JSON_ETYPE;
	while (p < end) {
		const char *slash = memchr(p, '\\', (size_t)(end - p));
		size_t run = (size_t)((slash != NULL ? slash : end) - p);

		if (len + run >= cap)
			return JSON_ESPACE;
		memcpy(out + len, p, run);
		len += run;
		p += run;
		if (slash == NULL)
			break;
		p++;
		run = unescape(&p, end, made);
		if (len + run >= cap)
			return JSON_ESPACE;
		memcpy(out + len, made, run);
		len += run;
	}
	if (cap == 0)
		return JSON_ESPACE;
	out[len] = '\0';
	if (len_r != NULL)
		*len_r = len;
	return JSON_OK;
}

/*
 * UTF-8.
 */
size_t json_utf8_chars(const char *s, size_t len)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++)
		n += ((unsigned char)s[i] & 0xc0) != 0x80;
	return n;
}

/* Bytes of the character at S, 0 where there is none: RFC 3629, section 4, without NUL. */
static size_t utf8_len(const unsigned char *s, size_t left)
{
	unsigned char lo = 0x80, hi = 0xbf;
	size_t n;

	if (s[0] < 0x80)
		return s[0] != 0;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	if (s[0] == 0xe0)
		lo = 0xa0;
	else if (s[0] == 0xed)
		hi = 0x9f;
	else if (s[0] == 0xf0)
		lo = 0x90;
	else if (s[0] == 0xf4)
		hi = 0x8f;
	if (left < n || s[1] < lo || s[1] > hi)
		return 0;
	for (size_t i = 2; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

bool json_utf8_valid(const char *s, size_t len)
{
	const unsigned char *p = (const unsigned char *)s;
	size_t n;

	for (size_t i = 0; i < len; i += n)
		if ((n = utf8_len(p + i, len - i)) == 0)
			return false;
	return true;
}

bool json_has_control(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];

		if (c < 0x20 || c == 0x7f)
			return true;
		/* C1 is U+0080 to U+009F: C2 80 to C2 9F */
		if (c == 0xc2 && i + 1 < len && (unsigned char)s[i + 1] < 0xa0)
			return true;
	}
	return false;
}

#define ONES  0x0101010101010101u
#define HIGHS 0x8080808080808080u

/* Not zero when one of eight bytes is a quote, a backslash or a control character. Where it says so,
 * the lowest that it marks is right. */
static uint64_t odd_bytes(uint64_t x)
{
	uint64_t quote = x ^ ONES * '"', slash = x ^ ONES * '\\';

	return (((x - ONES * 0x20) & ~x) | ((quote - ONES) & ~quote) | ((slash - ONES) & ~slash)) & HIGHS;
}

bool json_is_plain(const char *s, size_t len)
{
	uint64_t x;
	size_t i;

	for (i = 0; len - i >= 8; i += 8) {
		memcpy(&x, s + i, 8);
		if (odd_bytes(x) != 0)
			return false;
	}
	for (x = ONES * 'x'; i < len; i++)
		x = x << 8 | (unsigned char)s[i];
	return odd_bytes(x) == 0;
}

/*
 * The writer. Each piece is written whole or not at all.
 */
void json_out_init(struct json_out *w, char *buf, size_t cap)
{
	*w = (struct json_out){ .buf = buf, .cap = cap };
}

void json_raw(struct json_out *w, const char *s, size_t len)
{
	if (w->over || w->cap - w->len < len) {
		w->over = true;
		return;
	}
	memcpy(w->buf + w->len, s, len);
	w->len += len;
}

static inline void put_char(struct json_out *w, char c)
{
	if (w->over || w->cap == w->len) {
		w->over = true;
		return;
	}
	w->buf[w->len++] = c;
}

void json_lit(struct json_out *w, const char *s)
{
	json_raw(w, s, strlen(s));
}

static inline void comma(struct json_out *w, bool next)
{
	if (w->comma)
		put_char(w, ',');
	w->comma = next;
}

void json_open(struct json_out *w, char c)
{
	comma(w, false);
	put_char(w, c);
}

void json_close(struct json_out *w, char c)
{
	put_char(w, c);
	w->comma = true;
}

void json_key(struct json_out *w, const char *name)
{
	comma(w, false);
	put_char(w, '"');
	json_lit(w, name);
	json_raw(w, "\":", 2);
}

static const char pairs_of_digits[] =
    "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
    "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";

size_t json_digits(uint64_t n, char out[20])
{
	char text[20], *p = text + sizeof text;

	for (; n >= 100; n /= 100)
		memcpy(p -= 2, pairs_of_digits + n % 100 * 2, 2);
	if (n >= 10)
		memcpy(p -= 2, pairs_of_digits + n * 2, 2);
	else
		*--p = (char)('0' + n);
	memcpy(out, p, (size_t)(text + sizeof text - p));
	return (size_t)(text + sizeof text - p);
}

void json_put_int(struct json_out *w, int64_t n)
{
	char text[21] = "-";
	size_t sign = n < 0;

	comma(w, true);
	json_raw(w, text, sign + json_digits(n < 0 ? 0 - (uint64_t)n : (uint64_t)n, text + sign));
}

void json_put_bool(struct json_out *w, bool b)
{
	comma(w, true);
	json_lit(w, b ? "true" : "false");
}

/* What follows the backslash; 0 where a byte stands for itself, u for \u00XX. */
static const char escapes[256] = {
	'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'b', 't', 'n', 'u', 'f', 'r', 'u', 'u',
	'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
	['"'] = '"', ['\\'] = '\\'
};

static void put_escape(struct json_out *w, unsigned char c)
{
	static const char hex[] = "0123456789abcdef";
	char text[6] = { '\\', escapes[c], '0', '0', hex[c >> 4], hex[c & 15] };

	json_raw(w, text, escapes[c] == 'u' ? 6 : 2);
}

void json_put_text(struct json_out *w, const char *s, size_t len)
{
	size_t from = 0, i;

	comma(w, true);
	put_char(w, '"');
	for (i = json_is_plain(s, len) ? len : 0; i < len; i++) {
		if (escapes[(unsigned char)s[i]] == 0)
			continue;
		json_raw(w, s + from, i - from);
		put_escape(w, (unsigned char)s[i]);
		from = i + 1;
	}
	json_raw(w, s + from, len - from);
	put_char(w, '"');
}

void json_put_raw(struct json_out *w, const char *s, size_t len)
{
	comma(w, true);
	json_raw(w, s, len);
}

void json_kv_int(struct json_out *w, const char *name, int64_t n)
{
	json_key(w, name);
	json_put_int(w, n);
}

void json_kv_bool(struct json_out *w, const char *name, bool b)
{
	json_key(w, name);
	json_put_bool(w, b);
}

void json_kv_str(struct json_out *w, const char *name, const char *s)
{
	json_kv_text(w, name, s, strlen(s));
}

void json_kv_text(struct json_out *w, const char *name, const char *s, size_t len)
{
	json_key(w, name);
	json_put_text(w, s, len);
}

void json_kv_raw(struct json_out *w, const char *name, const char *s, size_t len)
{
	json_key(w, name);
	json_put_raw(w, s, len);
}
