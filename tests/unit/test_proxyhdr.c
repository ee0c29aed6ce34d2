/*
 * The PROXY protocol header: every verdict, at the first byte that decides it, however it is cut.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/proxyhdr.h"

#define SIG "\r\n\r\n\0\r\nQUIT\n"
#define LIT(s) (s), sizeof(s) - 1

/* The bytes lie in memory of exactly their size, so that a sanitizer sees a look beyond them. */
static enum proxyhdr_rc read_exact(const char *bytes, size_t len, struct proxyhdr *h,
    const char **why)
{
	char *exact = malloc(len + 1);
	enum proxyhdr_rc rc;

	assert_non_null(exact);
	memcpy(exact + 1, bytes, len);
	rc = proxyhdr_read(exact + 1, len, h, why);
	free(exact);
	return rc;
}

/* Each shorter piece of what is decided at DECIDED bytes wants more, and leaves *H alone. */
static void check_pieces(const char *bytes, size_t decided)
{
	struct proxyhdr h;
	const char *why = NULL;

	memset(&h, 0x5a, sizeof h);
	for (size_t n = 0; n < decided; n++)
		assert_int_equal(read_exact(bytes, n, &h, &why), PROXYHDR_MORE);
	assert_null(why);
	for (size_t i = 0; i < sizeof h; i++)
		assert_int_equal(((unsigned char *)&h)[i], 0x5a);
}

static void check_good(const char *bytes, size_t len, const char *addr, unsigned port)
{
	char *longer = malloc(len + 700), text[INET6_ADDRSTRLEN] = "";
	struct proxyhdr h;
	const char *why = NULL;

	check_pieces(bytes, len);
	memcpy(longer, bytes, len);
	memset(longer + len, '{', 700);
	for (size_t more = 0; more <= 700; more += 350) {
		memset(&h, 0x5a, sizeof h);
		assert_int_equal(read_exact(longer, len + more, &h, &why), PROXYHDR_OK);
		assert_null(why);
		assert_int_equal(h.len, len);
		assert_int_equal(h.known, addr != NULL);
		if (addr == NULL)
			continue;
		inet_ntop(AF_INET6, h.addr, text, sizeof text);
		assert_string_equal(text, addr);
		assert_int_equal(h.port, port);
	}
	free(longer);
}

/* Bad from byte number DECIDED on, with whatever comes behind it. */
static void check_bad(const char *bytes, size_t len, size_t decided, const char *says)
{
	struct proxyhdr h;
	const char *why = NULL;

	assert_true(decided <= len);
	check_pieces(bytes, decided - 1);
	for (size_t n = decided; n <= len; n++) {
		why = NULL;
		assert_int_equal(read_exact(bytes, n, &h, &why), PROXYHDR_BAD);
		assert_non_null(why);
		assert_non_null(strstr(why, says));
	}
}

