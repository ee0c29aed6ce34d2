/*
 * route.c - lanes, claims, verdicts.
 *
 * What this worker has sent to others is remembered twice: in the lane, to keep order when the
 * path must change, and in a queue a peer in the order sent, to notice cheaply what was taken.
 * Queues name entries by (ref, seq): an entry that was freed meanwhile does not match any more.
 */
#include "worker/route.h"

#include <stdlib.h>
#include <string.h>

#include "shm/fault.h"
#include "shm/sess.h"
#include "worker/addrs.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cmd.h"
#include "worker/conn.h"
#include "worker/move.h"
#include "worker/peer.h"
#include "worker/notice.h"
#include "worker/redo.h"
#include "worker/route_in.h"
#include "worker/session.h"
#include "worker/store.h"
#include "worker/sweep.h"

#define BUCKETS 4096u
#define TAKEN_CHECK_MS 1000
#define LOOK_MS 10
#define SURE_MAX 512u

struct name { uint32_t ref, seq; uint64_t at_ms; };
struct ring { struct name *v; uint32_t head, len, cap; };	/* cap is a power of two */

static struct lane *lanes[BUCKETS], *spare;
static uint32_t nlanes;
static struct ring *sent;		/* [max_workers] WAITING or just taken */
static struct ring taken;		/* TAKEN, and the sender waits for a verdict */
static uint64_t next_taken_check;
static struct timer look;

/* ---- rings ---- */

static bool ring_push(struct ring *r, uint32_t ref, uint32_t seq)
{
	if (r->len == r->cap) {
		uint32_t cap = r->cap == 0 ? 64 : r->cap * 2;
		struct name *v = malloc(cap * sizeof *v);

		if (v == NULL)
			return false;
		for (uint32_t i = 0; i < r->len; i++)
			v[i] = r->v[(r->head + i) & (r->cap - 1)];
		free(r->v);
		*r = (struct ring){ v, 0, r->len, cap };
	}
	r->v[(r->head + r->len++) & (r->cap - 1)] = (struct name){ ref, seq, clock_ms() };
	return true;
}

static struct name *ring_first(struct ring *r)
{
	return r->len > 0 ? &r->v[r->head] : NULL;
}

static void ring_pop(struct ring *r)
{
	r->head = (r->head + 1) & (r->cap - 1);
	r->len--;
}

/* The entry, if it is still what was named. */
static struct msg *named(const struct name *n)
{
	struct msg *m = msg_of(wk->slot, n->ref);

	return m != NULL && msg_seq(m) == n->seq ? m : NULL;
}

/* ---- lanes ---- */

struct lane **lane_place(uint32_t srec, uint32_t sgen, uint32_t rcpt)
{
	uint32_t h = (srec * 2654435761u) ^ (rcpt * 2246822519u);
	struct lane **p = &lanes[h / (UINT32_MAX / BUCKETS + 1)];

	while (*p != NULL && ((*p)->srec != srec || (*p)->sgen != sgen || (*p)->rcpt != rcpt))
		p = &(*p)->next;
	return p;
}

struct lane *lane_make(const struct msg *m, enum path path)
{
	struct lane **p = lane_place(m->srec, m->sgen, m->rcpt), *l = spare;
	struct conn *c = conn_get(m->srec, m->sgen);

	if (*p != NULL)
		return *p;
	if (l != NULL)
		spare = l->next;
	else if ((l = malloc(sizeof *l)) == NULL)
		return NULL;
	*l = (struct lane){ .srec = m->srec, .sgen = m->sgen, .rcpt = m->rcpt, .path = path,
	    .head = CHUNK_NONE, .tail = CHUNK_NONE };
	*p = l;
	nlanes++;
	if (c != NULL)
		c->nlanes++;
	return l;
}

void route_lane_done(uint32_t srec, uint32_t sgen)
{
	struct conn *c = conn_get(srec, sgen);

	if (c != NULL && c->nlanes > 0 && --c->nlanes == 0)
		session_settle(c);
}

