/*
 * sweep.c - the leavings of dead workers.
 *
 * First the records: every session of the dead gets a cell in `dead`, so that whoever asks for it
 * (a message in the inbox, a login) finds somebody who answers. Then the messages, in the order in
 * which they were accepted. A cell is done, and its user free, when nothing of it is in a job any
 * more; most are done on the spot.
 *
 * Everything is decided from the segment and repeatable: should this worker die as well, its
 * successor comes to the same conclusions.
 */
#include "worker/sweep.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shm/fault.h"
#include "shm/sess.h"
#include "worker/addrs.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/claim.h"
#include "worker/group.h"
#include "worker/lists.h"
#include "worker/msg.h"
#include "worker/notice.h"
#include "worker/presence.h"
#include "worker/redo.h"
#include "worker/route.h"
#include "worker/state.h"
#include "worker/store.h"

struct cell { uint32_t rec, gen, user, slot, pending; bool over; };
/* What must become of an entry. */
enum fate { FATE_FREE, FATE_STORE, FATE_GROUP, FATE_ROW, FATE_CURSOR, FATE_GONE };

struct entry { uint32_t ref, mine; uint64_t order; enum fate fate; };
struct found { struct entry *v; uint32_t n, cap; uint32_t *rest, nrest, rest_cap; };

static struct cell *dead;
static uint32_t ndead, dead_cap, unsettled;
static uint32_t *slot_pending;		/* [max_workers] jobs and cells that are not done */

/* ---- cells ---- */

static struct cell *cell_of(uint32_t rec, uint32_t gen)
{
	if (rec >= shm->head->max_sessions)
		return NULL;
	uint32_t i = rec_at(rec)->heap;
	return i < ndead && dead[i].rec == rec && dead[i].gen == gen && !dead[i].over ? &dead[i] : NULL;
}

bool sweep_owns(uint32_t rec, uint32_t gen)
{
	return cell_of(rec, gen) != NULL;
}

static void cell_finish(struct cell *d)
{
	struct rec *r = rec_at(d->rec);
	uint64_t number = atomic_load(&r->login);

	d->over = true;
	if (d->user != 0 && sess_unbind(d->user, d->rec) == SESS_EBROKEN)
		_exit(WORKER_BROKEN);
	atomic_store(&r->user, 0);
	rec_free(d->rec, d->slot);
	if (d->user != 0) {
		claim_release(d->user, number);
		presence_left(d->user);
	}
	COUNT(swept_sessions);
	unsettled--;
	slot_pending[d->slot]--;
}

static void cell_put(uint32_t rec, uint32_t gen)
{
	struct cell *d = cell_of(rec, gen);

	if (d != NULL && --d->pending == 0)
		cell_finish(d);
}

static void cell_get(uint32_t rec, uint32_t gen)
{
	struct cell *d = cell_of(rec, gen);

	if (d != NULL)
		d->pending++;
}

static bool add_cell(uint32_t rec, uint32_t slot)
{
	if (ndead == dead_cap) {
		uint32_t cap = dead_cap == 0 ? 1024 : dead_cap * 2;
		struct cell *v = realloc(dead, cap * sizeof *v);

		if (v == NULL)
			return false;
		dead = v;
		dead_cap = cap;
	}
	struct rec *r = rec_at(rec);
	/* One more than it will need: the cell lives until its messages are known. */
	dead[ndead] = (struct cell){ rec, atomic_load(&r->gen),
	    atomic_load(&r->bound) ? atomic_load(&r->user) : 0, slot, 1, false };
	r->heap = ndead++;
	r->fd = -1;
	addrs_leave(r);
	atomic_store(&r->live, LIVE_ENDING);
	rec_set_state(rec, slot, REC_CLOSING);
	unsettled++;
	slot_pending[slot]++;
	return true;
}

/* ---- jobs ---- */

/* Committed, and whoever serves the recipient knows. Only now its sender may begin anew. */
static void swept_told(uint64_t ref, uint64_t seq)
{
	struct msg *m = msg_of(wk->slot, (uint32_t)ref);

	if (m == NULL || msg_seq(m) != (uint32_t)seq)
		return;
	uint32_t rrec = m->rrec, rgen = m->rgen, srec = m->srec, sgen = m->sgen;
	route_tell(m, V_STORED);
	msg_free((uint32_t)ref);
	cell_put(rrec, rgen);
	cell_put(srec, sgen);
}

static void swept_stored(struct store_job *j, void *arg)
{
	struct msg *m = msg_of(wk->slot, (uint32_t)j->tag);

	(void)arg;
	if (m == NULL || msg_seq(m) != (uint32_t)j->tag2)
		return;
	if (redo_useful(j->rc)) {
		redo_job(j);
		return;
	}
	if (j->rc != STORE_OK)
		log_error("a message of user %u to %u cannot be stored: %d", m->sender, m->rcpt, j->rc);
	COUNT(swept_messages);
	notice_send(m->rcpt, swept_told, j->tag, j->tag2);
}

