/*
 * session.c - the held list, the drain, the end.
 *
 * A session's counters (storing, deleting, held, lanes) are what its end waits for, so each change
 * of one goes through a function here that looks whether the end has come (session_settle).
 */
#include "worker/session.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "shm/fault.h"
#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/claim.h"
#include "worker/cmd.h"
#include "worker/group.h"
#include "worker/login.h"
#include "worker/loop.h"
#include "worker/notice.h"
#include "worker/peer.h"
#include "worker/presence.h"
#include "worker/redo.h"
#include "worker/route.h"
#include "worker/store.h"

#define DRAIN_ROWS  128u
#define DRAIN_BYTES 262144u
#define OUT_HIGH    131072u		/* unsent bytes above which nothing is read from the store for it */
#define RETRY_MS    500
#define CURSOR_MS   300
#define ASK_EVERY   16u			/* messages to a silent session after which TCP is asked */
#define ASK_BYTES   32768u
#define ARRIVAL_MS  60			/* and when nothing more is written */
#define ARRIVAL_AGAIN_MS 100

static struct conn *cursor_head;
static struct timer cursor_timer;

static void end_begin(struct conn *c, enum session_end how);

/* ---- the held list ---- */

static struct chunk *held_chunk(uint32_t ref)
{
	return chunk_at(wk->slot, ref);
}

static void held_push(struct conn *c, uint32_t ref)
{
	struct rec *r = c->r;

	held_chunk(ref)->next = CHUNK_NONE;
	if (r->held_tail != CHUNK_NONE)
		held_chunk(r->held_tail)->next = ref;
	else
		r->held_head = ref;
	r->held_tail = ref;
	if (c->unwritten == CHUNK_NONE)
		c->unwritten = ref;
	c->held++;
	c->held_bytes += msg_at(ref)->body_len;
	c->stored_to = CHUNK_NONE;
}

static uint32_t held_pop(struct conn *c)
{
	struct rec *r = c->r;
	uint32_t ref = r->held_head;

	r->held_head = held_chunk(ref)->next;
	if (c->unwritten == ref)
		c->unwritten = r->held_head;
	if (r->held_head == CHUNK_NONE)
		r->held_tail = CHUNK_NONE;
	c->held--;
	c->held_bytes -= msg_at(ref)->body_len;
	return ref;
}

static bool chain_has(uint32_t ref, uint64_t row, const unsigned char mid[16])
{
	for (; ref != CHUNK_NONE; ref = held_chunk(ref)->next) {
		const struct msg *m = msg_at(ref);

		if ((m->kind == MK_ROW && m->row == row) ||
		    (m->kind != MK_GREF && memcmp(m->mid, mid, 16) == 0))
			return true;
	}
	return false;
}

bool session_has(const struct conn *c, uint64_t row, const unsigned char mid[16])
{
	return chain_has(c->r->held_head, row, mid) || chain_has(c->gone, row, mid);
}

/*
 * Confirmed entries whose row a read of the store may still come back with: while the deletion, or
 * a read that began before it, is in flight. They are remembered, so that nothing is written twice.
 */
static void gone_push(struct conn *c, uint32_t ref)
{
	held_chunk(ref)->next = c->gone;
	c->gone = ref;
}

static uint32_t gone_count(const struct conn *c)
{
	uint32_t n = 0;

	for (uint32_t ref = c->gone; ref != CHUNK_NONE; ref = held_chunk(ref)->next)
		n++;
	return n;
}

/* Frees what no read in flight can bring back; ALL: the session is over. */
static void gone_tidy(struct conn *c, bool all)
{
	uint32_t *p = &c->gone, ref;

	while ((ref = *p) != CHUNK_NONE) {
		if (!all && (c->draining || !(msg_at(ref)->flags & MF_FREE))) {
			p = &held_chunk(ref)->next;
			continue;
		}
		*p = held_chunk(ref)->next;
		msg_free(ref);
	}
}

