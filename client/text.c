#include "client/text.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <wchar.h>

#include "worker/proto.h"

static _Noreturn void no_memory(void)
{
	static const char said[] = "parley: out of memory\n";

	(void)!fwrite(said, 1, sizeof said - 1, stderr);
	exit(1);
}

void *text_alloc(size_t len)
{
	void *p = calloc(1, len ? len : 1);

	if (p == NULL)
		no_memory();
	return p;
}

void *text_resize(void *p, size_t len)
{
	p = realloc(p, len ? len : 1);
	if (p == NULL)
		no_memory();
	return p;
}

char *text_copy(const char *s)
{
	size_t len = strlen(s) + 1;

	return memcpy(text_alloc(len), s, len);
}

void text_fini(struct text *t)
{
	free(t->s);
	*t = (struct text){ 0 };
}

void text_clear(struct text *t)
{
	t->len = 0;
	if (t->s != NULL)
		t->s[0] = '\0';
}

void text_reserve(struct text *t, size_t len)
{
	size_t cap = t->cap ? t->cap : 64;

	if (t->len + len + 1 <= t->cap)
		return;
	while (cap < t->len + len + 1)
		cap *= 2;
	t->s = text_resize(t->s, cap);
	t->cap = cap;
	t->s[t->len] = '\0';
}

void text_add(struct text *t, const char *s, size_t len)
{
	text_reserve(t, len);
	if (len > 0)
		memcpy(t->s + t->len, s, len);
	t->len += len;
	t->s[t->len] = '\0';
}

void text_puts(struct text *t, const char *s)
{
	text_add(t, s, strlen(s));
}

void text_printf(struct text *t, const char *fmt, ...)
{
	va_list ap;
	char *s;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (n < 0)
		no_memory();
	text_add(t, s, (size_t)n);
	free(s);
}

void text_drop(struct text *t, size_t n)
{
	if (n == 0)
		return;
	memmove(t->s, t->s + n, t->len - n + 1);
	t->len -= n;
}

size_t text_next(const char *s, size_t len, int32_t *cp_r)
{
	unsigned char c = (unsigned char)s[0];
	size_t need = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : (c & 0xf0) == 0xe0 ? 3 :
	    c >= 0xf0 && c < 0xf5 ? 4 : 0;
	int32_t cp = need == 1 ? c : need == 2 ? c & 0x1f : need == 3 ? c & 0x0f : c & 0x07;

	*cp_r = -1;
	if (need == 0 || need > len)
		return 1;
	for (size_t i = 1; i < need; i++) {
		if (((unsigned char)s[i] & 0xc0) != 0x80)
			return 1;
		cp = cp << 6 | ((unsigned char)s[i] & 0x3f);
	}
	if ((need == 3 && cp < 0x800) || (need == 4 && (cp < 0x10000 || cp > 0x10ffff)) ||
	    (cp >= 0xd800 && cp < 0xe000))
		return 1;
	*cp_r = cp;
	return need;
}

/* Code points that act instead of being seen. Joiners stay: scripts and emoji need them. */
static bool is_active(int32_t cp)
{
	static const struct { int32_t lo, hi; } range[] = {
		{ 0x00, 0x1f }, { 0x7f, 0x9f }, { 0x61c, 0x61c }, { 0x180e, 0x180e },
		{ 0x200b, 0x200b }, { 0x200e, 0x200f }, { 0x2028, 0x202e }, { 0x2060, 0x206f },
		{ 0xfeff, 0xfeff }, { 0xfff9, 0xfffb }, { 0xe0000, 0xe007f },
	};

	for (size_t i = 0; i < sizeof range / sizeof range[0]; i++)
		if (cp >= range[i].lo && cp <= range[i].hi)
			return true;
	return false;
}

static void add_escape(struct text *t, enum text_style style, int32_t cp)
{
	if (style == TEXT_JSON && cp >= 0x10000)
		text_printf(t, "\\u%04x\\u%04x", 0xd800 + ((cp - 0x10000) >> 10),
		    0xdc00 + ((cp - 0x10000) & 0x3ff));
	else if (style == TEXT_JSON)
		text_printf(t, "\\u%04x", cp);
	else if (cp == '\n' || cp == '\t' || cp == '\r')
		text_puts(t, cp == '\n' ? "\\n" : cp == '\t' ? "\\t" : "\\r");
	else
		text_printf(t, cp < 0x80 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%06x", cp);
}

void text_clean(struct text *t, enum text_style style, const char *s, size_t len)
{
	size_t from = 0, at = 0;

	while (at < len) {
		int32_t cp;
		size_t n = text_next(s + at, len - at, &cp);

		if (cp < 0 || is_active(cp)) {
			text_add(t, s + from, at - from);
			if (cp >= 0)
				add_escape(t, style, cp);
			else if (style == TEXT_SHOWN)
				text_printf(t, "\\x%02x", (unsigned char)s[at]);
			else
				text_puts(t, "\\ufffd");
			from = at + n;
		}
		at += n;
	}
	text_add(t, s + from, len - from);
}

void text_name(struct text *t, const char *name)
{
	bool quote = name[0] == '\0' || strchr("#*[]/@\"'(", name[0]) != NULL ||
	    text_id(name) > 0 || strpbrk(name, " :\"\\") != NULL;

	if (quote)
		text_puts(t, "\"");
	for (const char *p = name; *p != '\0'; p++) {
		size_t n = strcspn(p, "\"\\");

		text_clean(t, TEXT_SHOWN, p, n);
		p += n;
		if (*p == '\0')
			break;
		text_puts(t, *p == '"' ? "\\\"" : "\\\\");
	}
	if (quote)
		text_puts(t, "\"");
}

size_t text_width(const char *s, size_t len)
{
	mbstate_t st = { 0 };
	size_t width = 0;

	while (len > 0) {
		wchar_t wc;
		size_t n = mbrtowc(&wc, s, len, &st);
		int w;

		if (n == (size_t)-1 || n == (size_t)-2 || n == 0) {
			memset(&st, 0, sizeof st);
			n = 1;
			w = 1;
		} else {
			w = wcwidth(wc);
		}
		width += w > 0 ? (size_t)w : 0;
		s += n;
		len -= n;
	}
	return width;
}

bool text_same_name(const char *a, const char *b)
{
	for (; *a != '\0' && *b != '\0'; a++, b++) {
		unsigned char x = (unsigned char)*a, y = (unsigned char)*b;

		x = x >= 'A' && x <= 'Z' ? x + 32 : x;
		y = y >= 'A' && y <= 'Z' ? y + 32 : y;
		if (x != y)
			return false;
	}
	return *a == *b;
}

int64_t text_id(const char *s)
{
	int64_t id = 0;

	if (*s == '\0')
		return 0;
	for (; *s != '\0'; s++) {
		if (*s < '0' || *s > '9')
			return 0;
		id = id * 10 + (*s - '0');
		if (id > PROTO_ID_MAX)
			return 0;
	}
	return id;
}
