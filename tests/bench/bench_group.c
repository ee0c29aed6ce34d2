/*
 * bench_group.c - one group, all clients its members, some of them send.
 *
 * The senders are the first clients of each process. A sender has `window` messages under way; one
 * is answered by CHAT_ACK (parley), or when it comes back to its sender (protocols that echo).
 */
#include "tests/bench/bench.h"

#include <stdio.h>

#define NS       1000000000LL
#define JOINING  256			/* requests under way in a process */

static uint32_t joined, asked;

static void group_create(void)
{
	char buf[100];
	int n = snprintf(buf, sizeof buf, "{\"msgid\":7,\"groupname\":\"bench%lld\",\"groupdesc\":\"\"}\n",
	    (long long)now_ns());

	client_send(&clients[0], buf, (size_t)n);
}

static void group_join(struct client *c)
{
	char buf[100];
	int n = snprintf(buf, sizeof buf, "{\"msgid\":8,\"groupid\":%u}\n", atomic_load(&board->group));

	client_send(c, buf, (size_t)n);
}

static void group_prepare(uint32_t p)
{
	int64_t deadline = now_ns() + 120 * NS;

	if (opt.group != 0)
		atomic_store(&board->group, opt.group);
	if (opt.driver != &driver_parley || opt.group != 0)
		return;
	if (p == 0)
		group_create();
	while (atomic_load(&board->group) == 0 && now_ns() < deadline)
		load_turn(now_ns() + 2000000);
	if (atomic_load(&board->group) == 0)
		load_fatal("the group was not made within 120 s");
	asked = joined = p == 0 ? 1 : 0;	/* its creator is a member */
	while (joined < nclients && now_ns() < deadline) {
		while (asked < nclients && asked - joined < JOINING)
			group_join(&clients[asked++]);
		load_turn(now_ns() + NS);
	}
	if (joined < nclients)
		load_fatal("%u clients could not join the group within 120 s", nclients - joined);
}

static bool group_frame(struct client *c, int64_t msgid, int64_t error, const char *frame, size_t len)
{
	if (msgid != 12 && msgid != 13)
		return false;
	if (error == 7 || error == 9)		/* not now; its member asks again */
		group_join(c);
	else if (error != 0 && error != 10)
		load_fatal("the group: %.*s", (int)(len < 300 ? len : 300), frame);
	else if (msgid == 12)
		atomic_store(&board->group, (uint32_t)frame_number(frame, len, "groupid", 0));
	else
		joined++;
	return true;
}

static uint32_t senders_here(uint32_t p)
{
	uint32_t n = opt.senders / opt.procs + (p < opt.senders % opt.procs ? 1 : 0);

	return n < nclients ? n : nclients;
}

static void group_send(struct client *c)
{
	for (; c->open < opt.window && now_ns() < end_ns; c->open++)
		load_send(c, true, now_ns());
}

static void group_acked(struct client *c)
{
	if (opt.rate == 0 && running)
		group_send(c);
}

/* By the clock: the senders of all processes take turns. */
static void group_open_loop(uint32_t p, uint32_t senders)
{
	double period = opt.procs * 1e9 / opt.rate;
	int64_t first = begin_ns - (int64_t)(opt.warmup * 1e9), due;

	for (uint64_t k = 0; now_ns() < end_ns; load_turn(due < end_ns ? due : end_ns))
		for (;; k++) {
			due = first + (int64_t)(((double)k + (double)p / opt.procs) * period);
			if (due > now_ns() || due >= end_ns)
				break;
			load_send(&clients[k % senders], true, due);
		}
}

static void group_run(uint32_t p)
{
	uint32_t senders = senders_here(p);
	int64_t rest = end_ns + NS / 2;

	if (opt.rate > 0 && senders > 0)
		group_open_loop(p, senders);
	for (uint32_t i = 0; opt.rate == 0 && i < senders; i++)
		group_send(&clients[i]);
	while (now_ns() < end_ns)
		load_turn(end_ns);
	mine->measured_ns = (uint64_t)(end_ns - begin_ns);
	while (now_ns() < rest)			/* the last ones, so that all processes have them */
		load_turn(rest);
	for (uint32_t i = 0; i < nclients; i++)
		client_close(&clients[i], true);
}

const struct scenario scene_group = {
	.prepare = group_prepare, .run = group_run, .acked = group_acked, .frame = group_frame,
};
