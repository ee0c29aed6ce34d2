/* bench_resp.c - Redis pub/sub over RESP3 (one connection publishes and is subscribed). */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 8

/* The length of the first value, 0: not all here, below 0: no value. */
static ssize_t value_len(const char *p, size_t len, int depth)
{
	const char *nl = memchr(p, '\n', len);
	long n;
	size_t at;

	if (nl == NULL)
		return 0;
	at = (size_t)(nl + 1 - p);
	switch (*p) {
	case '+': case '-': case ':': case '_': case ',': case '#': case '(':
		return (ssize_t)at;
	case '$': case '=': case '!':
		n = strtol(p + 1, NULL, 10);
		if (n < 0)
			return (ssize_t)at;
		return at + (size_t)n + 2 <= len ? (ssize_t)(at + (size_t)n + 2) : 0;
	case '*': case '~': case '>': case '%':
		n = strtol(p + 1, NULL, 10) * (*p == '%' ? 2 : 1);
		for (; n > 0; n--) {
			ssize_t one = depth < MAX_DEPTH ? at == len ? 0 :
			    value_len(p + at, len - at, depth + 1) : -1;

			if (one <= 0)
				return one;
			at += (size_t)one;
		}
		return (ssize_t)at;
	default:
		return -1;
	}
}

static ssize_t resp_cut(const char *p, size_t len)
{
	return value_len(p, len, 0);
}

static uint32_t put_channel(char *p, uint32_t client)
{
	return (uint32_t)(opt.mode == MODE_GROUP ? sprintf(p, "g") : sprintf(p, "c%u", client));
}

static void resp_hello(struct client *c)
{
	char buf[128], channel[24];
	uint32_t n = put_channel(channel, client_base + c->index);
	int len = sprintf(buf, "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$%u\r\n%s\r\n", n,
	    channel);

	client_send(c, buf, (size_t)len);
}

static void publish(struct client *c, uint32_t to, int64_t stamp)
{
	char channel[24], *at = client_room(c, opt.size + 96), *p = at;
	uint32_t n = put_channel(channel, to);

	p = put_text(p, "*3\r\n$7\r\nPUBLISH\r\n$");
	p = put_number(p, n);
	p = put_text(p, "\r\n");
	p = put_text(p, channel);
	p = put_text(p, "\r\n$");
	p = put_number(p, opt.size);
	p = put_text(p, "\r\n");
	p = text_put(p, stamp, client_base + c->index, c->seq);
	p = put_text(p, "\r\n");
	client_sent(c, (size_t)(p - at));
}

static void resp_chat(struct client *c, int64_t stamp)
{
	publish(c, client_base + (c->index ^ 1), stamp);
}

static void resp_group(struct client *c, int64_t stamp)
{
	publish(c, 0, stamp);
}

static void resp_frame(struct client *c, const char *p, size_t len)
{
	if (*p == '-')
		load_fatal("the server says: %.*s", (int)len, p);
	if (*p != '>')
		return;				/* how many got it */
	if (memmem(p, len < 24 ? len : 24, "subscribe", 9) != NULL)
		load_ready(c);
	else
		load_message(c, p, len);
}

const struct driver driver_resp = {
	.name = "redis", .cut = resp_cut, .hello = resp_hello, .frame = resp_frame,
	.chat = resp_chat, .group = resp_group,
};
