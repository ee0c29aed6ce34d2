/*
 * chunk.c - session memory: a slab allocator whose truth lies in the segment.
 *
 *	region = head | table: one word a span | spans of 64 KiB
 *
 * In the segment are the table (what each span is cut into) and the chunks' headers (what each
 * chunk is); that is enough to find all that is in use after a death. Everything that only makes
 * allocation quick (free lists, counts) is in the worker's heap, but for the links between free
 * chunks, which lie in the chunks themselves.
 *
 * Order of stores, because a worker may die after any:
 *
 *   a span is cut     its chunks' kinds are zero, then its word in the table
 *   a run is made     the kind at its start is zero, its tail words, then its head's word
 *   a run is undone   kind, head's word, tail words
 *   a span goes back  its word says dirty, the kernel takes the pages, its word says free
 *   a chunk is made   all of its header, then kind; released: kind first
 *
 * so the table never claims chunks in pages that hold something else, a tail without a head in
 * front of it is a dirty span, and a free span reads as zero when it has pages at all.
 *
 * States of a span: HOLE (no memory), KEPT (memory, no chunk in use, on the list of kept spans),
 * CUT into chunks of a class, RUN and TAIL; LOST is one that the kernel would not take back, and is
 * left alone. A span stays CUT while a chunk of it is in use or it is
 * the only one of its class with room, so that one chunk coming and going costs nothing.
 */
#include "shm/chunk.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "shm/fault.h"
#include "shm/segment.h"

#define REGION_MAGIC  UINT64_C(0x3130524c52415001)
#define NCLASSES      9u		/* 128 bytes to 32 KiB; above that whole spans */
#define KEEP_MIN      2u		/* empty spans that are always kept */
#define KEEP_MAX      512u		/* and at most, besides an eighth of those in use */
#define NONE          UINT32_MAX
#define NO_CHUNK      UINT16_MAX

/* A word of the table: what in the low byte, the length of a run above it. */
enum { WORD_FREE = 0, WORD_CUT = 1 /* + class */, WORD_DIRTY = 0xfd, WORD_RUN, WORD_TAIL };

struct region_head {			/* at the start of each region, in the segment */
	_Atomic uint64_t magic;
	uint32_t layout, head_bytes, nspans;
	uint32_t first;			/* spans below it hold head and table */
};

_Static_assert(CHUNK_MIN << NCLASSES == CHUNK_SPAN, "classes end where spans begin");

enum span_state { HOLE = 0, KEPT, CUT, RUN, TAIL, LOST };

struct span {				/* in the heap; index as in the table */
	uint32_t prev, next;		/* in the list of its class, or of kept spans */
	uint16_t nfree;
	uint16_t free;			/* first of the released chunks, linked by chunk.next */
	uint16_t fresh;			/* chunks from here on are free and in no list */
	uint8_t state, cls;
};

struct region {
	char *base;
	uint64_t off;			/* of base in the segment */
	_Atomic uint32_t *table;
	uint32_t nspans, first;
	uint32_t room[NCLASSES];	/* spans of a class that have a free chunk */
	uint32_t kept, kept_last, nkept;
	uint32_t spare;			/* fewest that were kept since region_tidy() */
	uint32_t busy;			/* spans that are CUT, RUN or TAIL */
	uint32_t low;			/* no HOLE below */
	uint64_t used;
	struct span span[];
};

/* --- What both sides know: the layout ------------------------------------------------------ */

/* Spans in front of the chunks of a region of N spans in all. */
static uint64_t table_spans(uint64_t n)
{
	return (sizeof(struct region_head) + n * sizeof(uint32_t) + CHUNK_SPAN - 1) / CHUNK_SPAN;
}

uint64_t region_bytes(uint64_t usable)
{
	uint64_t n = usable / CHUNK_SPAN + (usable % CHUNK_SPAN != 0), all;

	if (n == 0)
		n = 1;
	all = n + table_spans(n + n / 8192 + 2);
	if (all * (CHUNK_SPAN / CHUNK_MIN) >= CHUNK_NONE || n > UINT32_MAX)
		return 0;			/* a reference could not name it all */
	return all * CHUNK_SPAN;
}