void route_opened(struct conn *c)
{
	if (++c->open >= SESSION_OPEN_MAX && !c->throttled) {
		c->throttled = true;
		conn_want(c);
	}
}

void route_closed(uint32_t srec, uint32_t sgen)
{
	struct conn *c = conn_get(srec, sgen);

	if (c == NULL || c->open == 0 || --c->open > SESSION_OPEN_MAX / 2 || !c->throttled)
		return;
	c->throttled = false;
	if (c->state == CONN_OPEN && !c->blocked)
		conn_unblock(c);
}

/* One entry of a lane is resolved. */
void lane_resolve(uint32_t srec, uint32_t sgen, uint32_t rcpt)
{
	struct lane **p = lane_place(srec, sgen, rcpt), *l = *p;

	route_closed(srec, sgen);
	if (l == NULL || --l->count > 0)
		return;
	*p = l->next;
	l->next = spare;
	spare = l;
	nlanes--;
	route_lane_done(srec, sgen);
}

/* ---- answers ---- */

void route_answer(uint32_t srec, uint32_t sgen, enum msg_kind kind, enum verdict v,
    const struct msg *m)
{
	bool cid = m != NULL && (m->flags & MF_CID);

	if (v >= 0 && !cid)
		return;			/* silence is success */
	struct conn *c = conn_get(srec, sgen);
	if (c != NULL && c->state != CONN_MOVING) {
		cmd_verdict(c, kind, v, m != NULL ? m->rcpt : 0, m != NULL ? m->order + 1 : 0,
		    cid ? m->mid : NULL, cid ? m->body + m->cid_off : NULL, cid ? m->cid_len : 0,
		    m != NULL ? m->body + m->body_len : NULL, m != NULL ? m->req_len : 0);
		return;
	}
	struct rec *r = srec < shm->head->max_sessions ? rec_at(srec) : NULL;
	if (r == NULL || atomic_load(&r->gen) != sgen)
		return;			/* the sender is gone */
	int slot = rec_word_slot(atomic_load(&r->word));
	if (slot < 0 || ((uint32_t)slot == wk->slot && c == NULL))
		return;
	/* The sender moved to a sibling: all that the answer needs goes along. */
	struct { struct item_verdict it; char tail[16 + 6 * PROTO_CID_MAX]; } a = { .it = {
	    .head = { .type = IT_VERDICT, .flags = 1 }, .srec = srec, .sgen = sgen,
	    .kind = kind, .result = v, .ref = m != NULL ? m->rcpt : 0 } };
	size_t len = sizeof a.it;
	if (cid && m->cid_len <= sizeof a.tail - 16) {
		memcpy(a.tail, m->mid, 16);
		memcpy(a.tail + 16, m->body + m->cid_off, m->cid_len);
		len += 16 + m->cid_len;
	}
	a.it.head.len = (uint32_t)len;
	if (c != NULL)
		move_defer(c, &a.it.head);	/* it is just leaving: after it */
	else
		(void)peer_send((uint32_t)slot, IT_VERDICT, &a, len, NULL, 0);
}

void route_tell(struct msg *m, enum verdict v)
{
	if (m->flags & MF_TOLD)
		return;
	m->flags |= MF_TOLD;
	if (m->origin_slot == UINT32_MAX) {
		route_answer(m->srec, m->sgen, m->kind, v, m);
		return;
	}
	if (m->origin_host != 0) {
		far_tell(m, v);
		return;
	}
	if (v >= 0 && !(m->flags & MF_CID))
		return;
	struct item_verdict it = { .ref = m->origin_ref, .seq = m->origin_seq, .srec = m->srec,
	    .sgen = m->sgen, .kind = m->kind, .result = v };
	(void)peer_send(m->origin_slot, IT_VERDICT, &it, sizeof it, NULL, 0);
}

/* ---- towards the store ---- */

