/* bench_store.c - messages to people who are away, and their return. */
#include "tests/bench/bench.h"

#define NS 1000000000LL

/* --- store: a message is done when CHAT_ACK says that it is committed --- */

static void store_send(struct client *c)
{
	uint32_t away = opt.first + opt.conns;

	for (; c->open < opt.window && now_ns() < end_ns; c->open++) {
		uint64_t k = client_base + c->index + (uint64_t)c->count++ * opt.conns;

		parley_chat(c, opt.users[away + k % opt.count].id, false, true, now_ns());
		c->seq++;
		mine->sent_all++;
		if (load_within(now_ns()))
			mine->sent++;
	}
}

static void store_run(uint32_t p)
{
	(void)p;
	for (uint32_t i = 0; i < nclients; i++)
		store_send(&clients[i]);
	while (now_ns() < end_ns)
		load_turn(end_ns);
	mine->measured_ns = (uint64_t)(end_ns - begin_ns);
	for (int64_t t = now_ns() + 10 * NS; now_ns() < t && mine->acked_all < mine->sent_all;)
		load_turn(t);
}

const struct scenario scene_store = { .run = store_run, .acked = store_send };

/* --- drain: they log in, and nothing more comes for a second --- */

static int64_t last_ns;

static bool drain_frame(struct client *c, int64_t msgid, int64_t error, const char *frame, size_t len)
{
	uint32_t n = msgid == 2 && error == 0 ? frame_count(frame, len, "\"mid\":\"") :
	    msgid == 5 || msgid == 9 ? 1 : 0;

	if (msgid == 2 && error == 0)
		hist_add(&mine->hist, (uint64_t)(now_ns() - c->began_ns));
	mine->received += n;
	mine->received_all += n;
	if (n > 0)
		last_ns = read_ns;
	return n > 0 && msgid != 2;
}

static void drain_run(uint32_t p)
{
	int64_t start = now_ns();

	(void)p;
	load_login(0, nclients);
	if (last_ns < mine->last_ready_ns)
		last_ns = mine->last_ready_ns;
	while (now_ns() < last_ns + NS)
		load_turn(last_ns + NS);
	mine->measured_ns = (uint64_t)(last_ns - start);
	mine->logins = nready;
}

const struct scenario scene_drain = { .late = true, .run = drain_run, .frame = drain_frame };