static char *region_base(uint32_t slot)
{
	assert(slot < shm->head->max_workers);
	return segment_at(shm->head->region_off + slot * shm->head->region_bytes);
}

static uint32_t region_nspans(void)
{
	return (uint32_t)(shm->head->region_bytes / CHUNK_SPAN);
}

static _Atomic uint32_t *table_of(char *base)
{
	return (_Atomic uint32_t *)(base + sizeof(struct region_head));
}

static uint32_t word_load(const _Atomic uint32_t *w)
{
	return atomic_load_explicit(w, memory_order_acquire);
}

static void word_store(_Atomic uint32_t *w, uint32_t what)
{
	atomic_store_explicit(w, what, memory_order_release);
}

static void kind_store(struct chunk *c, enum chunk_kind kind)
{
	atomic_store_explicit(&c->kind, (uint8_t)kind, memory_order_release);
}

static enum chunk_kind kind_load(const struct chunk *c)
{
	return (enum chunk_kind)atomic_load_explicit(&c->kind, memory_order_acquire);
}

static bool word_is_cut(uint32_t w)
{
	return w >= WORD_CUT && w < WORD_CUT + NCLASSES;
}

/* Spans of the run that W at span I begins; 0 when it begins none that the region could hold. */
static uint32_t word_run(uint32_t w, uint32_t i, uint32_t nspans)
{
	uint32_t n = w >> 8;

	return (w & 0xff) == WORD_RUN && n > 0 && n <= nspans - i ? n : 0;
}

static struct chunk *at(char *base, uint32_t ref)
{
	return (struct chunk *)(base + (uint64_t)ref * CHUNK_MIN);
}

static uint32_t ref_of(uint32_t span, unsigned cls, uint32_t k)
{
	return span * (CHUNK_SPAN / CHUNK_MIN) + (k << cls);
}

void region_refs(uint64_t bytes, uint32_t *first_r, uint32_t *end_r)
{
	uint64_t nspans = bytes / CHUNK_SPAN;

	*first_r = (uint32_t)(table_spans(nspans) * (CHUNK_SPAN / CHUNK_MIN));
	*end_r = (uint32_t)(nspans * (CHUNK_SPAN / CHUNK_MIN));
}

/* The spans of the run that starts with C, of whichever region. */
static uint32_t run_of(const struct chunk *c)
{
	uint64_t off = (uint64_t)((const char *)c - shm->base) - shm->head->region_off;
	uint32_t slot = (uint32_t)(off / shm->head->region_bytes);
	uint32_t i = (uint32_t)(off % shm->head->region_bytes / CHUNK_SPAN);
	uint32_t n = word_run(word_load(table_of(region_base(slot)) + i), i, region_nspans());

	assert(n > 0);
	return n;
}

static size_t size_of(const struct chunk *c)
{
	if (c->cls == CHUNK_RUN)
		return (size_t)run_of(c) * CHUNK_SPAN;
	assert(c->cls < NCLASSES);
	return (size_t)CHUNK_MIN << c->cls;
}

size_t chunk_room(const struct chunk *c)
{
	return size_of(c) - sizeof(*c);
}

static bool region_is_founded(const struct region_head *h)
{
	return atomic_load_explicit(&h->magic, memory_order_acquire) == REGION_MAGIC &&
	    h->layout == SEGMENT_LAYOUT && h->nspans == region_nspans();
}

/* --- Lists of spans ------------------------------------------------------------------------ */

static void list_add(struct region *r, uint32_t *list, uint32_t i)
{
	r->span[i].prev = NONE;
	r->span[i].next = *list;
	if (*list != NONE)
		r->span[*list].prev = i;
	*list = i;
}

static void list_del(struct region *r, uint32_t *list, uint32_t i)
{
	struct span *s = &r->span[i];

	if (s->prev != NONE)
		r->span[s->prev].next = s->next;
	else
		*list = s->next;
	if (s->next != NONE)
		r->span[s->next].prev = s->prev;
}

/* The kept spans are a list with two ends: taken where added last, given back at the other. */
static void kept_add(struct region *r, uint32_t i)
{
	r->span[i].state = KEPT;
	list_add(r, &r->kept, i);
	if (r->kept_last == NONE)
		r->kept_last = i;
	r->nkept++;
}

