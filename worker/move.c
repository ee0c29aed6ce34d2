/*
 * move.c - giving clients away and taking them over.
 *
 *   leaving worker                       taking worker
 *   reads no more, waits until nothing
 *   of the session is in flight
 *   record: OPEN -> MOVING, MOVE+fd -->  copies the chunks, record: MOVING -> OPEN, mine
 *   frees its chunks               <--   TAKEN
 *   or: MOVING -> OPEN, goes on    <--   KEEP, or silence
 *
 * The record's word decides who has it, so a copy of a move that was called off, or the original
 * of one that was made, is recognised by whoever sweeps it. What arrives for the session in
 * between waits here and follows it.
 */
#include "worker/move.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cmd.h"
#include "worker/conn.h"
#include "worker/group.h"
#include "worker/loop.h"
#include "worker/msg.h"
#include "worker/peer.h"
#include "worker/presence.h"
#include "worker/route.h"
#include "worker/session.h"

#define IN_FLIGHT 64
#define PATIENCE_MS 2000		/* without an answer the client is ours again */

struct deferred { struct deferred *next; struct item head; };

/* What is beside the record and goes along; all of it could be found out again but the times. */
struct luggage {
	uint64_t drained, term_at, last_ms, since_ms;
	struct rate_bucket rate;
	uint32_t held, held_bytes;
	bool bound, greeted, behind, eof, ping_sent;
};

struct moving {
	struct moving *next;
	struct conn *c;			/* the cache; the record's own index may be another's by now */
	uint32_t rec, gen, to;
	uint64_t until_ms;
	uint32_t name, in, out, held, lists;	/* chunks of ours, freed when it is gone */
	struct deferred *first, **last;
};

static struct moving *moves;
static uint32_t nmoves;

static struct moving *find(uint32_t rec, uint32_t gen)
{
	struct moving *v = moves;

	while (v != NULL && (v->rec != rec || v->gen != gen))
		v = v->next;
	return v;
}

static void forget(struct moving *v)
{
	struct moving **p = &moves;

	while (*p != v)
		p = &(*p)->next;
	*p = v->next;
	nmoves--;
	free(v);
}

void move_defer(struct conn *c, const struct item *it)
{
	struct moving *v = find(c->rec, c->gen);
	struct deferred *d = malloc(sizeof *d + it->len);

	if (v == NULL || d == NULL) {
		free(d);
		return;			/* its sender's deadline finds it */
	}
	d->next = NULL;
	memcpy(&d->head, it, it->len);
	*v->last = d;
	v->last = &d->next;
}

/* ---- the leaving side ---- */

static bool in_flight(const struct conn *c)
{
	return c->blocked || c->login != NULL || c->greet != NULL || c->nlanes > 0 || c->storing > 0 ||
	    c->deleting > 0 || c->draining || c->ranging || c->ending != END_NONE ||
	    c->cursors_dirty || c->paused;
}

/* The sibling with the fewest connections, counting those that are on their way there. */
static int pick(void)
{
	uint32_t best = UINT32_MAX;
	int to = -1;

	for (uint32_t i = 0; i < shm->head->max_workers; i++) {
		uint32_t n;

		if (i == wk->slot || atomic_load(&slot_at(i)->state) != SLOT_READY)
			continue;
		n = atomic_load(&slot_at(i)->connections);
		for (struct moving *v = moves; v != NULL; v = v->next)
			n += v->to == i;
		if (n < best) {
			best = n;
			to = (int)i;
		}
	}
	return to;
}

