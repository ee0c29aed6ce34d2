/* presence.c - the index of watchers, the delay before "offline", one pass a turn. */
#include "worker/presence.h"

#include <stdlib.h>

#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/cmd.h"
#include "worker/conn.h"
#include "worker/index.h"
#include "worker/lists.h"
#include "worker/peer.h"
#include "worker/session.h"

struct change { uint32_t user; bool online; };
struct absent { uint32_t user; uint64_t at_ms; };

#define TOLD 0x80000000u		/* in a session's list: shown or told as online (ids are below 2^31) */

static struct index watchers;		/* user -> sessions; flag: they were told "online" */
static struct change *changes;		/* of this turn, in order */
static uint32_t nchanges, cap_changes;
static struct absent *absents;		/* a ring: the delay is the same for all, so in order */
static uint32_t absent_head, absent_len, absent_cap;
static struct timer absent_timer;

bool presence_watches(const struct conn *c, uint32_t user)
{
	uint32_t n;
	const uint32_t *f = lists_get(c, LIST_FRIENDS, &n);

	for (uint32_t i = 0; i < n; i++)
		if ((f[i] & ~TOLD) == user)
			return true;
	return false;
}

bool presence_add(struct conn *c, uint32_t user, bool shown_online)
{
	uint32_t *f = lists_add(c, LIST_FRIENDS, sizeof *f);

	if (f == NULL)
		return false;
	*f = user | (shown_online ? TOLD : 0);
	return index_add(&watchers, user, c->rec, c->gen, shown_online) == 0;
}

void presence_del(struct conn *c, uint32_t user)
{
	uint32_t n;
	uint32_t *f = lists_get(c, LIST_FRIENDS, &n);

	index_del(&watchers, user, c->rec, c->gen);
	for (uint32_t i = 0; i < n; i++)
		if ((f[i] & ~TOLD) == user) {
			lists_del(c, LIST_FRIENDS, sizeof *f, i);
			return;
		}
}

static void note(uint32_t user, bool online);

/* What changed while the session was on its way is told by the next turn. */
void presence_index(struct conn *c)
{
	uint32_t n;
	const uint32_t *f = lists_get(c, LIST_FRIENDS, &n);

	for (uint32_t i = 0; i < n; i++) {
		uint32_t user = f[i] & ~TOLD;
		bool told = (f[i] & TOLD) != 0, online = sess_online(user);

		(void)index_add(&watchers, user, c->rec, c->gen, told);
		if (told != online)
			note(user, online);
	}
}

void presence_unindex(struct conn *c)
{
	uint32_t n;
	const uint32_t *f = lists_get(c, LIST_FRIENDS, &n);

	for (uint32_t i = 0; i < n; i++)
		index_del(&watchers, f[i] & ~TOLD, c->rec, c->gen);
}

static void remember_told(struct conn *c, uint32_t user, bool online)
{
	uint32_t n;
	uint32_t *f = lists_get(c, LIST_FRIENDS, &n);

	for (uint32_t i = 0; i < n; i++)
		if ((f[i] & ~TOLD) == user) {
			f[i] = user | (online ? TOLD : 0);
			return;
		}
}

void presence_free_list(struct conn *c)
{
	lists_free(c, LIST_FRIENDS);
}

/* Notes a change for this turn; the later of two about the same user wins by coming later. */
static void note(uint32_t user, bool online)
{
	if (index_find(&watchers, user) == NULL)
		return;
	if (nchanges == cap_changes) {
		uint32_t cap = cap_changes == 0 ? 64 : cap_changes * 2;
		struct change *v = realloc(changes, cap * sizeof *v);

		if (v == NULL)
			return;
		changes = v;
		cap_changes = cap;
	}
	changes[nchanges++] = (struct change){ user, online };
}

static void announce(uint32_t user, bool online)
{
	struct item_presence it = { .user = user, .online = online };

	peer_send_all(IT_PRESENCE, &it, sizeof it, NULL, 0);
	note(user, online);
}

