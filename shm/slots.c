/*
 * slots.c - looking a worker's slot up, and its counters by name.
 */
#include "shm/slots.h"

#include <assert.h>
#include <stddef.h>

#include "shm/segment.h"

struct slot *slot_at(uint32_t i)
{
	assert(i < shm->head->max_workers);
	return (struct slot *)segment_at(shm->head->slots_off) + i;
}

bool slot_alive(uint32_t i, uint32_t gen)
{
	const struct slot *s;
	uint32_t state;

	if (gen == 0 || i >= shm->head->max_workers)
		return false;
	s = slot_at(i);
	if (atomic_load_explicit(&s->gen, memory_order_acquire) != gen)
		return false;
	state = atomic_load_explicit(&s->state, memory_order_acquire);
	if (state == SLOT_EMPTY || state == SLOT_DEAD)
		return false;
	/* The state may be a successor's: it is stored after the generation was raised. */
	return atomic_load_explicit(&s->gen, memory_order_acquire) == gen;
}

#define X(name, help) \
	static uint64_t get_##name(const struct slot *s) \
	{ \
		return atomic_load_explicit(&s->n.name, memory_order_relaxed); \
	}
SLOT_COUNTERS(X)
#undef X

static const struct slot_counter counters[] = {
#define X(name, help) { #name, help, get_##name },
	SLOT_COUNTERS(X)
#undef X
};

const struct slot_counter *slot_counter_at(unsigned i)
{
	return i < sizeof(counters) / sizeof(counters[0]) ? &counters[i] : NULL;
}