static void gone_deleted(struct conn *c, const unsigned char mid[16])
{
	for (uint32_t ref = c->gone; ref != CHUNK_NONE; ref = held_chunk(ref)->next)
		if (msg_at(ref)->kind == MK_DIRECT && memcmp(msg_at(ref)->mid, mid, 16) == 0)
			msg_at(ref)->flags |= MF_FREE;
	gone_tidy(c, false);
}

static void gone_rows(struct conn *c, const uint64_t *ids, uint32_t n)
{
	for (uint32_t ref = c->gone; ref != CHUNK_NONE; ref = held_chunk(ref)->next)
		for (uint32_t i = 0; msg_at(ref)->kind == MK_ROW && i < n; i++)
			if (msg_at(ref)->row == ids[i])
				msg_at(ref)->flags |= MF_FREE;
	gone_tidy(c, false);
}

bool session_has_room(const struct conn *c)
{
	if (c->fd < 0 || c->state != CONN_OPEN || conn_unsent(c) > OUT_HIGH)
		return false;
	return c->held < PROTO_WINDOW_MSGS && c->held_bytes < PROTO_WINDOW_BYTES;
}

bool session_can_live(const struct conn *c)
{
	if (c->behind || c->storing > 0 || c->state != CONN_OPEN || c->ending != END_NONE ||
	    atomic_load_explicit(&c->r->live, memory_order_relaxed) != LIVE_YES)
		return false;
	if (conn_unsent(c) > OUT_HIGH && conn_pressure() >= 1)
		return false;		/* memory is short: its reader can have it from the store */
	return !c->r->ack || (c->held < PROTO_WINDOW_MSGS && c->held_bytes < PROTO_WINDOW_BYTES);
}

/* ---- jobs of a session ---- */

static struct msg *job_msg(const struct store_job *j, uint32_t *ref_r)
{
	struct msg *m = msg_of(wk->slot, (uint32_t)j->tag);

	*ref_r = (uint32_t)j->tag;
	return m != NULL && msg_seq(m) == (uint32_t)j->tag2 ? m : NULL;
}

static struct conn *tagged(const struct store_job *j)
{
	return conn_get((uint32_t)j->tag, (uint32_t)j->tag2);
}

static void deleted(struct store_job *j, void *arg)
{
	struct conn *c = tagged(j);

	(void)arg;
	if (redo_useful(j->rc)) {
		redo_job(j);
		return;
	}
	if (c == NULL)
		return;
	c->deleting--;
	if (j->op == STORE_OFFLINE_DEL_MID)
		gone_deleted(c, j->mid);
	else
		gone_rows(c, j->ids, j->nids);
	session_settle(c);
	session_drain(c);
}

static struct store_job *delete_job(struct conn *c, enum store_op op)
{
	struct store_job *j = store_job_new(op, deleted, NULL);

	j->tag = c->rec;
	j->tag2 = c->gen;
	j->id = atomic_load(&c->r->user);
	j->flags = STORE_MUST;
	c->deleting++;
	return j;
}

static void delete_by_mid(struct conn *c, const unsigned char mid[16])
{
	struct store_job *j = delete_job(c, STORE_OFFLINE_DEL_MID);

	memcpy(j->mid, mid, 16);
	store_submit(wk->store, j);
}

/* Rows delivered in one go are deleted by one job. */
static void delete_rows(struct conn *c, const uint64_t *ids, uint32_t n)
{
	if (n == 0)
		return;
	struct store_job *j = delete_job(c, STORE_OFFLINE_DEL);
	j->ids = malloc(n * sizeof *ids);
	ensure(j->ids != NULL);
	memcpy(j->ids, ids, n * sizeof *ids);
	j->nids = n;
	store_submit(wk->store, j);
}