void presence_online(uint32_t user)
{
	announce(user, true);
}

static void on_absent(struct timer *t)
{
	(void)t;
	while (absent_len > 0 && absents[absent_head].at_ms <= clock_ms()) {
		uint32_t user = absents[absent_head].user;

		absent_head = (absent_head + 1) % absent_cap;
		absent_len--;
		if (!sess_online(user))
			announce(user, false);
	}
	if (absent_len > 0)
		timer_set(&absent_timer, absents[absent_head].at_ms, on_absent);
}

void presence_left(uint32_t user)
{
	if (absent_len == absent_cap) {
		uint32_t cap = absent_cap == 0 ? 64 : absent_cap * 2;
		struct absent *v = malloc(cap * sizeof *v);

		if (v == NULL)
			return;
		for (uint32_t i = 0; i < absent_len; i++)
			v[i] = absents[(absent_head + i) % absent_cap];
		free(absents);
		absents = v;
		absent_head = 0;
		absent_cap = cap;
	}
	absents[(absent_head + absent_len++) % absent_cap] =
	    (struct absent){ user, clock_ms() + wk->conf.presence_delay_ms };
	if (!timer_is_set(&absent_timer))
		timer_set(&absent_timer, absents[absent_head].at_ms, on_absent);
}

static void recheck_key(const struct index_vec *vec)
{
	bool online = sess_online(vec->key);

	for (uint32_t i = 0; i < vec->len; i++)
		if ((vec->v[i].flag != 0) != online) {
			note(vec->key, online);
			return;
		}
}

static void recheck(void)
{
	for (uint32_t b = 0; b < watchers.nbuckets; b++)
		for (const struct index_vec *vec = watchers.bucket[b]; vec != NULL; vec = vec->next)
			recheck_key(vec);
}

static void on_recheck(struct timer *t)
{
	struct item_presence it = { .user = 0 };

	(void)t;
	peer_send_all(IT_PRESENCE, &it, sizeof it, NULL, 0);
	recheck();
}

void presence_recheck_later(void)
{
	static struct timer later;

	timer_set(&later, clock_ms() + wk->conf.presence_delay_ms, on_recheck);
}

void presence_on_item(const struct item *it)
{
	const struct item_presence *p = (const struct item_presence *)it;

	if (p->user == 0)
		recheck();
	else
		note(p->user, p->online != 0);
}

void presence_on_far(struct host *from, const struct item *it)
{
	(void)from;
	(void)it;
}

void presence_hosts_changed(void)
{
}

static void tell(struct conn *c, uint32_t user, bool online)
{
	struct json_out w;

	cmd_open(c, &w, MSG_PRESENCE, NULL);
	json_kv_int(&w, "id", user);
	json_kv_str(&w, "state", online ? "online" : "offline");
	cmd_send(c, &w);
}

/*
 * Told are those who do not know it yet. What they were told is remembered before the frame is
 * written, because writing may close a connection and change the vector.
 */
static void expand(const struct change *ch)
{
	struct index_vec *vec = index_find(&watchers, ch->user);
	bool online = ch->online || sess_online(ch->user);

	for (uint32_t i = 0; vec != NULL && i < vec->len; i++) {
		struct index_entry *e = &vec->v[i];
		struct conn *c = conn_get(e->rec, e->gen);

		if (c == NULL || e->flag == online || c->state != CONN_OPEN ||
		    !session_logged_in(c))
			continue;
		e->flag = online;
		remember_told(c, ch->user, online);
		if (c->r->dialect == DIALECT_CLASSIC)
			continue;
		tell(c, ch->user, online);
		vec = index_find(&watchers, ch->user);
	}
}

void presence_turn_end(void)
{
	for (uint32_t i = 0; i < nchanges; i++)
		expand(&changes[i]);
	nchanges = 0;
}
