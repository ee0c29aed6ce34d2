/*
 * addrs.c - the table: a word is a hash of the address (high 44 bits) and its count (low 20).
 *
 * The cells lie behind those of the rate table in the segment's address area.
 */
#include "worker/addrs.h"

#include <string.h>

#include "shm/segment.h"
#include "worker/rate.h"

#define PROBES 8u
#define COUNT_MASK UINT64_C(0xfffff)

static _Atomic uint64_t *cells(void)
{
	struct rate_addr *rates = segment_at(shm->head->addr_off);

	return (_Atomic uint64_t *)(rates + shm->head->naddr);
}

bool addrs_ready(void)
{
	static bool ready;

	if (!ready)
		ready = segment_reserve(shm->head->addr_off, (uint64_t)shm->head->naddr * 32) == 0;
	return ready;
}

bool addrs_local(const struct rec *r)
{
	static const unsigned char v6_loop[16] = { [15] = 1 };
	static const unsigned char v4_loop[13] = { [10] = 0xff, [11] = 0xff, [12] = 127 };

	return r->port == 0 || memcmp(r->addr, v6_loop, 16) == 0 || memcmp(r->addr, v4_loop, 13) == 0;
}

static uint64_t hash_of(const struct rec *r)
{
	static const unsigned char mapped[12] = { [10] = 0xff, [11] = 0xff };
	size_t len = memcmp(r->addr, mapped, sizeof mapped) == 0 ? 16 : 8;
	uint64_t h = 14695981039346656037u ^ shm->head->epoch;

	for (size_t i = 0; i < len; i++)
		h = (h ^ r->addr[i]) * 1099511628211u;
	h ^= h >> 29;
	return (h * 0x9e3779b97f4a7c15u) | (COUNT_MASK + 1);
}

/* The cell of an address, or a free one for it; NULL: the neighbourhood is full. */
static _Atomic uint64_t *cell_of(uint64_t h, bool make)
{
	_Atomic uint64_t *v = cells();
	uint32_t n = shm->head->naddr;

	for (uint32_t i = 0; i < PROBES; i++) {
		_Atomic uint64_t *c = &v[((h >> 40) + i) % n];

		if ((atomic_load(c) & ~COUNT_MASK) == (h & ~COUNT_MASK))
			return c;
	}
	for (uint32_t i = 0; make && i < PROBES; i++) {
		_Atomic uint64_t *c = &v[((h >> 40) + i) % n];
		uint64_t was = atomic_load(c);

		if ((was & COUNT_MASK) == 0 &&
		    atomic_compare_exchange_strong(c, &was, h & ~COUNT_MASK))
			return c;
	}
	return NULL;
}

bool addrs_enter(struct rec *r, unsigned limit)
{
	if (limit == 0 || addrs_local(r) || !addrs_ready())
		return true;
	uint64_t h = hash_of(r), was;
	_Atomic uint64_t *c = cell_of(h, true);
	if (c == NULL)
		return true;
	r->flags |= REC_COUNTED;
	was = atomic_fetch_add(c, 1);
	if ((was & ~COUNT_MASK) == (h & ~COUNT_MASK) && (was & COUNT_MASK) < limit)
		return true;
	addrs_leave(r);
	return false;
}

void addrs_leave(struct rec *r)
{
	if (!(r->flags & REC_COUNTED))
		return;
	r->flags &= (uint8_t)~REC_COUNTED;
	uint64_t h = hash_of(r);
	_Atomic uint64_t *c = cell_of(h, false);
	uint64_t was = c != NULL ? atomic_load(c) : 0;
	while (c != NULL && (was & COUNT_MASK) > 0 &&
	    !atomic_compare_exchange_weak(c, &was, was - 1))
		;
}