void sweep_store(uint32_t ref)
{
	struct msg *m = msg_at(ref);

	m->flags |= MF_MUST | MF_STORE;
	cell_get(m->rrec, m->rgen);
	cell_get(m->srec, m->sgen);
	route_store(ref, swept_stored);
}

static void housekept(struct store_job *j, void *arg)
{
	(void)arg;
	if (redo_useful(j->rc))
		redo_job(j);
	else
		cell_put((uint32_t)j->tag, (uint32_t)j->tag2);
}

static struct store_job *house_job(const struct msg *m, enum store_op op)
{
	struct store_job *j = store_job_new(op, housekept, NULL);
	struct cell *d = cell_of(m->rrec, m->rgen);

	j->tag = m->rrec;
	j->tag2 = m->rgen;
	j->id = d != NULL ? d->user : m->rcpt;
	j->flags = STORE_MUST;
	cell_get(m->rrec, m->rgen);
	return j;
}

static void row_was_written(const struct msg *m)
{
	struct store_job *j = house_job(m, STORE_OFFLINE_DEL);

	j->ids = malloc(sizeof *j->ids);
	ensure(j->ids != NULL);
	j->ids[0] = m->row;
	j->nids = 1;
	store_submit(wk->store, j);
}

static void group_was_written(const struct msg *m)
{
	struct store_job *j = house_job(m, STORE_CURSORS);

	j->cursors = malloc(sizeof *j->cursors);
	ensure(j->cursors != NULL);
	j->cursors[0] = (struct store_cursor){ m->rcpt, m->row };
	j->ncursors = 1;
	store_submit(wk->store, j);
}

static void was_confirmed(const struct msg *m)
{
	struct store_job *j = house_job(m, STORE_OFFLINE_DEL_MID);

	j->id = m->rcpt;
	memcpy(j->mid, m->mid, 16);
	store_submit(wk->store, j);
}

/* ---- one message ---- */

/* Copied from another worker, and the claim may or may not have been made. */
static bool prepared_is_ours(const struct msg *m)
{
	struct msg *src = msg_of(m->origin_slot, m->origin_ref);

	if (src == NULL || msg_seq(src) != m->origin_seq)
		return true;		/* taken and freed, or given up: storing twice is once */
	if (msg_state(src) == M_TAKEN)
		return true;
	return msg_claim(src, m->origin_seq, M_WAITING, M_TAKEN);
}

static enum fate held_fate(const struct msg *m, uint32_t slot)
{
	struct rec *r = m->rrec < shm->head->max_sessions ? rec_at(m->rrec) : NULL;
	bool there = r != NULL && atomic_load(&r->gen) == m->rgen;
	bool written = there && !r->ack && m->wend <= r->wsent;

	/* A copy of a move that was cut off, or the original of one that was made: the owner has it. */
	if (there && rec_word_slot(atomic_load(&r->word)) != (int)slot)
		return FATE_FREE;
	if (m->kind == MK_ROW)
		return written ? FATE_ROW : FATE_FREE;
	if (m->kind == MK_GREF)
		return written ? FATE_CURSOR : FATE_FREE;
	return written ? FATE_FREE : FATE_STORE;
}

/*
 * A message that its sender still has in hands, because it has no answer, behind one that was
 * refused: it comes again after that one, and must not be in the store before.
 */
static bool comes_again(const struct msg *m)
{
	struct rec *r = m->srec < shm->head->max_sessions ? rec_at(m->srec) : NULL;

	return r != NULL && atomic_load(&r->gen) == m->sgen && (r->flags & REC_REFUSED) &&
	    m->origin_slot == UINT32_MAX && (m->flags & MF_CID) && !(m->flags & (MF_MUST | MF_TOLD));
}

static enum fate fate_of(struct msg *m, uint32_t slot)
{
	switch (msg_state(m)) {
	case M_WAITING:
		return msg_claim(m, msg_seq(m), M_WAITING, M_STORING) && !comes_again(m) ?
		    FATE_STORE : FATE_FREE;
	case M_FAR:
		return comes_again(m) ? FATE_FREE : FATE_STORE;
	case M_STORING:
		if (m->flags & MF_GONE)
			return FATE_GONE;
		if (comes_again(m))
			return FATE_FREE;
		return m->kind == MK_GROUP ? FATE_GROUP : m->kind == MK_DIRECT ? FATE_STORE : FATE_FREE;
	case M_COMMITTED:
		return FATE_GROUP;
	case M_PREPARED:
		return prepared_is_ours(m) ? FATE_STORE : FATE_FREE;
	case M_HELD:
		return held_fate(m, slot);
	case M_DELETING:
		return m->kind == MK_ROW ? FATE_ROW : FATE_GONE;
	case M_NONE:
	case M_TAKEN:
	case M_STORED:
		break;
	}
	return FATE_FREE;
}

/* A slot's own chunk is used in place; a sibling's is copied, so that its jobs outlive the region. */
static uint32_t own(uint32_t slot, uint32_t ref, const struct msg *m)
{
	if (slot == wk->slot)
		return ref;
	uint32_t mine = msg_copy(m, m->rrec, m->rgen);
	if (mine != CHUNK_NONE) {
		msg_set_state(msg_at(mine), M_STORING);
		FAULT("sweep.copy.1");
	}
	return mine;
}

