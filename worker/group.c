/*
 * group.c - group messages: into the store, then to every worker, then to the sessions here.
 *
 * The order of a group is the order of its numbers in the store. A hint that comes too early for
 * a session (it has not seen the one before) only raises `want`; the range is read from the store.
 */
#include "worker/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/fault.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cluster.h"
#include "worker/index.h"
#include "worker/ipc.h"
#include "worker/link.h"
#include "worker/lists.h"
#include "worker/notice.h"
#include "worker/peer.h"
#include "worker/redo.h"
#include "worker/route.h"
#include "worker/session.h"
#include "worker/store.h"

#define HINTS       1024u		/* a power of two */
#define RANGE_ROWS  64u
#define RANGE_BYTES 262144u
#define RETRY_MS    500

static struct index groups;		/* group -> sessions */
static struct { uint32_t group; uint64_t number; } hints[HINTS];
static uint64_t nhints;

/* ---- membership of sessions ---- */

struct member *group_list(const struct conn *c, uint32_t *n_r)
{
	return lists_get(c, LIST_GROUPS, n_r);
}

struct member *group_of(const struct conn *c, uint32_t group)
{
	uint32_t n;
	struct member *g = group_list(c, &n);

	for (uint32_t i = 0; i < n; i++)
		if (g[i].group == group)
			return &g[i];
	return NULL;
}

bool group_reserve(struct conn *c, uint32_t n)
{
	return n == 0 || lists_reserve(c, LIST_GROUPS, sizeof(struct member), n) == 0;
}

bool group_enter(struct conn *c, uint32_t group, uint64_t cursor, uint64_t head, uint32_t flags)
{
	struct member *g = group_of(c, group);

	if (g == NULL) {
		g = lists_add(c, LIST_GROUPS, sizeof *g);
		if (g == NULL || index_add(&groups, group, c->rec, c->gen, 0) != 0)
			return false;
		g->sent = g->acked = g->saved = cursor;
	}
	g->group = group;
	g->flags = flags;
	if (g->sent < cursor)
		g->sent = g->acked = g->saved = cursor;
	if (g->want < head)
		g->want = head;
	return true;
}

void group_quit(struct conn *c, uint32_t group)
{
	uint32_t n;
	struct member *g = group_list(c, &n);

	for (uint32_t i = 0; i < n; i++)
		if (g[i].group == group) {
			index_del(&groups, group, c->rec, c->gen);
			lists_del(c, LIST_GROUPS, sizeof *g, i);
			return;
		}
}

void group_index(struct conn *c)
{
	uint32_t n;
	struct member *g = group_list(c, &n);

	for (uint32_t i = 0; i < n; i++)
		(void)index_add(&groups, g[i].group, c->rec, c->gen, 0);
}

void group_unindex(struct conn *c)
{
	uint32_t n;
	struct member *g = group_list(c, &n);

	for (uint32_t i = 0; i < n; i++)
		index_del(&groups, g[i].group, c->rec, c->gen);
}

void group_free_list(struct conn *c)
{
	lists_free(c, LIST_GROUPS);
}

uint32_t group_sessions(uint32_t group)
{
	struct index_vec *v = index_find(&groups, group);

	return v != NULL ? v->len : 0;
}

/* ---- hints ---- */

uint64_t group_hint_mark(void)
{
	return nhints;
}

void group_recheck(struct conn *c)
{
	uint32_t n;
	struct member *g = group_list(c, &n);

	for (uint32_t i = 0; i < n; i++)
		if (g[i].want <= g[i].sent && !(g[i].flags & GM_LEFT))
			g[i].want = g[i].sent + 1;
	group_catch_up(c);
}

/* A session that was loading while hints came by: which of them concern it? */
void group_hints_since(struct conn *c, uint64_t mark)
{
	uint32_t n;
	struct member *g = group_list(c, &n);

	if (n == 0)
		return;
	if (nhints - mark > HINTS) {		/* too many to know: look into every group */
		for (uint32_t i = 0; i < n; i++)
			if (g[i].want <= g[i].sent)
				g[i].want = g[i].sent + 1;
	} else {
		for (uint64_t k = mark; k < nhints; k++) {
			struct member *m = group_of(c, hints[k % HINTS].group);

			if (m != NULL && m->want < hints[k % HINTS].number)
				m->want = hints[k % HINTS].number;
		}
	}
	group_catch_up(c);
}

