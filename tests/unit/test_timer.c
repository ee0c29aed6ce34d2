/* The wheel: never early, never more than a step late, and what callbacks may do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "worker/base/clock.h"
#include "worker/timer.h"

#define STEP  16u
#define ROUND (512 * STEP)

static uint64_t now = 1000000;

uint64_t clock_ms(void) { return now; }

struct probe { struct timer t; unsigned fired; uint64_t fired_at; };

static void note(struct timer *t)
{
	struct probe *p = (struct probe *)t;

	p->fired++;
	p->fired_at = now;
}

static void advance(uint64_t ms)
{
	while (ms-- > 0) {
		now++;
		timer_run(now);
	}
}

static void assert_due(const struct probe *p, uint64_t at)
{
	assert_int_equal(p->fired, 1);
	assert_true(p->fired_at >= at);
	assert_true(p->fired_at < at + STEP);
	assert_false(timer_is_set(&p->t));
}

static void test_fires_in_time(void **state)
{
	(void)state;
	for (uint64_t after = 1; after < 200; after++) {
		struct probe p = { .fired = 0 };
		uint64_t at = now + after;

		timer_set(&p.t, at, note);
		assert_true(timer_is_set(&p.t));
		advance(after + STEP);
		assert_due(&p, at);
	}
}

static void test_many_at_once(void **state)
{
	static struct probe p[3000];
	uint64_t from = now;

	(void)state;
	memset(p, 0, sizeof p);
	for (uint64_t i = 0; i < 3000; i++)
		timer_set(&p[i].t, from + 1 + i * 7, note);
	advance(3000 * 7 + STEP);
	for (uint64_t i = 0; i < 3000; i++)
		assert_due(&p[i], from + 1 + i * 7);
}

static void test_past_is_next_step(void **state)
{
	struct probe p = { .fired = 0 };

	(void)state;
	timer_set(&p.t, now - 5000, note);
	advance(STEP);
	assert_int_equal(p.fired, 1);
}

static void test_far_goes_round(void **state)
{
	struct probe p = { .fired = 0 };
	uint64_t at = now + 3 * ROUND + 5;

	(void)state;
	timer_set(&p.t, at, note);
	advance(3 * ROUND);
	assert_int_equal(p.fired, 0);
	advance(STEP + 5);
	assert_due(&p, at);
}

static void test_stop_and_move(void **state)
{
	struct probe p = { .fired = 0 }, q = { .fired = 0 };
	uint64_t at = now + 500;

	(void)state;
	timer_stop(&p.t);			/* never set: harmless */
	timer_set(&p.t, now + 50, note);
	timer_set(&q.t, now + 50, note);
	timer_stop(&p.t);
	assert_false(timer_is_set(&p.t));
	timer_set(&q.t, at, note);
	advance(100);
	assert_int_equal(p.fired + q.fired, 0);
	advance(500);
	assert_int_equal(p.fired, 0);
	assert_due(&q, at);
}

static struct probe pair[2];

static void stop_the_other(struct timer *t)
{
	struct probe *p = (struct probe *)t;

	p->fired++;
	timer_stop(&pair[p == &pair[0]].t);
}

static void test_callback_stops_another_of_its_step(void **state)
{
	(void)state;
	memset(pair, 0, sizeof pair);
	timer_set(&pair[0].t, now + 32, stop_the_other);
	timer_set(&pair[1].t, now + 32, stop_the_other);
	advance(100);
	assert_int_equal(pair[0].fired + pair[1].fired, 1);
	assert_false(timer_is_set(&pair[0].t) || timer_is_set(&pair[1].t));
}

static void again(struct timer *t)
{
	note(t);
	timer_set(t, now, again);		/* due already: the next step, not for ever */
}

static void test_callback_sets_itself(void **state)
{
	struct probe p = { .fired = 0 };

	(void)state;
	timer_set(&p.t, now + STEP, again);
	advance(10 * STEP);
	assert_in_range(p.fired, 9, 11);
	timer_stop(&p.t);
}

static unsigned freed;

static void free_it(struct timer *t)
{
	free(t);
	freed++;
}

static void test_callback_frees(void **state)
{
	(void)state;
	for (int i = 0; i < 10; i++) {
		struct timer *t = calloc(1, sizeof *t);

		assert_non_null(t);
		timer_set(t, now + 20, free_it);
	}
	advance(40);
	assert_int_equal(freed, 10);
}

/* A process that was stopped for long finds everything due, each once. */
static void test_jump(void **state)
{
	static struct probe p[2000];
	struct probe later = { .fired = 0 };

	(void)state;
	memset(p, 0, sizeof p);
	for (uint64_t i = 0; i < 2000; i++)
		timer_set(&p[i].t, now + 1 + i * 9, note);
	timer_set(&later.t, now + 100000 + 40, note);
	now += 100000;
	timer_run(now);
	for (uint64_t i = 0; i < 2000; i++)
		assert_int_equal(p[i].fired, 1);
	assert_int_equal(later.fired, 0);
	advance(60);
	assert_int_equal(later.fired, 1);
}

static void test_wait(void **state)
{
	struct probe p = { .fired = 0 };
	int ms;

	(void)state;
	advance(ROUND + STEP);
	assert_int_equal(timer_wait(now, 300), 300);
	for (uint64_t after = 1; after < 280; after += 3) {
		timer_set(&p.t, now + after, note);
		ms = timer_wait(now, 300);
		assert_true(ms >= (int)after);		/* not woken in vain ... */
		assert_true(ms < (int)(after + STEP));	/* ... nor late */
		timer_stop(&p.t);
		advance(ROUND);			/* what was stopped may wake once, and is forgotten */
	}
	timer_set(&p.t, now + 290, note);
	assert_int_equal(timer_wait(now, 50), 50);
	assert_int_equal(timer_wait(now + 2000, 300), 0);
	timer_stop(&p.t);
	p.fired = 0;
	timer_set(&p.t, now + 100, note);
	now += (uint64_t)timer_wait(now, 300);
	timer_run(now);
	assert_int_equal(p.fired, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fires_in_time),
		cmocka_unit_test(test_many_at_once),
		cmocka_unit_test(test_past_is_next_step),
		cmocka_unit_test(test_far_goes_round),
		cmocka_unit_test(test_stop_and_move),
		cmocka_unit_test(test_callback_stops_another_of_its_step),
		cmocka_unit_test(test_callback_sets_itself),
		cmocka_unit_test(test_callback_frees),
		cmocka_unit_test(test_jump),
		cmocka_unit_test(test_wait),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
