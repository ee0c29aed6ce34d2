/*
 * bench_load.c - what the scenarios share; pairs and idle.
 *
 * Closed loop: each pair keeps `window` messages under way, one is sent when another has come, so
 * the rate is what the server can do. Open loop: messages leave by the clock whatever the server
 * does, and a message's time counts from the moment at which it was due, not from when the tool
 * got round to it: a stall of the server is seen by all that it delayed.
 */
#include "tests/bench/bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NS       1000000000LL
#define TICK_NS  50000000LL

struct client *clients;
uint32_t nclients, client_base, nready;
int64_t begin_ns, end_ns;
bool running;
const struct scenario *scene;

static uint32_t nextra, nretry, nlogging;
static int64_t last_ns;			/* when the last chat message came */
static uint64_t quota;			/* messages to send with --messages */

void load_fatal(const char *format, ...)
{
	va_list ap;

	fputs("parley-bench: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	atomic_fetch_add(&board->failed, 1);
	_exit(1);
}

void load_refused(const char *frame, size_t len)
{
	if (mine->refused++ == 0)
		fprintf(stderr, "parley-bench: first refusal: %.*s\n", (int)(len < 300 ? len : 300), frame);
}

struct client *load_partner(const struct client *c)
{
	return &clients[c->index ^ 1];
}

/* --- logging in --- */

void load_open(struct client *c, uint32_t k)
{
	int rc = client_open(c, k);

	if (rc != 0)
		load_fatal("cannot connect to %s: %s", client_where(k), strerror(-rc));
	c->began_ns = now_ns();
	if (mine->first_connect_ns == 0)
		mine->first_connect_ns = c->began_ns;
	if (opt.users != NULL)
		c->id = opt.users[c->user].id;
	opt.driver->hello(c);
}

void load_ready(struct client *c)
{
	if (c->ready)
		return;
	c->ready = true;
	mine->last_ready_ns = now_ns();
	nready++;
	if (c->logging)
		nlogging--;
	c->logging = false;
}

void load_retry(struct client *c, int64_t ms)
{
	if (c->retry_ns == 0)
		nretry++;
	c->retry_ns = now_ns() + ms * 1000000;
}

static void retry_due(int64_t now)
{
	static int64_t next;

	if (nretry == 0 || now < next)
		return;
	next = now + 5000000;
	for (uint32_t i = 0; i < nclients + nextra; i++)
		if (clients[i].retry_ns != 0 && clients[i].retry_ns <= now) {
			clients[i].retry_ns = 0;
			nretry--;
			if (clients[i].fd >= 0)
				opt.driver->hello(&clients[i]);
		}
}

void load_turn(int64_t until)
{
	static int64_t next_tick;
	int64_t now = now_ns(), most = now + (nretry > 0 ? 5000000 : 4 * TICK_NS);

	if (opt.driver->tick != NULL) {
		if (now >= next_tick) {
			opt.driver->tick();
			next_tick = now + TICK_NS;
		}
		if (next_tick < most)
			most = next_tick;
	}
	client_turn(until < most ? until : most);
	retry_due(now);
}

void load_login(uint32_t from, uint32_t to)
{
	double period = opt.connect_rate > 0 ? opt.procs * 1e9 / opt.connect_rate : 0;
	int64_t start = now_ns(), deadline;
	uint32_t want = nready + (to - from);

	for (uint32_t i = from; i < to; i++) {
		int64_t due = start + (int64_t)((double)(i - from) * period);

		while (nlogging >= opt.parallel || now_ns() < due)
			load_turn(due > now_ns() && nlogging < opt.parallel ? due : now_ns() + NS);
		nlogging++;
		clients[i].logging = true;
		load_open(&clients[i], client_base + i);
		if (i % 16 == 15)
			load_turn(0);
	}
	deadline = now_ns() + 120 * NS;
	while (nready < want && now_ns() < deadline)
		load_turn(deadline);
	if (nready < want)
		load_fatal("%u of %u clients could not log in within 120 s", want - nready, to - from);
}

void load_together(void)
{
	atomic_fetch_add(&board->ready, 1);
	while (atomic_load(&board->start_ns) == 0)
		load_turn(now_ns() + 2000000);
	while (now_ns() < (int64_t)atomic_load(&board->start_ns))
		load_turn((int64_t)atomic_load(&board->start_ns));
	begin_ns = (int64_t)atomic_load(&board->start_ns) + (int64_t)(opt.warmup * 1e9);
	end_ns = opt.messages > 0 ? INT64_MAX / 2 : begin_ns + (int64_t)(opt.seconds * 1e9);
	running = true;
}

/* --- messages --- */

void load_send(struct client *c, bool group, int64_t stamp)
{
	if (group)
		opt.driver->group(c, stamp);
	else
		opt.driver->chat(c, stamp);
	c->seq++;
	mine->sent_all++;
	if (load_within(stamp))
		mine->sent++;
}

/* A gap is a time without any message, while there should have been some. */
static void count_gap(int64_t now)
{
	if (last_ns >= begin_ns && now - last_ns > mine->max_gap_ns)
		mine->max_gap_ns = now - last_ns;
}

/* What a client does with a message before it answers. */
static void think(void)
{
	int64_t until = now_ns() + opt.think;

	while (now_ns() < until)
		;
}

void load_message(struct client *c, const char *p, size_t len)
{
	int64_t stamp, now = read_ns;
	uint32_t sender, seq;

	if (!text_find(p, len, &stamp, &sender, &seq))
		return;				/* somebody else's, or of an earlier run */
	if (opt.mode == MODE_GROUP && sender == client_base + c->index) {
		load_acked(c, stamp, true);	/* its own: the protocol echoes */
		return;
	}
	if (opt.mode == MODE_PAIRS) {
		if (seq != c->expect)
			mine->disordered++;
		c->expect = seq + 1;
	}
	mine->received_all++;
	/* Closed loop: counted by when it came. Open loop: by when it was due. */
	if (load_within(opt.rate > 0 ? stamp : now)) {
		mine->received++;
		hist_add(&mine->hist, now > stamp ? (uint64_t)(now - stamp) : 0);
		count_gap(now);
	}
	last_ns = now;
	if (opt.think > 0)
		think();
	if (scene->message != NULL)
		scene->message(c);
}

void load_acked(struct client *c, int64_t stamp, bool good)
{
	mine->acked_all++;
	if (c->open > 0)
		c->open--;
	if (good && load_within(opt.rate > 0 && stamp > 0 ? stamp : read_ns)) {
		mine->acked++;
		if (stamp > 0 && read_ns > stamp)
			hist_add(&mine->ack_hist, (uint64_t)(read_ns - stamp));
	}
	if (scene->acked != NULL)
		scene->acked(c);
}

void load_settle(void)
{
	uint64_t seen = 0;
	int64_t since = now_ns();
	bool acks = opt.driver == &driver_parley && opt.ack;

	while ((mine->received_all < mine->sent_all || (acks && mine->acked_all < mine->sent_all)) &&
	    now_ns() < since + 2 * NS) {
		if (mine->received_all + mine->acked_all != seen) {
			seen = mine->received_all + mine->acked_all;
			since = now_ns();
		}
		load_turn(now_ns() + NS / 10);
	}
}

/* --- pairs --- */

static void pairs_message(struct client *c)
{
	if (opt.rate == 0 && read_ns < end_ns && (quota == 0 || mine->sent_all < quota))
		load_send(c, false, read_ns);
}

/* One end of each pair begins: `window` messages go to and fro. */
static void pairs_closed(void)
{
	for (uint32_t i = 0; i < nclients; i += 2)
		for (uint32_t w = 0; w < opt.window && (quota == 0 || mine->sent_all < quota); w++)
			load_send(&clients[i], false, now_ns());
	while (now_ns() < end_ns && (quota == 0 || mine->received_all < quota)) {
		load_turn(end_ns);
		if (quota > 0 && now_ns() > last_ns + 10 * NS && last_ns > 0)
			load_fatal("nothing came for 10 s, %llu of %llu messages arrived",
			    (unsigned long long)mine->received_all, (unsigned long long)quota);
	}
}

static void pairs_open(uint32_t p)
{
	double period = opt.procs * 1e9 / opt.rate;
	int64_t first = begin_ns - (int64_t)(opt.warmup * 1e9);
	uint64_t k = 0;

	for (int64_t now = now_ns(); now < end_ns && (quota == 0 || k < quota); now = now_ns()) {
		int64_t due;

		for (;;) {
			due = first + (int64_t)(((double)k + (double)p / opt.procs) * period);
			if (due > now || due >= end_ns || (quota > 0 && k == quota))
				break;
			if (due >= begin_ns)
				hist_add(&mine->late_hist, (uint64_t)(now - due));
			load_send(&clients[k % nclients], false, due);
			k++;
		}
		load_turn(due < end_ns ? due : end_ns);
	}
}

static void pairs_run(uint32_t p)
{
	quota = (opt.messages + opt.procs - 1) / opt.procs;
	if (opt.rate > 0)
		pairs_open(p);
	else
		pairs_closed();
	mine->measured_ns = (uint64_t)((quota > 0 ? now_ns() : end_ns) - begin_ns);
	load_settle();				/* those under way still count */
	for (uint32_t i = 0; i < nclients; i++)
		client_close(&clients[i], true);
}

const struct scenario scene_pairs = { .run = pairs_run, .message = pairs_message };

/* --- idle --- */

static void idle_run(uint32_t p)
{
	(void)p;
	while (!atomic_load(&board->stop))
		load_turn(now_ns() + NS / 5);
	for (uint32_t i = 0; i < nclients; i++)
		client_close(&clients[i], true);
}

const struct scenario scene_idle = { .run = idle_run };

/* --- a process --- */

static void on_lost(struct client *c, const char *why)
{
	double age = (double)(now_ns() - c->began_ns) / 1e9;
	char who[80] = "";

	if (opt.users != NULL)
		snprintf(who, sizeof who, " (user %u%s)", c->id, c->logging ? "" : ", logged in");
	if (!running || scene->late)
		load_fatal("connection to %s%s after %.1f s: %s", client_where(client_base + c->index), who,
		    age, why);
	if (mine->lost++ == 0)
		fprintf(stderr, "parley-bench: connection to %s%s lost after %.1f s: %s\n",
		    client_where(client_base + c->index), who, age, why);
}

/* This process's part of all clients; pairs stay together. */
static void share_out(uint32_t p)
{
	uint32_t unit = opt.mode == MODE_PAIRS ? 2 : 1;
	uint32_t all = (scene->few ? opt.parallel * opt.procs : opt.conns) / unit;
	uint32_t each = all / opt.procs, more = all % opt.procs;

	nclients = (each + (p < more ? 1 : 0)) * unit;
	client_base = (each * p + (p < more ? p : more)) * unit;
}

void load_run(uint32_t p)
{
	static const struct scenario *const scenes[MODES] = {
		&scene_pairs, &scene_group, &scene_login, &scene_register, &scene_idle, &scene_store,
		&scene_drain, &scene_presence,
	};

	scene = scenes[opt.mode];
	share_out(p);
	nextra = scene->extra != NULL ? scene->extra() : 0;
	clients = calloc(nclients + nextra, sizeof *clients);
	if (clients == NULL)
		load_fatal("no memory");
	for (uint32_t i = 0; i < nclients + nextra; i++)
		clients[i] = (struct client){ .fd = -1, .index = i, .user = opt.first + client_base + i };
	client_setup(on_lost);
	if (!scene->few && !scene->late)
		load_login(0, nclients);
	if (scene->prepare != NULL)
		scene->prepare(p);
	load_together();
	scene->run(p);
}
