/* bench_relay.c - the yardstick's side of relay.c: says which room it is in, then parley's frames. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <string.h>

static ssize_t relay_cut(const char *p, size_t len)
{
	const char *nl = memchr(p, '\n', len);

	return nl == NULL ? 0 : nl + 1 - p;
}

static void relay_hello(struct client *c)
{
	bool group = opt.mode == MODE_GROUP;
	char buf[16];

	snprintf(buf, sizeof buf, "R%08x%c\n", group ? UINT32_MAX : (client_base + c->index) / 2,
	    group ? 'e' : '-');
	client_send(c, buf, 11);
}

static void relay_frame(struct client *c, const char *p, size_t len)
{
	if (!c->ready)
		load_ready(c);			/* it is in its room */
	else
		load_message(c, p, len);
}

static void relay_chat(struct client *c, int64_t stamp)
{
	parley_chat(c, client_base + c->index + 1, false, false, stamp);
}

static void relay_group(struct client *c, int64_t stamp)
{
	parley_chat(c, 1, true, false, stamp);
}

const struct driver driver_relay = {
	.name = "relay", .cut = relay_cut, .hello = relay_hello, .frame = relay_frame,
	.chat = relay_chat, .group = relay_group,
};
