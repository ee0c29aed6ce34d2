/*
 * Seats lie in blocks that stay (timers link them); caches in pools of pages of their own, the lowest
 * with room first, so that a storm's pools empty and go back to the kernel.
 */
#include "worker/seat.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/conn.h"

#define BLOCK      256u			/* seats in one allocation */
#define POOL_BYTES 131072u
#define TIDY       16384u		/* caches looked at in one call */

struct seat {
	struct timer timer;		/* idle, ping, login, linger */
	struct conn *c;			/* NULL: parked */
	uint64_t last_ms;		/* and what else comes back */
	struct rate_bucket rate;
	uint32_t looked;
	uint32_t rec : 31, ping_sent : 1;
};

_Static_assert(sizeof(struct seat) == 64, "what an idle session costs beside its record");
#define NOBODY 0x7fffffffu		/* rec of a free seat; no record has that index */

struct pool {
	uint32_t nfree, free;		/* free ones are linked by ix; NOBODY ends */
	uint32_t made;			/* from here on none was used yet */
	struct conn v[];
};

#define POOL ((uint32_t)((POOL_BYTES - sizeof(struct pool)) / sizeof(struct conn)))

static struct seat **blocks;
static uint32_t nblocks, free_seat = NOBODY;	/* free seats are linked by `looked` */
static struct pool **pools;
static uint32_t npools, first_room;		/* no pool below has room */
static uint32_t awake, tidy_pool, tidy_at;

/* ---- seats ---- */

static struct seat *seat_at(uint32_t ix)
{
	return ix / BLOCK < nblocks ? &blocks[ix / BLOCK][ix % BLOCK] : NULL;
}

static bool more_seats(void)
{
	struct seat *b = calloc(BLOCK, sizeof *b);
	struct seat **nb = realloc(blocks, (nblocks + 1) * sizeof *nb);

	if (nb != NULL)
		blocks = nb;
	if (b == NULL || nb == NULL) {
		free(b);
		return false;
	}
	for (uint32_t i = BLOCK; i-- > 0; ) {
		b[i].rec = NOBODY;
		b[i].looked = free_seat;
		free_seat = nblocks * BLOCK + i;
	}
	blocks[nblocks++] = b;
	return true;
}

/* ---- caches ---- */

static struct pool *pool_new(void)
{
	struct pool *p = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	p->nfree = POOL;
	p->free = NOBODY;
	return p;
}

/* A pool with room: the lowest. NULL: out of memory. */
static struct pool *pool_with_room(void)
{
	while (first_room < npools && pools[first_room] != NULL && pools[first_room]->nfree == 0)
		first_room++;
	if (first_room == npools) {
		struct pool **np = realloc(pools, (npools + 1) * sizeof *np);

		if (np == NULL)
			return NULL;
		pools = np;
		pools[npools++] = NULL;
	}
	if (pools[first_room] == NULL)
		pools[first_room] = pool_new();
	return pools[first_room];
}

static struct conn *cache_alloc(void)
{
	struct pool *p = pool_with_room();
	struct conn *c;

	if (p == NULL)
		return NULL;
	if (p->free != NOBODY) {
		c = &p->v[p->free];
		p->free = c->ix;
	} else {
		c = &p->v[p->made++];
	}
	p->nfree--;
	awake++;
	memset(c, 0, sizeof *c);
	c->pool = first_room;
	return c;
}

static void cache_free(struct conn *c)
{
	struct pool *p = pools[c->pool];
	uint32_t k = c->pool;

	c->r = NULL;			/* who looks at a list of this turn sees that it is gone */
	c->rec = REC_NONE;
	c->ix = p->free;
	p->free = (uint32_t)(c - p->v);
	awake--;
	if (k < first_room)
		first_room = k;
	if (++p->nfree == POOL && k > 0) {
		munmap(p, POOL_BYTES);
		pools[k] = NULL;
	}
}

/* The cache of a record, with what is the same in all. */
static struct conn *cache_new(uint32_t rec, uint32_t ix, struct seat *s)
{
	struct conn *c = cache_alloc();

	if (c == NULL)
		return NULL;
	c->rec = rec;
	c->r = rec_at(rec);
	c->gen = atomic_load(&c->r->gen);
	c->ix = ix;
	c->timer = &s->timer;
	c->gone = c->unwritten = CHUNK_NONE;
	s->c = c;
	return c;
}

struct conn *seat_make(uint32_t rec)
{
	uint32_t ix = free_seat;
	struct seat *s;
	struct conn *c;

	if (ix == NOBODY && !more_seats())
		return NULL;
	ix = free_seat;
	s = seat_at(ix);
	c = cache_new(rec, ix, s);
	if (c == NULL)
		return NULL;
	free_seat = s->looked;
	s->rec = rec;
	wk->nconns++;
	return c;
}

