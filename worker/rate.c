#include "worker/rate.h"

#include <stdbool.h>
#include <string.h>

#define NS_PER_S  1000000000u
#define NS_PER_MS 1000000u

uint32_t rate_take(struct rate_bucket *b, uint32_t per_second, uint32_t burst, uint32_t cost,
    uint64_t now_ms)
{
	uint64_t now = now_ms * NS_PER_MS, each, full, room;

	if (per_second == 0)
		return 0;
	each = NS_PER_S / per_second;
	full = (b->full_ns > now ? b->full_ns : now) + each * cost;
	room = each * (burst > cost ? burst : cost);
	if (full - now > room)
		return (uint32_t)((full - now - room + NS_PER_MS - 1) / NS_PER_MS);
	b->full_ns = full;
	return 0;
}

/*
 * A cell: the upper 30 bits tell the address, the lower 34 are the time at which its bucket is
 * full, in sixteenths of a millisecond, modulo twelve days. A bucket is full after a minute, so
 * a time that lies further ahead than that is one long gone: the cell is free.
 */
#define TIME_BITS 34
#define TIME_MASK ((UINT64_C(1) << TIME_BITS) - 1)
#define TICKS_PER_MS 16
#define MINUTE (UINT64_C(60000) * TICKS_PER_MS)
#define WAYS 4
#define TRIES 8

static uint64_t mix(uint64_t x)
{
	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	return x ^ x >> 32;
}

static uint64_t hash_addr(const unsigned char addr[16])
{
	static const unsigned char mapped[12] = { [10] = 0xff, [11] = 0xff };
	uint64_t high, low = 0;

	memcpy(&high, addr, 8);
	if (memcmp(addr, mapped, sizeof mapped) == 0)
		memcpy(&low, addr + 8, 8);
	return mix(mix(high + 1) + low);
}

/* Ticks until the cell's bucket is full; 0 where it is, or the cell was never used. */
static uint64_t ticks_left(uint64_t word, uint64_t now)
{
	uint64_t left = (word - now) & TIME_MASK;

	return word == 0 || left > MINUTE ? 0 : left;
}

/* The address's cell in its set, or a free one, or the one that is forgotten with least harm. */
static struct rate_addr *find_cell(struct rate_addr *set, size_t ways, uint64_t tag,
    uint64_t now, uint64_t *word_r)
{
	struct rate_addr *best = set;
	uint64_t word, best_left = UINT64_MAX;

	for (size_t i = 0; i < ways; i++) {
		word = atomic_load_explicit(&set[i].word, memory_order_relaxed);
		if (word != 0 && word >> TIME_BITS == tag) {
			*word_r = word;
			return &set[i];
		}
		if (ticks_left(word, now) < best_left) {
			best = &set[i];
			best_left = ticks_left(word, now);
			*word_r = word;
		}
	}
	return best;
}

uint32_t rate_addr_take(struct rate_addr *table, size_t n, const unsigned char addr[16],
    uint32_t per_minute, uint64_t now_ms)
{
	uint64_t hash = hash_addr(addr), tag = hash >> TIME_BITS, now = now_ms * TICKS_PER_MS;
	uint64_t each, left, word, sets = n < WAYS ? 1 : n / WAYS;
	struct rate_addr *cell;

	if (per_minute == 0 || n == 0 || per_minute > MINUTE)
		return 0;
	each = MINUTE / per_minute;
	for (int i = 0; i < TRIES; i++) {
		cell = find_cell(table + (hash & TIME_MASK) % sets * WAYS, n < WAYS ? n : WAYS,
		    tag, now, &word);
		left = word >> TIME_BITS == tag ? ticks_left(word, now) : 0;
		if (left + each > MINUTE)
			return (uint32_t)((left + each - MINUTE + TICKS_PER_MS - 1) / TICKS_PER_MS);
		if (atomic_compare_exchange_weak_explicit(&cell->word, &word,
		    tag << TIME_BITS | ((now + left + each) & TIME_MASK), memory_order_relaxed,
		    memory_order_relaxed))
			return 0;
	}
	return 0;		/* others were always faster: not ours to punish */
}