/* What a message looks like to receivers, rendered once for all of them. */
struct spoken {
	uint32_t group, sender;
	uint64_t number, ts;
	const unsigned char *mid;
	const char *body;
	uint32_t body_len, core_len;
};

static char *put(char *p, const char *s, size_t len)
{
	memcpy(p, s, len);
	return p + len;
}

static size_t render(char *out, const struct spoken *s, const struct conn *c, uint32_t n)
{
	bool plain = c->r->dialect == DIALECT_PLAIN;
	char *p = put(out, plain ? "{\"msgid\":9," : "{\"msgid\":10,", plain ? 11 : 12);

	p = put(p, s->body, plain ? s->body_len : s->core_len);
	if (plain && n > 0)
		p += sprintf(p, ",\"n\":%u", n);
	*p++ = '}';
	*p++ = conn_term(c);
	return (size_t)(p - out);
}

static void write_to(struct conn *c, struct member *g, const struct spoken *s)
{
	uint32_t ref = msg_new(MK_GREF, c->rec, c->gen, 0);

	if (ref == CHUNK_NONE)
		return;				/* read from the store later: sent stays */
	struct msg *m = msg_at(ref);
	m->rcpt = s->group;
	m->row = s->number;
	g->sent = s->number;
	session_hold(c, ref, 0);
	char *p = conn_room(c, s->body_len + 64);
	if (p == NULL)
		return;
	m->n = c->r->ack ? ++c->r->sent_n : 0;
	conn_put(c, render(p, s, c, m->n));
	m->wend = c->r->wend;
	COUNT(messages_out);
	if (c->r->ack)
		session_confirm_arm(c);
}

/* A committed message reaches one session here. */
static void hear(struct conn *c, const struct spoken *s)
{
	struct member *g = group_of(c, s->group);

	if (g == NULL || s->number <= g->sent || (g->flags & GM_LEFT))
		return;
	if (g->want < s->number)
		g->want = s->number;
	if (s->number != g->sent + 1) {
		group_catch_up(c);
		return;
	}
	if (s->sender == atomic_load(&c->r->user)) {	/* own words count as seen */
		g->sent = s->number;
		if (g->acked + 1 == s->number) {
			g->acked = s->number;
			session_cursor_dirty(c);
		}
		return;
	}
	if (s->body_len == 0 || !c->greeted || c->ending != END_NONE || c->leaving || c->ranging ||
	    !session_has_room(c) || timer_is_set(&c->drain)) {
		group_catch_up(c);
		return;
	}
	write_to(c, g, s);
}

static void hear_all(const struct spoken *s)
{
	struct index_vec *v = index_find(&groups, s->group);

	hints[nhints % HINTS].group = s->group;
	hints[nhints++ % HINTS].number = s->number;
	for (uint32_t i = 0; v != NULL && i < v->len; i++) {
		struct conn *c = conn_get(v->v[i].rec, v->v[i].gen);

		if (c != NULL && c->bound && c->state == CONN_OPEN)
			hear(c, s);
		v = index_find(&groups, s->group);	/* a close may have changed it */
	}
}

void group_on_message(const struct item *it)
{
	const struct item_group *g = (const struct item_group *)it;
	struct spoken s = { .group = g->group, .sender = g->sender, .number = g->number,
	    .ts = g->ts, .mid = g->mid, .body = (const char *)(g + 1), .body_len = g->body_len,
	    .core_len = g->core_len };

	if (g->body_len > it->len - sizeof *g || g->core_len > g->body_len)
		return;
	hear_all(&s);
}

/* ---- what was missed ---- */

static void on_retry(struct timer *t)
{
	struct conn *c = (struct conn *)((char *)t - offsetof(struct conn, drain));

	session_drain(c);
	group_catch_up(c);
}