static void drop(uint32_t slot, uint32_t ref)
{
	if (slot == wk->slot)
		chunk_free(wk->region, ref);
	else
		chunk_mark_free(slot, ref);
}

/* Decides what becomes of an entry, and takes it over. False: no memory for that now. */
static bool take_over(uint32_t slot, struct entry *e)
{
	struct msg *m = msg_of(slot, e->ref);

	e->fate = m != NULL ? fate_of(m, slot) : FATE_FREE;
	e->mine = CHUNK_NONE;
	if (e->fate == FATE_STORE || e->fate == FATE_GROUP)
		e->mine = own(slot, e->ref, m);
	return e->mine != CHUNK_NONE || (e->fate != FATE_STORE && e->fate != FATE_GROUP);
}

static void execute(uint32_t slot, const struct entry *e)
{
	const struct msg *m = msg_of(slot, e->ref);

	switch (e->fate) {
	case FATE_STORE:
		sweep_store(e->mine);
		break;
	case FATE_GROUP:
		group_resend(e->mine);
		break;
	case FATE_ROW:
		row_was_written(m);
		break;
	case FATE_CURSOR:
		group_was_written(m);
		break;
	case FATE_GONE:
		was_confirmed(m);
		break;
	case FATE_FREE:
		break;
	}
}

/*
 * All are taken over before the first original goes, and those go from the last to the first: should this
 * worker die on any line, one slot has all of them and the other the first few, and whichever is heard first,
 * the store has them in order. For the same reason all stay where memory is short for one.
 */
static uint32_t execute_all(uint32_t slot, struct entry *v, uint32_t n)
{
	uint32_t taken = 0;

	while (taken < n && take_over(slot, &v[taken]))
		taken++;
	for (uint32_t i = 0; i < taken; i++)
		execute(slot, &v[i]);
	for (uint32_t i = taken; taken == n && i-- > 0; )
		if (slot != wk->slot || v[i].mine == CHUNK_NONE)
			drop(slot, v[i].ref);
	return n - taken;
}

/* ---- the whole ---- */

static int collect(void *arg, uint32_t ref, struct chunk *c)
{
	struct found *f = arg;

	if (atomic_load(&c->kind) == CHUNK_MSG) {
		if (f->n == f->cap) {
			f->cap = f->cap == 0 ? 1024 : f->cap * 2;
			f->v = realloc(f->v, f->cap * sizeof *f->v);
			ensure(f->v != NULL);
		}
		f->v[f->n++] = (struct entry){ .ref = ref, .order = ((struct msg *)c->data)->order };
	} else {
		if (f->nrest == f->rest_cap) {
			f->rest_cap = f->rest_cap == 0 ? 1024 : f->rest_cap * 2;
			f->rest = realloc(f->rest, f->rest_cap * sizeof *f->rest);
			ensure(f->rest != NULL);
		}
		f->rest[f->nrest++] = ref;
	}
	return 0;
}

static int by_order(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	return x->order < y->order ? -1 : x->order > y->order;
}

void sweep_start(uint32_t slot, uint32_t live_gen)
{
	struct found f = { 0 };
	uint64_t t0 = clock_now_ms();
	uint32_t first, kept;

	if (slot_pending == NULL) {
		slot_pending = calloc(shm->head->max_workers, sizeof *slot_pending);
		ensure(slot_pending != NULL);
	}
	if (unsettled == 0)
		ndead = 0;
	first = ndead;
	for (uint32_t i = 0; i < rec_high(); i++) {
		uint32_t gen, w = rec_owner(rec_at(i), &gen);

		if (rec_word_slot(w) == (int)slot && gen != live_gen && !sweep_owns(i, atomic_load(&rec_at(i)->gen)))
			ensure(add_cell(i, slot));
	}
	(void)chunk_scan(slot, collect, &f);
	if (f.n > 0)				/* qsort wants no NULL, not even for nothing */
		qsort(f.v, f.n, sizeof *f.v, by_order);
	kept = execute_all(slot, f.v, f.n);
	for (uint32_t i = 0; i < f.nrest; i++)
		drop(slot, f.rest[i]);
	for (uint32_t i = first, n = ndead; i < n; i++)
		if (!dead[i].over && dead[i].slot == slot)
			cell_put(dead[i].rec, dead[i].gen);
	if (ndead > first || f.n > 0)
		log_info("worker %u: swept %u sessions and %u messages of its predecessor in %llu ms%s",
		    slot, ndead - first, f.n, (unsigned long long)(clock_now_ms() - t0),
		    kept > 0 ? ", short of memory for some" : "");
	free(f.v);
	free(f.rest);
	atomic_store(&slot_at(slot)->connections, 0);
	atomic_store(&slot_at(slot)->sessions, 0);
	rec_mend();
}

bool sweep_idle(void)
{
	return unsettled == 0;
}

bool sweep_slot_idle(uint32_t slot)
{
	return slot_pending == NULL || slot_pending[slot] == 0;
}
