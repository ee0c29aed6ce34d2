/*
 * bus.c - the worker's connection for commands, and the host's subscription.
 *
 * The line (commands) goes WAIT -> FIND -> HELLO -> UP, and back to WAIT whatever goes wrong; one door,
 * lost(), leads there. The subscription follows it: it is made to the address that the line has found,
 * and made anew when the line has moved to another one. It survives a line that is lost and comes back
 * to the same server.
 *
 * A Redis that is stopped says nothing and closes nothing, so both are asked something every
 * heartbeat, and left when no answer at all has come for redis_timeout_ms.
 */
#include "worker/bus.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/finder.h"
#include "worker/state.h"
#include "worker/wire.h"

#define BACKOFF_MIN  50u
#define BACKOFF_MAX  2000u
#define STABLE_MS    1000u		/* up for that long: the next back-off is short again */
#define TICK_MIN     16u
#define TICK_MAX     100u
#define REPEAT_MS    60000u		/* the same trouble is logged again after that time */
#define OFTEN_MS     5000u		/* another trouble at most this often */
#define SENTINEL_MS  5000u		/* while up: is it still the master? */

enum step { OFF, WAIT, FIND, HELLO, UP };

static struct bus_hooks hooks;
static struct redis_url url;
static enum step step;
static struct wire line, sub;
static struct wire_addr places[LOOKUP_MAX];	/* those found, and the next to try */
static unsigned nplaces, place;
static struct wire_addr here, sub_here;		/* what the connections are connected to */
static uint64_t due_ms, by_ms, up_ms, asked_ms, pinged_ms, checked_ms;
static uint32_t backoff;
static struct timer tick;
static char error[200], logged[200];
static uint64_t logged_ms;

static char channel[200];			/* "": none wanted */
static void (*on_message)(const char *data, size_t len);
static bool subscribed;
static uint64_t sub_due_ms;
static uint32_t sub_backoff;

/* ---- waiting ---- */

static uint32_t jitter(uint32_t ms)
{
	uint32_t r = 0;

	(void)getrandom(&r, sizeof r, GRND_NONBLOCK);
	return ms / 2 + r % (ms / 2 + 1);
}

static uint32_t longer(uint32_t ms)
{
	return ms == 0 ? BACKOFF_MIN : ms * 2 < BACKOFF_MAX ? ms * 2 : BACKOFF_MAX;
}

/* Said once, when it changes, and again after a while. */
static void complain(void)
{
	uint64_t now = clock_ms();
	bool same = strcmp(error, logged) == 0;

	if (logged_ms != 0 && now - logged_ms < (same ? REPEAT_MS : OFTEN_MS))
		return;
	logged_ms = now;
	memcpy(logged, error, sizeof logged);
	log_warn("redis: %s", error);
}

/* The one way back to WAIT. */
static void lost(const char *what, const char *why)
{
	bool was_up = step == UP;

	snprintf(error, sizeof error, "%s%s%s", what, *what != '\0' ? ": " : "", why);
	if (was_up && clock_ms() - up_ms >= STABLE_MS)
		backoff = 0;
	backoff = longer(backoff);
	step = WAIT;
	due_ms = clock_ms() + jitter(backoff);
	if (was_up)
		logged_ms = 0;
	complain();
	if (was_up)
		hooks.down();
}

/* ---- commands that every connection begins with ---- */

static bool put(struct wire *w, unsigned argc, const char *const *argv, bus_done_fn *done)
{
	return redis_put(&w->r, argc, argv, NULL, done, w, 0);
}

static void refuse(struct wire *w, const struct bus_value *v)
{
	if (v != NULL && v->type == BUS_ERROR)
		redis_close(&w->r, v->s);
}

static void on_ok(void *arg, uint64_t tag, const struct bus_value *v)
{
	(void)tag;
	refuse(arg, v);
}

static void put_auth(struct wire *w)
{
	const char *argv[3] = { "AUTH", url.user, url.password };

	if (url.password[0] == '\0')
		return;
	if (url.user[0] != '\0') {
		(void)put(w, 3, argv, on_ok);
		return;
	}
	argv[1] = url.password;
	(void)put(w, 2, argv, on_ok);
}

