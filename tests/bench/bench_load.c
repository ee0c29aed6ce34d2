/*
 * bench_load.c - the scenarios.
 *
 * Closed loop: each client keeps `window` messages under way and sends the next when one has
 * come, so the rate is what the server can do. Open loop: messages leave by the clock whatever
 * the server does, and a message's time counts from the moment at which it was due, not from
 * when the generator got round to it: a stall of the server is seen by all that it delayed.
 */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NS        1000000000LL
#define STAMP_LEN 19			/* digits of a time in ns */

static struct client *clients;
static uint32_t nclients, base;		/* this process's; index of its first among all */
static uint32_t nready, nretry, nlogging, nlost;
static uint64_t answered;		/* CHAT_ACKs, whenever they came */
static int64_t begin_ns, end_ns;	/* of the measurement */
static int64_t last_ns;			/* when the last chat message came */
static bool running;			/* past the preparations */
static char *pad;

static void fatal(const char *why, const char *frame, size_t len)
{
	fprintf(stderr, "parley-bench: %s: %.*s\n", why, (int)(len < 300 ? len : 300), frame);
	atomic_fetch_add(&board->failed, 1);
	_exit(1);
}

/* --- logging in --- */

static struct user *user_of(const struct client *c)
{
	return &opt.users[opt.first + base + c->index];
}

static void login_send(struct client *c)
{
	struct user *u = user_of(c);
	char buf[1024];
	int n;

	if (opt.password != NULL)
		n = snprintf(buf, sizeof buf, "{\"msgid\":1,\"id\":%u,\"password\":\"%s\"%s}\n", u->id,
		    opt.password, opt.ack ? ",\"ack\":true" : "");
	else
		n = snprintf(buf, sizeof buf, "{\"msgid\":1,\"id\":%u,\"token\":\"%s\"%s}\n", u->id,
		    u->token, opt.ack ? ",\"ack\":true" : "");
	c->id = u->id;
	client_send(c, buf, (size_t)n);
}

/* "Busy" and "still closing there" are answers to ask again after. */
static bool must_retry(struct client *c, const char *frame, size_t len, int64_t error)
{
	if (error != 7 && error != 9 && error != 2)
		return false;
	c->retry_ns = now_ns() + frame_number(frame, len, "retry_ms", 50) * 1000000;
	nretry++;
	return true;
}

static void register_send(struct client *c);

static void retry_due(void)
{
	static int64_t next;
	int64_t now = now_ns();

	if (nretry == 0 || now < next)
		return;
	next = now + 5000000;
	for (uint32_t i = 0; i < nclients; i++)
		if (clients[i].retry_ns != 0 && clients[i].retry_ns <= now) {
			clients[i].retry_ns = 0;
			nretry--;
			if (opt.mode == MODE_REGISTER && user_of(&clients[i])->id == 0)
				register_send(&clients[i]);
			else
				login_send(&clients[i]);
		}
}

static void turn(int64_t until)
{
	int64_t most = now_ns() + (nretry > 0 ? 5000000 : 200000000);

	client_turn(until < most ? until : most);
	retry_due();
}

static void login_all(void)
{
	int64_t deadline;

	for (uint32_t i = 0; i < nclients; i++) {
		while (nlogging >= opt.parallel)
			turn(now_ns() + NS);
		if (client_open(&clients[i], base + i) != 0)
			fatal("cannot connect", "", 0);
		if (opt.raw) {
			clients[i].ready = true;
			nready++;
			continue;
		}
		clients[i].began_ns = now_ns();
		nlogging++;
		login_send(&clients[i]);
		if (i % 16 == 15)
			turn(0);
	}
	deadline = now_ns() + 120 * NS;
	while (nready < nclients && now_ns() < deadline)
		turn(deadline);
	if (nready < nclients)
		fatal("not all clients could log in", "", 0);
}

/* Everybody starts together. */
static void wait_for_all(void)
{
	atomic_fetch_add(&board->ready, 1);
	while (atomic_load(&board->start_ns) == 0)
		turn(now_ns() + 2000000);
	begin_ns = (int64_t)atomic_load(&board->start_ns) + (int64_t)(opt.warmup * 1e9);
	end_ns = begin_ns + (int64_t)(opt.seconds * 1e9);
	running = true;
}

/* --- chat messages --- */

static char *put_number(char *p, uint64_t v, int digits)
{
	for (int i = digits - 1; i >= 0; i--, v /= 10)
		p[i] = (char)('0' + v % 10);
	return p + digits;
}

static char *put_text(char *p, const char *text)
{
	size_t n = strlen(text);

	memcpy(p, text, n);
	return p + n;
}

