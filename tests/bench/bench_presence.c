/*
 * bench_presence.c - friends who come and go.
 *
 * Each process has its part of the --conns clients, who watch, and of the --count others, whom all
 * clients of that process have on their lists. A friend logs in, is seen by all who watch, logs
 * out, is seen again (the server waits with that: presence_delay_ms), and so on.
 */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>

#define NS     1000000000LL
#define ASKING 256			/* requests under way in a process */

enum step { AWAY, COMING, GOING };	/* what its watchers have still to be told */

static struct client **by_id;		/* friends, sorted by id */
static uint32_t nfriends, asked, added;

static uint32_t friends_here(void)
{
	return opt.count / opt.procs;
}

static struct client *friend_at(uint32_t i)
{
	return &clients[nclients + i];
}

static int compare(const void *a, const void *b)
{
	const struct client *const *x = a, *const *y = b;

	return (*x)->id < (*y)->id ? -1 : (*x)->id > (*y)->id;
}

static struct client *friend_of(uint32_t id)
{
	struct client key = { .id = id }, *k = &key;
	struct client **f = bsearch(&k, by_id, nfriends, sizeof *by_id, compare);

	return f != NULL ? *f : NULL;
}

/* Request K of all: watcher K / nfriends adds friend K mod nfriends. */
static void add_friend(struct client *c, uint32_t friend)
{
	char buf[100];
	int n = snprintf(buf, sizeof buf, "{\"msgid\":6,\"friendid\":%u,\"req\":%u}\n",
	    friend_at(friend)->id, friend);

	client_send(c, buf, (size_t)n);
}

static void presence_prepare(uint32_t p)
{
	int64_t deadline = now_ns() + 120 * NS;
	uint32_t all;

	nfriends = friends_here();
	all = nfriends * nclients;
	by_id = malloc(nfriends * sizeof *by_id);
	if (by_id == NULL || nfriends == 0)
		load_fatal("--count: at least one friend for each process");
	for (uint32_t i = 0; i < nfriends; i++) {
		by_id[i] = friend_at(i);
		by_id[i]->user = opt.first + opt.conns + p * nfriends + i;
		by_id[i]->id = opt.users[by_id[i]->user].id;
	}
	qsort(by_id, nfriends, sizeof *by_id, compare);
	while (added < all && now_ns() < deadline) {
		for (; asked < all && asked - added < ASKING; asked++)
			add_friend(&clients[asked % nclients], asked / nclients);
		load_turn(now_ns() + NS);
	}
	if (added < all)
		load_fatal("%u of %u friends could not be added within 120 s", all - added, all);
}

static void friend_comes(struct client *f)
{
	f->count = 0;
	f->step = COMING;
	f->began_ns = now_ns();
	if (f->fd < 0)
		load_open(f, client_base + f->index);
	else
		parley_login(f);
}

static void friend_goes(struct client *f)
{
	f->count = 0;
	f->step = GOING;
	client_send(f, "{\"msgid\":10}\n", 13);
}

static void seen(struct client *f, bool online)
{
	if (f == NULL || f->step != (online ? COMING : GOING))
		return;
	mine->received_all++;
	if (load_within(read_ns)) {
		mine->received++;
		if (online && read_ns > f->began_ns)
			hist_add(&mine->hist, (uint64_t)(read_ns - f->began_ns));
	}
	if (++f->count < nclients)
		return;
	if (online)
		friend_goes(f);
	else if (now_ns() < end_ns)
		friend_comes(f);
}

static bool presence_frame(struct client *c, int64_t msgid, int64_t error, const char *frame,
    size_t len)
{
	char state[16] = "";

	switch (msgid) {
	case 2:
		if (c->index < nclients || error != 0)
			return false;
		mine->logins += load_within(read_ns);
		return true;
	case 11:
		if (error == 7 || error == 9)
			add_friend(c, (uint32_t)frame_number(frame, len, "req", 0));
		else if (error != 0 && error != 10)
			load_fatal("cannot add a friend: %.*s", (int)(len < 300 ? len : 300), frame);
		else
			added++;
		return true;
	case 27:
		frame_string(frame, len, "state", state, sizeof state);
		seen(friend_of((uint32_t)frame_number(frame, len, "id", 0)), state[1] == 'n');
		return true;
	default:
		return false;
	}
}

static void presence_run(uint32_t p)
{
	(void)p;
	for (uint32_t i = 0; i < nfriends; i++)
		friend_comes(friend_at(i));
	while (now_ns() < end_ns)
		load_turn(end_ns);
	mine->measured_ns = (uint64_t)(end_ns - begin_ns);
	if (mine->received_all == 0)
		load_fatal("nobody was told that a friend came");
}

const struct scenario scene_presence = {
	.extra = friends_here, .prepare = presence_prepare, .run = presence_run, .frame = presence_frame,
};
