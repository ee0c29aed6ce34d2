/*
 * call.c - calls between hosts.
 *
 * Both sides keep what is under way in a table of fixed size; a name in it is (serial, place), so
 * what comes late for a place that was given anew finds nobody.
 *
 * A carrier that loses may lose the middle of an answer: each piece says how many went before it
 * (in `code`, which only the last one needs), the last one says how many there were. What has a
 * hole is no answer, and its caller hears that at once.
 */
#include "worker/call.h"

#include <stdlib.h>
#include <string.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cluster.h"
#include "worker/hosts.h"
#include "worker/link.h"
#include "worker/peer.h"
#include "worker/state.h"

#define PIECE (LINK_ITEM - sizeof(struct link_reply))

/* Which of CALLS_MAX places are free: those given back (a list), and all that were never used. */
struct places { uint32_t next[CALLS_MAX], first, high; };

/* A call that this worker made. */
struct asked {
	uint64_t id;			/* 0: free */
	struct host *h;
	uint64_t epoch;
	call_done_fn *done;
	void *arg;
	uint64_t tag;
	char *text;
	size_t len, cap;
	int32_t pieces;
	struct timer late;
};

struct call {
	uint64_t number;		/* 0: free */
	struct host *h;			/* who asks: NULL is this worker itself */
	uint64_t epoch, id;
	uint32_t slot, gen;
	size_t said;
	int32_t pieces;
	int failed;			/* enum call_rc: why no more is sent */
	struct timer late;
};

static struct asked asked[CALLS_MAX];
static struct call calls[CALLS_MAX];
static struct places asked_places, call_places;
static uint64_t serial;
static struct json *parser;		/* made by the first call that comes */

/* ---- places ---- */

static uint64_t place_take(struct places *p)
{
	uint32_t i = p->first;

	if (i != 0)
		p->first = p->next[i - 1];
	else if (p->high < CALLS_MAX)
		i = ++p->high;
	else
		return 0;
	return ++serial * CALLS_MAX + i - 1;
}

static void place_give(struct places *p, uint64_t id)
{
	uint32_t i = (uint32_t)(id % CALLS_MAX);

	p->next[i] = p->first;
	p->first = i + 1;
}

static struct asked *asked_find(uint64_t id)
{
	struct asked *a = &asked[id % CALLS_MAX];

	return id != 0 && a->id == id ? a : NULL;
}

struct call *call_by_number(uint64_t number)
{
	struct call *c = &calls[number % CALLS_MAX];

	return number != 0 && c->number == number ? c : NULL;
}

uint64_t call_number(const struct call *c)
{
	return c->number;
}

uint64_t call_until_ms(const struct call *c)
{
	return c->late.at_ms;
}

const char *call_text(int code)
{
	static const char *const text[] = {
		[-CALL_ABSENT] = "this host is gone",
		[-CALL_LATE] = "no answer in time",
		[-CALL_UNKNOWN] = "its version does not know this request",
		[-CALL_BAD] = "it did not understand the request",
		[-CALL_BUSY] = "too busy; try again",
		[-CALL_LONG] = "the answer is too long",
	};

	if (code == CALL_OK)
		return "";
	return code < 0 && code >= CALL_LONG ? text[-code] : "it failed";
}

/* ---- asking ---- */

/* The place is free again before anybody hears of it: DONE may ask the next thing. */
static void asked_end(struct asked *a, int code)
{
	struct asked was = *a;

	timer_stop(&a->late);
	a->id = 0;
	a->text = NULL;
	place_give(&asked_places, was.id);
	if (was.text == NULL)
		was.len = 0;
	was.done(was.arg, was.tag, code, was.text != NULL ? was.text : "", was.len);
	free(was.text);
}

static void on_asked_late(struct timer *t)
{
	struct asked *a = (struct asked *)((char *)t - offsetof(struct asked, late));

	log_debug("host %s has not answered in time", a->h->id);
	asked_end(a, CALL_LATE);
}

/* Appends to what has come. False: the call has ended with an error. */
static bool asked_add(struct asked *a, const char *bytes, size_t len)
{
	size_t need = a->len + len + 1, cap = need < 256 ? 256 : need + need / 2;

	if (len > CALL_ANSWER - a->len) {
		asked_end(a, CALL_LONG);
		return false;
	}
	if (need > a->cap) {
		char *p = realloc(a->text, cap);

		if (p == NULL) {
			asked_end(a, CALL_BUSY);
			return false;
		}
		a->text = p;
		a->cap = cap;
	}
	memcpy(a->text + a->len, bytes, len);
	a->len += len;
	a->text[a->len] = '\0';
	return true;
}