void seat_release(struct conn *c)
{
	struct seat *s = seat_at(c->ix);

	s->rec = NOBODY;
	s->c = NULL;
	s->looked = free_seat;
	free_seat = c->ix;
	cache_free(c);
	wk->nconns--;
}

/* ---- parking ---- */

/* Could its cache be made again from record and seat, and nobody tell the difference? */
static bool is_idle(const struct conn *c)
{
	const struct rec *r = c->r;

	return c->state == CONN_OPEN && c->bound && c->greeted && c->reading && !c->writing &&
	    !c->blocked && !c->paused && !c->throttled && !c->eof && !c->dirty && !c->queued &&
	    !c->behind && !c->again && !c->full_pass && !c->look_due && !c->draining && !c->ranging &&
	    !c->leaving && !c->claiming && !c->cursors_dirty && c->ending == 0 && c->storing == 0 &&
	    c->deleting == 0 && c->nlanes == 0 && c->open == 0 && c->held == 0 &&
	    c->gone == CHUNK_NONE && r->in_chunk == CHUNK_NONE && r->out_head == CHUNK_NONE &&
	    r->wend == r->wsent && (r->term != 0 || c->term_at == 0) && c->login == NULL &&
	    c->greet == NULL && c->sure == NULL && c->refused == NULL && c->echo == NULL &&
	    !timer_is_set(&c->pace) && !timer_is_set(&c->drain) && !timer_is_set(&c->confirm);
}

static void park(struct conn *c)
{
	struct seat *s = seat_at(c->ix);

	s->last_ms = c->last_ms;
	s->rate = c->rate;
	s->looked = c->looked;
	s->ping_sent = c->ping_sent;
	s->c = NULL;
	cache_free(c);
}

static struct conn *wake(struct seat *s, uint32_t ix)
{
	struct conn *c = cache_new(s->rec, ix, s);

	ensure(c != NULL);
	c->fd = c->r->fd;
	c->bound = c->greeted = c->reading = true;
	c->last_ms = c->since_ms = s->last_ms;
	c->rate = s->rate;
	c->looked = s->looked;
	c->ping_sent = s->ping_sent;
	return c;
}

struct conn *conn_get(uint32_t rec, uint32_t gen)
{
	if (rec >= shm->max_sessions)
		return NULL;
	struct rec *r = rec_at(rec);
	uint32_t slot_gen, w = rec_owner(r, &slot_gen);
	if (rec_word_slot(w) != (int)wk->slot || slot_gen != wk->gen)
		return NULL;
	struct seat *s = seat_at(r->heap);
	if (s == NULL || s->rec != rec || atomic_load(&r->gen) != gen)
		return NULL;
	return s->c != NULL ? s->c : wake(s, r->heap);
}

struct conn *seat_of_timer(struct timer *t)
{
	struct seat *s = (struct seat *)((char *)t - offsetof(struct seat, timer));

	return s->c != NULL ? s->c : wake(s, rec_at(s->rec)->heap);
}

uint32_t conn_each_from(uint32_t from, uint32_t n, void (*fn)(struct conn *c, void *arg), void *arg)
{
	for (; from < nblocks * BLOCK && n > 0; from++, n--) {
		struct seat *s = seat_at(from);
		bool parked = s->c == NULL;

		if (s->rec == NOBODY)
			continue;
		fn(parked ? wake(s, from) : s->c, arg);
		if (parked && s->c != NULL && is_idle(s->c))
			park(s->c);		/* at once, or all of them would be awake */
	}
	return from < nblocks * BLOCK ? from : 0;
}

void conn_each(void (*fn)(struct conn *c, void *arg), void *arg)
{
	(void)conn_each_from(0, UINT32_MAX, fn, arg);
}

void seat_each_awake(void (*fn)(struct conn *c, void *arg), void *arg)
{
	for (uint32_t k = 0; k < npools; k++)
		for (uint32_t i = 0; pools[k] != NULL && i < pools[k]->made; i++)
			if (pools[k]->v[i].r != NULL)
				fn(&pools[k]->v[i], arg);
}

void seat_tidy(uint32_t idle_ms)
{
	uint64_t now = clock_ms();

	for (uint32_t n = 0; n < TIDY && npools > 0; n++, tidy_at++) {
		if (tidy_pool >= npools || pools[tidy_pool] == NULL || tidy_at >= pools[tidy_pool]->made) {
			n += POOL / 4;		/* a bound for many empty pools, too */
			tidy_at = UINT32_MAX;	/* 0 after this round */
			tidy_pool = tidy_pool + 1 < npools ? tidy_pool + 1 : 0;
			continue;
		}
		struct conn *c = &pools[tidy_pool]->v[tidy_at];
		if (c->r != NULL && now - c->last_ms >= idle_ms && is_idle(c))
			park(c);
	}
}

uint32_t seat_awake(void)
{
	return awake;
}
