/*
 * route_far.c - one-to-one messages between hosts.
 *
 * Going out: a lane asks who serves the recipient (ASK), then sends its entries to that host, numbered
 * from 1 (HOST), and keeps each until its answer. The other side takes them in that order or not at all, so
 * a lost packet shows in the next one as a refusal; the lane then asks again and sends what it has under a
 * new number. What has no answer after two confirm_timeouts, and all of a host that is gone, is stored here.
 *
 * Coming in: an entry is copied for the session and answered when it is delivered or stored. Answers of the
 * last ANSWERS entries are remembered by name, so that one sent again is answered again, not shown again.
 */
#include <stdlib.h>
#include <string.h>

#include "shm/fault.h"
#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/claim.h"
#include "worker/cluster.h"
#include "worker/conn.h"
#include "worker/hosts.h"
#include "worker/link.h"
#include "worker/notice.h"
#include "worker/route.h"
#include "worker/route_in.h"
#include "worker/session.h"

#define KNOWN   4096u			/* recipients whose host is remembered; a power of two */
#define ANSWERS 8192u			/* powers of two */
#define STREAMS 8192u
#define TRIES   5u
#define CUT_MS  2000u
#define DUE     4096u			/* entries looked at in one go */

/* ---- what is waited for ---- */

struct due { uint32_t ref, seq; uint64_t at_ms; };

static struct { struct due *v; uint32_t head, len, cap; } due;
static struct timer due_timer;
static uint64_t next_number;

static struct msg *entry(uint32_t ref, uint32_t seq)
{
	struct msg *m = msg_of(wk->slot, ref);

	return m != NULL && msg_seq(m) == seq && msg_state(m) == M_FAR ? m : NULL;
}

/* Without Redis no answer comes; but it may be back in a moment, and what was delivered is told then. */
static uint64_t patience(void)
{
	uint64_t ms = 2ull * wk->conf.confirm_ms;

	return cluster_up() || ms < CUT_MS ? ms : CUT_MS;
}

/* The deadline is the same for all, so they are in order. */
static void on_due(struct timer *t)
{
	for (uint32_t n = 0; due.len > 0 && n < DUE; n++) {
		const struct due *d = &due.v[due.head];
		struct msg *m = entry(d->ref, d->seq);

		if (m != NULL && clock_ms() - d->at_ms < patience())
			break;
		due.head = (due.head + 1) & (due.cap - 1);
		due.len--;
		if (m == NULL)
			continue;
		struct lane *l = *lane_place(m->srec, m->sgen, m->rcpt);
		if (l != NULL)
			lane_divert(l);
	}
	if (due.len > 0)
		timer_set(t, due.v[due.head].at_ms + patience(), on_due);
}

static bool due_push(uint32_t ref, uint32_t seq)
{
	if (due.len == due.cap) {
		uint32_t cap = due.cap == 0 ? 64 : due.cap * 2;
		struct due *v = malloc(cap * sizeof *v);

		if (v == NULL)
			return false;
		for (uint32_t i = 0; i < due.len; i++)
			v[i] = due.v[(due.head + i) & (due.cap - 1)];
		free(due.v);
		due.v = v;
		due.head = 0;
		due.cap = cap;
	}
	due.v[(due.head + due.len++) & (due.cap - 1)] = (struct due){ ref, seq, clock_ms() };
	if (!timer_is_set(&due_timer))
		timer_set(&due_timer, clock_ms() + patience(), on_due);
	return true;
}

/* ---- where they were last ---- */

static struct known { uint32_t user; struct host *host; uint64_t epoch; } *known;

static struct known *known_place(uint32_t user)
{
	if (known == NULL)
		known = calloc(KNOWN, sizeof *known);
	return known != NULL ? &known[(user * 2654435761u) >> 20 & (KNOWN - 1)] : NULL;
}

static void remember(uint32_t user, struct host *h)
{
	struct known *k = known_place(user);

	if (k != NULL)
		*k = (struct known){ user, h, h != NULL ? h->epoch : 0 };
}

/* A guess, which that host refuses where it is wrong. */
static struct host *recall(uint32_t user)
{
	struct known *k = known_place(user);

	if (k == NULL || k->user != user || k->host == NULL || !k->host->alive ||
	    k->host->epoch != k->epoch)
		return NULL;
	return k->host;
}

/* ---- going out ---- */

static void append(struct lane *l, uint32_t ref)
{
	msg_at(ref)->lane_next = CHUNK_NONE;
	if (l->tail != CHUNK_NONE)
		msg_at(l->tail)->lane_next = ref;
	else
		l->head = ref;
	l->tail = ref;
}

