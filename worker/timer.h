/*
 * timer.h - deadlines of the loop: a wheel of 512 steps of 16 ms.
 *
 * Scope   a struct timer is embedded in what waits; setting, moving and cancelling cost a few
 *         stores, however many are set. Far deadlines go round the wheel more than once.
 * Units   monotonic milliseconds (clock_ms()). A timer never fires early and up to one step late.
 * Owner   the embedding object; timer_stop() before it is freed. The callback runs once and may
 *         set the timer again or free its object.
 */
#ifndef PARLEY_TIMER_H
#define PARLEY_TIMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct timer {
	struct timer *next, **prev;	/* prev NULL: not set */
	uint64_t at_ms;
	void (*fire)(struct timer *t);
};

void timer_set(struct timer *t, uint64_t at_ms, void (*fire)(struct timer *t));
void timer_stop(struct timer *t);
static inline bool timer_is_set(const struct timer *t) { return t->prev != NULL; }
/* Fires everything that is due at NOW. */
void timer_run(uint64_t now_ms);
/* Milliseconds from NOW until something may be due, at most CAP. */
int timer_wait(uint64_t now_ms, int cap);

#endif