/* A message behind the store, of an ended session, or unconfirmed for too long, was stored (or not). */
static void held_stored(struct store_job *j, void *arg)
{
	uint32_t ref;
	struct msg *m = job_msg(j, &ref);

	(void)arg;
	if (m == NULL)
		return;
	if ((m->flags & MF_MUST) && redo_useful(j->rc)) {
		redo_job(j);
		return;
	}
	struct conn *c = conn_get(m->rrec, m->rgen);
	if (j->rc == STORE_OK) {
		COUNT(messages_stored);
		route_tell(m, V_STORED);
	} else {
		if (m->flags & MF_MUST)
			log_error("a message of user %u to %u cannot be stored: %d", m->sender, m->rcpt, j->rc);
		route_tell(m, j->rc == STORE_FULL ? V_FULL : j->rc == STORE_GONE ? V_UNKNOWN : V_DOWN);
	}
	if (c != NULL)
		c->storing--;
	if ((m->flags & MF_GONE) && c != NULL) {	/* it lies among the gone until its row is */
		msg_set_state(m, M_DELETING);
		delete_by_mid(c, m->mid);
	} else if (m->flags & (MF_STORE | MF_GONE)) {
		msg_free(ref);
		if (c != NULL) {
			c->behind = c->again = true;
			session_drain(c);
		}
	} else {
		msg_set_state(m, M_STORED);	/* still in the held list: RECEIVED may yet come */
	}
	if (c != NULL)
		session_settle(c);
}

static void send_to_store(struct conn *c, uint32_t ref)
{
	c->storing++;
	route_store(ref, held_stored);
}

/* ---- delivery ---- */

static void write_held(struct conn *c, uint32_t ref)
{
	struct msg *m = msg_at(ref);
	char *p = conn_room(c, msg_frame_max(m) + 16);

	if (p == NULL)			/* closed meanwhile: the end took care of the entry */
		return;
	m->n = c->r->ack ? ++c->r->sent_n : 0;
	conn_put(c, msg_render(p, m, (enum proto_dialect)c->r->dialect, m->n, conn_term(c)));
	m->wend = c->r->wend;
	FAULT("session.write.1");	/* handed over, not confirmed */
	COUNT(messages_out);
	if (c->r->ack)
		session_confirm_arm(c);
}

static void hold_new(struct conn *c, uint32_t ref)
{
	struct msg *m = msg_at(ref);

	m->rrec = c->rec;
	m->rgen = c->gen;
	m->wend = UINT64_MAX;		/* nothing of it is written yet */
	if (!c->r->ack)
		m->flags |= MF_SILENT;
	m->since_ms = clock_ms();
	held_push(c, ref);
	msg_set_state(m, M_HELD);
}

bool session_write_entry(struct conn *c, uint32_t ref)
{
	hold_new(c, ref);
	write_held(c, ref);
	return c->fd >= 0;
}

void session_hold(struct conn *c, uint32_t ref, uint32_t n)
{
	hold_new(c, ref);
	msg_at(ref)->n = n;
}

void session_held_until(struct conn *c, uint32_t from_ref)
{
	for (uint32_t ref = from_ref; ref != CHUNK_NONE; ref = held_chunk(ref)->next)
		msg_at(ref)->wend = c->r->wend;
}

/* Unconfirmed messages get a row beside; confirmed later, it is deleted. */
static void store_held(struct conn *c)
{
	if (c->stored_to == c->r->held_tail)
		return;
	for (uint32_t ref = c->r->held_head; ref != CHUNK_NONE; ref = held_chunk(ref)->next) {
		struct msg *m = msg_at(ref);

		if (m->kind == MK_DIRECT && msg_state(m) == M_HELD) {
			m->flags |= MF_MUST;
			send_to_store(c, ref);
		}
	}
	c->stored_to = c->r->held_tail;
}

void session_deliver(struct conn *c, uint32_t ref)
{
	struct msg *m = msg_at(ref);

	if (session_can_live(c)) {
		session_write_entry(c, ref);
		return;
	}
	/* What it was handed before goes first: should the session end, the store has all in order. */
	store_held(c);
	/* Taken from another worker, or host: its sender's next messages may be here before it could hear of a
	 * refusal, so there is none: "stored" in the end, or too large for the quota. */
	if (m->origin_slot != UINT32_MAX)
		m->flags |= MF_MUST | MF_QUOTA;
	m->flags |= MF_STORE;
	m->rrec = c->rec;
	m->rgen = c->gen;
	send_to_store(c, ref);
}