static bool transmit(struct lane *l, uint32_t ref)
{
	struct msg *m = msg_at(ref);
	struct link_deliver d = { .slot = wk->slot, .gen = wk->gen, .ref = ref, .seq = msg_seq(m),
	    .rcpt = m->rcpt, .sender = m->sender, .srec = m->srec, .sgen = m->sgen,
	    .lane = l->number, .k = l->k + 1, .flags = m->flags & MF_CID, .ts = m->ts,
	    .to_off = m->to_off, .core_len = m->core_len, .cid_off = m->cid_off,
	    .cid_len = m->cid_len, .body_len = m->body_len };

	memcpy(d.mid, m->mid, 16);
	if (!link_send(l->host, LK_DELIVER, &d, sizeof d, m->body, m->body_len))
		return false;
	m->far_k = ++l->k;
	COUNT(messages_far);
	return true;
}

static bool too_long(const struct msg *m)
{
	return m->body_len > LINK_ITEM - sizeof(struct link_deliver);
}

/* One that is too long for a packet goes to the store, with all behind it, when all before it are answered. */
static bool send_next(struct lane *l, uint32_t ref)
{
	if (too_long(msg_at(ref)))
		l->held_up = true;
	if (l->held_up)
		return ref != l->head || !too_long(msg_at(ref));
	return transmit(l, ref);
}

static void send_all(struct lane *l, struct host *h)
{
	l->path = PATH_HOST;
	l->host = h;
	l->epoch = h->epoch;
	l->number = ++next_number;
	l->k = 0;
	l->held_up = false;
	for (uint32_t ref = l->head; ref != CHUNK_NONE; ref = msg_at(ref)->lane_next)
		if (!send_next(l, ref)) {
			lane_divert(l);
			return;
		}
}

static void on_where(uint64_t tag, uint64_t tag2, enum where w, struct host *h)
{
	struct lane *l = *lane_place((uint32_t)(tag >> 32), (uint32_t)tag, (uint32_t)tag2);

	if (l == NULL || l->path != PATH_ASK)
		return;
	if (lane_go_home(l))
		return;
	if (w != WHERE_HOST || h->self) {
		lane_divert(l);
		return;
	}
	remember(l->rcpt, h);
	send_all(l, h);
}

static void ask(struct lane *l)
{
	l->path = PATH_ASK;
	remember(l->rcpt, NULL);
	claim_where(l->rcpt, on_where, (uint64_t)l->srec << 32 | l->sgen, l->rcpt);
}

void far_follow(struct lane *l, uint32_t ref)
{
	struct msg *m = msg_at(ref);

	m->far_k = 0;
	msg_set_state(m, M_FAR);
	append(l, ref);
	if (!due_push(ref, msg_seq(m)) || (l->path == PATH_HOST && !send_next(l, ref)))
		lane_divert(l);
}

bool far_send(uint32_t ref)
{
	struct msg *m = msg_at(ref);
	struct host *h;
	struct lane *l;

	if (!cluster_up() || notice_pending(m->rcpt) || too_long(m))
		return false;
	if ((l = lane_make(m, PATH_ASK)) == NULL)
		return false;
	l->count++;
	lane_opened(ref);
	if ((h = recall(m->rcpt)) != NULL)
		send_all(l, h);			/* nothing is on it yet */
	far_follow(l, ref);
	if (h == NULL && l->path == PATH_ASK)
		ask(l);
	return true;
}

uint32_t far_revoke(struct lane *l)
{
	uint32_t head = l->head;

	/* A new life: answers to their old names find nobody. */
	for (uint32_t ref = head; ref != CHUNK_NONE; ref = msg_at(ref)->lane_next) {
		struct msg *m = msg_at(ref);

		atomic_store(&m->word, msg_word(msg_next_seq(), M_STORING));
	}
	l->head = l->tail = CHUNK_NONE;
	return head;
}

/* ---- answers ---- */

static void take_off(struct lane *l, uint32_t ref)
{
	uint32_t prev = CHUNK_NONE, at = l->head;

	while (at != CHUNK_NONE && at != ref) {
		prev = at;
		at = msg_at(at)->lane_next;
	}
	if (at == CHUNK_NONE)
		return;
	uint32_t next = msg_at(ref)->lane_next;
	if (prev == CHUNK_NONE)
		l->head = next;
	else
		msg_at(prev)->lane_next = next;
	if (l->tail == ref)
		l->tail = prev;
}