static bool call_take(struct host *h, uint64_t id, uint32_t slot, uint32_t gen, uint32_t wait_ms,
    struct call **c_r);
static void call_run(struct call *c, const char *name, size_t name_len, const char *args, size_t len);

/* DONE has run, or will, whatever this comes to. */
static void ask_ourselves(uint64_t id, const char *method, const char *args, size_t len,
    uint32_t wait_ms)
{
	struct call *c;

	if (call_take(NULL, id, wk->slot, wk->gen, wait_ms, &c))
		call_run(c, method, strlen(method), args, len);
	else
		asked_end(asked_find(id), CALL_BUSY);
}

/* What is the matter when an item was not taken? */
static int why_not_sent(const struct host *h)
{
	if (!h->alive)
		return CALL_ABSENT;
	return cluster_up() ? CALL_BUSY : CALL_LATE;
}

void call_host(struct host *h, const char *method, const char *args, size_t len, uint32_t wait_ms,
    call_done_fn *done, void *arg, uint64_t tag)
{
	struct { struct link_call call; char name[CALL_NAME]; } it;
	size_t name_len = strlen(method);
	uint64_t id;

	if (h == NULL || (!h->self && !h->alive)) {
		done(arg, tag, CALL_ABSENT, "", 0);
		return;
	}
	if (name_len > CALL_NAME || len > LINK_ITEM - sizeof it) {
		done(arg, tag, CALL_BAD, "", 0);
		return;
	}
	if ((id = place_take(&asked_places)) == 0) {
		done(arg, tag, CALL_BUSY, "", 0);
		return;
	}
	if (wait_ms > CALL_WAIT_MAX)
		wait_ms = CALL_WAIT_MAX;
	struct asked *a = &asked[id % CALLS_MAX];
	*a = (struct asked){ .id = id, .h = h, .epoch = h->epoch, .done = done, .arg = arg, .tag = tag };
	timer_set(&a->late, clock_ms() + wait_ms, on_asked_late);
	if (h->self) {
		ask_ourselves(id, method, args, len, wait_ms);
		return;
	}
	it.call = (struct link_call){ .slot = wk->slot, .gen = wk->gen, .id = id, .wait_ms = wait_ms,
	    .name_len = (uint32_t)name_len };
	memcpy(it.name, method, name_len);
	if (!link_send(h, LK_CALL, &it, sizeof it.call + name_len, args, len))
		asked_end(a, why_not_sent(h));
}

void call_on_reply(struct host *from, const struct item *item)
{
	const struct link_reply *it = (const struct link_reply *)item;
	struct asked *a;

	if (item->len < sizeof *it || (a = asked_find(it->id)) == NULL || a->h != from ||
	    a->epoch != from->epoch)
		return;			/* it was not waited for any longer */
	if (it->last == 0 && it->code != a->pieces) {
		asked_end(a, CALL_LATE);
		return;
	}
	if (item->len > sizeof *it) {
		if (!asked_add(a, (const char *)(it + 1), item->len - sizeof *it))
			return;
	}
	if (it->last == 0)
		a->pieces++;
	else
		asked_end(a, it->last == (uint32_t)a->pieces + 1 ? it->code : CALL_LATE);
}

/* ---- answering ---- */

static void call_drop(struct call *c)
{
	timer_stop(&c->late);
	place_give(&call_places, c->number);
	c->number = 0;
}

static void on_call_late(struct timer *t)
{
	call_drop((struct call *)((char *)t - offsetof(struct call, late)));
}

static bool call_take(struct host *h, uint64_t id, uint32_t slot, uint32_t gen, uint32_t wait_ms,
    struct call **c_r)
{
	uint64_t number = place_take(&call_places);

	if (number == 0)
		return false;
	*c_r = &calls[number % CALLS_MAX];
	**c_r = (struct call){ .number = number, .h = h, .epoch = h != NULL ? h->epoch : 0, .id = id,
	    .slot = slot, .gen = gen };
	timer_set(&(*c_r)->late, clock_ms() + (wait_ms < CALL_WAIT_MAX ? wait_ms : CALL_WAIT_MAX),
	    on_call_late);
	return true;
}