/* TO is a user (msgid 5) or a group (msgid 9); WITH_CID asks for a CHAT_ACK. */
static void chat_send(struct client *c, uint32_t to, bool group, bool with_cid, int64_t stamp)
{
	static char buf[70000];
	char *p = put_text(buf, group ? "{\"msgid\":9,\"groupid\":" : "{\"msgid\":5,\"to\":");
	uint32_t digits = 1;

	for (uint32_t v = to; v >= 10; v /= 10)
		digits++;
	p = put_number(p, to, (int)digits);
	if (with_cid) {
		p = put_text(p, ",\"cid\":\"");
		p = put_number(p, (uint64_t)begin_ns, STAMP_LEN);
		*p++ = '-';
		p = put_number(p, c->seq, 12);
		*p++ = '"';
	}
	p = put_text(p, ",\"msg\":\"T");
	p = put_number(p, (uint64_t)stamp, STAMP_LEN);
	memcpy(p, pad, opt.size - STAMP_LEN - 1);
	p = put_text(p + opt.size - STAMP_LEN - 1, "\"}\n");
	c->seq++;
	client_send(c, buf, (size_t)(p - buf));
	mine->sent++;
}

/* The time written in a message, 0 where there is none. */
static int64_t stamp_of(const char *frame, size_t len)
{
	const char *p = memmem(frame, len, "\"msg\":\"T", 8);
	int64_t v = 0;

	if (p == NULL || p + 8 + STAMP_LEN > frame + len)
		return 0;
	for (int i = 0; i < STAMP_LEN; i++)
		v = v * 10 + (p[8 + i] - '0');
	return v;
}

/* A chat message arrived: counted by when it came (closed loop) or was due (open loop). */
static void chat_count(int64_t stamp)
{
	int64_t now = now_ns(), when = opt.rate > 0 ? stamp : now;

	last_ns = now;
	if (!running || when < begin_ns || when >= end_ns)
		return;
	mine->received++;
	if (stamp > 0)
		hist_add(&mine->hist, now > stamp ? (uint64_t)(now - stamp) : 0);
}

static void confirm(struct client *c, const char *frame, size_t len)
{
	char buf[64];
	int n;

	if (!opt.ack)
		return;
	c->n = (uint32_t)frame_number(frame, len, "n", c->n);
	if (++c->unconfirmed < (opt.window < 32 ? opt.window : 32))
		return;
	c->unconfirmed = 0;
	n = snprintf(buf, sizeof buf, "{\"msgid\":16,\"n\":%u}\n", c->n);
	client_send(c, buf, (size_t)n);
}

/* --- pairs --- */

static uint32_t partner_id(const struct client *c)
{
	return opt.raw ? (c->index ^ 1) + 1 : clients[c->index ^ 1].id;
}

static void pairs_message(struct client *c, const char *frame, size_t len)
{
	chat_count(stamp_of(frame, len));
	confirm(c, frame, len);
	if (opt.rate == 0 && now_ns() < end_ns)
		chat_send(c, partner_id(c), false, opt.ack, now_ns());
}

static void pairs_run(uint32_t p)
{
	double period = opt.rate > 0 ? opt.procs * 1e9 / opt.rate : 0;
	int64_t first = begin_ns - (int64_t)(opt.warmup * 1e9);
	uint64_t k = 0;

	for (uint32_t i = 0; opt.rate == 0 && i < nclients; i += 2)
		for (uint32_t w = 0; w < opt.window; w++)
			chat_send(&clients[i], partner_id(&clients[i]), false, opt.ack, now_ns());
	for (int64_t now = now_ns(); now < end_ns; now = now_ns()) {
		int64_t due = end_ns;

		while (opt.rate > 0) {
			due = first + (int64_t)(((double)k + (double)p / opt.procs) * period);
			if (due > now || due >= end_ns)
				break;
			chat_send(&clients[k % nclients], partner_id(&clients[k % nclients]), false,
			    opt.ack, due);
			k++;
		}
		turn(due < end_ns ? due : end_ns);
	}
	if (opt.rate > 0)			/* those under way still count, for a while */
		for (int64_t t = end_ns + 2 * NS; now_ns() < t && last_ns + NS / 2 > now_ns();)
			turn(t);
	mine->measured_ns = (uint64_t)(end_ns - begin_ns);
}

/* --- a group --- */

static void group_send(struct client *c)
{
	for (; c->open < opt.window && now_ns() < end_ns; c->open++)
		chat_send(c, atomic_load(&board->group), true, true, now_ns());
}