void route_on_far_verdict(struct host *from, const struct item *it)
{
	const struct link_verdict *v = (const struct link_verdict *)it;
	struct msg *m = entry(v->ref, v->seq);

	if (m == NULL || v->slot != wk->slot || v->gen != wk->gen)
		return;
	struct lane *l = *lane_place(m->srec, m->sgen, m->rcpt);
	if (l == NULL || l->path != PATH_HOST || l->host != from)
		return;
	uint32_t srec = m->srec, sgen = m->sgen, rcpt = m->rcpt;
	take_off(l, v->ref);
	l->tries = 0;
	route_tell(m, (enum verdict)v->result);
	msg_free(v->ref);
	if (l->head != CHUNK_NONE && l->held_up && too_long(msg_at(l->head)))
		lane_divert(l);
	lane_resolve(srec, sgen, rcpt);
}

/*
 * Not taken: no such session there, or something before it was lost. What was sent before it has been
 * seen by then, so all that has no answer goes again; what they have, they know by its name.
 */
void route_on_far_refused(struct host *from, const struct item *it)
{
	const struct link_refused *f = (const struct link_refused *)it;
	struct msg *m = entry(f->ref, f->seq);

	if (m == NULL || f->slot != wk->slot || f->gen != wk->gen)
		return;
	struct lane *l = *lane_place(m->srec, m->sgen, m->rcpt);
	if (l == NULL || l->path != PATH_HOST || l->host != from || l->held_up ||
	    m->far_k == 0 || m->far_k > l->k)
		return;
	if (++l->tries > TRIES) {
		lane_divert(l);
		return;
	}
	l->held_up = true;
	ask(l);
}

struct which { struct host *h; uint64_t epoch; bool all; };

static void resend_one(struct lane *l, void *arg)
{
	const struct which *w = arg;

	if (l->path == PATH_HOST && (w->all || l->host == w->h) && l->head != CHUNK_NONE)
		send_all(l, l->host);
}

void route_resend(struct host *h)
{
	struct which w = { .h = h, .all = h == NULL };

	lane_each(resend_one, &w);
}

static void gone_one(struct lane *l, void *arg)
{
	const struct which *w = arg;

	if (l->path == PATH_HOST && l->host == w->h && l->epoch == w->epoch)
		lane_divert(l);
}

void route_host_gone(struct host *h, uint64_t epoch)
{
	struct which w = { .h = h, .epoch = epoch };

	if (h != NULL) {
		lane_each(gone_one, &w);
		return;
	}
	if (known != NULL)
		memset(known, 0, KNOWN * sizeof *known);
	if (due.len > 0)		/* Redis is: they wait a little for its return */
		timer_set(&due_timer, clock_ms() + CUT_MS, on_due);
}

/* ---- coming in ---- */

/* What was taken from other hosts lately, by its name there, and what became of it. */
struct answer {
	uint64_t host, epoch;
	uint32_t slot, gen, ref, seq;
	int32_t verdict;
	bool open;			/* taken, not answered yet */
};

/* How far each lane of another host has come. */
struct stream { uint64_t host, epoch, lane; uint32_t slot, gen, k; };

static struct answer *answers;
static struct stream *streams;

static bool tables(void)
{
	if (answers == NULL)
		answers = calloc(ANSWERS, sizeof *answers);
	if (streams == NULL)
		streams = calloc(STREAMS, sizeof *streams);
	return answers != NULL && streams != NULL;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
	h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
	return h ^ h >> 29;
}

static struct answer *answer_place(uint64_t host, uint32_t slot, uint32_t ref)
{
	return &answers[mix(mix(host, slot), ref) >> 17 & (ANSWERS - 1)];
}

static bool answer_is(const struct answer *a, const struct host *from, const struct link_deliver *d)
{
	return a->host == from->key && a->epoch == from->epoch && a->slot == d->slot &&
	    a->gen == d->gen && a->ref == d->ref && a->seq == d->seq;
}

/* A newcomer takes the place: the former's lane has restarted the worst case, and the id decides. */
static struct stream *stream_of(const struct host *from, const struct link_deliver *d)
{
	struct stream *s = &streams[mix(mix(mix(from->key, d->slot), d->gen), d->lane) >> 17 &
	    (STREAMS - 1)];

	if (s->host == from->key && s->epoch == from->epoch && s->slot == d->slot &&
	    s->gen == d->gen && s->lane == d->lane)
		return s;
	if (d->k != 1)
		return NULL;
	*s = (struct stream){ from->key, from->epoch, d->lane, d->slot, d->gen, 0 };
	return s;
}

static void answer(struct host *to, uint32_t slot, uint32_t gen, uint32_t ref, uint32_t seq, int verdict)
{
	struct link_verdict v = { .slot = slot, .gen = gen, .ref = ref, .seq = seq, .result = verdict };

	(void)link_send(to, LK_VERDICT, &v, sizeof v, NULL, 0);
}