static void kept_del(struct region *r, uint32_t i)
{
	if (r->kept_last == i)
		r->kept_last = r->span[i].prev;
	list_del(r, &r->kept, i);
	if (--r->nkept < r->spare)
		r->spare = r->nkept;
}

static uint16_t capacity(unsigned cls)
{
	return (uint16_t)(CHUNK_SPAN / CHUNK_MIN >> cls);
}

/* --- Opening ------------------------------------------------------------------------------- */

/* Counts span I, which the table says is cut, and lists its free chunks. */
static void adopt_cut(struct region *r, uint32_t i, unsigned cls)
{
	struct span *s = &r->span[i];

	s->state = CUT;
	s->cls = (uint8_t)cls;
	s->fresh = capacity(cls);
	s->free = NO_CHUNK;
	for (uint16_t k = capacity(cls); k-- > 0;) {
		struct chunk *c = at(r->base, ref_of(i, cls, k));

		if (kind_load(c) == CHUNK_FREE) {
			c->next = s->free;
			s->free = k;
			s->nfree++;
		}
	}
	if (s->nfree == capacity(cls)) {
		kept_add(r, i);
		return;
	}
	r->busy++;
	r->used += (uint64_t)(capacity(cls) - s->nfree) * (CHUNK_MIN << cls);
	if (s->nfree > 0)
		list_add(r, &r->room[cls], i);
}

/* Span I has pages that say nothing: they go back. */
static void adopt_dirty(struct region *r, uint32_t i)
{
	word_store(&r->table[i], WORD_DIRTY);
	if (segment_release(r->off + (uint64_t)i * CHUNK_SPAN, CHUNK_SPAN) == 0)
		word_store(&r->table[i], WORD_FREE);
	else
		r->span[i].state = LOST;
}

/* The run of N spans at I stays when its chunk is in use. Returns the spans that are dealt with. */
static uint32_t adopt_run(struct region *r, uint32_t i, uint32_t n)
{
	if (kind_load(at(r->base, ref_of(i, 0, 0))) == CHUNK_FREE) {
		adopt_dirty(r, i);
		return 1;		/* what was its tail comes next, as dirty spans */
	}
	for (uint32_t k = 0; k < n; k++)
		r->span[i + k].state = k == 0 ? RUN : TAIL;
	r->busy += n;
	r->used += (uint64_t)n * CHUNK_SPAN;
	return n;
}

/* Derives the heap's view from table and headers. */
static void adopt(struct region *r)
{
	for (uint32_t i = r->first, n; i < r->nspans; i += n) {
		uint32_t w = word_load(&r->table[i]);

		n = 1;
		if (word_is_cut(w))
			adopt_cut(r, i, w - WORD_CUT);
		else if (word_run(w, i, r->nspans) > 0)
			n = adopt_run(r, i, word_run(w, i, r->nspans));
		else if (w != WORD_FREE)
			adopt_dirty(r, i);
	}
}

/* Writes head and table of an empty region. */
static int found(struct region *r)
{
	struct region_head *h = (struct region_head *)r->base;
	uint64_t bytes = sizeof(*h) + (uint64_t)r->nspans * sizeof(uint32_t);

	if (segment_release(r->off, shm->head->region_bytes) != 0 ||
	    segment_reserve(r->off, bytes) != 0)
		return -1;
	h->layout = SEGMENT_LAYOUT;
	h->head_bytes = sizeof(*h);
	h->nspans = r->nspans;
	h->first = r->first;
	atomic_store_explicit(&h->magic, REGION_MAGIC, memory_order_release);
	return 0;
}

static void trim(struct region *r, uint32_t keep);

struct region *region_open(uint32_t slot, int fresh)
{
	uint32_t nspans = region_nspans();
	struct region *r = calloc(1, sizeof(*r) + (size_t)nspans * sizeof(struct span));
	const struct region_head *h;

