/* bench_parley.c - parley's own protocol, the plain dialect, for the load tool. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define CID_RUN 4			/* hex digits that tell runs apart, before the time */

static ssize_t parley_cut(const char *p, size_t len)
{
	const char *nl = memchr(p, '\n', len);

	return nl == NULL ? 0 : nl + 1 - p;
}

void parley_login(struct client *c)
{
	const struct user *u = &opt.users[c->user];
	char *p = client_room(c, 1024), *at = p;

	at = put_text(at, "{\"msgid\":1,\"id\":");
	at = put_number(at, u->id);
	if (opt.password != NULL) {
		at = put_text(at, ",\"password\":\"");
		at = put_text(at, opt.password);
	} else {
		at = put_text(at, ",\"token\":\"");
		memcpy(at, u->token, u->len);
		at += u->len;
	}
	at = put_text(at, opt.ack ? "\",\"ack\":true}\n" : "\"}\n");
	c->id = u->id;
	c->unconfirmed = 0;
	client_sent(c, (size_t)(at - p));
}

static void parley_hello(struct client *c)
{
	if (opt.mode == MODE_REGISTER)
		scene->frame(c, 0, 0, "", 0);
	else
		parley_login(c);
}

/* --- chat messages --- */

static uint32_t run_id(void)
{
	static uint32_t id;

	if (id == 0)
		id = ((uint32_t)time(NULL) & 0xffff) | 0x10000;
	return id & 0xffff;
}

void parley_chat(struct client *c, uint32_t to, bool group, bool with_cid, int64_t stamp)
{
	char *p = client_room(c, opt.size + 200), *at = p;

	at = put_text(at, group ? "{\"msgid\":9,\"groupid\":" : "{\"msgid\":5,\"to\":");
	at = put_number(at, to);
	if (with_cid) {
		at = put_text(at, ",\"cid\":\"");
		at = put_hex(at, run_id(), CID_RUN);
		at = put_hex(at, (uint64_t)stamp, 16);
		at = put_hex(at, c->seq, 8);
		*at++ = '"';
	}
	at = put_text(at, ",\"msg\":\"");
	at = text_put(at, stamp, client_base + c->index, c->seq);
	at = put_text(at, "\"}\n");
	client_sent(c, (size_t)(at - p));
}

static void parley_to_partner(struct client *c, int64_t stamp)
{
	parley_chat(c, load_partner(c)->id, false, opt.ack, stamp);
}

static void parley_to_group(struct client *c, int64_t stamp)
{
	parley_chat(c, atomic_load_explicit(&board->group, memory_order_relaxed), true, true, stamp);
}

/* --- confirming --- */

static void confirm_now(struct client *c)
{
	char *p = client_room(c, 64), *at = put_text(p, "{\"msgid\":16,\"n\":");

	at = put_number(at, c->n);
	at = put_text(at, "}\n");
	c->unconfirmed = 0;
	client_sent(c, (size_t)(at - p));
}

static void confirm(struct client *c, const char *frame, size_t len)
{
	if (!opt.ack)
		return;
	c->n = (uint32_t)frame_number(frame, len, "n", c->n);
	if (++c->unconfirmed >= opt.confirm)
		confirm_now(c);
}

/* Nobody waits for the rest of a batch. */
static void parley_tick(void)
{
	for (uint32_t i = 0; opt.ack && i < nclients; i++)
		if (clients[i].unconfirmed > 0 && clients[i].fd >= 0)
			confirm_now(&clients[i]);
}

/* --- what comes in --- */

bool parley_must_retry(struct client *c, const char *frame, size_t len, int64_t error)
{
	if (error != 7 && error != 9 && error != 2)
		return false;
	load_retry(c, frame_number(frame, len, "retry_ms", 50));
	return true;
}

static void login_acked(struct client *c, const char *frame, size_t len, int64_t error)
{
	if (parley_must_retry(c, frame, len, error))
		return;
	if (error != 0)
		load_fatal("login of user %u refused: %.*s", c->id, (int)(len < 300 ? len : 300), frame);
	load_ready(c);
}

static void chat_acked(struct client *c, const char *frame, size_t len, int64_t error)
{
	char cid[80];
	int64_t stamp = 0;

	if (error != 0)
		load_refused(frame, len);
	if (frame_string(frame, len, "cid", cid, sizeof cid) && strlen(cid) == CID_RUN + 24)
		stamp = get_hex(cid + CID_RUN, 16);
	load_acked(c, stamp, error == 0);
}

static void pong(struct client *c, const char *frame, size_t len)
{
	char req[80];
	char *p = client_room(c, 200), *at = put_text(p, "{\"msgid\":26");

	if (frame_string(frame, len, "req", req, sizeof req))
		at += sprintf(at, ",\"req\":\"%s\"", req);
	at = put_text(at, "}\n");
	client_sent(c, (size_t)(at - p));
}

static int64_t msgid_of(const char *frame, size_t len)
{
	if (len > 11 && memcmp(frame, "{\"msgid\":", 9) == 0) {
		int64_t v = frame[9] - '0';

		return frame[10] >= '0' && frame[10] <= '9' ? v * 10 + (frame[10] - '0') : v;
	}
	return frame_number(frame, len, "msgid", -1);
}

static void parley_frame(struct client *c, const char *frame, size_t len)
{
	int64_t msgid, error = 0;

	len--;					/* the newline */
	msgid = msgid_of(frame, len);
	if (msgid != 5 && msgid != 9)
		error = frame_number(frame, len, "errno", 0);
	if (scene->frame != NULL && scene->frame(c, msgid, error, frame, len)) {
		if (msgid == 5 || msgid == 9)
			confirm(c, frame, len);
		return;
	}
	switch (msgid) {
	case 2:
		login_acked(c, frame, len, error);
		break;
	case 5: case 9:
		load_message(c, frame, len);
		confirm(c, frame, len);
		break;
	case 15:
		chat_acked(c, frame, len, error);
		break;
	case 25:
		pong(c, frame, len);
		break;
	case 28:
		load_refused(frame, len);
		break;
	case 29:
		if (!running)
			load_fatal("the server says: %.*s", (int)(len < 300 ? len : 300), frame);
		load_refused(frame, len);
		break;
	default:
		break;
	}
}

const struct driver driver_parley = {
	.name = "parley", .cut = parley_cut, .hello = parley_hello, .frame = parley_frame,
	.chat = parley_to_partner, .group = parley_to_group, .tick = parley_tick,
};