static void start(struct conn *c, uint32_t to)
{
	struct moving *v = calloc(1, sizeof *v);
	static struct ipc_ctl m;
	struct luggage bag = { .drained = c->drained, .term_at = c->term_at, .last_ms = c->last_ms,
	    .since_ms = c->since_ms, .rate = c->rate, .held = c->held,
	    .held_bytes = c->held_bytes, .bound = c->bound, .greeted = c->greeted,
	    .behind = c->behind, .eof = c->eof, .ping_sent = c->ping_sent };	/* padding is never read */

	if (v == NULL)
		return;
	*v = (struct moving){ .next = moves, .c = c, .rec = c->rec, .gen = c->gen, .to = to,
	    .until_ms = clock_ms() + PATIENCE_MS, .name = c->r->name_chunk, .in = c->r->in_chunk,
	    .out = c->r->out_head, .held = c->r->held_head, .lists = c->r->lists };
	v->last = &v->first;
	m = (struct ipc_ctl){ .type = IPC_MOVE, .from_slot = wk->slot,
	    .from_gen = wk->gen, .to_gen = atomic_load(&slot_at(to)->gen), .a = c->rec, .b = c->gen };
	memcpy(m.body, &bag, sizeof bag);
	m.len = sizeof bag + (uint32_t)cmd_pack_refused(c, m.body + sizeof bag, sizeof m.body - sizeof bag);
	loop_client_del(c->fd);		/* before it is sent: afterwards nobody could */
	c->state = CONN_MOVING;
	c->again = false;
	timer_stop(c->timer);
	timer_stop(&c->drain);
	timer_stop(&c->confirm);
	rec_offer(c->rec, wk->slot);
	moves = v;
	nmoves++;
	group_unindex(c);		/* while the lists are ours to read */
	presence_unindex(c);
	if (ipc_ctl_send(wk->boot->peer_control[to], &m, &c->fd, 1) != IPC_OK) {
		struct ipc_ctl keep = { .type = IPC_KEEP, .a = c->rec, .b = c->gen };
		move_on_keep(&keep);
	}
}

static void consider(struct conn *c, void *arg)
{
	int to;

	(void)arg;
	if (c->state != CONN_OPEN || nmoves >= IN_FLIGHT)
		return;
	if (!c->leaving) {
		c->leaving = true;
		conn_want(c);
	}
	if (c->cursors_dirty)
		session_flush_cursors();
	if (in_flight(c)) {
		/* A request that waits for the store, or a rate pause: it is answered first. */
		return;
	}
	to = pick();
	if (to >= 0)
		start(c, (uint32_t)to);
}

void move_all(void)
{
	conn_each(consider, NULL);
}

static void free_chain(uint32_t ref)
{
	while (ref != CHUNK_NONE) {
		uint32_t next = chunk_at(wk->slot, ref)->next;

		chunk_free(wk->region, ref);
		ref = next;
	}
}

static void free_held(uint32_t ref)
{
	while (ref != CHUNK_NONE) {
		uint32_t next = chunk_at(wk->slot, ref)->next;

		msg_free(ref);
		ref = next;
	}
}

/* Items that came meanwhile: after the session, in order. */
static void send_after(struct moving *v, uint32_t to)
{
	struct deferred *d;

	while ((d = v->first) != NULL) {
		v->first = d->next;
		if (!peer_send(to, (enum item_type)d->head.type, &d->head, d->head.len, NULL, 0))
			log_debug("an item for a moved session waits for its sender's deadline");
		free(d);
	}
}

void move_on_taken(const struct ipc_ctl *m)
{
	struct moving *v = find(m->a, m->b);

	if (v == NULL)
		return;
	struct conn *c = v->c;
	uint32_t owner_gen, to = (uint32_t)rec_word_slot(rec_owner(rec_at(m->a), &owner_gen));
	if (to == wk->slot)
		return;
	send_after(v, to);
	if (c->behind || c->again) {
		struct item_notice it = { .user = atomic_load(&c->r->user), .rrec = m->a, .rgen = m->b };
		(void)peer_send(to, IT_NOTICE, &it, sizeof it, NULL, 0);
	}
	if (c->greeted)
		atomic_fetch_sub_explicit(&wk->s->sessions, 1, memory_order_relaxed);
	conn_forget(c);
	free_chain(v->name);
	free_chain(v->in);
	free_chain(v->out);
	free_held(v->held);
	free_chain(v->lists);
	COUNT(moves_out);
	forget(v);
}

