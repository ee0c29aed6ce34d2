#include "worker/base/proxyhdr.h"

#include <arpa/inet.h>
#include <string.h>

#define SIGNATURE "\r\n\r\n\0\r\nQUIT\n"
#define SIGNATURE_LEN 12u

static enum proxyhdr_rc bad(const char **why_r, const char *why)
{
	*why_r = why;
	return PROXYHDR_BAD;
}

/* Takes a client's address; the unspecified one names nobody, so then the peer stays who it is. */
static void set_client(struct proxyhdr *h, int family, const void *addr, uint16_t port)
{
	static const uint8_t none[16];

	h->port = port;
	if (family == AF_INET) {
		h->addr[10] = h->addr[11] = 0xff;
		memcpy(h->addr + 12, addr, 4);
		h->known = memcmp(h->addr + 12, none, 4) != 0;
	} else {
		memcpy(h->addr, addr, 16);
		h->known = memcmp(h->addr, none, 16) != 0;
	}
}

/* ---- version 1: "PROXY TCP4 192.0.2.1 198.51.100.7 51234 6000\r\n" ---- */

/* The word at *P, ended by one space or by END; false when it is empty or does not fit TO. */
static bool take_word(const char **p, const char *end, char *to, size_t cap)
{
	const char *stop = memchr(*p, ' ', (size_t)(end - *p));
	size_t n = (size_t)((stop != NULL ? stop : end) - *p);

	if (n == 0 || n >= cap || (stop != NULL && stop + 1 == end))
		return false;
	memcpy(to, *p, n);
	to[n] = '\0';
	*p = stop != NULL ? stop + 1 : end;
	return strlen(to) == n;
}

static bool take_address(const char **p, const char *end, int family, unsigned char addr[16])
{
	char word[INET6_ADDRSTRLEN];

	return take_word(p, end, word, sizeof word) && inet_pton(family, word, addr) == 1;
}

static bool take_port(const char **p, const char *end, uint16_t *port_r)
{
	char word[6];
	uint32_t n = 0;

	if (!take_word(p, end, word, sizeof word) || (word[0] == '0' && word[1] != '\0'))
		return false;
	for (const char *d = word; *d != '\0'; d++) {
		if (*d < '0' || *d > '9')
			return false;
		n = n * 10 + (uint32_t)(*d - '0');
	}
	*port_r = (uint16_t)n;
	return n <= UINT16_MAX;
}

/* The line [P, END) behind "PROXY ", without its CR LF. */
static enum proxyhdr_rc read_line(const char *p, const char *end, struct proxyhdr *h,
    const char **why_r)
{
	unsigned char from[16], to[16];
	uint16_t from_port, to_port;
	size_t n = (size_t)(end - p);
	int family;

	if (n >= 7 && memcmp(p, "UNKNOWN", 7) == 0 && (n == 7 || p[7] == ' '))
		return PROXYHDR_OK;		/* whatever else it says */
	if (n < 5 || memcmp(p, "TCP", 3) != 0 || (p[3] != '4' && p[3] != '6') || p[4] != ' ')
		return bad(why_r, "a protocol other than TCP4, TCP6 and UNKNOWN");
	family = p[3] == '4' ? AF_INET : AF_INET6;
	p += 5;
	if (!take_address(&p, end, family, from) || !take_address(&p, end, family, to))
		return bad(why_r, "an address that is none");
	if (!take_port(&p, end, &from_port) || !take_port(&p, end, &to_port))
		return bad(why_r, "a port that is none");
	if (p != end)
		return bad(why_r, "more than two addresses and two ports");
	set_client(h, family, from, from_port);
	return PROXYHDR_OK;
}

static enum proxyhdr_rc read_v1(const char *text, size_t len, struct proxyhdr *h,
    const char **why_r)
{
	size_t n = len < PROXYHDR_V1_MAX ? len : PROXYHDR_V1_MAX;
	const char *lf = memchr(text, '\n', n), *cr = memchr(text, '\r', n);

	if ((lf != NULL && (cr == NULL || lf != cr + 1)) ||
	    (lf == NULL && cr != NULL && cr + 1 != text + n))
		return bad(why_r, "a line that does not end with CR LF");
	if (lf == NULL)
		return n < PROXYHDR_V1_MAX ? PROXYHDR_MORE :
		    bad(why_r, "a line of more than 107 bytes");
	h->len = (size_t)(lf + 1 - text);
	return read_line(text + 6, cr, h, why_r);
}

/* ---- version 2: signature, version and command, family and protocol, length ---- */

static uint16_t u16_at(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

/* Of a PROXY command. Datagrams, unix sockets and what is unspecified name no TCP client. */
static void read_body(uint8_t what, const uint8_t *body, struct proxyhdr *h)
{
	if (what == 0x11)
		set_client(h, AF_INET, body, u16_at(body + 8));
	else if (what == 0x21)
		set_client(h, AF_INET6, body, u16_at(body + 32));
}

static enum proxyhdr_rc read_v2(const uint8_t *p, size_t len, struct proxyhdr *h,
    const char **why_r)
{
	static const uint16_t need[4] = { 0, 4 + 4 + 2 + 2, 16 + 16 + 2 + 2, 108 + 108 };
	bool local;
	size_t n;

	if (len > 12 && p[12] >> 4 != 2)
		return bad(why_r, "an unknown version");
	if (len > 12 && (p[12] & 15) > 1)
		return bad(why_r, "an unknown command");
	local = len > 12 && (p[12] & 15) == 0;
	if (len > 13 && !local && (p[13] >> 4 > 3 || (p[13] & 15) > 2))
		return bad(why_r, "an unknown kind of address");
	if (len < PROXYHDR_V2_HEAD)
		return PROXYHDR_MORE;
	n = u16_at(p + 14);
	if (!local && n < need[p[13] >> 4])
		return bad(why_r, "a length too small for its addresses");
	if (n > PROXYHDR_V2_BODY)
		return bad(why_r, "a header of more than 552 bytes");
	if (len < PROXYHDR_V2_HEAD + n)
		return PROXYHDR_MORE;
	h->len = PROXYHDR_V2_HEAD + n;
	if (!local)
		read_body(p[13], p + PROXYHDR_V2_HEAD, h);
	return PROXYHDR_OK;
}

static bool begins(const void *bytes, size_t len, const char *with, size_t n)
{
	return memcmp(bytes, with, len < n ? len : n) == 0;
}

enum proxyhdr_rc proxyhdr_read(const void *bytes, size_t len, struct proxyhdr *h_r,
    const char **why_r)
{
	struct proxyhdr h = { 0 };
	enum proxyhdr_rc rc;

	if (len == 0)
		return PROXYHDR_MORE;
	if (begins(bytes, len, "PROXY ", 6))
		rc = len < 6 ? PROXYHDR_MORE : read_v1(bytes, len, &h, why_r);
	else if (begins(bytes, len, SIGNATURE, SIGNATURE_LEN))
		rc = len < SIGNATURE_LEN ? PROXYHDR_MORE : read_v2(bytes, len, &h, why_r);
	else
		rc = bad(why_r, "bytes that begin no PROXY header");
	if (rc == PROXYHDR_OK)
		*h_r = h;
	return rc;
}
