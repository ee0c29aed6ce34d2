/* presence.c - the index of watchers, the delay before "offline", one pass a turn, and the other hosts. */
#include "worker/presence.h"

#include <stdlib.h>
#include <string.h>

#include "shm/rec.h"
#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/claim.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/conn.h"
#include "worker/far.h"
#include "worker/hosts.h"
#include "worker/index.h"
#include "worker/link.h"
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

#define ASK_AT_ONCE 4096u		/* users in one question when all are asked for again */
#define ASK_AGAIN_MS 2000		/* when Redis did not answer */

static bool watched(uint32_t user)
{
	return index_find(&watchers, user) != NULL;
}

bool presence_state(uint32_t user)
{
	return sess_online(user) || far_online(user);
}

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

/* What is known of somebody whom nobody watches any more would soon be wrong. */
static void unwatch(struct conn *c, uint32_t user)
{
	index_del(&watchers, user, c->rec, c->gen);
	if (far_count() > 0 && !far_asked(user) && !watched(user))
		far_forget(user);
}

void presence_del(struct conn *c, uint32_t user)
{
	uint32_t n;
	uint32_t *f = lists_get(c, LIST_FRIENDS, &n);

	unwatch(c, user);
	for (uint32_t i = 0; i < n; i++)
		if ((f[i] & ~TOLD) == user) {
			lists_del(c, LIST_FRIENDS, sizeof *f, i);
			return;
		}
}

static void note(uint32_t user, bool online);
static void recheck_key(const struct index_vec *vec);
static void ask(uint32_t *ids, uint32_t n, bool sure, presence_fn *done, uint64_t tag);
static void hosts_changed_in(uint32_t ms, bool put_off);

/* What changed while the session was on its way is told by the next turn, or when it is known. */
void presence_index(struct conn *c)
{
	uint32_t n, k = 0;
	const uint32_t *f = lists_get(c, LIST_FRIENDS, &n);
	uint32_t *ids = n > 0 && cluster_up() ? malloc(n * sizeof *ids) : NULL;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t user = f[i] & ~TOLD;

		if (ids != NULL && !sess_online(user) && !watched(user))
			ids[k++] = user;
		(void)index_add(&watchers, user, c->rec, c->gen, f[i] & TOLD ? 1 : 0);
	}
	if (k > 0)
		ask(ids, k, false, NULL, 0);
	else
		free(ids);
	if (cluster_on() && !cluster_up())
		hosts_changed_in(ASK_AGAIN_MS, false);
	for (uint32_t i = 0; i < n; i++) {
		const struct index_vec *vec = index_find(&watchers, f[i] & ~TOLD);

		if (vec != NULL)
			recheck_key(vec);
	}
}