	if (r == NULL)
		return NULL;
	r->base = region_base(slot);
	r->off = (uint64_t)(r->base - shm->base);
	r->table = table_of(r->base);
	r->nspans = nspans;
	r->first = (uint32_t)table_spans(nspans);
	r->low = r->first;
	r->kept = r->kept_last = NONE;
	for (unsigned c = 0; c < NCLASSES; c++)
		r->room[c] = NONE;
	if (segment_reserve(r->off, sizeof(*h)) != 0)
		goto fail;
	h = (const struct region_head *)r->base;
	if (fresh || !region_is_founded(h)) {
		if (found(r) != 0)
			goto fail;
	} else {
		adopt(r);
		trim(r, KEEP_MIN);
	}
	return r;
fail:
	free(r);
	return NULL;
}

void region_close(struct region *r)
{
	free(r);
}

uint64_t region_used(const struct region *r)
{
	return r->used;
}

uint64_t region_size(const struct region *r)
{
	return (uint64_t)(r->nspans - r->first) * CHUNK_SPAN;
}

/* --- Spans --------------------------------------------------------------------------------- */

/* Gives the memory of kept spans back until KEEP are left. */
static void trim(struct region *r, uint32_t keep)
{
	while (r->nkept > keep) {
		uint32_t i = r->kept_last;

		kept_del(r, i);
		word_store(&r->table[i], WORD_DIRTY);
		FAULT("chunk.trim.1");
		if (segment_release(r->off + (uint64_t)i * CHUNK_SPAN, CHUNK_SPAN) != 0) {
			r->span[i].state = LOST;
			continue;
		}
		FAULT("chunk.trim.2");
		word_store(&r->table[i], WORD_FREE);
		FAULT("chunk.trim.3");
		r->span[i].state = HOLE;
		if (i < r->low)
			r->low = i;
	}
}

/* Puts span I, which has memory and no chunk in use, among the kept ones. */
static void keep(struct region *r, uint32_t i)
{
	r->busy--;
	kept_add(r, i);
	if (r->nkept > KEEP_MAX + r->busy / 8)
		trim(r, KEEP_MAX + r->busy / 8);
}

void region_tidy(struct region *r)
{
	uint32_t unused = r->spare < r->nkept ? r->spare : r->nkept;
	uint32_t left = r->nkept - unused;

	trim(r, left > KEEP_MIN ? left : KEEP_MIN);
	r->spare = r->nkept;
}

/* Spans that are CUT and empty, of all classes, become KEPT: somebody needs whole ones. */
static bool gather(struct region *r)
{
	bool any = false;

	for (unsigned cls = 0; cls < NCLASSES; cls++) {
		uint32_t next;

		for (uint32_t i = r->room[cls]; i != NONE; i = next) {
			next = r->span[i].next;
			if (r->span[i].nfree != capacity(cls))
				continue;
			list_del(r, &r->room[cls], i);
			r->busy--;
			kept_add(r, i);
			any = true;
		}
	}
	return any;
}

static uint32_t hole_find(struct region *r)
{
	uint32_t i = r->low;

	while (i < r->nspans && r->span[i].state != HOLE)
		i++;
	r->low = i;
	return i < r->nspans ? i : NONE;
}

/* A span with memory, off all lists and no longer KEPT: a kept one, else a hole. NONE. */
static uint32_t span_take(struct region *r)
{
	uint32_t i = r->kept;

	if (i == NONE) {
		i = hole_find(r);
		if (i != NONE && segment_reserve(r->off + (uint64_t)i * CHUNK_SPAN, CHUNK_SPAN) == 0)
			return i;
		if (!gather(r))
			return NONE;
		i = r->kept;
	}
	kept_del(r, i);
	return i;
}

/* Cuts a free span into chunks of CLS and lists it. NONE: no memory. */
static uint32_t span_cut(struct region *r, unsigned cls)
{
	uint32_t i = span_take(r);
	struct span *s;

	if (i == NONE)
		return NONE;
	s = &r->span[i];
	if (s->state == KEPT && word_load(&r->table[i]) != WORD_CUT + cls) {
		/* What was here has left bytes that could pass for chunks of the new size. */
		word_store(&r->table[i], WORD_DIRTY);
		FAULT("chunk.cut.1");
		for (uint32_t k = 0; k < capacity(cls); k++) {
			kind_store(at(r->base, ref_of(i, cls, k)), CHUNK_FREE);
			FAULT("chunk.cut.2");
		}
	}
	word_store(&r->table[i], WORD_CUT + cls);
	FAULT("chunk.cut.3");
	*s = (struct span){
		.state = CUT, .cls = (uint8_t)cls, .nfree = capacity(cls), .free = NO_CHUNK,
	};
	list_add(r, &r->room[cls], i);
	r->busy++;
	return i;
}