void route_store(uint32_t ref, void (*done)(struct store_job *, void *))
{
	struct msg *m = msg_at(ref);
	struct store_job *j = store_job_new(STORE_OFFLINE_ADD, done, NULL);
	size_t len;

	msg_set_state(m, M_STORING);
	j->tag = ref;
	j->tag2 = msg_seq(m);
	j->id = m->rcpt;
	j->other = m->sender;
	memcpy(j->mid, m->mid, 16);
	j->ts = m->ts;
	len = msg_store_text(wk->text, m);
	store_job_body(j, wk->text, len);
	if (m->flags & MF_MUST)
		j->flags |= STORE_MUST;
	if (!(m->flags & MF_MUST) || (m->flags & MF_QUOTA))
		j->limit = wk->conf.offline_max;
	redo_submit(j);
}

void route_notice(uint32_t user)
{
	struct sess_ref to;

	if (sess_find(user, &to) != SESS_OK)
		return;			/* nobody: the next login reads the store */
	struct conn *c = to.slot == wk->slot ? conn_get(to.rec, to.gen) : NULL;
	if (c != NULL) {
		session_notice(c);
	} else if (to.slot != wk->slot) {
		struct item_notice it = { .user = user, .rrec = to.rec, .rgen = to.gen };
		(void)peer_send(to.slot, IT_NOTICE, &it, sizeof it, NULL, 0);
	}
}

static enum verdict verdict_of(int rc)
{
	switch (rc) {
	case STORE_OK:
		return V_STORED;
	case STORE_FULL:
		return V_FULL;
	case STORE_GONE:
		return V_UNKNOWN;
	case STORE_DENIED:
		return V_DENIED;
	default:
		return V_DOWN;
	}
}

/* Committed, and whoever serves the recipient knows, or nobody does. */
static void out_told(uint64_t ref, uint64_t seq)
{
	struct name n = { .ref = (uint32_t)ref, .seq = (uint32_t)seq };
	struct msg *m = named(&n);

	if (m == NULL)
		return;
	route_tell(m, V_STORED);
	uint32_t srec = m->srec, sgen = m->sgen, rcpt = m->rcpt;
	msg_free(n.ref);
	lane_resolve(srec, sgen, rcpt);
}

static void out_stored(struct store_job *j, void *arg)
{
	struct name n = { .ref = (uint32_t)j->tag, .seq = (uint32_t)j->tag2 };
	struct msg *m = named(&n);

	(void)arg;
	if (m == NULL)
		return;
	if ((m->flags & MF_MUST) && redo_useful(j->rc)) {
		redo_job(j);
		return;
	}
	if (j->rc == STORE_OK) {
		COUNT(messages_stored);
		FAULT("route.stored.1");	/* committed, and nobody was told */
		notice_send(m->rcpt, out_told, n.ref, n.seq);
		return;
	}
	route_tell(m, verdict_of(j->rc));
	uint32_t srec = m->srec, sgen = m->sgen, rcpt = m->rcpt;
	msg_free(n.ref);
	lane_resolve(srec, sgen, rcpt);
}

static void lane_to_store(struct lane *l, uint32_t ref)
{
	l->path = PATH_STORE;
	route_store(ref, out_stored);
}

/* ---- towards another worker ---- */

static bool lane_to_peer(struct lane *l, uint32_t ref)
{
	struct msg *m = msg_at(ref);
	struct item_deliver it = { .slot = wk->slot, .ref = ref, .seq = msg_seq(m),
	    .rcpt = l->rcpt, .rrec = l->rrec, .rgen = l->rgen };

	m->rrec = l->rrec;
	m->rgen = l->rgen;
	m->lane_next = CHUNK_NONE;
	msg_set_state(m, M_WAITING);
	if (!ring_push(&sent[l->slot], ref, it.seq))
		return false;
	if (l->tail != CHUNK_NONE)
		msg_at(l->tail)->lane_next = ref;
	else
		l->head = ref;
	l->tail = ref;
	COUNT(messages_peer);
	return peer_send(l->slot, IT_DELIVER, &it, sizeof it, NULL, 0);
}

