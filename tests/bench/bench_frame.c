/* bench_frame.c - members of a JSON frame, and the text that carries time, sender and number. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first byte of NAME's value, or NULL. */
static const char *value_of(const char *frame, size_t len, const char *name)
{
	char key[40];
	size_t n = strlen(name);
	const char *p;

	key[0] = '"';
	memcpy(key + 1, name, n);
	memcpy(key + 1 + n, "\":", 2);
	p = memmem(frame, len, key, n + 3);
	return p == NULL || p + n + 3 >= frame + len ? NULL : p + n + 3;
}

int64_t frame_number(const char *frame, size_t len, const char *name, int64_t fallback)
{
	const char *p = value_of(frame, len, name), *end = frame + len;
	int64_t v = 0;

	if (p == NULL || *p < '0' || *p > '9')
		return fallback;
	for (; p < end && *p >= '0' && *p <= '9'; p++)
		v = v * 10 + (*p - '0');
	return v;
}

bool frame_string(const char *frame, size_t len, const char *name, char *out, size_t cap)
{
	const char *p = value_of(frame, len, name), *q;

	if (p == NULL || *p != '"')
		return false;
	q = memchr(p + 1, '"', (size_t)(frame + len - p - 1));
	if (q == NULL || (size_t)(q - p) > cap)
		return false;
	memcpy(out, p + 1, (size_t)(q - p - 1));
	out[q - p - 1] = '\0';
	return true;
}

uint32_t frame_count(const char *frame, size_t len, const char *what)
{
	size_t n = strlen(what);
	uint32_t count = 0;

	for (const char *p = frame; (p = memmem(p, (size_t)(frame + len - p), what, n)) != NULL; p += n)
		count++;
	return count;
}

char *put_text(char *p, const char *text)
{
	size_t n = strlen(text);

	memcpy(p, text, n);
	return p + n;
}

char *put_number(char *p, uint64_t v)
{
	char digits[20];
	int n = 0;

	do
		digits[n++] = (char)('0' + v % 10);
	while ((v /= 10) != 0);
	while (n > 0)
		*p++ = digits[--n];
	return p;
}

/* --- the text of a message --- */

char *put_hex(char *p, uint64_t v, int digits)
{
	for (int i = digits - 1; i >= 0; i--, v >>= 4)
		p[i] = "0123456789abcdef"[v & 15];
	return p + digits;
}

int64_t get_hex(const char *p, int digits)
{
	uint64_t v = 0;

	for (int i = 0; i < digits; i++) {
		uint32_t c = (unsigned char)p[i];
		uint32_t d = c - '0' < 10 ? c - '0' : c - 'a' < 6 ? c - 'a' + 10 : 99;

		if (d == 99)
			return -1;
		v = v << 4 | d;
	}
	return (int64_t)v;
}

char *text_put(char *p, int64_t stamp, uint32_t sender, uint32_t seq)
{
	static char *pad;

	if (pad == NULL) {
		pad = malloc(opt.size);
		if (pad == NULL)
			abort();
		memset(pad, 'x', opt.size);
	}
	*p++ = 'T';
	p = put_hex(p, (uint64_t)stamp, 16);
	p = put_hex(p, sender, 8);
	p = put_hex(p, seq, 8);
	memcpy(p, pad, opt.size - TEXT_HEAD);
	return p + opt.size - TEXT_HEAD;
}

bool text_find(const char *p, size_t len, int64_t *stamp_r, uint32_t *sender_r, uint32_t *seq_r)
{
	const char *end = p + len, *t;

	while ((t = memchr(p, 'T', (size_t)(end - p))) != NULL && end - t >= TEXT_HEAD) {
		int64_t stamp = get_hex(t + 1, 16), sender, seq;

		if (stamp >= 0 && (sender = get_hex(t + 17, 8)) >= 0 && (seq = get_hex(t + 25, 8)) >= 0) {
			*stamp_r = stamp;
			*sender_r = (uint32_t)sender;
			*seq_r = (uint32_t)seq;
			return true;
		}
		p = t + 1;
	}
	return false;
}