static void range_later(struct conn *c, uint32_t ms)
{
	if (!timer_is_set(&c->drain))
		timer_set(&c->drain, clock_ms() + ms, on_retry);
}

static bool range_row(struct conn *c, struct member *g, uint32_t group, const struct store_msg *s)
{
	uint32_t user = atomic_load(&c->r->user);

	if (s->row <= g->sent)
		return true;
	if (s->sender == user) {
		g->sent = s->row;
		if (g->acked + 1 == s->row) {
			g->acked = s->row;
			session_cursor_dirty(c);
		}
		return true;
	}
	uint32_t ref = msg_from_text(MK_GREF, c->rec, c->gen, s->body, s->len, s->sender, s->mid,
	    s->ts, s->row);
	if (ref == CHUNK_NONE)
		return false;
	if (ref == MSG_NOT_OURS) {
		log_error("group %u: message %llu cannot be delivered", group,
		    (unsigned long long)s->row);
		g->sent = s->row;
		return true;
	}
	msg_at(ref)->rcpt = group;
	g->sent = s->row;
	return session_write_entry(c, ref);
}

static void ranged(struct store_job *j, void *arg)
{
	struct conn *c = conn_get((uint32_t)j->tag, (uint32_t)j->tag2);
	uint32_t wrote = 0;

	(void)arg;
	if (c == NULL)
		return;
	c->ranging = false;
	if (c->state != CONN_OPEN || c->ending != END_NONE) {
		session_settle(c);
		return;
	}
	if (j->rc != STORE_OK && j->rc != STORE_GONE) {
		range_later(c, RETRY_MS);
		return;
	}
	for (uint32_t i = 0; i < j->nmsgs && c->fd >= 0; i++, wrote++) {
		struct member *g = group_of(c, j->group);

		if (g == NULL)
			break;
		if (!range_row(c, g, j->group, &j->msgs[i])) {	/* short of memory, or closed */
			range_later(c, RETRY_MS);
			break;
		}
	}
	if (c->fd < 0 || c->ending != END_NONE)
		return;
	struct member *g = group_of(c, j->group);
	if (g != NULL && !j->more && g->want > g->sent && j->nmsgs == 0)
		g->want = g->sent;	/* nothing there: purged, or a hint ahead of our read */
	if (c->r->dialect == DIALECT_CLASSIC && wrote > 0)
		range_later(c, wk->conf.classic_gap_ms);
	else
		group_catch_up(c);
}

void group_catch_up(struct conn *c)
{
	uint32_t n;

	if (c->ranging || !c->bound || !c->greeted || c->ending != END_NONE || c->leaving ||
	    c->state != CONN_OPEN || timer_is_set(&c->drain))
		return;
	struct member *g = group_list(c, &n);
	for (uint32_t i = 0; i < n; i++) {
		if (g[i].want <= g[i].sent)
			continue;
		if (!session_has_room(c) || (c->r->dialect == DIALECT_CLASSIC && conn_unsent(c) > 0))
			return;		/* comes back when something was delivered */
		struct store_job *j = store_job_new(STORE_RANGE, ranged, NULL);
		j->tag = c->rec;
		j->tag2 = c->gen;
		j->group = g[i].group;
		j->after = g[i].sent;
		j->upto = g[i].flags & GM_LEFT ? g[i].want : INT64_MAX;
		j->limit = c->r->dialect == DIALECT_CLASSIC ? 1 : RANGE_ROWS;
		if (PROTO_WINDOW_MSGS - c->held < j->limit)
			j->limit = PROTO_WINDOW_MSGS - c->held;
		j->bytes = RANGE_BYTES;
		c->ranging = true;
		store_submit(wk->store, j);
		return;
	}
}

/* ---- speaking ---- */

/* One publish a host; those that it does not reach look into the store when Redis is back. */
static void fan_out_far(const struct msg *m)
{
	struct item_group it = { .group = m->rcpt, .sender = m->sender, .number = m->row,
	    .ts = m->ts, .body_len = m->body_len, .core_len = m->core_len };

	memcpy(it.mid, m->mid, 16);
	if (m->body_len > LINK_ITEM - sizeof it)
		it.body_len = it.core_len = 0;
	if (!link_send_all(LK_GROUP, &it, sizeof it, m->body, it.body_len))
		notice_owe_all();
}