static void group_prepare(uint32_t p)
{
	char buf[200];
	int n;
	int64_t deadline = now_ns() + 60 * NS;

	if (p == 0) {
		n = snprintf(buf, sizeof buf, "{\"msgid\":7,\"groupname\":\"bench%lld\",\"groupdesc\":\"\"}\n",
		    (long long)now_ns());
		client_send(&clients[0], buf, (size_t)n);
	}
	while (atomic_load(&board->group) == 0 && now_ns() < deadline)
		turn(now_ns() + 2000000);
	nready = p == 0 ? 1 : 0;		/* its creator is a member */
	n = snprintf(buf, sizeof buf, "{\"msgid\":8,\"groupid\":%u}\n", atomic_load(&board->group));
	for (uint32_t i = nready; i < nclients; i++) {
		client_send(&clients[i], buf, (size_t)n);
		if (i % 32 == 31)
			turn(0);
	}
	while (nready < nclients && now_ns() < deadline)
		turn(deadline);
	if (nready < nclients)
		fatal("not all clients could join the group", "", 0);
}

static void group_run(uint32_t p)
{
	if (p == 0)
		group_send(&clients[0]);
	while (now_ns() < end_ns)
		turn(end_ns);
	mine->measured_ns = (uint64_t)(end_ns - begin_ns);
}

/* --- messages to people who are away, and their return --- */

static void store_send(struct client *c)
{
	uint32_t away = opt.first + opt.conns;

	for (; c->open < opt.window && now_ns() < end_ns; c->open++) {
		uint32_t to = opt.users[away + (base + c->index + c->step++ * opt.conns) % opt.count].id;

		chat_send(c, to, false, true, now_ns());
	}
}

static void store_run(void)
{
	for (uint32_t i = 0; i < nclients; i++)
		store_send(&clients[i]);
	while (now_ns() < end_ns)
		turn(end_ns);
	for (int64_t t = end_ns + 10 * NS; now_ns() < t && answered < mine->sent;)
		turn(t);
	mine->measured_ns = (uint64_t)(end_ns - begin_ns);
}

static void drain_run(void)
{
	int64_t start = now_ns();

	login_all();
	last_ns = now_ns();
	while (now_ns() < last_ns + NS)
		turn(last_ns + NS);
	mine->measured_ns = (uint64_t)(last_ns - start);
	mine->logins = nready;
}

/* --- logins, one after the other on each of `parallel` connections --- */

static uint32_t next_user, last_user;

static void login_next(struct client *c)
{
	client_close(c);
	if (next_user >= last_user || now_ns() >= end_ns)
		return;
	c->index = next_user++;
	c->began_ns = now_ns();
	if (client_open(c, base + c->index) != 0)
		fatal("cannot connect", "", 0);
	login_send(c);
}

static void login_run(uint32_t p)
{
	uint32_t share = opt.nusers / opt.procs;
	int64_t start = now_ns();

	base = 0;
	next_user = p * share;
	last_user = next_user + share;
	for (uint32_t i = 0; i < nclients; i++)
		login_next(&clients[i]);
	while (now_ns() < end_ns && mine->logins < share)
		turn(end_ns);
	mine->measured_ns = (uint64_t)(now_ns() - start);
}

/* --- accounts to work with --- */

static void register_send(struct client *c)
{
	char buf[300];
	int n = snprintf(buf, sizeof buf, "{\"msgid\":3,\"name\":\"bench%u\",\"password\":\"%s\"}\n",
	    c->index + 1, opt.password);

	client_send(c, buf, (size_t)n);
}

static void register_next(struct client *c)
{
	if (next_user >= last_user) {
		client_close(c);
		return;
	}
	c->index = next_user++;
	register_send(c);
}

static void register_frame(struct client *c, const char *frame, size_t len, int64_t msgid,
    int64_t error)
{
	struct user *u = &opt.users[c->index];

	if (must_retry(c, frame, len, error))
		return;
	if (error != 0)
		fatal("refused", frame, len);
	if (msgid == 4) {
		u->id = (uint32_t)frame_number(frame, len, "id", 0);
		login_send(c);
	} else if (msgid == 2) {
		if (!frame_string(frame, len, "token", u->token, sizeof u->token))
			fatal("no token", frame, len);
		client_send(c, "{\"msgid\":10}\n", 13);
	} else if (msgid == 14) {
		mine->logins++;
		register_next(c);
	}
}

static void register_run(void)
{
	int64_t start = now_ns(), deadline = start + 1200 * NS;
	FILE *f;

	next_user = 0;
	last_user = opt.nusers;
	for (uint32_t i = 0; i < nclients; i++) {
		if (client_open(&clients[i], i) != 0)
			fatal("cannot connect", "", 0);
		register_next(&clients[i]);
	}
	while (mine->logins < opt.nusers && now_ns() < deadline)
		turn(deadline);
	mine->measured_ns = (uint64_t)(now_ns() - start);
	f = fopen(opt.out_file, "w");
	for (uint32_t i = 0; f != NULL && i < opt.nusers; i++)
		fprintf(f, "%u %s\n", opt.users[i].id, opt.users[i].token);
	if (f == NULL || fclose(f) != 0)
		fatal("cannot write", opt.out_file, strlen(opt.out_file));
}