/* A name is a comfort in CLIENT LIST: a server that knows none is as good. */
static void put_name(struct wire *w, const char *kind)
{
	char name[96];
	const char *argv[3] = { "CLIENT", "SETNAME", name };

	snprintf(name, sizeof name, "parley-%s-%u%s", wk->boot->host_id, wk->slot, kind);
	(void)put(w, 3, argv, NULL);
}

/* ---- the line ---- */

static void connect_next(void);

static void on_line_end(struct wire *w)
{
	if (step == HELLO && place < nplaces) {
		connect_next();
		return;
	}
	if (step == HELLO || step == UP)
		lost(wire_addr_text(&here), w->r.why);
}

static void line_is_up(void)
{
	step = UP;
	up_ms = asked_ms = checked_ms = clock_ms();
	error[0] = '\0';
	if (logged[0] != '\0')
		log_info("redis: connected to %s", wire_addr_text(&here));
	logged[0] = '\0';
	logged_ms = 0;
	if (sub.r.state != REDIS_CLOSED && !wire_addr_same(&here, &sub_here))
		wire_close(&sub, "Redis is elsewhere now");
	hooks.up();
}

/* Who cannot say its role (rights, a proxy) is believed to be a master. */
static void on_role(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct wire *w = arg;

	(void)tag;
	if (v == NULL)
		return;
	if (v->type == BUS_ARRAY && v->nv > 0 && v->v[0].type == BUS_STR &&
	    strcmp(v->v[0].s, "master") != 0) {
		redis_close(&w->r, "it is a replica, not a master");
		return;
	}
	if (bus_is_error(v, "NOAUTH") || bus_is_error(v, "LOADING"))
		refuse(w, v);
	else if (step == HELLO)
		line_is_up();
}

static void put_role(void)
{
	const char *const argv[] = { "ROLE" };

	asked_ms = clock_ms();
	(void)put(&line, 1, argv, on_role);
}

static void say_hello(void)
{
	char db[12];
	const char *argv[2] = { "SELECT", db };

	put_auth(&line);
	snprintf(db, sizeof db, "%u", url.db);
	if (url.db != 0)
		(void)put(&line, 2, argv, on_ok);
	put_name(&line, "");
	put_role();
}

static void connect_next(void)
{
	step = HELLO;
	by_ms = clock_ms() + wk->conf.redis_timeout_ms;
	while (place < nplaces) {
		here = places[place++];
		if (wire_open(&line, &here) == 0) {
			say_hello();
			return;
		}
	}
	lost(wire_addr_text(&here), line.r.why);
}

static void on_found(const struct wire_addr *addr, unsigned n, const char *why)
{
	if (n == 0) {
		lost("", why);
		return;
	}
	memcpy(places, addr, n * sizeof *addr);
	nplaces = n;
	place = 0;
	connect_next();
}

/* While connected by way of sentinels: they may have another master by now. */
static void on_checked(const struct wire_addr *addr, unsigned n, const char *why)
{
	(void)why;
	if (n == 0 || step != UP)
		return;			/* no sentinel answers: no reason to leave */
	for (unsigned i = 0; i < n; i++)
		if (wire_addr_same(&addr[i], &here))
			return;
	wire_close(&line, "the sentinels name another master");
}

/* What an error of any command says about the server. */
static void on_error(struct redis *r, const struct bus_value *v)
{
	static uint64_t said_ms;

	if (bus_is_error(v, "MOVED") || bus_is_error(v, "ASK ") || bus_is_error(v, "CROSSSLOT") ||
	    bus_is_error(v, "CLUSTERDOWN")) {
		backoff = BACKOFF_MAX;
		redis_close(r, "it is part of a Redis Cluster, which is not supported: a single Redis, "
		    "or one with replicas and Sentinel, is needed");
	} else if (strstr(v->s, "READONLY") != NULL) {
		redis_close(r, "it has become a replica");
	} else if (bus_is_error(v, "NOAUTH") || bus_is_error(v, "LOADING") ||
	    bus_is_error(v, "MASTERDOWN")) {
		redis_close(r, v->s);
	} else if (!bus_is_error(v, "NOSCRIPT") && step == UP && clock_ms() - said_ms >= OFTEN_MS) {
		said_ms = clock_ms();
		log_warn("redis: %.200s", v->s);
	}
}

/* ---- the subscription ---- */

static void on_pushed(struct redis *r, const struct bus_value *v)
{
	(void)r;
	if (v->v[2].type == BUS_STR && on_message != NULL)
		on_message(v->v[2].s, v->v[2].len);
}