/* A held entry reached its receiver. Frees it; ROW ids go to IDS (room for one more). */
static void release(struct conn *c, uint32_t ref, uint64_t *ids, uint32_t *nids)
{
	struct msg *m = msg_at(ref);
	struct member *g;

	COUNT(confirmed);
	switch (m->kind) {
	case MK_ROW:
		ids[(*nids)++] = m->row;
		COUNT(messages_drained);
		msg_set_state(m, M_DELETING);
		gone_push(c, ref);
		return;
	case MK_GREF:
		g = group_of(c, m->rcpt);
		if (g != NULL && g->acked < m->row) {
			g->acked = m->row;
			session_cursor_dirty(c);
		}
		break;
	default:
		route_tell(m, V_DELIVERED);
		if (msg_state(m) == M_STORING || msg_state(m) == M_STORED)
			gone_push(c, ref);
		if (msg_state(m) == M_STORING) {	/* the job has it: its row goes at commit */
			m->flags |= MF_GONE;
			return;
		}
		if (msg_state(m) == M_STORED) {
			msg_set_state(m, M_DELETING);
			delete_by_mid(c, m->mid);
			return;
		}
		break;
	}
	msg_free(ref);
}

static void after_release(struct conn *c, const uint64_t *ids, uint32_t nids)
{
	delete_rows(c, ids, nids);
	if (c->ending != END_NONE) {
		session_settle(c);
	} else if (c->bound) {
		if (c->behind)
			session_drain(c);
		group_catch_up(c);
	}
}

/* What the other end's TCP has acknowledged. A unix socket hands over at once. */
static void ask_arrived(struct conn *c)
{
	int queued = 0;

	if (c->r->port != 0 && ioctl(c->fd, SIOCOUTQ, &queued) == 0 &&
	    (uint64_t)queued <= c->r->wsent)
		c->arrived = c->r->wsent - (uint64_t)queued;
	else
		c->arrived = c->r->wsent;
}

/* Silent receivers: a sender that asked hears "delivered" when the bytes were written. */
static void tell_written(struct conn *c)
{
	while (c->unwritten != CHUNK_NONE && msg_at(c->unwritten)->wend <= c->r->wsent) {
		struct msg *m = msg_at(c->unwritten);

		if (m->kind == MK_DIRECT)
			route_tell(m, V_DELIVERED);
		c->unwritten = held_chunk(c->unwritten)->next;
	}
}

static void release_arrived(struct conn *c)
{
	uint64_t ids[PROTO_WINDOW_MSGS];
	uint32_t nids = 0;
	bool any = false;
	/* Who logs out is there to have read it. */
	uint64_t upto = c->ending == END_LOGOUT ? c->r->wsent : c->arrived;

	while (c->r->held_head != CHUNK_NONE && nids < PROTO_WINDOW_MSGS &&
	    msg_at(c->r->held_head)->wend <= upto) {
		release(c, held_pop(c), ids, &nids);
		any = true;
	}
	if (any || c->behind)
		after_release(c, ids, nids);
}

static void on_arrival(struct timer *t)
{
	struct conn *c = (struct conn *)((char *)t - offsetof(struct conn, confirm));

	if (!c->bound || c->fd < 0 || c->state == CONN_MOVING || c->r->ack)
		return;
	ask_arrived(c);
	release_arrived(c);
	if (c->bound && c->fd >= 0 && c->held > 0 && !timer_is_set(&c->confirm))
		timer_set(&c->confirm, clock_ms() + ARRIVAL_AGAIN_MS, on_arrival);
}

void session_written(struct conn *c)
{
	if (!c->bound)
		return;
	if (c->r->ack) {
		if (c->behind && c->ending == END_NONE)
			session_drain(c);
		return;
	}
	if (c->r->held_head == CHUNK_NONE) {
		if (c->behind)
			after_release(c, NULL, 0);
		return;
	}
	tell_written(c);
	if (c->held >= c->ask_at || c->held_bytes >= ASK_BYTES || c->behind ||
	    c->ending != END_NONE) {
		ask_arrived(c);
		release_arrived(c);
		c->ask_at = c->held + ASK_EVERY;
	}
	if (c->bound && c->fd >= 0 && c->held > 0 && !timer_is_set(&c->confirm))
		timer_set(&c->confirm, clock_ms() + ARRIVAL_MS, on_arrival);
}