static void v1_good(void **state)
{
	char line[128];
	int n;

	(void)state;
	check_good(LIT("PROXY TCP4 192.0.2.1 198.51.100.7 51234 6000\r\n"), "::ffff:192.0.2.1", 51234);
	check_good(LIT("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"),
	    "::ffff:255.255.255.255", 65535);
	check_good(LIT("PROXY TCP4 1.2.3.4 5.6.7.8 0 1\r\n"), "::ffff:1.2.3.4", 0);
	check_good(LIT("PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n"), "2001:db8::7", 1);
	check_good(LIT("PROXY TCP6 ::ffff:192.0.2.9 ::1 7 8\r\n"), "::ffff:192.0.2.9", 7);
	n = snprintf(line, sizeof line, "PROXY TCP6 %s %s 65535 65535\r\n",
	    "fe80:1111:2222:3333:4444:5555:6666:7777", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
	check_good(line, (size_t)n, "fe80:1111:2222:3333:4444:5555:6666:7777", 65535);
}

static void v1_of_nobody(void **state)
{
	char line[PROXYHDR_V1_MAX + 1];

	(void)state;
	check_good(LIT("PROXY UNKNOWN\r\n"), NULL, 0);
	check_good(LIT("PROXY UNKNOWN ff:: ff:: 1 2\r\n"), NULL, 0);
	check_good(LIT("PROXY UNKNOWN \1\377\0 whatever\r\n"), NULL, 0);
	check_good(LIT("PROXY TCP4 0.0.0.0 5.6.7.8 1 1\r\n"), NULL, 0);
	check_good(LIT("PROXY TCP6 :: ::1 1 1\r\n"), NULL, 0);
	memset(line, 'x', sizeof line);
	memcpy(line, "PROXY UNKNOWN ", 14);
	memcpy(line + sizeof line - 3, "\r\n", 3);
	check_good(line, sizeof line - 1, NULL, 0);
}

static void v1_lines(void **state)
{
	static const struct { const char *behind, *says; } wrong[] = {
		{ "", "protocol" }, { "TCP4", "protocol" }, { "TCP5 1.2.3.4 1.2.3.4 1 1", "protocol" },
		{ "tcp4 1.2.3.4 1.2.3.4 1 1", "protocol" }, { "UDP4 1.2.3.4 1.2.3.4 1 1", "protocol" },
		{ "UNKNOWNS", "protocol" }, { "UNKNOW", "protocol" }, { " TCP4 1.2.3.4 1.2.3.4 1 1", "protocol" },
		{ "TCP4\t1.2.3.4 1.2.3.4 1 1", "protocol" }, { "TCP44 1.2.3.4 1.2.3.4 1 1", "protocol" },
		{ "TCP4 ", "address" }, { "TCP4 1.2.3.4", "address" }, { "TCP4 1.2.3.4 ", "address" },
		{ "TCP4  1.2.3.4 1.2.3.4 1 1", "address" }, { "TCP4 1.2.3 1.2.3.4 1 1", "address" },
		{ "TCP4 1.2.3.4 1.2.3.256 1 1", "address" }, { "TCP4 01.2.3.4 1.2.3.4 1 1", "address" },
		{ "TCP4 ::1 ::1 1 1", "address" }, { "TCP6 1.2.3.4 1.2.3.4 1 1", "address" },
		{ "TCP6 ::g ::1 1 1", "address" }, { "TCP6 [::1] ::1 1 1", "address" },
		{ "TCP6 fe80::1%lo ::1 1 1", "address" },
		{ "TCP6 1111:2222:3333:4444:5555:6666:7777:8888:9999:00 ::1 1 1", "address" },
		{ "TCP4 1.2.3.4 1.2.3.4", "port" }, { "TCP4 1.2.3.4 1.2.3.4 1", "port" },
		{ "TCP4 1.2.3.4 1.2.3.4 1 ", "port" }, { "TCP4 1.2.3.4 1.2.3.4  1 1", "port" },
		{ "TCP4 1.2.3.4 1.2.3.4 65536 1", "port" }, { "TCP4 1.2.3.4 1.2.3.4 1 99999", "port" },
		{ "TCP4 1.2.3.4 1.2.3.4 01 1", "port" }, { "TCP4 1.2.3.4 1.2.3.4 1 00", "port" },
		{ "TCP4 1.2.3.4 1.2.3.4 1/ 1", "port" }, { "TCP4 1.2.3.4 1.2.3.4 1 1x", "port" },
		{ "TCP4 1.2.3.4 1.2.3.4 100000 1", "port" }, { "TCP4 1.2.3.4 1.2.3.4 : 1", "port" },
		{ "TCP4 1.2.3.4 1.2.3.4 1 1 ", "port" }, { "TCP4 1.2.3.4 1.2.3.4 1 1 1", "more than two" }
	};
	char line[128];

	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		int n = snprintf(line, sizeof line, "PROXY %s\r\n{}", wrong[i].behind);
		check_bad(line, (size_t)n, (size_t)n - 2, wrong[i].says);
	}
	check_bad(LIT("PROXY TCP4 1.2.3.4\0 1.2.3.4 1 1\r\n"), 33, "address");
	check_bad(LIT("PROXY TCP4 1.2.3.4 1.2.3.4 1\0 1\r\n"), 33, "port");
}

static void v1_ends(void **state)
{
	char line[120];

	(void)state;
	check_bad(LIT("PROXY UNKNOWN\n{}"), 14, "CR LF");
	check_bad(LIT("PROXY UNKNOWN\r{}"), 15, "CR LF");
	check_bad(LIT("PROXY UNKNOWN\r\r\n"), 15, "CR LF");
	check_bad(LIT("PROXY \n UNKNOWN\r\n"), 7, "CR LF");
	check_bad(LIT("PROXY \n UNKNOWN\r"), 7, "CR LF");
	memset(line, 'x', sizeof line);
	memcpy(line, "PROXY UNKNOWN ", 14);
	check_bad(line, sizeof line, PROXYHDR_V1_MAX, "107");
	line[106] = '\r';		/* its LF would be byte 108 */
	line[107] = '\n';
	check_bad(line, sizeof line, PROXYHDR_V1_MAX, "107");
}

