/*
 * proxyhdr.h - the PROXY protocol header: whom a proxy in front of us speaks for.
 *
 * Scope   versions 1 (text) and 2 (binary), as nginx and HAProxy put them before a connection's
 *         first byte. Pure: bytes in, an address out. What cannot become a header is refused at
 *         the first byte that says so.
 * Units   bytes. A header is at most PROXYHDR_MAX long, so is what has to be kept for it.
 * Owner   the caller keeps the bytes until the answer is not PROXYHDR_MORE; it begins at the
 *         first byte each time.
 * Errors  enum proxyhdr_rc; *why_r is a sentence, valid for ever.
 * Source  proxy-protocol.txt of HAProxy, 2.1 and 2.2.
 */
#ifndef PARLEY_BASE_PROXYHDR_H
#define PARLEY_BASE_PROXYHDR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROXYHDR_V1_MAX 107		/* with its CR LF */
#define PROXYHDR_V2_HEAD 16
#define PROXYHDR_V2_BODY 536		/* addresses and TLVs behind the head */
#define PROXYHDR_MAX (PROXYHDR_V2_HEAD + PROXYHDR_V2_BODY)

enum proxyhdr_rc {
	PROXYHDR_MORE = 0,		/* right so far, not complete */
	PROXYHDR_OK = 1,
	PROXYHDR_BAD = -1		/* no header can come of this */
};

struct proxyhdr {
	size_t len;			/* of the header; the client's own bytes follow */
	bool known;			/* it names a TCP client; else (UNKNOWN, LOCAL) the peer is it */
	uint8_t addr[16];		/* if known: the client's, IPv4 as ::ffff:a.b.c.d, never all zero */
	uint16_t port;			/* if known; a proxy that was told another address may say 0 */
};

/* Looks at the first LEN bytes of a connection; *H_R is set with PROXYHDR_OK only. */
enum proxyhdr_rc proxyhdr_read(const void *bytes, size_t len, struct proxyhdr *h_r,
    const char **why_r);

#endif