/* What a client sends acknowledges what it was sent: the best moment to ask. */
void session_heard(struct conn *c)
{
	if (c->held < ASK_EVERY || !c->bound || c->r->ack)
		return;
	ask_arrived(c);
	release_arrived(c);
	c->ask_at = c->held + 2 * ASK_EVERY;
}

void session_closing(struct conn *c)
{
	if (c->bound && !c->r->ack)
		ask_arrived(c);
}

int session_received(struct conn *c, int64_t n)
{
	uint64_t ids[PROTO_WINDOW_MSGS];
	uint32_t nids = 0;

	if (!c->r->ack || n < 0 || n > c->r->sent_n)
		return -1;
	if (n <= c->r->seen_n)
		return 0;
	c->r->seen_n = (uint32_t)n;
	while (c->r->held_head != CHUNK_NONE && msg_at(c->r->held_head)->n <= (uint32_t)n) {
		release(c, held_pop(c), ids, &nids);
		if (nids == PROTO_WINDOW_MSGS) {
			delete_rows(c, ids, nids);
			nids = 0;
		}
	}
	after_release(c, ids, nids);
	return 0;
}

/* ---- confirmations that do not come ---- */

static void on_confirm(struct timer *t)
{
	struct conn *c = (struct conn *)((char *)t - offsetof(struct conn, confirm));
	uint64_t now = clock_ms(), next = UINT64_MAX;

	if (c->ending != END_NONE || c->state != CONN_OPEN)
		return;
	for (uint32_t ref = c->r->held_head; ref != CHUNK_NONE; ref = held_chunk(ref)->next) {
		struct msg *m = msg_at(ref);

		if (m->kind != MK_DIRECT || msg_state(m) != M_HELD)
			continue;
		if (m->since_ms + wk->conf.confirm_ms > now) {
			next = m->since_ms + wk->conf.confirm_ms;
			break;
		}
		m->flags |= MF_MUST;
		send_to_store(c, ref);
	}
	if (next != UINT64_MAX)
		timer_set(&c->confirm, next, on_confirm);
}

void session_confirm_arm(struct conn *c)
{
	if (!timer_is_set(&c->confirm))
		timer_set(&c->confirm, clock_ms() + wk->conf.confirm_ms, on_confirm);
}

/* ---- the drain ---- */

static void on_drain_again(struct timer *t)
{
	session_drain((struct conn *)((char *)t - offsetof(struct conn, drain)));
}

static void drain_later(struct conn *c, uint32_t ms)
{
	if (!timer_is_set(&c->drain))
		timer_set(&c->drain, clock_ms() + ms, on_drain_again);
}

/* All that the store had is written: from here on live. */
static void drain_done(struct conn *c)
{
	if (c->again || c->storing > 0) {
		session_drain(c);
		return;
	}
	c->behind = false;
	c->full_pass = false;
	atomic_store_explicit(&c->r->live, LIVE_YES, memory_order_release);
	group_catch_up(c);
}

/*
 * The row of a message that the session was handed live: its sender's host gave up waiting and stored it as
 * well. It is safe now, and goes when its receiver confirms.
 */
static void has_row(struct conn *c, const unsigned char mid[16])
{
	for (uint32_t ref = c->r->held_head; ref != CHUNK_NONE; ref = held_chunk(ref)->next) {
		struct msg *m = msg_at(ref);

		if (m->kind == MK_DIRECT && msg_state(m) == M_HELD && memcmp(m->mid, mid, 16) == 0) {
			msg_set_state(m, M_STORED);
			route_tell(m, V_STORED);
		}
	}
}

