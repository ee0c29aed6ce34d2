/*
 * json.h - jsmn behind one door: token access to a frame, and a bounded writer.
 *
 * Scope   json_parse() is called with the bytes of one frame that frame_next() found. It makes
 *         jsmn's tokens (a fixed array, never grown) and the checks that need the whole text:
 *         repeated names at any level and numbers that no double holds. With JSON_UNTRUSTED
 *         text that did not come through frame_next() it runs that scanner first, so that
 *         json_parse() alone is a full validator as well.
 * Units   bytes; lengths exclude any terminator. Text is not NUL-terminated.
 * Owner   struct json is opaque and large (tokens): one a thread, made at start. A struct
 *         json_val points into the text of the last json_parse() and is valid until the next.
 * Errors  negative enum json_err; json_why() has a sentence.
 * Locks   none; a struct json belongs to one thread.
 */
#ifndef PARLEY_BASE_JSON_H
#define PARLEY_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum json_err {
	JSON_OK = 0,
	JSON_ESYNTAX = -1,	/* not JSON, not UTF-8, too deep, too many values */
	JSON_EREPEAT = -2,	/* a name stands twice in one object */
	JSON_ERANGE = -3,	/* a number that no double holds */
	JSON_ETYPE = -4,	/* the value is of another type */
	JSON_ESPACE = -5	/* the caller's room is too small */
};

enum json_type { JSON_NONE = 0, JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_OBJECT,
	JSON_ARRAY };

struct frame_seen;
struct json;

/* A value: [raw, raw + len) is its text, strings with their quotes. tok is private. */
struct json_val {
	const char *raw;
	uint32_t len;
	int32_t tok;
	enum json_type type;
};

#define JSON_UNTRUSTED 1	/* flags: validate the bytes, too (they came from no frame_next) */
#define JSON_LARGE     2	/* allow 16,384 values: what servers send to clients; client only */

struct json *json_new(int flags);	/* NULL: out of memory */
void json_free(struct json *j);

int json_parse(struct json *j, const char *text, size_t len) __attribute__((warn_unused_result));
/* The same with what frame_find() has seen of it: half the work for most frames. Not UNTRUSTED. */
int json_parse_seen(struct json *j, const char *text, size_t len, const struct frame_seen *seen)
    __attribute__((warn_unused_result));
const char *json_why(const struct json *j);

/* The top-level object; its members in the order written. I counts from 0. */
struct json_val json_root(const struct json *j);
/* Number of members (object) or elements (array); 0 for anything else. */
size_t json_count(const struct json *j, const struct json_val *v);

/*
 * Iterates an object's members or an array's elements, in order:
 *   for (struct json_it it = json_it(j, &obj); json_next(j, &it, &key, &val); ) ...
 * KEY_R (may be NULL) is the member's name as a JSON_STRING value; JSON_NONE in arrays.
 */
struct json_it { int32_t tok, left; bool object; };
struct json_it json_it(const struct json *j, const struct json_val *v);
bool json_next(const struct json *j, struct json_it *it, struct json_val *key_r,
    struct json_val *val_r);

/* The members of the top-level object, in order, at most CAP; their number. */
struct json_pair { struct json_val key, val; };
size_t json_members(const struct json *j, struct json_pair *pairs, size_t cap);

/*
 * Finds a member by its (unescaped ASCII) name; a name written with escapes matches what it
 * means. A member whose value is null counts as left out: type JSON_NONE, returns false.
 */
bool json_get(const struct json *j, const struct json_val *obj, const char *name,
    struct json_val *val_r);

/* Does a JSON_STRING (key or value) mean exactly this ASCII text? */
bool json_is(const struct json_val *v, const char *text);

/* A number written as an integer (-?digits, no fraction or exponent) that an int64 holds. */
int json_int(const struct json_val *v, int64_t *n_r);
/* true or false. */
int json_bool(const struct json_val *v, bool *b_r);
/*
 * The meaning of a string as UTF-8, NUL-terminated, into OUT of CAP bytes (terminator included).
 * *LEN_R (may be NULL) excludes the terminator. JSON_ESPACE when it does not fit.
 */
int json_text(const struct json_val *v, char *out, size_t cap, size_t *len_r);

/* Unicode characters in LEN bytes of valid UTF-8. */
size_t json_utf8_chars(const char *s, size_t len);
/* Is it valid UTF-8 (RFC 3629), without NUL? */
bool json_utf8_valid(const char *s, size_t len);
/* Can it stand in a JSON string as it is? */
bool json_is_plain(const char *s, size_t len);
/* Does valid UTF-8 hold a control character (C0, DEL, C1)? */
bool json_has_control(const char *s, size_t len);

/* A number's decimal digits, without a terminator; how many. */
size_t json_digits(uint64_t n, char out[20]);

/*
 * The writer: appends into memory of the caller. Past CAP it writes nothing more and remembers
 * (w->over), so a caller checks once at the end. Values and members place their own commas.
 */
struct json_out {
	char *buf;
	size_t cap, len;
	bool over;
	bool comma;		/* the next value needs one */
};

void json_out_init(struct json_out *w, char *buf, size_t cap);
void json_raw(struct json_out *w, const char *s, size_t len);		/* bytes, as they are */
void json_lit(struct json_out *w, const char *s);			/* a C string, as it is */
void json_open(struct json_out *w, char c);				/* { or [ (with comma) */
void json_close(struct json_out *w, char c);				/* } or ] */
void json_key(struct json_out *w, const char *name);			/* "name": (with comma) */
void json_put_int(struct json_out *w, int64_t n);
void json_put_bool(struct json_out *w, bool b);
void json_put_text(struct json_out *w, const char *s, size_t len);	/* quoted and escaped */
void json_put_raw(struct json_out *w, const char *s, size_t len);	/* a ready JSON value */
/* "name": value, each with its comma where due. */
void json_kv_int(struct json_out *w, const char *name, int64_t n);
void json_kv_bool(struct json_out *w, const char *name, bool b);
void json_kv_str(struct json_out *w, const char *name, const char *s);
void json_kv_text(struct json_out *w, const char *name, const char *s, size_t len);
void json_kv_raw(struct json_out *w, const char *name, const char *s, size_t len);

#endif