/* --- what comes in --- */

static void login_acked(struct client *c, const char *frame, size_t len, int64_t error)
{
	if (must_retry(c, frame, len, error))
		return;
	if (error != 0)
		fatal("login refused", frame, len);
	if (opt.mode == MODE_LOGIN) {
		mine->logins++;
		hist_add(&mine->hist, (uint64_t)(now_ns() - c->began_ns));
		login_next(c);
		return;
	}
	if (opt.mode == MODE_DRAIN) {
		mine->received += frame_count(frame, len, "\"mid\":\"");
		last_ns = now_ns();
	}
	c->ready = true;
	nready++;
	nlogging--;
}

static void chat_acked(struct client *c, const char *frame, size_t len, int64_t error)
{
	int64_t now = now_ns();

	answered++;
	if (c->open > 0)
		c->open--;
	if (error != 0) {
		if (mine->refused++ == 0)
			fprintf(stderr, "parley-bench: first refusal: %.*s\n", (int)len, frame);
	} else if (now >= begin_ns && now < end_ns) {
		mine->acked++;
	}
	if (opt.mode == MODE_STORE)
		store_send(c);
	else if (opt.mode == MODE_GROUP)
		group_send(c);
}

static void on_frame(struct client *c, const char *frame, size_t len)
{
	int64_t msgid, error;

	if (opt.raw) {
		pairs_message(c, frame, len);
		return;
	}
	msgid = frame_number(frame, len < 64 ? len : 64, "msgid", -1);
	if (msgid < 0)
		msgid = frame_number(frame, len, "msgid", -1);
	if (msgid == 5 && opt.mode == MODE_PAIRS) {
		pairs_message(c, frame, len);
		return;
	}
	error = frame_number(frame, len, "errno", 0);
	if (opt.mode == MODE_REGISTER) {
		register_frame(c, frame, len, msgid, error);
		return;
	}
	switch (msgid) {
	case 2:
		login_acked(c, frame, len, error);
		break;
	case 5: case 9:
		if (opt.mode == MODE_DRAIN) {
			mine->received++;
			last_ns = now_ns();
		} else {
			chat_count(stamp_of(frame, len));
		}
		confirm(c, frame, len);
		break;
	case 12:
		if (error != 0)
			fatal("no group", frame, len);
		atomic_store(&board->group, (uint32_t)frame_number(frame, len, "groupid", 0));
		break;
	case 13:
		if (error != 0)
			fatal("cannot join", frame, len);
		nready++;
		break;
	case 15:
		chat_acked(c, frame, len, error);
		break;
	case 28: case 29:
		if (mine->refused++ == 0)
			fprintf(stderr, "parley-bench: first refusal: %.*s\n", (int)len, frame);
		break;
	default:
		break;
	}
}

static void on_lost(struct client *c)
{
	(void)c;
	if (nlost++ == 0)
		fprintf(stderr, "parley-bench: the server closed a connection\n");
	mine->refused++;
	if (!running || opt.mode == MODE_LOGIN)
		fatal("cannot go on", "", 0);
}

int load_run(uint32_t p)
{
	bool few = opt.mode == MODE_LOGIN || opt.mode == MODE_REGISTER;

	nclients = (few ? opt.parallel : opt.conns) / opt.procs;
	if (opt.mode == MODE_PAIRS)
		nclients &= ~1u;
	if (nclients == 0)
		return -1;
	base = few ? 0 : p * nclients;
	clients = calloc(nclients, sizeof *clients);
	pad = malloc(opt.size);
	if (clients == NULL || pad == NULL)
		return -1;
	memset(pad, 'x', opt.size);
	for (uint32_t i = 0; i < nclients; i++)
		clients[i] = (struct client){ .fd = -1, .index = i };
	client_setup(on_frame, on_lost);
	if (!few && opt.mode != MODE_DRAIN)
		login_all();
	if (opt.mode == MODE_GROUP)
		group_prepare(p);
	wait_for_all();
	switch (opt.mode) {
	case MODE_PAIRS:	pairs_run(p); break;
	case MODE_GROUP:	group_run(p); break;
	case MODE_STORE:	store_run(); break;
	case MODE_DRAIN:	drain_run(); break;
	case MODE_LOGIN:	login_run(p); break;
	case MODE_REGISTER:	register_run(); break;
	case MODE_IDLE:
		while (!atomic_load(&board->stop))
			turn(now_ns() + NS / 10);
		break;
	}
	return 0;
}