static void drained(struct store_job *j, void *arg)
{
	struct conn *c = tagged(j);
	uint32_t fresh = 0;

	(void)arg;
	if (c == NULL)
		return;
	c->draining = false;
	if (c->state != CONN_OPEN || c->ending != END_NONE) {
		session_settle(c);
		return;
	}
	if (j->rc != STORE_OK) {
		drain_later(c, RETRY_MS);
		return;
	}
	for (uint32_t i = 0; i < j->nmsgs && c->fd >= 0; i++) {
		struct store_msg *s = &j->msgs[i];

		if (session_has(c, s->row, s->mid)) {
			has_row(c, s->mid);
			c->drained = s->row > c->drained ? s->row : c->drained;
			continue;
		}
		uint32_t ref = msg_from_text(MK_ROW, c->rec, c->gen, s->body, s->len, s->sender,
		    s->mid, s->ts, s->row);
		if (ref == CHUNK_NONE) {	/* no memory now: from here again */
			gone_tidy(c, false);
			drain_later(c, RETRY_MS);
			return;
		}
		c->drained = s->row > c->drained ? s->row : c->drained;
		if (ref == MSG_NOT_OURS) {
			log_error("user %u: stored message %llu cannot be delivered", j->id,
			    (unsigned long long)s->row);
			continue;
		}
		msg_at(ref)->rcpt = j->id;
		session_write_entry(c, ref);
		fresh++;
	}
	if (c->fd < 0 || c->ending != END_NONE)
		return;
	gone_tidy(c, false);
	if (!j->more && fresh == 0 && j->after == 0) {
		drain_done(c);
		return;
	}
	if (!j->more)
		c->full_pass = true;	/* the end was reached: once more from the start */
	if (c->r->dialect == DIALECT_CLASSIC && fresh > 0)
		drain_later(c, wk->conf.classic_gap_ms);
	else
		session_drain(c);
}

/*
 * In bulk the read goes on behind the last row it saw. After a notice, and in the last pass, it starts from
 * the beginning: a row with a smaller number may have been committed late, and its sender's next has a
 * larger one. Rows that were delivered, and whose deletion is in flight, are known by the gone list.
 */
void session_drain(struct conn *c)
{
	bool classic = c->r->dialect == DIALECT_CLASSIC;

	if (!c->bound || !c->greeted || !c->behind || c->draining || c->ending != END_NONE ||
	    c->leaving || c->storing > 0 || c->state != CONN_OPEN || timer_is_set(&c->drain))
		return;
	if (!session_has_room(c) || (classic && conn_unsent(c) > 0))
		return;			/* written(), received() and deleted() come back here */
	struct store_job *j = store_job_new(STORE_OFFLINE, drained, NULL);
	j->tag = c->rec;
	j->tag2 = c->gen;
	j->id = atomic_load(&c->r->user);
	j->after = c->full_pass || c->again ? 0 : c->drained;
	if (j->after == 0)
		c->drained = 0;
	j->limit = classic ? 1 : DRAIN_ROWS;
	if (PROTO_WINDOW_MSGS - c->held < j->limit)
		j->limit = PROTO_WINDOW_MSGS - c->held;
	if (j->after == 0)		/* those it will know again do not count */
		j->limit += c->held + gone_count(c);
	j->bytes = DRAIN_BYTES;
	c->draining = true;
	c->again = false;
	store_submit(wk->store, j);
}

void session_notice(struct conn *c)
{
	if (!c->bound || c->ending != END_NONE)
		return;
	c->behind = c->again = true;
	c->full_pass = false;
	session_drain(c);
}

void session_greeted(struct conn *c)
{
	c->greeted = true;
	if (c->behind || c->storing > 0) {
		c->behind = true;
		c->again = true;
		if (c->r->dialect == DIALECT_CLASSIC)
			drain_later(c, wk->conf.classic_gap_ms);
		else
			session_drain(c);
	} else {
		atomic_store_explicit(&c->r->live, LIVE_YES, memory_order_release);
	}
}

/* ---- the end ---- */

void session_drop_cache(struct conn *c)
{
	login_abort(c);
	cmd_forget_refused(c);
	route_forget_sure(c);
	free(c->echo);
	c->echo = NULL;
	if (c->cursors_dirty)
		for (struct conn **p = &cursor_head; *p != NULL; p = &(*p)->next_cursor)
			if (*p == c) {
				*p = c->next_cursor;
				break;
			}
	c->cursors_dirty = false;
}

