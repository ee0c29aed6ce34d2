/* bench_hist.c - a histogram of times. */
#include "tests/bench/bench.h"

static uint32_t slot_of(uint64_t ns)
{
	int top;

	if (ns < HIST_STEPS)
		return (uint32_t)ns;
	top = 63 - __builtin_clzll(ns);			/* >= 6 */
	uint32_t s = (uint32_t)(top - 5) * HIST_STEPS + (uint32_t)(ns >> (top - 6)) - HIST_STEPS;

	return s < HIST_SLOTS ? s : HIST_SLOTS - 1;
}

/* The largest value that falls into a slot. */
static uint64_t slot_top(uint32_t s)
{
	uint32_t octave = s / HIST_STEPS, step = s % HIST_STEPS;

	if (octave == 0)
		return s;
	return (((uint64_t)HIST_STEPS + step + 1) << (octave - 1)) - 1;
}

void hist_add(struct hist *h, uint64_t ns)
{
	h->count++;
	h->sum += ns;
	if (ns > h->max)
		h->max = ns;
	h->slot[slot_of(ns)]++;
}

void hist_merge(struct hist *into, const struct hist *from)
{
	into->count += from->count;
	into->sum += from->sum;
	if (from->max > into->max)
		into->max = from->max;
	for (uint32_t i = 0; i < HIST_SLOTS; i++)
		into->slot[i] += from->slot[i];
}

uint64_t hist_quantile(const struct hist *h, double p)
{
	uint64_t rank = (uint64_t)(p * (double)h->count + 0.5), seen = 0;

	for (uint32_t i = 0; i < HIST_SLOTS; i++) {
		seen += h->slot[i];
		if (seen >= rank && seen > 0)
			return slot_top(i) < h->max ? slot_top(i) : h->max;
	}
	return h->max;
}