/* Nobody took it: it goes on here as if nothing had been. */
void move_on_keep(const struct ipc_ctl *m)
{
	struct moving *v = find(m->a, m->b);
	struct deferred *d;

	if (v == NULL || !rec_unoffer(m->a, wk->slot))
		return;			/* it was taken after all: TAKEN is on its way */
	struct conn *c = v->c;
	struct deferred *first = v->first;
	forget(v);
	c->state = CONN_OPEN;
	c->leaving = false;
	c->reading = c->writing = false;
	group_index(c);
	presence_index(c);
	if (loop_client_add(c->fd, c->rec, c->gen, 0) != 0) {
		conn_close(c, CLOSE_IO);
	} else {
		conn_want(c);
		conn_rearm(c);
	}
	while ((d = first) != NULL) {
		first = d->next;
		if (d->head.type == IT_DELIVER)
			route_on_deliver(&d->head);
		else
			route_on_verdict(&d->head);
		free(d);
	}
	if (c->state == CONN_OPEN) {
		conn_unblock(c);
		conn_mark_dirty(c);
		if (c->behind || c->again)
			session_notice(c);
		group_recheck(c);
	}
}

void move_check(void)
{
	for (struct moving *v = moves, *next; v != NULL; v = next) {
		struct ipc_ctl m = { .a = v->rec, .b = v->gen };
		uint32_t gen;
		bool ours = rec_word_slot(rec_owner(rec_at(v->rec), &gen)) == (int)wk->slot;

		next = v->next;
		if (!ours) {
			/* Taken; the word is enough when the message was lost with its sender. */
			if (clock_ms() >= v->until_ms)
				move_on_taken(&m);
		} else if (clock_ms() >= v->until_ms ||
		    atomic_load(&slot_at(v->to)->state) != SLOT_READY) {
			move_on_keep(&m);
		}
	}
}

/* ---- the taking side ---- */

static void answer(const struct ipc_ctl *m, enum ipc_ctl_type type)
{
	struct ipc_ctl r = { .type = type, .from_slot = wk->slot, .from_gen = wk->gen,
	    .to_gen = m->from_gen, .a = m->a, .b = m->b };

	if (m->from_slot < shm->head->max_workers)
		(void)ipc_ctl_send(wk->boot->peer_control[m->from_slot], &r, NULL, 0);
}

/* Copies a chain of chunks of another region; *FIRST_R and *LAST_R name ours. */
static bool copy_chain(uint32_t slot, uint32_t ref, const struct conn *c, uint32_t *first_r,
    uint32_t *last_r)
{
	uint32_t *link = first_r;

	*first_r = *last_r = CHUNK_NONE;
	for (; ref != CHUNK_NONE; ref = chunk_at(slot, ref)->next) {
		struct chunk *from = chunk_at(slot, ref);
		bool msg = atomic_load(&from->kind) == CHUNK_MSG;
		size_t len = chunk_room(from);
		uint32_t mine = chunk_alloc(wk->region, len, msg ? CHUNK_OUT :
		    (enum chunk_kind)atomic_load(&from->kind), c->rec, c->gen);

		if (mine == CHUNK_NONE)
			return false;
		struct chunk *to = chunk_at(wk->slot, mine);
		to->aux = from->aux;
		to->base = from->base;
		to->aux64 = from->aux64;
		to->next = CHUNK_NONE;
		memcpy(to->data, from->data, len);
		if (msg) {
			struct msg *m = (struct msg *)to->data;
			atomic_store(&m->word, msg_word(msg_next_seq(), msg_state(m)));
			m->order = atomic_fetch_add(&wk->s->order, 1);
			atomic_store_explicit(&to->kind, CHUNK_MSG, memory_order_release);
		}
		*link = mine;
		link = &to->next;
		*last_r = mine;
	}
	return true;
}

struct copies { uint32_t name, in, out, out_tail, held, held_tail, lists; };

static void copies_free(struct copies *k)
{
	free_chain(k->name);
	free_chain(k->in);
	free_chain(k->out);
	free_held(k->held);
	free_chain(k->lists);
}