/* Takes back what the other worker has not taken, in order; the rest is resolved by the queue. */
static uint32_t lane_revoke(struct lane *l)
{
	uint32_t head = CHUNK_NONE, *tail = &head;

	for (uint32_t ref = l->head, next; ref != CHUNK_NONE; ref = next) {
		struct msg *m = msg_at(ref);

		next = m->lane_next;
		m->lane_next = CHUNK_NONE;
		if (!msg_claim(m, msg_seq(m), M_WAITING, M_STORING))
			continue;
		/* A new life: whoever still holds its old name finds nobody. */
		atomic_store(&m->word, msg_word(msg_next_seq(), M_STORING));
		*tail = ref;
		tail = &m->lane_next;
	}
	l->head = l->tail = CHUNK_NONE;
	return head;
}

void lane_divert(struct lane *l)
{
	uint32_t next, ref = l->path == PATH_PEER ? lane_revoke(l) : far_revoke(l);

	/* Claimed by us: the store is the one path that is always open. */
	for (; ref != CHUNK_NONE; ref = next) {
		next = msg_at(ref)->lane_next;
		msg_at(ref)->lane_next = CHUNK_NONE;
		lane_to_store(l, ref);
	}
	l->path = PATH_STORE;
}

static void deliver_here(struct conn *c, uint32_t ref)
{
	struct msg *m = msg_at(ref);

	m->rrec = c->rec;
	m->rgen = c->gen;
	COUNT(messages_local);
	session_deliver(c, ref);
}

/* All that nobody has taken goes to a session of this host. */
static void lane_bend(struct lane *l, const struct sess_ref *to, struct conn *c)
{
	uint32_t next, srec = l->srec, sgen = l->sgen, rcpt = l->rcpt;
	uint32_t ref = l->path == PATH_PEER ? lane_revoke(l) : far_revoke(l);

	l->path = PATH_PEER;
	l->slot = to->slot;
	l->rrec = to->rec;
	l->rgen = to->gen;
	for (; ref != CHUNK_NONE; ref = next) {
		next = msg_at(ref)->lane_next;
		msg_at(ref)->lane_next = CHUNK_NONE;
		if (c != NULL) {
			deliver_here(c, ref);
			lane_resolve(srec, sgen, rcpt);
		} else if (l->path == PATH_STORE) {
			lane_to_store(l, ref);
		} else if (!lane_to_peer(l, ref)) {
			lane_divert(l);
		}
	}
}

bool lane_go_home(struct lane *l)
{
	struct sess_ref to;

	if (sess_find(l->rcpt, &to) != SESS_OK)
		return false;
	struct conn *c = to.slot == wk->slot ? conn_get(to.rec, to.gen) : NULL;
	if (to.slot == wk->slot && (c == NULL || c->state == CONN_MOVING))
		return false;
	lane_bend(l, &to, c);
	return true;
}

/* The worker there knows nothing of that session: where is the recipient now? */
static void lane_reroute(struct lane *l)
{
	struct sess_ref to;
	bool found = sess_find(l->rcpt, &to) == SESS_OK && (to.rec != l->rrec || to.gen != l->rgen);
	struct conn *c = found && to.slot == wk->slot ? conn_get(to.rec, to.gen) : NULL;

	if (!found || (to.slot == wk->slot && (c == NULL || c->state == CONN_MOVING)))
		lane_divert(l);
	else
		lane_bend(l, &to, c);
}

/* ---- from here ---- */

void lane_opened(uint32_t ref)
{
	struct conn *c = conn_get(msg_at(ref)->srec, msg_at(ref)->sgen);

	if (c != NULL)
		route_opened(c);
}

static void send_by_store(uint32_t ref)
{
	struct lane *l = lane_make(msg_at(ref), PATH_STORE);

	if (l == NULL) {
		route_tell(msg_at(ref), V_DOWN);
		msg_free(ref);
		return;
	}
	l->count++;
	lane_opened(ref);
	lane_to_store(l, ref);
}