static void on_subscribed(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct wire *w = arg;

	(void)tag;
	if (v == NULL)
		return;
	if (v->type == BUS_ERROR) {
		log_warn("redis: the host's channel: %.200s", v->s);
		redis_close(&w->r, v->s);
		return;
	}
	subscribed = true;
	sub_backoff = 0;
	hooks.subscribed();
}

static void on_sub_end(struct wire *w)
{
	bool was = subscribed;

	subscribed = false;
	sub_backoff = longer(sub_backoff);
	sub_due_ms = clock_ms() + jitter(sub_backoff);
	if (channel[0] != '\0')
		log_debug("redis: the subscription: %s", w->r.why);
	if (was)
		hooks.unsubscribed();
}

static void sub_begin(void)
{
	const char *argv[2] = { "SUBSCRIBE", channel };

	if (channel[0] == '\0' || step != UP || sub.r.state != REDIS_CLOSED ||
	    clock_ms() < sub_due_ms)
		return;
	sub_here = here;
	sub.ended = on_sub_end;
	sub.r.pushed = on_pushed;
	if (wire_open(&sub, &sub_here) != 0) {
		on_sub_end(&sub);
		return;
	}
	put_auth(&sub);
	put_name(&sub, "-sub");
	(void)put(&sub, 2, argv, on_subscribed);
	pinged_ms = clock_ms();
}

void bus_subscribe(const char *name, void (*message)(const char *data, size_t len))
{
	snprintf(channel, sizeof channel, "%s", name);
	on_message = message;
	sub_due_ms = 0;
	sub_begin();
}

void bus_unsubscribe(void)
{
	channel[0] = '\0';
	on_message = NULL;
	wire_close(&sub, "not wanted any more");
}

bool bus_subscribed(void)
{
	return subscribed && sub.r.state == REDIS_OPEN && !sub.r.doomed;
}

/* ---- the clock ---- */

static void ask_again(void)
{
	static const char *const ping[] = { "PING" };
	uint64_t now = clock_ms();

	if (step == UP && now - asked_ms >= wk->conf.heartbeat_ms)
		put_role();
	if (subscribed && now - pinged_ms >= wk->conf.heartbeat_ms) {
		pinged_ms = now;
		(void)put(&sub, 1, ping, NULL);
	}
	if (step == UP && url.sentinel && !finder_busy() && now - checked_ms >= SENTINEL_MS) {
		checked_ms = now;
		finder_start(wk->conf.redis_timeout_ms, on_checked);
	}
}

static void look_at_time(void)
{
	uint64_t now = clock_ms();
	uint32_t limit = wk->conf.redis_timeout_ms;
	char why[64];

	snprintf(why, sizeof why, "no answer for %u ms", limit);
	if (step == HELLO && now >= by_ms)
		wire_close(&line, why);
	else if (step == UP && redis_late(&line.r, now, limit))
		wire_close(&line, why);
	if (redis_late(&sub.r, now, limit))
		wire_close(&sub, why);
	if (step == WAIT && now >= due_ms) {
		step = FIND;
		finder_start(limit, on_found);
	}
	sub_begin();
}

static void on_tick(struct timer *t)
{
	uint32_t ms = wk->conf.redis_timeout_ms / 8;

	ms = ms < TICK_MIN ? TICK_MIN : ms > TICK_MAX ? TICK_MAX : ms;
	if (step == WAIT && due_ms - clock_ms() < ms)
		ms = TICK_MIN;
	timer_set(t, clock_ms() + (step == FIND || step == HELLO ? TICK_MIN : ms), on_tick);
	finder_poll();
	look_at_time();
	ask_again();
}

/* ---- the interface ---- */

int bus_init(const struct bus_hooks *h)
{
	hooks = *h;
	if (*wk->conf.redis == '\0')
		return 0;
	if (finder_read(&wk->conf, &url) != 0)
		return -1;
	finder_init(&url);
	line.ended = on_line_end;
	line.r.failed = on_error;
	step = WAIT;
	snprintf(error, sizeof error, "not connected yet");
	timer_set(&tick, clock_ms(), on_tick);
	return 0;
}

bool bus_configured(void)
{
	return step != OFF;
}

bool bus_up(void)
{
	return step == UP && line.r.state == REDIS_OPEN && !line.r.doomed;
}