static void unbind(struct conn *c)
{
	uint32_t user = atomic_load(&c->r->user);
	uint64_t number = atomic_load(&c->r->login);

	group_unindex(c);
	presence_unindex(c);
	group_free_list(c);
	presence_free_list(c);
	if (sess_unbind(user, c->rec) == SESS_EBROKEN)
		_exit(WORKER_BROKEN);
	atomic_store(&c->r->user, 0);
	atomic_store(&c->r->live, LIVE_NO);
	if (c->greeted)
		atomic_fetch_sub_explicit(&wk->s->sessions, 1, memory_order_relaxed);
	c->bound = false;
	claim_release(user, number);
	presence_left(user);
}

static void noticed(uint64_t tag, uint64_t tag2)
{
	(void)tag;
	(void)tag2;
}

void session_settle(struct conn *c)
{
	if (c->ending == END_NONE || c->storing > 0 || c->deleting > 0 || c->nlanes > 0 ||
	    c->held > 0 || c->cursors_dirty || c->draining || c->ranging || !c->bound)
		return;
	enum session_end how = c->ending;
	uint32_t user = atomic_load(&c->r->user);
	bool untold = !c->greeted && (c->behind || c->again);

	gone_tidy(c, true);
	unbind(c);
	if (untold)			/* something was stored for a session that came to nothing */
		notice_send(user, noticed, 0, 0);
	c->ending = END_NONE;
	route_forget_sure(c);
	c->greeted = c->behind = c->again = c->full_pass = false;
	c->drained = 0;
	if (c->r->name_chunk != CHUNK_NONE)
		chunk_free(wk->region, c->r->name_chunk);
	c->r->name_chunk = CHUNK_NONE;
	if (c->fd < 0)
		conn_gone(c);
	if (c->fd < 0 || how == END_CLOSE)
		return;			/* still open: its last bytes are on their way out */
	c->r->ack = 0;
	if (how == END_LOGOUT)
		cmd_reply(c, MSG_LOGOUT_ACK, c->echo, E_OK, NULL, 0);
	free(c->echo);
	c->echo = NULL;
	if (how == END_LOGOUT)
		c->last_ms = c->since_ms = clock_ms();
	conn_rearm(c);
	conn_unblock(c);
}

/* What the session was handed and has not had goes to the store, in order. */
static void end_held(struct conn *c)
{
	uint64_t ids[PROTO_WINDOW_MSGS + 1];
	uint32_t nids = 0, keep = c->held;
	bool closed = c->fd < 0;

	while (keep-- > 0) {
		uint32_t ref = held_pop(c);
		struct msg *m = msg_at(ref);

		if (!c->r->ack && m->wend <= (closed ? c->arrived : c->r->wsent)) {
			release(c, ref, ids, &nids);
			if (nids == PROTO_WINDOW_MSGS) {
				delete_rows(c, ids, nids);
				nids = 0;
			}
		} else if (!c->r->ack && !closed) {
			held_push(c, ref);	/* logout: it is written before the reply is */
		} else if (m->kind == MK_DIRECT && msg_state(m) == M_HELD) {
			m->flags |= MF_STORE | MF_MUST;
			send_to_store(c, ref);
		} else if (m->kind == MK_DIRECT && msg_state(m) == M_STORING) {
			m->flags |= MF_STORE;
		} else {
			msg_free(ref);		/* it is in the store: a row, or its group's */
		}
	}
	delete_rows(c, ids, nids);
}

static void end_begin(struct conn *c, enum session_end how)
{
	c->ending = (uint8_t)how;
	timer_stop(&c->drain);
	if (c->r->ack)
		timer_stop(&c->confirm);
	atomic_store_explicit(&c->r->live, LIVE_ENDING, memory_order_release);
	end_held(c);
	if (c->cursors_dirty)
		session_flush_cursors();
	session_settle(c);
}

void session_logout(struct conn *c, const char *req)
{
	free(c->echo);
	c->echo = req != NULL && *req != '\0' ? strdup(req) : NULL;
	c->blocked = true;
	end_begin(c, END_LOGOUT);
}

void session_refused(struct conn *c)
{
	c->blocked = true;
	end_begin(c, END_REFUSED);
}

