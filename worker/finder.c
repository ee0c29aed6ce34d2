#include "worker/finder.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "worker/base/clock.h"
#include "worker/base/conf.h"
#include "worker/base/log.h"

enum step { IDLE, LOOK_SENTINEL, ASKING, LOOK_SERVER };

static const struct redis_url *url;
static enum step step;
static finder_fn *answer;
static struct lookup look;
static struct wire sentinel;
static unsigned at, tried;		/* the sentinel asked, and how many were, this time */
static uint32_t step_ms;
static uint64_t by_ms;
static bool asked, with_password;
static char server[254];		/* what a sentinel said */
static uint16_t port;
static char why[192];

static void next_sentinel(const char *because);

static void finish(const struct wire_addr *addr, unsigned n)
{
	finder_fn *done = answer;

	step = IDLE;
	answer = NULL;
	done(addr, n, n > 0 ? "" : why);
}

static void fail(const char *because)
{
	snprintf(why, sizeof why, "%s", because);
	finish(NULL, 0);
}

/* ---- a sentinel ---- */

static void on_answer(void *arg, uint64_t tag, const struct bus_value *v);

static void put_question(void)
{
	const char *const argv[] = { "SENTINEL", "get-master-addr-by-name", url->name };

	(void)redis_put(&sentinel.r, 3, argv, NULL, on_answer, NULL, 0);
}

/* A sentinel asks for the password only where it has one. */
static bool put_password(void)
{
	const char *argv[3] = { "AUTH", url->user, url->password };

	if (with_password || url->password[0] == '\0')
		return false;
	with_password = true;
	if (url->user[0] == '\0') {
		argv[1] = url->password;
		return redis_put(&sentinel.r, 2, argv, NULL, NULL, NULL, 0);
	}
	return redis_put(&sentinel.r, 3, argv, NULL, NULL, NULL, 0);
}

static bool read_answer(const struct bus_value *v)
{
	unsigned n = 0;

	if (v->type != BUS_ARRAY || v->nv != 2 || v->v[0].type != BUS_STR ||
	    v->v[1].type != BUS_STR || v->v[0].len >= sizeof server || v->v[0].len == 0)
		return false;
	memcpy(server, v->v[0].s, v->v[0].len + 1);
	for (const char *p = v->v[1].s; *p >= '0' && *p <= '9' && n < 65536; p++)
		n = n * 10 + (unsigned)(*p - '0');
	port = (uint16_t)n;
	return n > 0 && n < 65536;
}

static void on_answer(void *arg, uint64_t tag, const struct bus_value *v)
{
	(void)arg;
	(void)tag;
	if (v == NULL)
		return;			/* on_sentinel_end() goes on */
	if (bus_is_error(v, "NOAUTH") && put_password()) {
		put_question();
		return;
	}
	asked = v->type != BUS_ERROR && v->type != BUS_NIL && read_answer(v);
	redis_close(&sentinel.r, v->type == BUS_ERROR ? v->s : v->type == BUS_NIL ?
	    "it does not know that master" : asked ? "" : "it answered something else");
}

static void look_server(const char *host, uint16_t p)
{
	enum lookup_state st;

	step = LOOK_SERVER;
	by_ms = clock_ms() + step_ms;
	st = lookup_start(&look, host, p);
	if (st == LOOKUP_FAILED)
		fail(look.why);
	else if (st == LOOKUP_DONE)
		finish(look.addr, look.n);
}

static void on_sentinel_end(struct wire *w)
{
	if (step != ASKING)
		return;
	if (asked)
		look_server(server, port);
	else
		next_sentinel(w->r.why);
}

static void ask_sentinel(void)
{
	step = ASKING;
	by_ms = clock_ms() + step_ms;
	asked = with_password = false;
	sentinel.ended = on_sentinel_end;
	if (wire_open(&sentinel, &look.addr[0]) != 0) {
		next_sentinel(sentinel.r.why);
		return;
	}
	put_question();
}

static void look_sentinel(void)
{
	const struct redis_addr *a = &url->addr[at];
	enum lookup_state st;

	step = LOOK_SENTINEL;
	by_ms = clock_ms() + step_ms;
	st = lookup_start(&look, a->host, a->port);
	if (st == LOOKUP_FAILED)
		next_sentinel(look.why);
	else if (st == LOOKUP_DONE)
		ask_sentinel();
}

static void next_sentinel(const char *because)
{
	const struct redis_addr *a = &url->addr[at];

	snprintf(why, sizeof why, "sentinel %.60s:%u: %.100s", a->host, a->port, because);
	at = (at + 1) % url->naddr;
	if (++tried >= url->naddr)
		finish(NULL, 0);
	else
		look_sentinel();
}

/* ---- the find ---- */

/* The first line of redis_password_file where the URL has no password. */
static void read_password(const struct conf *cf, struct redis_url *u)
{
	FILE *f;

	if (u->password[0] != '\0' || *cf->redis_password_file == '\0')
		return;
	f = fopen(cf->redis_password_file, "re");
	if (f == NULL || fgets(u->password, sizeof u->password, f) == NULL) {
		log_error("redis_password_file %s: %s", cf->redis_password_file, strerror(errno));
		u->password[0] = '\0';
	}
	if (f != NULL)
		fclose(f);
	u->password[strcspn(u->password, "\r\n")] = '\0';
}

int finder_read(const struct conf *cf, struct redis_url *u)
{
	if (redis_url_read(u, cf->redis) != NULL)
		return -1;
	read_password(cf, u);
	return 0;
}

void finder_init(const struct redis_url *u)
{
	url = u;
}

void finder_start(uint32_t ms, finder_fn *done)
{
	struct wire_addr a = { .len = sizeof a.un };

	finder_stop();
	answer = done;
	step_ms = ms;
	tried = 0;
	if (url->path[0] != '\0') {
		a.un.sun_family = AF_UNIX;
		memcpy(a.un.sun_path, url->path, sizeof url->path);
		finish(&a, 1);
	} else if (url->sentinel) {
		look_sentinel();
	} else {
		look_server(url->addr[0].host, url->addr[0].port);
	}
}

void finder_stop(void)
{
	step = IDLE;
	answer = NULL;
	lookup_forget(&look);
	wire_close(&sentinel, "");
}

bool finder_busy(void)
{
	return step != IDLE;
}

static void poll_look(void)
{
	enum lookup_state st = lookup_poll(&look);

	if (st == LOOKUP_PENDING && clock_ms() < by_ms)
		return;
	if (st == LOOKUP_PENDING) {
		lookup_forget(&look);
		snprintf(look.why, sizeof look.why, "the look-up of its name takes too long");
	}
	if (step == LOOK_SENTINEL && st == LOOKUP_DONE)
		ask_sentinel();
	else if (step == LOOK_SENTINEL)
		next_sentinel(look.why);
	else if (st == LOOKUP_DONE)
		finish(look.addr, look.n);
	else
		fail(look.why);
}

void finder_poll(void)
{
	if (step == LOOK_SENTINEL || step == LOOK_SERVER)
		poll_look();
	else if (step == ASKING && clock_ms() >= by_ms)
		wire_close(&sentinel, "no answer in time");
	else if (step == ASKING)
		wire_flush(&sentinel);
}
