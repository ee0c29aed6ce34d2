/*
 * timer.c - the wheel.
 *
 * A bitmap says which steps hold timers, so that the next one is found without a walk through 512
 * lists. Timers due in later rounds stay in their list and are passed over.
 */
#include "worker/timer.h"

#include <stddef.h>

#include "worker/base/clock.h"

#define STEPS 512u
#define STEP_MS 16u

static struct timer *wheel[STEPS];
static uint64_t used[STEPS / 64];
static uint64_t done_step;		/* steps up to this one were run */

static void link_in(struct timer *t, uint64_t step)
{
	struct timer **head = &wheel[step % STEPS];

	t->next = *head;
	t->prev = head;
	if (t->next != NULL)
		t->next->prev = &t->next;
	*head = t;
	used[step % STEPS / 64] |= UINT64_C(1) << (step % 64);
}

void timer_stop(struct timer *t)
{
	if (t->prev == NULL)
		return;
	*t->prev = t->next;
	if (t->next != NULL)
		t->next->prev = t->prev;
	t->prev = NULL;
	t->next = NULL;
}

void timer_set(struct timer *t, uint64_t at_ms, void (*fire)(struct timer *t))
{
	/* Rounded up: never early. A step that was run already is as good as the next one. */
	uint64_t step = (at_ms + STEP_MS - 1) / STEP_MS;

	timer_stop(t);
	if (done_step == 0)
		done_step = clock_ms() / STEP_MS;
	if (step <= done_step)
		step = done_step + 1;
	t->at_ms = at_ms;
	t->fire = fire;
	link_in(t, step);
}

static void run_step(uint64_t step, uint64_t now_ms)
{
	struct timer *due = wheel[step % STEPS], *t;

	/* Take the whole list first: what a callback sets goes to a fresh one. */
	wheel[step % STEPS] = NULL;
	used[step % STEPS / 64] &= ~(UINT64_C(1) << (step % 64));
	if (due != NULL)
		due->prev = &due;
	while ((t = due) != NULL) {
		timer_stop(t);
		if (t->at_ms <= now_ms)
			t->fire(t);
		else
			link_in(t, step);	/* a later round */
	}
}

void timer_run(uint64_t now_ms)
{
	uint64_t step = now_ms / STEP_MS;

	if (done_step == 0)
		done_step = step;
	if (step - done_step > STEPS)
		done_step = step - STEPS;	/* once round is all there is */
	while (done_step < step) {
		done_step++;
		if (used[done_step % STEPS / 64] & UINT64_C(1) << (done_step % 64))
			run_step(done_step, now_ms);
	}
}

int timer_wait(uint64_t now_ms, int cap)
{
	for (unsigned i = 1; i <= STEPS; i++) {
		uint64_t step = done_step + i;

		if (step % 64 == 0 && used[step % STEPS / 64] == 0) {
			i += 63;
			continue;
		}
		if ((used[step % STEPS / 64] & UINT64_C(1) << (step % 64)) == 0)
			continue;
		uint64_t at = step * STEP_MS;
		if (at <= now_ms)
			return 0;
		return at - now_ms < (uint64_t)cap ? (int)(at - now_ms) : cap;
	}
	return cap;
}