void session_closed(struct conn *c)
{
	login_abort(c);
	timer_stop(&c->pace);
	if (c->bound) {
		end_begin(c, END_CLOSE);
		return;
	}
	if (c->r->name_chunk != CHUNK_NONE) {
		chunk_free(wk->region, c->r->name_chunk);
		c->r->name_chunk = CHUNK_NONE;
	}
	conn_gone(c);
}

void session_end_notice(struct conn *c, const char *reason, enum close_why why)
{
	struct json_out w;

	if (c->state != CONN_OPEN)
		return;
	if (c->r->dialect == DIALECT_PLAIN) {
		cmd_open(c, &w, MSG_SESSION_END, NULL);
		json_kv_str(&w, "reason", reason);
		cmd_send(c, &w);
	}
	if (c->fd < 0)
		return;
	conn_finish(c, why);
}

void session_finished(struct conn *c)
{
	login_abort(c);
	if (c->bound && c->ending == END_NONE)
		end_begin(c, END_CLOSE);
}

void session_on_end(const struct item *it)
{
	const struct item_end *e = (const struct item_end *)it;
	struct conn *c = conn_get(e->rrec, e->rgen);
	char reason[sizeof e->reason + 1] = "";

	if (c == NULL || !c->bound || atomic_load(&c->r->user) != e->user)
		return;
	memcpy(reason, e->reason, sizeof e->reason);
	session_end_notice(c, reason, CLOSE_ENDED);
}

bool session_end_user(uint32_t user, const char *reason, uint64_t login)
{
	struct sess_ref to;
	struct item_end it = { .user = user };

	if (sess_find(user, &to) != SESS_OK || (login != 0 && login != to.login))
		return false;
	it.rrec = to.rec;
	it.rgen = to.gen;
	strncpy(it.reason, reason, sizeof it.reason - 1);
	if (to.slot == wk->slot)
		session_on_end(&it.head);
	else
		(void)peer_send(to.slot, IT_END, &it, sizeof it, NULL, 0);
	return true;
}

/* ---- cursors ---- */

static void cursors_saved(struct store_job *j, void *arg)
{
	struct conn *c = tagged(j);

	(void)arg;
	if (redo_useful(j->rc)) {
		redo_job(j);
		return;
	}
	if (c == NULL)
		return;
	c->deleting--;
	session_settle(c);
}

static void save_cursors(struct conn *c)
{
	uint32_t n, k = 0;
	struct member *g = group_list(c, &n);
	struct store_cursor *v = n > 0 ? malloc(n * sizeof *v) : NULL;

	c->cursors_dirty = false;
	for (uint32_t i = 0; v != NULL && i < n; i++)
		if (g[i].acked > g[i].saved) {
			v[k++] = (struct store_cursor){ g[i].group, g[i].acked };
			g[i].saved = g[i].acked;
		}
	if (k == 0) {
		free(v);
		return;
	}
	struct store_job *j = store_job_new(STORE_CURSORS, cursors_saved, NULL);
	j->tag = c->rec;
	j->tag2 = c->gen;
	j->id = atomic_load(&c->r->user);
	j->cursors = v;
	j->ncursors = k;
	j->flags = STORE_MUST;
	c->deleting++;
	store_submit(wk->store, j);
}

void session_flush_cursors(void)
{
	struct conn *c;

	timer_stop(&cursor_timer);
	while ((c = cursor_head) != NULL) {
		cursor_head = c->next_cursor;
		save_cursors(c);
		session_settle(c);
	}
}

static void on_cursor_timer(struct timer *t)
{
	(void)t;
	session_flush_cursors();
}

void session_cursor_dirty(struct conn *c)
{
	if (c->cursors_dirty)
		return;
	c->cursors_dirty = true;
	c->next_cursor = cursor_head;
	cursor_head = c;
	if (!timer_is_set(&cursor_timer))
		timer_set(&cursor_timer, clock_ms() + CURSOR_MS, on_cursor_timer);
	if (c->ending != END_NONE)
		timer_set(&cursor_timer, clock_ms(), on_cursor_timer);
}

void session_turn_end(void)
{
	presence_turn_end();
	route_poll();
}