void presence_unindex(struct conn *c)
{
	uint32_t n;
	const uint32_t *f = lists_get(c, LIST_FRIENDS, &n);

	for (uint32_t i = 0; i < n; i++)
		unwatch(c, f[i] & ~TOLD);
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
	if (!watched(user))
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

/* USER 0: look at all. */
static void announce_far(uint32_t user, bool online)
{
	struct link_presence it = { .user = user, .online = online };
	struct sess_ref ref;

	if (!cluster_on())
		return;
	if (online && sess_find(user, &ref) == SESS_OK)
		it.login_ms = (uint64_t)rec_at(ref.rec)->since_wall_ms;
	(void)link_send_all(LK_PRESENCE, &it, sizeof it, NULL, 0);
}

static void announce(uint32_t user, bool online)
{
	struct item_presence it = { .user = user, .online = online };

	peer_send_all(IT_PRESENCE, &it, sizeof it, NULL, 0);
	announce_far(user, online);
	if (online)
		far_forget(user);
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

/* Nobody is said to be offline while it may be that they are on another host. */
static void recheck_key(const struct index_vec *vec)
{
	bool online = presence_state(vec->key);

	if (!online && (far_asked(vec->key) || (cluster_on() && !cluster_up())))
		return;
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
	announce_far(0, false);
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

	if (p->user == 0) {
		recheck();
		return;
	}
	if (p->online)
		far_forget(p->user);
	note(p->user, p->online != 0);
}

/* ---- other hosts ---- */

struct question {
	uint32_t *ids, n;		/* in order, each once */
	struct host **at;
	uint64_t since, tag;
	bool sure;
	presence_fn *done;
};

static struct timer hosts_timer;
static uint64_t hosts_by_ms;
static uint32_t *all;			/* those who are asked for again */
static uint32_t nall, all_next;

static void on_hosts_changed(struct timer *t);

/* One change after another puts it off, but not for good. */
static void hosts_changed_in(uint32_t ms, bool put_off)
{
	uint64_t at = clock_ms() + ms;

	if (!timer_is_set(&hosts_timer))
		hosts_by_ms = clock_ms() + 3 * (uint64_t)ms;
	else if (!put_off)
		return;
	timer_set(&hosts_timer, at < hosts_by_ms ? at : hosts_by_ms, on_hosts_changed);
}

static void answered(void *arg, bool known)
{
	struct question *q = arg;

	for (uint32_t i = 0; known && i < q->n; i++) {
		uint32_t user = q->ids[i];
		uint64_t host = q->at[i] != NULL ? q->at[i]->key : 0;

		if (far_answer(user, host, q->since, q->sure || !watched(user)))
			note(user, host != 0);
	}
	if (q->done != NULL)
		q->done(q->tag);
	for (uint32_t i = 0; i < q->n; i++) {
		const struct index_vec *vec = index_find(&watchers, q->ids[i]);

		far_release(q->ids[i], vec != NULL);
		if (known && vec != NULL && (q->sure || q->done == NULL))
			recheck_key(vec);
	}
	if (!known)
		hosts_changed_in(ASK_AGAIN_MS, false);
	free(q->ids);
	free(q->at);
	free(q);
}

static int by_id(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

/*
 * Takes IDS. SURE: whoever is not found is offline, whatever was known; otherwise the host where they
 * were says so in time. Without DONE, or SURE, differences to what was told are told.
 */
static void ask(uint32_t *ids, uint32_t n, bool sure, presence_fn *done, uint64_t tag)
{
	struct question *q = n > 0 ? malloc(sizeof *q) : NULL;
	struct host **at = n > 0 ? calloc(n, sizeof *at) : NULL;
	uint32_t k = 0;

	if (q == NULL || at == NULL) {
		free(q);
		free(at);
		free(ids);
		if (done != NULL)
			done(tag);
		return;
	}
	qsort(ids, n, sizeof *ids, by_id);
	for (uint32_t i = 0; i < n; i++)
		if ((k == 0 || ids[i] != ids[k - 1]) && far_hold(ids[i]))
			ids[k++] = ids[i];
	*q = (struct question){ .ids = ids, .n = k, .at = at, .since = far_now(), .tag = tag,
	    .sure = sure, .done = done };
	claim_online(ids, at, k, answered, q);
}

void presence_learn(const uint32_t *ids, uint32_t n, presence_fn *done, uint64_t tag)
{
	uint32_t *mine = n > 0 && cluster_up() ? malloc(n * sizeof *mine) : NULL, k = 0;

	for (uint32_t i = 0; mine != NULL && i < n; i++)
		if (!sess_online(ids[i]) && !watched(ids[i]))
			mine[k++] = ids[i];
	if (mine == NULL && n > 0 && cluster_on())
		hosts_changed_in(ASK_AGAIN_MS, false);
	ask(mine, k, false, done, tag);
}

void presence_on_far(struct host *from, const struct item *it)
{
	const struct link_presence *p = (const struct link_presence *)it;

	if (p->user == 0) {
		presence_hosts_changed();
	} else if (p->online) {
		if (far_came(p->user, from->key, p->login_ms, watched(p->user)))
			note(p->user, true);
	} else {
		(void)far_left(p->user, from->key);
		if (!far_asked(p->user))
			note(p->user, false);
	}
}

static void ask_all(uint64_t tag)
{
	uint32_t n = nall - all_next < ASK_AT_ONCE ? nall - all_next : ASK_AT_ONCE;
	uint32_t *ids = n > 0 ? malloc(n * sizeof *ids) : NULL;

	(void)tag;
	if (ids == NULL || !cluster_up()) {
		if (n > 0)
			hosts_changed_in(ASK_AGAIN_MS, false);
		free(ids);
		free(all);
		all = NULL;
		return;
	}
	memcpy(ids, all + all_next, n * sizeof *ids);
	all_next += n;
	ask(ids, n, true, ask_all, 0);
}

static void on_hosts_changed(struct timer *t)
{
	if (all != NULL || !cluster_up()) {	/* when those who are being asked for are done, or Redis is back */
		timer_set(t, clock_ms() + ASK_AGAIN_MS, on_hosts_changed);
		return;
	}
	nall = all_next = 0;
	if (watchers.nkeys == 0 || (all = malloc(watchers.nkeys * sizeof *all)) == NULL)
		return;
	for (uint32_t b = 0; b < watchers.nbuckets; b++)
		for (const struct index_vec *v = watchers.bucket[b]; v != NULL; v = v->next)
			if (!sess_online(v->key))
				all[nall++] = v->key;
	ask_all(0);
}

void presence_hosts_changed(void)
{
	if (cluster_on())
		hosts_changed_in(wk->conf.presence_delay_ms, true);
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
	bool online = ch->online || presence_state(ch->user);

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