static void send_by_peer(uint32_t ref, const struct sess_ref *to)
{
	struct lane *l = lane_make(msg_at(ref), PATH_PEER);

	if (l == NULL) {
		route_tell(msg_at(ref), V_DOWN);
		msg_free(ref);
		return;
	}
	l->count++;
	lane_opened(ref);
	l->slot = to->slot;
	l->rrec = to->rec;
	l->rgen = to->gen;
	if (!lane_to_peer(l, ref))
		lane_divert(l);
}

/*
 * Somebody who was on another host when that could not be heard may have left messages in the store of which
 * nobody was told. Their first one to each recipient goes there as well: whoever then reads it reads those first.
 */
struct sure { uint32_t n, v[SURE_MAX]; };

static bool first_word(struct conn *c, uint32_t rcpt)
{
	struct sure *s = c->sure;

	if (s == NULL) {
		if ((s = c->sure = malloc(sizeof *s)) == NULL)
			return true;
		s->n = 0;
	}
	for (uint32_t i = 0; i < s->n; i++)
		if (s->v[i] == rcpt)
			return false;
	if (s->n == SURE_MAX)
		s->n = 0;
	s->v[s->n++] = rcpt;
	return true;
}

void route_forget_sure(struct conn *c)
{
	free(c->sure);
	c->sure = NULL;
}

void route_send(struct conn *c, uint32_t ref)
{
	struct msg *m = msg_at(ref);
	struct sess_ref to;

	m->srec = c->rec;
	m->sgen = c->gen;
	if (c->nlanes > 0) {
		struct lane *l = *lane_place(c->rec, c->gen, m->rcpt);

		if (l != NULL) {		/* follow what went before */
			l->count++;
			route_opened(c);
			if (l->path == PATH_STORE)
				lane_to_store(l, ref);
			else if (l->path != PATH_PEER)
				far_follow(l, ref);
			else if (!lane_to_peer(l, ref))
				lane_divert(l);
			return;
		}
	}
	if ((c->r->flags & REC_UNSURE) && first_word(c, m->rcpt)) {
		send_by_store(ref);
		return;
	}
	if (sess_find(m->rcpt, &to) != SESS_OK) {
		if (!far_send(ref))
			send_by_store(ref);
		return;
	}
	if (to.slot != wk->slot) {
		send_by_peer(ref, &to);
		return;
	}
	struct conn *r = conn_get(to.rec, to.gen);
	if (r != NULL && r->state != CONN_MOVING)
		deliver_here(r, ref);
	else
		send_by_store(ref);	/* moving away, or left by a predecessor: behind its sweep */
}

/* ---- end of turn ---- */

static void poll_peer(struct ring *r)
{
	struct name *n;

	while ((n = ring_first(r)) != NULL) {
		struct msg *m = named(n);
		enum msg_state st = m != NULL ? msg_state(m) : M_NONE;

		if (st == M_WAITING) {
			if (clock_ms() - n->at_ms < wk->conf.confirm_ms)
				return;
			struct lane *l = *lane_place(m->srec, m->sgen, m->rcpt);
			if (l != NULL)
				lane_divert(l);
			else
				return;
			continue;
		}
		if (st == M_TAKEN) {
			struct lane *l = *lane_place(m->srec, m->sgen, m->rcpt);
			uint32_t srec = m->srec, sgen = m->sgen, rcpt = m->rcpt;

			if (l != NULL && l->head == n->ref) {
				l->head = m->lane_next;
				if (l->head == CHUNK_NONE)
					l->tail = CHUNK_NONE;
			}
			if (!(m->flags & MF_CID))
				msg_free(n->ref);
			else
				(void)ring_push(&taken, n->ref, n->seq);
			lane_resolve(srec, sgen, rcpt);
		}
		ring_pop(r);
	}
}

