/* bench_irc.c - IRC (RFC 2812): a nick for each client, PRIVMSG to the partner's. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <string.h>

static ssize_t irc_cut(const char *p, size_t len)
{
	const char *nl = memchr(p, '\n', len);

	return nl == NULL ? 0 : nl + 1 - p;
}

static void irc_hello(struct client *c)
{
	char buf[100];
	int n = sprintf(buf, "NICK c%u\r\nUSER b 0 * :b\r\n", client_base + c->index);

	client_send(c, buf, (size_t)n);
}

static void irc_chat(struct client *c, int64_t stamp)
{
	char *at = client_room(c, opt.size + 48), *p = put_text(at, "PRIVMSG c");

	p = put_number(p, client_base + (c->index ^ 1));
	p = put_text(p, " :");
	p = text_put(p, stamp, client_base + c->index, c->seq);
	p = put_text(p, "\r\n");
	client_sent(c, (size_t)(p - at));
}

/* What stands behind the prefix. */
static const char *command_of(const char *p, size_t *len)
{
	const char *space = *p == ':' ? memchr(p, ' ', *len) : NULL;

	if (space == NULL)
		return p;
	*len -= (size_t)(space + 1 - p);
	return space + 1;
}

static void irc_frame(struct client *c, const char *p, size_t len)
{
	size_t n = len;
	const char *cmd = command_of(p, &n);

	if (n > 8 && memcmp(cmd, "PRIVMSG ", 8) == 0) {
		load_message(c, cmd, n);
	} else if (n > 5 && memcmp(cmd, "PING ", 5) == 0) {
		client_send(c, "PONG ", 5);
		client_send(c, cmd + 5, n - 5);
	} else if (n > 4 && (memcmp(cmd, "376 ", 4) == 0 || memcmp(cmd, "422 ", 4) == 0)) {
		load_ready(c);			/* the message of the day has ended */
	} else if (n > 4 && memcmp(cmd, "433 ", 4) == 0) {
		load_retry(c, 100);		/* that nick is still there, from before */
	} else if (n > 5 && memcmp(cmd, "ERROR", 5) == 0 && !running) {
		load_fatal("the server says: %.*s", (int)n, cmd);
	}
}

const struct driver driver_irc = {
	.name = "irc", .cut = irc_cut, .hello = irc_hello, .frame = irc_frame, .chat = irc_chat,
};