static void no_header_at_all(void **state)
{
	char text[16];

	(void)state;
	for (int first = 0; first < 256; first++) {
		memset(text, first, sizeof text);
		if (first != 'P' && first != '\r')
			check_bad(text, sizeof text, 1, "begin no PROXY header");
	}
	for (size_t at = 1; at < 6; at++) {
		memcpy(text, "PROXY UNKNOWN\r\n", 16);
		text[at] ^= 0x20;
		check_bad(text, 15, at + 1, "begin no PROXY header");
	}
	for (size_t at = 1; at < 12; at++) {
		memcpy(text, SIG "\x20\0\0\0", 16);
		text[at] ^= 1;
		check_bad(text, 16, at + 1, "begin no PROXY header");
	}
}

struct v2 { char bytes[70000]; size_t len; };

static const struct v2 *v2(unsigned version_command, unsigned family_protocol, size_t body)
{
	static struct v2 v;

	memcpy(v.bytes, SIG, 12);
	v.bytes[12] = (char)version_command;
	v.bytes[13] = (char)family_protocol;
	v.bytes[14] = (char)(body >> 8);
	v.bytes[15] = (char)body;
	for (size_t i = 0; i < body; i++)
		v.bytes[16 + i] = (char)(i + 1);
	v.len = 16 + body;
	return &v;
}

static void good2(unsigned vc, unsigned fp, size_t body, const char *addr, unsigned port)
{
	const struct v2 *v = v2(vc, fp, body);

	check_good(v->bytes, v->len, addr, port);
}

static void bad2(unsigned vc, unsigned fp, size_t body, size_t decided, const char *says)
{
	const struct v2 *v = v2(vc, fp, body);

	check_bad(v->bytes, v->len < 600 ? v->len : 600, decided, says);
}

static void v2_good(void **state)
{
	static const size_t tlvs[] = { 0, 1, 3, 100, 500 };
	static char none[16 + 36];

	(void)state;
	for (size_t i = 0; i < sizeof tlvs / sizeof *tlvs; i++) {
		good2(0x21, 0x11, 12 + tlvs[i], "::ffff:1.2.3.4", 0x090a);
		good2(0x21, 0x21, 36 + tlvs[i], "102:304:506:708:90a:b0c:d0e:f10", 0x2122);
	}
	good2(0x21, 0x11, PROXYHDR_V2_BODY, "::ffff:1.2.3.4", 0x090a);
	memcpy(none, v2(0x21, 0x11, 12)->bytes, 16);
	check_good(none, 16 + 12, NULL, 0);
	memcpy(none, v2(0x21, 0x21, 36)->bytes, 16);
	check_good(none, 16 + 36, NULL, 0);
}

static void v2_of_nobody(void **state)
{
	static const unsigned other[] = { 0x00, 0x01, 0x02, 0x10, 0x12, 0x20, 0x22, 0x30, 0x31, 0x32 };

	(void)state;
	for (size_t i = 0; i < sizeof other / sizeof *other; i++)
		good2(0x21, other[i], 216 + i, NULL, 0);
	good2(0x21, 0x00, 0, NULL, 0);
	/* LOCAL: whatever it carries is skipped */
	for (unsigned fp = 0; fp < 256; fp++)
		good2(0x20, fp, fp % 40, NULL, 0);
	good2(0x20, 0x11, PROXYHDR_V2_BODY, NULL, 0);
}

static void v2_bad(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 256; i++) {
		if (i >> 4 != 2)
			bad2(i, 0x11, 12, 13, "version");
		else if ((i & 15) > 1)
			bad2(i, 0x11, 12, 13, "command");
		if (i >> 4 > 3 || (i & 15) > 2)
			bad2(0x21, i, 216, 14, "kind of address");
	}
	for (size_t n = 0; n < 216; n++) {
		if (n < 12)
			bad2(0x21, 0x11, n, 16, "too small");
		if (n < 36)
			bad2(0x21, 0x21, n, 16, "too small");
		bad2(0x21, 0x31, n, 16, "too small");
	}
	bad2(0x21, 0x11, PROXYHDR_V2_BODY + 1, 16, "552");
	bad2(0x20, 0x00, PROXYHDR_V2_BODY + 1, 16, "552");
	bad2(0x21, 0x11, 65535, 16, "552");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v1_good), cmocka_unit_test(v1_of_nobody),
		cmocka_unit_test(v1_lines), cmocka_unit_test(v1_ends),
		cmocka_unit_test(no_header_at_all),
		cmocka_unit_test(v2_good), cmocka_unit_test(v2_of_nobody), cmocka_unit_test(v2_bad),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
