/*
 * text.h - growing text, and making what strangers wrote safe to look at.
 *
 * Scope   the client's strings. A person's terminal obeys control characters, so everything that
 *         came over the wire passes text_clean() before it is shown: C0, DEL, C1, the bidirectional
 *         overrides and other invisible formatting become visible escapes.
 * Units   bytes; columns where the name says width.
 * Owner   a struct text owns its memory (text_fini). Zero bytes are an empty one. Once something
 *         was added it is NUL-terminated.
 * Errors  none: a client without memory says so and exits with status 1.
 */
#ifndef PARLEY_CLIENT_TEXT_H
#define PARLEY_CLIENT_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text {
	char *s;
	size_t len, cap;
};

enum text_style {
	TEXT_SHOWN,		/* \n \t \x1b \u202e: for eyes */
	TEXT_JSON		/* \u001b and surrogate pairs: stays valid inside a JSON string */
};

/* Like calloc, realloc and strdup, for a program that cannot go on without. */
void *text_alloc(size_t len);
void *text_resize(void *p, size_t len);
char *text_copy(const char *s);

void text_fini(struct text *t);
void text_clear(struct text *t);
/* Makes room for LEN more bytes and the terminator. */
void text_reserve(struct text *t, size_t len);
void text_add(struct text *t, const char *s, size_t len);
void text_puts(struct text *t, const char *s);
void text_printf(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Drops N bytes from the front. */
void text_drop(struct text *t, size_t n);

/* Appends S with everything that a terminal or an eye could be deceived by escaped. */
void text_clean(struct text *t, enum text_style style, const char *s, size_t len);
/*
 * Appends a user's or group's name, cleaned, and in double quotes where it could be taken for
 * something else (blanks, colons, a leading # or digit ...). The commands read it back so.
 */
void text_name(struct text *t, const char *name);

/*
 * The next code point of valid or invalid UTF-8 at S (LEN > 0): its length in bytes, and -1 with
 * length 1 for a byte that belongs to none.
 */
size_t text_next(const char *s, size_t len, int32_t *cp_r);
/* Columns that S takes on a terminal, as the C library's locale sees it. */
size_t text_width(const char *s, size_t len);
/* Are the names the same after folding ASCII case? */
bool text_same_name(const char *a, const char *b);
/* Decimal digits only, 1 .. 2^31-1: the id, otherwise 0. */
int64_t text_id(const char *s);

#endif