bool bus_send(unsigned argc, const char *const *argv, const size_t *lens, bus_done_fn *done,
    void *arg, uint64_t tag)
{
	if (!bus_up() || !redis_put(&line.r, argc, argv, lens, done, arg, tag))
		return false;
	COUNT(bus_commands);
	return true;
}

void bus_turn_end(void)
{
	if (step == OFF)
		return;
	wire_flush(&line);
	wire_flush(&sub);
}

const char *bus_error(void)
{
	return error;
}

void bus_close(uint32_t wait_ms)
{
	uint64_t until = clock_now_ms() + wait_ms;

	if (step == OFF)
		return;
	timer_stop(&tick);
	finder_stop();
	bus_unsubscribe();
	while (bus_up() && redis_flush(&line.r) && line.r.count > 0 && clock_now_ms() < until) {
		struct pollfd p = { .fd = line.r.fd, .events = POLLIN };

		if (redis_wants_write(&line.r))
			p.events |= POLLOUT;
		if (poll(&p, 1, (int)(until - clock_now_ms()) + 1) > 0)
			(void)redis_event(&line.r, p.revents);
	}
	step = OFF;
	redis_close(&line.r, "the worker ends");
}

/* ---- scripts ---- */

/* A script under way, kept so that it can be sent whole to a server that does not know it. */
struct run {
	struct bus_script *script;
	bus_done_fn *done;
	void *arg;
	uint64_t tag;
	unsigned argc;
	size_t len;
	char *packed;			/* number of keys, keys, arguments */
};

static void run_free(struct run *r)
{
	free(r->packed);
	free(r);
}

static void on_sha(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct bus_script *s = arg;

	(void)tag;
	if (v != NULL && v->type == BUS_STR && v->len == sizeof s->sha - 1)
		memcpy(s->sha, v->s, sizeof s->sha);
}

static void on_run(void *arg, uint64_t tag, const struct bus_value *v);

static bool put_whole(struct run *r)
{
	const char *const load[] = { "SCRIPT", "LOAD", r->script->text };
	const char *const eval[] = { "EVAL", r->script->text };

	if (r->script->sha[0] == '\0')
		(void)redis_put(&line.r, 3, load, NULL, on_sha, r->script, 0);
	return redis_put_packed(&line.r, 2, eval, r->argc, r->packed, r->len, on_run, r, 1);
}

/* TAG 1: the whole script was sent. */
static void on_run(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct run *r = arg;

	if (tag == 0 && bus_is_error(v, "NOSCRIPT") && bus_up() && put_whole(r))
		return;
	if (r->done != NULL)
		r->done(r->arg, r->tag, v);
	run_free(r);
}

static struct run *run_new(unsigned nkeys, unsigned argc, const char *const *argv,
    const size_t *lens)
{
	struct run *r = calloc(1, sizeof *r);
	char keys[12];
	const char *const first[] = { keys };
	size_t head_len, rest_len;
	char *head, *rest;

	snprintf(keys, sizeof keys, "%u", nkeys);
	head = redis_pack(1, first, NULL, &head_len);
	rest = redis_pack(argc, argv, lens, &rest_len);
	if (r != NULL && head != NULL && rest != NULL)
		r->packed = malloc(head_len + rest_len + 1);
	if (r != NULL && r->packed != NULL) {
		memcpy(r->packed, head, head_len);
		memcpy(r->packed + head_len, rest, rest_len);
		r->len = head_len + rest_len;
		r->argc = argc + 1;
	} else {
		free(r);
		r = NULL;
	}
	free(head);
	free(rest);
	return r;
}

bool bus_script(struct bus_script *s, unsigned nkeys, unsigned argc, const char *const *argv,
    const size_t *lens, bus_done_fn *done, void *arg, uint64_t tag)
{
	const char *const sha[] = { "EVALSHA", s->sha };
	struct run *r;

	if (!bus_up() || (r = run_new(nkeys, argc, argv, lens)) == NULL)
		return false;
	r->script = s;
	r->done = done;
	r->arg = arg;
	r->tag = tag;
	if (s->sha[0] != '\0' ? redis_put_packed(&line.r, 2, sha, r->argc, r->packed, r->len, on_run, r, 0) :
	    put_whole(r)) {
		COUNT(bus_commands);
		return true;
	}
	run_free(r);
	return false;
}