static bool reply(struct host *h, uint32_t slot, uint32_t gen, uint64_t id, int32_t code,
    uint32_t last, const char *bytes, size_t len)
{
	struct link_reply it = { .slot = slot, .gen = gen, .id = id, .code = code, .last = last };

	return link_send(h, LK_REPLY, &it, sizeof it, bytes, len);
}

static bool waits(const struct call *c)
{
	return c->h == NULL ? asked_find(c->id) != NULL : hosts_alive(c->h->key, c->epoch);
}

bool call_put(struct call *c, const char *bytes, size_t len)
{
	if (c->failed != CALL_OK || !waits(c))
		return false;
	if (len > CALL_ANSWER - c->said) {
		c->failed = CALL_LONG;
		return false;
	}
	c->said += len;
	if (c->h == NULL)
		return asked_add(asked_find(c->id), bytes, len);
	for (size_t n; len > 0; bytes += n, len -= n) {
		n = len < PIECE ? len : PIECE;
		if (!reply(c->h, c->slot, c->gen, c->id, c->pieces++, 0, bytes, n)) {
			c->failed = CALL_BUSY;
			return false;
		}
	}
	return true;
}

bool call_say(struct call *c, const char *text, size_t len)
{
	char line[1024];

	if (len >= sizeof line)
		return call_put(c, text, len) && call_put(c, "\n", 1);
	memcpy(line, text, len);
	line[len] = '\n';
	return call_put(c, line, len + 1);
}

void call_finish(struct call *c, int code)
{
	struct call was = *c;

	if (was.failed != CALL_OK)
		code = was.failed;
	call_drop(c);
	if (was.h == NULL) {
		struct asked *a = asked_find(was.id);

		if (a != NULL)
			asked_end(a, code);
	} else if (waits(&was) &&
	    !reply(was.h, was.slot, was.gen, was.id, code, (uint32_t)was.pieces + 1, NULL, 0)) {
		log_debug("an answer to host %s was not taken", was.h->id);
	}
}

/* A handler may call ourselves, which runs another one: each has a parser to itself. */
static void call_run(struct call *c, const char *name, size_t name_len, const char *args, size_t len)
{
	const struct call_method *m = call_method_find(name, name_len);
	struct json *j = parser != NULL ? parser : json_new(JSON_UNTRUSTED);

	parser = NULL;
	if (m == NULL) {
		call_finish(c, CALL_UNKNOWN);
	} else if (j == NULL) {
		call_finish(c, CALL_BUSY);
	} else if (json_parse(j, args, len) != JSON_OK || json_root(j).type != JSON_OBJECT) {
		call_finish(c, CALL_BAD);
	} else {
		struct json_val root = json_root(j);

		m->run(c, j, &root);
	}
	if (parser == NULL)
		parser = j;
	else
		json_free(j);
}

/* Always to a lower slot, so it ends somewhere. */
static bool hand_down(const struct host *from, const struct item *it)
{
	struct item_link head = { .from = from->key, .from_epoch = from->epoch };
	uint32_t i = 0;

	while (i < wk->slot && atomic_load(&slot_at(i)->state) != SLOT_READY)
		i++;
	return i < wk->slot && peer_send(i, IT_LINK, &head, sizeof head, it, it->len);
}

void call_on_call(struct host *from, const struct item *item)
{
	const struct link_call *it = (const struct link_call *)item;
	const char *name = (const char *)(it + 1);
	const struct call_method *m;
	struct call *c;

	if (item->len < sizeof *it || it->name_len > item->len - sizeof *it || it->name_len > CALL_NAME)
		return;
	m = call_method_find(name, it->name_len);
	if (m != NULL && m->lasts && hand_down(from, item))
		return;
	if (call_take(from, it->id, it->slot, it->gen, it->wait_ms, &c))
		call_run(c, name, it->name_len, name + it->name_len,
		    item->len - sizeof *it - it->name_len);
	else
		(void)reply(from, it->slot, it->gen, it->id, CALL_BUSY, 1, NULL, 0);
}

/* ---- hosts that end ---- */

void call_host_gone(struct host *h, uint64_t epoch)
{
	for (uint32_t i = 0; i < asked_places.high; i++)
		if (asked[i].id != 0 && asked[i].h == h && asked[i].epoch == epoch)
			asked_end(&asked[i], CALL_ABSENT);
	for (uint32_t i = 0; i < call_places.high; i++)
		if (calls[i].number != 0 && calls[i].h == h && calls[i].epoch == epoch)
			call_drop(&calls[i]);
}

int call_init(void)
{
	return 0;
}