/* --- Runs of spans ------------------------------------------------------------------------- */

/* The first N neighbouring spans without a chunk; NONE. */
static uint32_t run_find(const struct region *r, uint32_t n)
{
	uint32_t have = 0;

	for (uint32_t i = r->first; i < r->nspans; i++) {
		have = r->span[i].state <= KEPT ? have + 1 : 0;
		if (have == n)
			return i - n + 1;
	}
	return NONE;
}

/* Makes spans [I, I + N), which have memory and are on no list, a run whose chunk is still free. */
static void run_make(struct region *r, uint32_t i, uint32_t n)
{
	for (uint32_t k = 0; k < n; k++)
		r->span[i + k].state = k == 0 ? RUN : TAIL;
	word_store(&r->table[i], WORD_DIRTY);
	FAULT("chunk.run.1");
	kind_store(at(r->base, ref_of(i, 0, 0)), CHUNK_FREE);
	FAULT("chunk.run.2");
	for (uint32_t k = 1; k < n; k++) {
		word_store(&r->table[i + k], WORD_TAIL);
		FAULT("chunk.run.3");
	}
	word_store(&r->table[i], WORD_RUN | n << 8);
	FAULT("chunk.run.4");
	r->busy += n;
}

/* The first N neighbouring spans without a chunk, with memory and off all lists; NONE. */
static uint32_t run_take(struct region *r, uint32_t n)
{
	uint32_t i = run_find(r, n), holes = 0;

	if (i == NONE && gather(r))
		i = run_find(r, n);
	if (i == NONE)
		return NONE;
	for (uint32_t k = 0; k < n; k++)
		holes += r->span[i + k].state == HOLE;
	if (holes > 0 &&
	    segment_reserve(r->off + (uint64_t)i * CHUNK_SPAN, (uint64_t)n * CHUNK_SPAN) != 0)
		return NONE;
	for (uint32_t k = 0; k < n; k++) {
		if (r->span[i + k].state == KEPT)
			kept_del(r, i + k);
	}
	return i;
}

/* The reference of a new run for SIZE bytes, counted. */
static uint32_t run_alloc(struct region *r, size_t size)
{
	uint64_t want = (size + CHUNK_SPAN - 1) / CHUNK_SPAN;
	uint32_t n, i;

	if (want > r->nspans - r->first)
		return CHUNK_NONE;
	n = (uint32_t)want;
	i = n == 1 ? span_take(r) : run_take(r, n);
	if (i == NONE)
		return CHUNK_NONE;
	run_make(r, i, n);
	r->used += (uint64_t)n * CHUNK_SPAN;
	return ref_of(i, 0, 0);
}

static void run_free(struct region *r, uint32_t i)
{
	uint32_t n = word_run(word_load(&r->table[i]), i, r->nspans);

	assert(n > 0);
	word_store(&r->table[i], WORD_DIRTY);
	FAULT("chunk.unrun.1");
	for (uint32_t k = 1; k < n; k++) {
		word_store(&r->table[i + k], WORD_DIRTY);
		FAULT("chunk.unrun.2");
	}
	r->used -= (uint64_t)n * CHUNK_SPAN;
	for (uint32_t k = n; k-- > 0;)
		keep(r, i + k);
}

/* --- Chunks -------------------------------------------------------------------------------- */

/* The smallest class for SIZE bytes, header included; NCLASSES or more: a run. */
static unsigned class_for(size_t size)
{
	return size <= CHUNK_MIN ? 0 : 64 - 7 - (unsigned)__builtin_clzll((uint64_t)size - 1);
}

/* Takes a free chunk of CLS off its span's list. */
static uint32_t cut_alloc(struct region *r, unsigned cls)
{
	uint32_t i = r->room[cls], ref;
	struct span *s;

	if (i == NONE && (i = span_cut(r, cls)) == NONE)
		return CHUNK_NONE;
	s = &r->span[i];
	if (s->free != NO_CHUNK) {
		ref = ref_of(i, cls, s->free);
		s->free = (uint16_t)at(r->base, ref)->next;
	} else {
		ref = ref_of(i, cls, s->fresh++);
	}
	if (--s->nfree == 0)
		list_del(r, &r->room[cls], i);
	r->used += CHUNK_MIN << cls;
	return ref;
}

