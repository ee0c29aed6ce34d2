/* bus_ask.c - one command to Redis, waited for: for a process that has no loop. */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "worker/base/clock.h"
#include "worker/bus.h"
#include "worker/finder.h"

/* What is asked, and where the answer goes. */
struct question {
	const struct redis_url *url;
	uint64_t until_ms;
	char *value;
	size_t cap;
	int64_t *n;
	char *why;
	size_t why_cap;
	bool answered, failed;
	char server[254];		/* of a sentinel's answer */
	uint16_t port;
};

static void fail(struct question *q, const char *what, const char *why)
{
	q->failed = true;
	snprintf(q->why, q->why_cap, "%s%s%s", what, *what != '\0' ? ": " : "", why);
}

/* Runs R until its last command is answered, it ends, or time is up. */
static void run(struct redis *r, struct question *q, const char *what)
{
	while (!q->answered && !q->failed && clock_ms() < q->until_ms) {
		struct pollfd p = { .fd = r->fd, .events = POLLIN };

		if (redis_wants_write(r))
			p.events |= POLLOUT;
		(void)poll(&p, 1, (int)(q->until_ms - clock_ms()));
		clock_tick();
		if (p.revents != 0 && !redis_event(r, p.revents) && !q->answered && !q->failed)
			fail(q, what, r->why);
	}
	if (!q->answered && !q->failed)
		fail(q, what, "no answer in time");
	redis_close(r, "");
}

static void on_hello(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct question *q = arg;

	(void)tag;
	if (v != NULL && v->type == BUS_ERROR)
		fail(q, "", v->s);
}

static void put_hello(struct redis *r, struct question *q, bool select)
{
	char db[12];
	const char *auth[3] = { "AUTH", q->url->user, q->url->password };
	const char *argv[2] = { "SELECT", db };

	if (q->url->user[0] == '\0')
		auth[1] = q->url->password;
	if (q->url->password[0] != '\0')
		(void)redis_put(r, q->url->user[0] != '\0' ? 3 : 2, auth, NULL,
		    select ? on_hello : NULL, q, 0);
	snprintf(db, sizeof db, "%u", q->url->db);
	if (select && q->url->db != 0)
		(void)redis_put(r, 2, argv, NULL, on_hello, q, 0);
}

static void on_answer(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct question *q = arg;

	(void)tag;
	if (v == NULL)
		return;
	if (v->type == BUS_ERROR) {
		fail(q, "", v->s);
		return;
	}
	q->answered = true;
	if (v->type == BUS_ARRAY && v->nv > 1)		/* PUBSUB NUMSUB: channel, number */
		v = &v->v[1];
	*q->n = v->type == BUS_INT ? v->n : 0;
	if (q->cap > 0)
		snprintf(q->value, q->cap, "%s", v->type == BUS_STR ? v->s : "");
}

static void on_master(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct question *q = arg;
	unsigned n;

	(void)tag;
	if (v == NULL)
		return;
	if (v->type != BUS_ARRAY || v->nv != 2 || v->v[0].type != BUS_STR ||
	    v->v[1].type != BUS_STR || v->v[0].len >= sizeof q->server ||
	    sscanf(v->v[1].s, "%5u", &n) != 1 || n == 0 || n > 65535) {
		fail(q, "", v->type == BUS_ERROR ? v->s : "it does not know that master");
		return;
	}
	memcpy(q->server, v->v[0].s, v->v[0].len + 1);
	q->port = (uint16_t)n;
	q->answered = true;
}

static void ask_sentinel(struct question *q, const struct redis_addr *a)
{
	const char *const argv[] = { "SENTINEL", "get-master-addr-by-name", q->url->name };
	struct lookup look = { .job = NULL };
	struct redis r = { .state = REDIS_CLOSED };

	q->failed = q->answered = false;
	if (lookup_now(&look, a->host, a->port) != LOOKUP_DONE) {
		fail(q, "", look.why);
	} else if (redis_open(&r, &look.addr[0].sa, look.addr[0].len) != 0) {
		fail(q, wire_addr_text(&look.addr[0]), r.why);
	} else {
		put_hello(&r, q, false);
		(void)redis_put(&r, 3, argv, NULL, on_master, q, 0);
		run(&r, q, wire_addr_text(&look.addr[0]));
	}
}

/* The addresses to try, in LOOK. */
static bool find(struct question *q, struct lookup *look, uint32_t step_ms)
{
	const struct redis_url *u = q->url;

	if (u->path[0] != '\0') {
		look->addr[0].un.sun_family = AF_UNIX;
		memcpy(look->addr[0].un.sun_path, u->path, sizeof u->path);
		look->addr[0].len = sizeof look->addr[0].un;
		look->n = 1;
		return true;
	}
	snprintf(q->server, sizeof q->server, "%s", u->addr[0].host);
	q->port = u->addr[0].port;
	for (unsigned i = 0; u->sentinel && i < u->naddr; i++) {
		q->until_ms = clock_ms() + step_ms;
		ask_sentinel(q, &u->addr[i]);
		if (q->answered)
			break;
	}
	if (u->sentinel && !q->answered)
		return false;
	if (lookup_now(look, q->server, q->port) == LOOKUP_DONE)
		return true;
	fail(q, "", look->why);
	return false;
}

int bus_ask(const struct conf *conf, unsigned argc, const char *const *argv, char *value,
    size_t cap, int64_t *n, char *why, size_t why_cap)
{
	struct redis_url url;
	struct question q = { .url = &url, .value = value, .cap = cap, .n = n, .why = why,
	    .why_cap = why_cap };
	struct lookup look = { .job = NULL };

	clock_tick();
	if (finder_read(conf, &url) != 0) {
		fail(&q, "", "not configured");
		return -1;
	}
	if (!find(&q, &look, conf->redis_timeout_ms))
		return -1;
	for (unsigned i = 0; i < look.n; i++) {
		struct redis r = { .state = REDIS_CLOSED };

		q.answered = q.failed = false;
		q.until_ms = clock_ms() + conf->redis_timeout_ms;
		if (redis_open(&r, &look.addr[i].sa, look.addr[i].len) != 0) {
			fail(&q, wire_addr_text(&look.addr[i]), r.why);
			continue;
		}
		put_hello(&r, &q, true);
		(void)redis_put(&r, argc, argv, NULL, on_answer, &q, 0);
		run(&r, &q, wire_addr_text(&look.addr[i]));
		if (q.answered && !q.failed)
			return 0;
	}
	return -1;
}