/* The fan-out: one packet a worker, then the sessions here. */
static void fan_out(const struct msg *m)
{
	struct item_group it = { .group = m->rcpt, .sender = m->sender, .number = m->row,
	    .ts = m->ts, .body_len = m->body_len, .core_len = m->core_len };
	struct spoken s = { .group = m->rcpt, .sender = m->sender, .number = m->row, .ts = m->ts,
	    .mid = m->mid, .body = m->body, .body_len = m->body_len, .core_len = m->core_len };

	memcpy(it.mid, m->mid, 16);
	if (m->body_len > IPC_PACKET - sizeof it - 64) {
		it.body_len = it.core_len = 0;	/* too long for a packet: they read it */
		peer_send_all(IT_GROUP, &it, sizeof it, NULL, 0);
	} else {
		peer_send_all(IT_GROUP, &it, sizeof it, m->body, m->body_len);
	}
	if (cluster_on())
		fan_out_far(m);
	hear_all(&s);
}

static void committed(struct store_job *j, void *arg)
{
	uint32_t ref = (uint32_t)j->tag;
	struct msg *m = msg_of(wk->slot, ref);

	(void)arg;
	if (m == NULL || msg_seq(m) != (uint32_t)j->tag2)
		return;
	if ((m->flags & MF_MUST) && redo_useful(j->rc)) {
		redo_job(j);
		return;
	}
	if (j->rc == STORE_OK) {
		m->row = j->number;
		msg_set_state(m, M_COMMITTED);
		COUNT(group_in);
		FAULT("group.commit.1");	/* committed, and nobody was told */
		fan_out(m);
		FAULT("group.commit.2");	/* everybody but its sender was */
		route_tell(m, V_STORED);
	} else {
		route_tell(m, j->rc == STORE_GONE ? V_UNKNOWN : j->rc == STORE_DENIED ? V_DENIED :
		    V_DOWN);
	}
	uint32_t srec = m->srec, sgen = m->sgen;
	msg_free(ref);
	route_closed(srec, sgen);
	route_lane_done(srec, sgen);
}

static void submit(uint32_t ref)
{
	struct msg *m = msg_at(ref);
	struct store_job *j = store_job_new(STORE_GROUP_MSG, committed, NULL);

	msg_set_state(m, M_STORING);
	j->tag = ref;
	j->tag2 = msg_seq(m);
	j->group = m->rcpt;
	j->other = m->sender;
	memcpy(j->mid, m->mid, 16);
	j->ts = m->ts;
	store_job_body(j, wk->text, msg_store_text(wk->text, m));
	if (m->flags & MF_MUST)
		j->flags = STORE_MUST;
	redo_submit(j);
}

void group_send(struct conn *c, uint32_t ref)
{
	msg_at(ref)->srec = c->rec;
	msg_at(ref)->sgen = c->gen;
	c->nlanes++;			/* the session's end waits for it */
	route_opened(c);
	submit(ref);
}

void group_resend(uint32_t ref)
{
	msg_at(ref)->flags |= MF_MUST;
	submit(ref);
}

/* ---- dissolved ---- */

static void forget(uint32_t group)
{
	struct index_vec *v = index_find(&groups, group);

	for (uint32_t i = 0; v != NULL && i < v->len; i++) {
		struct conn *c = conn_get(v->v[i].rec, v->v[i].gen);
		struct member *g = c != NULL ? group_of(c, group) : NULL;

		if (g != NULL)
			g->flags |= GM_LEFT;
	}
}

void group_on_dissolved(const struct item *it)
{
	forget(((const struct item_dissolved *)it)->group);
}

void group_dissolved(uint32_t group)
{
	struct item_dissolved it = { .group = group };

	forget(group);
	peer_send_all(IT_DISSOLVED, &it, sizeof it, NULL, 0);
	it = (struct item_dissolved){ .group = group };
	(void)link_send_all(LK_DISSOLVED, &it, sizeof it, NULL, 0);
}