uint32_t chunk_alloc(struct region *r, size_t len, enum chunk_kind kind, uint32_t sess,
    uint32_t gen)
{
	size_t size = len + sizeof(struct chunk);
	unsigned cls;
	uint32_t ref;
	struct chunk *c;

	assert(kind > CHUNK_FREE && kind < CHUNK_NKINDS);
	if (size < len)
		return CHUNK_NONE;
	cls = class_for(size);
	ref = cls < NCLASSES ? cut_alloc(r, cls) : run_alloc(r, size);
	if (ref == CHUNK_NONE)
		return CHUNK_NONE;
	c = at(r->base, ref);
	c->cls = (uint8_t)(cls < NCLASSES ? cls : CHUNK_RUN);
	c->aux = 0;
	c->sess = sess;
	c->gen = gen;
	c->next = CHUNK_NONE;
	c->base = 0;
	c->aux64 = 0;
	FAULT("chunk.alloc.1");
	kind_store(c, kind);
	FAULT("chunk.alloc.2");
	return ref;
}

/* Puts a chunk whose kind says free back on its span's list. */
static void cut_free(struct region *r, uint32_t i, uint32_t ref, struct chunk *c)
{
	struct span *s = &r->span[i];
	unsigned cls = s->cls;

	c->next = s->free;
	s->free = (uint16_t)((ref % (CHUNK_SPAN / CHUNK_MIN)) >> cls);
	r->used -= CHUNK_MIN << cls;
	if (s->nfree++ == 0) {
		list_add(r, &r->room[cls], i);
	} else if (s->nfree == capacity(cls) && (s->prev != NONE || s->next != NONE)) {
		list_del(r, &r->room[cls], i);
		keep(r, i);
	}
}

void chunk_free(struct region *r, uint32_t ref)
{
	uint32_t i = ref / (CHUNK_SPAN / CHUNK_MIN);
	struct chunk *c;

	assert(i >= r->first && i < r->nspans);
	c = at(r->base, ref);
	assert(kind_load(c) != CHUNK_FREE);
	kind_store(c, CHUNK_FREE);
	FAULT("chunk.free.1");
	if (r->span[i].state == RUN) {
		assert(ref == ref_of(i, 0, 0));
		run_free(r, i);
	} else {
		assert(r->span[i].state == CUT && c->cls == r->span[i].cls);
		cut_free(r, i, ref, c);
	}
	FAULT("chunk.free.2");
}

/* --- Looking at any region ----------------------------------------------------------------- */

int chunk_scan(uint32_t slot, int (*fn)(void *arg, uint32_t ref, struct chunk *c), void *arg)
{
	char *base = region_base(slot);
	const struct region_head *h = (const struct region_head *)base;
	uint32_t nspans = region_nspans();
	int rc;

	if (!region_is_founded(h))
		return 0;
	for (uint32_t i = (uint32_t)table_spans(nspans), n; i < nspans; i += n) {
		uint32_t w = word_load(table_of(base) + i), run = word_run(w, i, nspans);
		unsigned cls = word_is_cut(w) ? w - WORD_CUT : CHUNK_RUN;
		uint32_t count = cls != CHUNK_RUN ? capacity(cls) : run > 0;

		n = run > 0 ? run : 1;
		for (uint32_t k = 0; k < count; k++) {
			uint32_t ref = ref_of(i, cls != CHUNK_RUN ? cls : 0, k);
			struct chunk *c = at(base, ref);
			enum chunk_kind kind = kind_load(c);

			if (kind == CHUNK_FREE || kind >= CHUNK_NKINDS || c->cls != cls)
				continue;
			rc = fn(arg, ref, c);
			if (rc != 0)
				return rc;
		}
	}
	return 0;
}

void chunk_mark_free(uint32_t slot, uint32_t ref)
{
	kind_store(chunk_at(slot, ref), CHUNK_FREE);
}