static void taken_stored(struct store_job *j, void *arg)
{
	struct name n = { .ref = (uint32_t)j->tag, .seq = (uint32_t)j->tag2 };
	struct msg *m = named(&n);

	(void)arg;
	if (m == NULL)
		return;
	if (j->rc == STORE_OK)
		notice_send(m->rcpt, NULL, 0, 0);
	route_tell(m, verdict_of(j->rc));
	msg_free(n.ref);
}

/*
 * A verdict can be lost with the worker that owed it, when that died after its own entry was
 * settled. Storing again is harmless: the row's key is the message's id.
 */
static void check_taken(void)
{
	struct name *n;

	next_taken_check = clock_ms() + TAKEN_CHECK_MS;
	while ((n = ring_first(&taken)) != NULL) {
		struct msg *m = named(n);

		if (m != NULL && msg_state(m) == M_TAKEN) {
			if (clock_ms() - n->at_ms < 3ull * wk->conf.confirm_ms + 5000)
				return;
			route_store(n->ref, taken_stored);
		}
		ring_pop(&taken);
	}
}

static void on_look(struct timer *t)
{
	(void)t;			/* the turn's end polls */
}

void route_poll(void)
{
	uint32_t waiting = 0;

	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		if (sent[i].len > 0) {
			poll_peer(&sent[i]);
			waiting += sent[i].len;
		}
	if (taken.len > 0 && clock_ms() >= next_taken_check)
		check_taken();
	if (waiting > 0 && !timer_is_set(&look))
		timer_set(&look, clock_ms() + LOOK_MS, on_look);
	else if (taken.len > 0 && !timer_is_set(&look))
		timer_set(&look, next_taken_check, on_look);
}

bool route_idle(void)
{
	return nlanes == 0;
}

void lane_each(void (*fn)(struct lane *l, void *arg), void *arg)
{
	struct { uint32_t srec, sgen, rcpt; } *all = malloc((nlanes + 1) * sizeof *all);
	uint32_t n = 0;

	ensure(all != NULL);
	for (unsigned b = 0; b < BUCKETS; b++)
		for (struct lane *l = lanes[b]; l != NULL; l = l->next) {
			all[n].srec = l->srec;
			all[n].sgen = l->sgen;
			all[n++].rcpt = l->rcpt;
		}
	for (uint32_t i = 0; i < n; i++) {
		struct lane *l = *lane_place(all[i].srec, all[i].sgen, all[i].rcpt);

		if (l != NULL)
			fn(l, arg);
	}
	free(all);
}

static void divert_one(struct lane *l, void *arg)
{
	(void)arg;
	if (l->path != PATH_STORE)
		lane_divert(l);
}

void route_divert_all(void)
{
	lane_each(divert_one, NULL);
}

int route_init(void)
{
	sent = calloc(shm->head->max_workers, sizeof *sent);
	return sent != NULL ? 0 : -1;
}

/* ---- from other workers ---- */

static void refuse(const struct item_deliver *d)
{
	struct item_refused it = { .ref = d->ref, .seq = d->seq };

	(void)peer_send(d->slot, IT_REFUSED, &it, sizeof it, NULL, 0);
}

/* Copies an entry of another worker and claims it. CHUNK_NONE: given up meanwhile, or no room. */
static uint32_t take(const struct item_deliver *d, uint32_t sess, uint32_t gen)
{
	struct msg *src = msg_of(d->slot, d->ref);

	if (src == NULL || atomic_load(&src->word) != msg_word(d->seq, M_WAITING))
		return CHUNK_NONE;
	uint32_t ref = msg_copy(src, sess, gen);
	if (ref == CHUNK_NONE)
		return ref;
	struct msg *m = msg_at(ref);
	m->kind = MK_DIRECT;
	m->rcpt = d->rcpt;
	m->rrec = d->rrec;
	m->rgen = d->rgen;
	m->origin_slot = d->slot;
	m->origin_ref = d->ref;
	m->origin_seq = d->seq;
	m->flags &= MF_CID;
	msg_set_state(m, M_PREPARED);
	/* Only a whole copy counts: bounds are checked again, then the claim decides. */
	if (msg_of(wk->slot, ref) == NULL || !msg_claim(src, d->seq, M_WAITING, M_TAKEN)) {
		msg_free(ref);
		return CHUNK_NONE;
	}
	return ref;
}

