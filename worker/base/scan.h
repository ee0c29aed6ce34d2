/*
 * scan.h - bytes of strings, many at a time: what frame.c and shape.c look at text with.
 *
 * Scope   private to worker/base. Functions take [p, end) and read nothing beyond; what they skip
 *         is well formed (RFC 8259, RFC 3629).
 * Errors  NULL: it is wrong, or it goes on beyond END. Which of both is frame_next()'s to say.
 */
#ifndef PARLEY_BASE_SCAN_H
#define PARLEY_BASE_SCAN_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* frame.c: behind the character of UTF-8, or the escape, at P. */
const char *frame_skip_odd(const char *p, const char *end);

/* Is B no plain byte of a string: a quote, a backslash, a control character or part of UTF-8? */
static inline bool scan_is_odd(unsigned char b)
{
	return b < 0x20 || b >= 0x80 || b == '"' || b == '\\';
}

/* The first odd byte from P on, END where there is none. */
static ALWAYS_INLINE const char *scan_plain(const char *p, const char *end)
{
#ifdef __SSE2__
	/* As signed bytes, what is less than a space is a control character or part of UTF-8. */
	for (; end - p >= 16; p += 16) {
		__m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
		__m128i odd = _mm_or_si128(_mm_cmplt_epi8(x, _mm_set1_epi8(' ')),
		    _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('"')),
		    _mm_cmpeq_epi8(x, _mm_set1_epi8('\\'))));
		int at = _mm_movemask_epi8(odd);

		if (at != 0)
			return p + __builtin_ctz((unsigned)at);
	}
#else
	const uint64_t ones = UINT64_C(0x0101010101010101);

	/* A borrow in the arithmetic can only stop the skipping early. */
	for (uint64_t x, quote, slash; end - p >= 8; p += 8) {
		memcpy(&x, p, 8);
		quote = x ^ ones * '"';
		slash = x ^ ones * '\\';
		if (((x | (x - ones * 0x20) | (quote - ones) | (slash - ones)) & ones * 0x80) != 0)
			break;
	}
#endif
	while (p < end && !scan_is_odd((unsigned char)*p))
		p++;
	return p;
}

/* Behind the closing quote of the string whose first byte is at P. *ODD_R: it is not plain ASCII. */
static ALWAYS_INLINE const char *scan_string(const char *p, const char *end, bool *odd_r)
{
	for (p = scan_plain(p, end); p != end; p = scan_plain(p, end)) {
		if (*p == '"')
			return p + 1;
		*odd_r = true;
		do
			p = frame_skip_odd(p, end);
		while (p != NULL && p != end && (unsigned char)*p >= 0x80);
		if (p == NULL)
			return NULL;
	}
	return NULL;
}

#endif