static bool copy_all(uint32_t slot, const struct conn *c, struct copies *k)
{
	const struct rec *r = c->r;
	uint32_t last;

	*k = (struct copies){ CHUNK_NONE, CHUNK_NONE, CHUNK_NONE, CHUNK_NONE, CHUNK_NONE,
	    CHUNK_NONE, CHUNK_NONE };
	return copy_chain(slot, r->name_chunk, c, &k->name, &last) &&
	    copy_chain(slot, r->in_chunk, c, &k->in, &last) &&
	    copy_chain(slot, r->out_head, c, &k->out, &k->out_tail) &&
	    copy_chain(slot, r->held_head, c, &k->held, &k->held_tail) &&
	    copy_chain(slot, r->lists, c, &k->lists, &last);
}

static void settle_in(struct conn *c, const struct luggage *bag, const struct copies *k)
{
	struct rec *r = c->r;

	r->heap = c->ix;
	r->fd = c->fd;
	r->name_chunk = k->name;
	r->in_chunk = k->in;
	r->out_head = k->out;
	r->out_tail = k->out_tail;
	r->held_head = k->held;
	r->held_tail = k->held_tail;
	r->lists = k->lists;
	c->drained = bag->drained;
	c->term_at = bag->term_at;
	c->last_ms = bag->last_ms;
	c->since_ms = bag->since_ms;
	c->rate = bag->rate;
	c->held = bag->held;
	c->held_bytes = bag->held_bytes;
	c->bound = bag->bound;
	c->greeted = bag->greeted;
	c->behind = bag->behind;
	c->eof = bag->eof;
	c->ping_sent = bag->ping_sent;
	/* The scanner starts at the frame in progress again: its bytes are few. */
	c->scan = (struct frame){ 0 };
	if (r->in_chunk != CHUNK_NONE) {
		struct chunk *in = chunk_at(wk->slot, r->in_chunk);
		c->scan.pos = c->scan.start = (uint32_t)(r->rpos - in->base);
	}
	if (c->greeted)
		atomic_fetch_add_explicit(&wk->s->sessions, 1, memory_order_relaxed);
	group_index(c);
	presence_index(c);
}

void move_on_move(const struct ipc_ctl *m, int fd)
{
	struct luggage bag;
	struct copies k;
	struct conn *c;

	if (m->len < sizeof bag || m->a >= shm->head->max_sessions ||
	    m->from_slot >= shm->head->max_workers ||
	    atomic_load(&rec_at(m->a)->gen) != m->b ||
	    atomic_load(&rec_at(m->a)->word) != rec_word(m->from_slot, REC_MOVING) ||
	    wk->leaving || wk->stopping) {
		close(fd);
		answer(m, IPC_KEEP);
		return;
	}
	memcpy(&bag, m->body, sizeof bag);
	c = conn_adopt(m->a, fd);
	if (c == NULL) {
		close(fd);
		answer(m, IPC_KEEP);
		return;
	}
	if (!copy_all(m->from_slot, c, &k) || loop_client_add(fd, c->rec, c->gen, 0) != 0 ||
	    !rec_take(m->a, m->from_slot, wk->slot, wk->gen)) {
		copies_free(&k);
		conn_forget(c);
		answer(m, IPC_KEEP);
		return;
	}
	settle_in(c, &bag, &k);
	cmd_unpack_refused(c, m->body + sizeof bag, m->len - sizeof bag);
	COUNT(moves_in);
	answer(m, IPC_TAKEN);
	conn_want(c);
	conn_rearm(c);
	c->unwritten = c->r->held_head;
	if (c->r->ack && c->held > 0)
		session_confirm_arm(c);
	conn_mark_dirty(c);
	conn_unblock(c);
	if (c->bound) {
		if (c->behind)
			session_notice(c);
		group_recheck(c);	/* hints that came by while it was on its way */
	}
}

uint32_t move_count(void)
{
	return nmoves;
}