void route_on_deliver(const struct item *it)
{
	const struct item_deliver *d = (const struct item_deliver *)it;
	struct conn *c;
	uint32_t ref;

	if (d->slot >= shm->head->max_workers || d->rrec >= shm->head->max_sessions)
		return;
	c = conn_get(d->rrec, d->rgen);
	if (c != NULL && c->bound && atomic_load(&c->r->user) == d->rcpt &&
	    c->state != CONN_MOVING) {
		ref = take(d, c->rec, c->gen);
		if (ref != CHUNK_NONE)
			session_deliver(c, ref);
		return;
	}
	struct rec *r = rec_at(d->rrec);
	int owner = rec_word_slot(atomic_load(&r->word));
	if (c != NULL && c->state == CONN_MOVING) {
		move_defer(c, it);
	} else if (c == NULL && atomic_load(&r->gen) == d->rgen && owner >= 0 &&
	    (uint32_t)owner != wk->slot && !sweep_owns(d->rrec, d->rgen)) {
		struct item_deliver copy = *d;		/* it moved: after it */
		if (!peer_send((uint32_t)owner, IT_DELIVER, &copy, sizeof copy, NULL, 0))
			refuse(d);
	} else if (sweep_owns(d->rrec, d->rgen)) {
		ref = take(d, d->rrec, d->rgen);
		if (ref != CHUNK_NONE)
			sweep_store(ref);
	} else {
		refuse(d);
	}
}

void route_on_verdict(const struct item *it)
{
	const struct item_verdict *v = (const struct item_verdict *)it;
	struct name n = { .ref = v->ref, .seq = v->seq };

	if (it->flags & 1) {			/* for a sender that moved here */
		struct conn *c = conn_get(v->srec, v->sgen);
		size_t len = it->len - sizeof *v;
		const char *tail = (const char *)(v + 1);

		if (c != NULL && c->state == CONN_MOVING)
			move_defer(c, it);
		else if (c != NULL && len >= 16)
			cmd_verdict(c, (enum msg_kind)v->kind, (enum verdict)v->result, v->ref,
			    0, (const unsigned char *)tail, tail + 16, (uint32_t)len - 16, NULL, 0);
		else if (c != NULL)
			cmd_verdict(c, (enum msg_kind)v->kind, (enum verdict)v->result, v->ref, 0,
			    NULL, NULL, 0, NULL, 0);
		return;
	}
	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		if (sent[i].len > 0)
			poll_peer(&sent[i]);
	struct msg *m = named(&n);
	if (m != NULL && (m->flags & MF_CID) && msg_state(m) == M_TAKEN) {
		route_answer(m->srec, m->sgen, m->kind, (enum verdict)v->result, m);
		msg_free(n.ref);
	} else if (v->result < 0 && (m == NULL || !(m->flags & MF_CID))) {
		route_answer(v->srec, v->sgen, (enum msg_kind)v->kind, (enum verdict)v->result, NULL);
	}
}

void route_on_refused(const struct item *it)
{
	const struct item_refused *f = (const struct item_refused *)it;
	struct name n = { .ref = f->ref, .seq = f->seq };
	struct msg *m = named(&n);

	if (m == NULL || msg_state(m) != M_WAITING)
		return;
	struct lane *l = *lane_place(m->srec, m->sgen, m->rcpt);
	if (l != NULL)
		lane_reroute(l);
}

void route_on_notice(const struct item *it)
{
	const struct item_notice *n = (const struct item_notice *)it;
	struct conn *c = conn_get(n->rrec, n->rgen);

	if (c != NULL && c->state != CONN_MOVING)
		session_notice(c);
	else
		route_notice(n->user);		/* moved, or another session by now; nobody: fine */
}