void far_tell(struct msg *m, int verdict)
{
	struct host *h = hosts_find(m->origin_host);

	if (answers != NULL) {
		struct answer *a = answer_place(m->origin_host, m->origin_slot, m->origin_ref);

		if (a->host == m->origin_host && a->epoch == m->origin_epoch &&
		    a->slot == m->origin_slot && a->gen == m->origin_gen &&
		    a->ref == m->origin_ref && a->seq == m->origin_seq) {
			a->open = false;
			a->verdict = verdict;
		}
	}
	if (h != NULL && h->epoch == m->origin_epoch)
		answer(h, m->origin_slot, m->origin_gen, m->origin_ref, m->origin_seq, verdict);
}

static bool sane(const struct link_deliver *d)
{
	size_t tail = d->head.len - sizeof *d;

	return d->body_len > 0 && d->body_len <= tail && d->core_len <= d->body_len &&
	    d->to_off < d->core_len && d->cid_off <= d->body_len &&
	    d->cid_len <= d->body_len - d->cid_off && d->cid_len <= 6 * PROTO_CID_MAX &&
	    d->to_off <= UINT16_MAX && ((d->flags & MF_CID) != 0) == (d->cid_len > 0);
}

static uint32_t copy_in(const struct host *from, const struct link_deliver *d, const struct conn *c)
{
	uint32_t ref = msg_new(MK_DIRECT, c->rec, c->gen, d->body_len);

	if (ref == CHUNK_NONE)
		return ref;
	struct msg *m = msg_at(ref);
	m->flags = (uint8_t)(d->flags & MF_CID);
	m->to_off = (uint16_t)d->to_off;
	m->sender = d->sender;
	m->srec = d->srec;
	m->sgen = d->sgen;
	m->rcpt = d->rcpt;
	m->rrec = c->rec;
	m->rgen = c->gen;
	memcpy(m->mid, d->mid, 16);
	m->ts = d->ts;
	m->origin_slot = d->slot;
	m->origin_gen = d->gen;
	m->origin_ref = d->ref;
	m->origin_seq = d->seq;
	m->origin_host = from->key;
	m->origin_epoch = from->epoch;
	m->core_len = d->core_len;
	m->cid_off = d->cid_off;
	m->cid_len = d->cid_len;
	memcpy(m->body, d + 1, d->body_len);
	return ref;
}

static void refuse(struct host *to, const struct link_deliver *d)
{
	struct link_refused r = { .slot = d->slot, .gen = d->gen, .ref = d->ref, .seq = d->seq };

	(void)link_send(to, LK_REFUSED, &r, sizeof r, NULL, 0);
}

static struct conn *served_here(uint32_t user)
{
	struct sess_ref to;

	if (sess_find(user, &to) != SESS_OK || to.slot != wk->slot)
		return NULL;
	struct conn *c = conn_get(to.rec, to.gen);
	return c != NULL && c->bound && c->state != CONN_MOVING ? c : NULL;
}

void route_on_far_deliver(struct host *from, const struct item *it)
{
	const struct link_deliver *d = (const struct link_deliver *)it;
	struct conn *c = served_here(d->rcpt);
	uint32_t ref = CHUNK_NONE;

	if (!sane(d)) {
		log_warn("host %s: a message that is none", from->id);
		return;
	}
	struct stream *s = tables() ? stream_of(from, d) : NULL;
	struct answer *a = s != NULL ? answer_place(from->key, d->slot, d->ref) : NULL;
	if (s == NULL || d->k != s->k + 1) {
		refuse(from, d);
		return;
	}
	if (answer_is(a, from, d)) {		/* it was sent again: it is here, or was */
		s->k = d->k;
		if (!a->open)
			answer(from, d->slot, d->gen, d->ref, d->seq, a->verdict);
		return;
	}
	if (c == NULL || (ref = copy_in(from, d, c)) == CHUNK_NONE) {
		refuse(from, d);
		return;
	}
	s->k = d->k;
	*a = (struct answer){ from->key, from->epoch, d->slot, d->gen, d->ref, d->seq, 0, true };
	FAULT("far.take.1");			/* copied, and nobody knows */
	cluster_look_first(c);
	session_deliver(c, ref);
}

/* A stream of ours to that host has a hole. */
void route_on_far_missed(struct host *from, const struct item *it)
{
	const struct link_missed *g = (const struct link_missed *)it;

	if (g->gen == 0 || (g->slot == wk->slot && g->gen == wk->gen))
		route_resend(from);
}
