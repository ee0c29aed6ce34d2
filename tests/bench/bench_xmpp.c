/*
 * bench_xmpp.c - XMPP (RFC 6120): SASL ANONYMOUS, a resource bound, messages to the partner's full
 * JID. The server must serve the domain "localhost" and offer ANONYMOUS without TLS.
 */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum step { SAY_WHO, AUTHENTICATE, BIND };

/* The end of the first NEEDLE, or NULL. */
static const char *behind(const char *p, size_t len, const char *needle)
{
	size_t n = strlen(needle);
	const char *q = memmem(p, len, needle, n);

	return q == NULL ? NULL : q + n;
}

/* An element of the stream, whole; or the stream's own tags. */
static ssize_t xmpp_cut(const char *p, size_t len)
{
	const char *gt, *end;
	char close[64];
	size_t name = 1;

	if (*p == ' ' || *p == '\n' || *p == '\r')
		return 1;
	if (*p != '<')
		return -1;
	gt = memchr(p, '>', len);
	if (gt == NULL)
		return 0;
	while (p[name] != ' ' && p[name] != '>' && p[name] != '/' && p[name] != '\'')
		name++;
	if (gt[-1] == '/' || p[1] == '/' || p[1] == '?' || (name == 14 && memcmp(p, "<stream:stream", 14) == 0))
		return gt + 1 - p;
	if (name > sizeof close - 4)
		return -1;
	close[0] = '<';
	close[1] = '/';
	memcpy(close + 2, p + 1, name - 1);
	memcpy(close + 1 + name, ">", 2);
	end = behind(gt, (size_t)(p + len - gt), close);
	return end == NULL ? 0 : end - p;
}

static void xmpp_hello(struct client *c)
{
	static const char open[] = "<?xml version='1.0'?><stream:stream to='localhost' version='1.0' "
	    "xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";

	client_send(c, open, sizeof open - 1);
}

static void xmpp_chat(struct client *c, int64_t stamp)
{
	char *at = client_room(c, opt.size + 256), *p = put_text(at, "<message to='");

	p = put_text(p, load_partner(c)->extra);
	p = put_text(p, "' type='chat'><body>");
	p = text_put(p, stamp, client_base + c->index, c->seq);
	p = put_text(p, "</body></message>");
	client_sent(c, (size_t)(p - at));
}

/* The name that the server gave: <jid>NODE@localhost/RESOURCE</jid>. */
static void bound(struct client *c, const char *p, size_t len)
{
	const char *jid = behind(p, len, "<jid>"), *end = jid == NULL ? NULL :
	    memchr(jid, '<', (size_t)(p + len - jid));

	if (end == NULL || end - jid > 120)
		load_fatal("no JID in %.*s", (int)(len < 300 ? len : 300), p);
	c->extra = strndup(jid, (size_t)(end - jid));
	if (c->extra == NULL)
		abort();
	load_ready(c);
}

static void xmpp_frame(struct client *c, const char *p, size_t len)
{
	static const char auth[] = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='ANONYMOUS'/>";
	static const char bind[] = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";

	if (len > 9 && memcmp(p, "<message", 8) == 0) {
		load_message(c, p, len);
	} else if (memmem(p, len, "<stream:features", 16) == p) {
		if (c->step == SAY_WHO)
			client_send(c, auth, sizeof auth - 1);
		else
			client_send(c, bind, sizeof bind - 1);
		c->step++;
	} else if (len > 8 && memcmp(p, "<success", 8) == 0) {
		xmpp_hello(c);
	} else if (c->step == BIND && !c->ready && memcmp(p, "<iq", 3) == 0) {
		bound(c, p, len);
	} else if (memmem(p, len, "<failure", 8) == p || memmem(p, len, "<stream:error", 13) == p) {
		load_fatal("the server says: %.*s", (int)(len < 300 ? len : 300), p);
	}
}

const struct driver driver_xmpp = {
	.name = "xmpp", .cut = xmpp_cut, .hello = xmpp_hello, .frame = xmpp_frame, .chat = xmpp_chat,
};
