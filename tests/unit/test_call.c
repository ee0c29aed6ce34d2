/*
 * Calls between hosts: answers in order, deadlines, hosts that end, bounds of both sides.
 *
 * The other host is played here: what link_send() was given waits in a list, from which a test
 * takes it, loses it, or hands it to the other side of the same module.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/clock.h"
#include "worker/call.h"
#include "worker/cluster.h"
#include "worker/hosts.h"
#include "worker/link.h"
#include "worker/peer.h"
#include "worker/state.h"
#include "worker/timer.h"

static struct worker self = { .slot = 3, .gen = 7 };
struct worker *wk = &self;

static uint64_t now = 1000000;

void clock_tick(void) { }
uint64_t clock_ms(void) { return now; }
uint64_t clock_wall_ms(void) { return now; }
uint64_t clock_now_ms(void) { return now; }
uint64_t clock_now_wall_ms(void) { return now; }
void clock_text(uint64_t wall_ms, char text[20]) { (void)wall_ms; *text = '\0'; }

static void pass(uint64_t ms)
{
	now += ms;
	timer_run(now);
}

/* ---- the hosts and what is sent to them ---- */

static struct host near_host = { .key = 1, .epoch = 10, .id = "near", .self = true, .alive = true };
static struct host far_host = { .key = 2, .epoch = 20, .id = "far", .alive = true };
static bool up = true, taken = true;

bool hosts_alive(uint64_t key, uint64_t epoch)
{
	return key == far_host.key && far_host.alive && far_host.epoch == epoch;
}
bool cluster_up(void) { return up; }

/* ---- siblings ---- */

static struct slot slots[4];
static uint32_t handed_to = UINT32_MAX;
static struct item_link handed;

struct slot *slot_at(uint32_t i)
{
	assert_true(i < 4);
	return &slots[i];
}

bool peer_send(uint32_t slot, enum item_type type, void *item, size_t len, const void *tail,
    size_t tail_len)
{
	assert_int_equal(type, IT_LINK);
	assert_int_equal(len, sizeof handed);
	assert_int_equal(((const struct item *)tail)->len, tail_len);
	memcpy(&handed, item, len);
	handed_to = slot;
	return taken;
}

struct sent { struct sent *next; enum link_type type; union { struct item head; uint64_t align; char data[LINK_ITEM]; } it; };

static struct sent *first, **last = &first;
static unsigned nsent;

bool link_send(struct host *h, enum link_type type, void *item, size_t len, const void *tail,
    size_t tail_len)
{
	struct sent *s;

	if (!taken || !h->alive)
		return false;
	assert_true(len + tail_len <= LINK_ITEM);
	s = calloc(1, sizeof *s);
	s->type = type;
	memcpy(&s->it, item, len);
	if (tail_len > 0)
		memcpy(s->it.data + len, tail, tail_len);
	s->it.head.type = (uint16_t)type;
	s->it.head.len = (uint32_t)(len + tail_len);
	*last = s;
	last = &s->next;
	nsent++;
	return true;
}

static struct sent *sent_take(void)
{
	struct sent *s = first;

	if (s == NULL)
		return NULL;
	first = s->next;
	if (first == NULL)
		last = &first;
	nsent--;
	return s;
}

static void lose(void)
{
	struct sent *s = sent_take();

	assert_non_null(s);
	free(s);
}

/* All that was sent arrives: both hosts are this process, so a call's answer is read by its asker. */
static void arrive(void)
{
	struct sent *s;

	while ((s = sent_take()) != NULL) {
		if (s->type == LK_CALL)
			call_on_call(&far_host, &s->it.head);
		else
			call_on_reply(&far_host, &s->it.head);
		free(s);
	}
}

/* ---- methods ---- */

static uint64_t kept;
static unsigned ran;

static void run_echo(struct call *c, struct json *j, const struct json_val *args)
{
	struct json_val v;

	assert_true(json_get(j, args, "say", &v));
	ran++;
	assert_true(call_say(c, v.raw, v.len));
	call_finish(c, CALL_OK);
}

static void run_keep(struct call *c, struct json *j, const struct json_val *args)
{
	(void)j;
	(void)args;
	kept = call_number(c);
}

static char big[LINK_ITEM * 3];

static void run_big(struct call *c, struct json *j, const struct json_val *args)
{
	(void)j;
	(void)args;
	memset(big, 'b', sizeof big);
	assert_true(call_say(c, "first", 5));
	assert_true(call_say(c, big, sizeof big));
	assert_true(call_say(c, "last", 4));
	call_finish(c, 5);
}

static void done(void *arg, uint64_t tag, int code, const char *text, size_t len);

/* Asks ourselves from within: the outer arguments must stay readable. */
static void run_nest(struct call *c, struct json *j, const struct json_val *args)
{
	struct json_val v;

	call_host(&near_host, "echo", "{\"say\":\"inner\"}", 15, 1000, done, NULL, 99);
	assert_true(json_get(j, args, "say", &v));
	(void)call_say(c, v.raw, v.len);
	call_finish(c, CALL_OK);
}

static const struct call_method methods[] = {
	{ "echo", "", run_echo, false }, { "keep", "", run_keep, false }, { "big", "", run_big, false },
	{ "nest", "", run_nest, false }, { "lasts", "", run_keep, true },
};

const struct call_method *call_method_find(const char *name, size_t len)
{
	for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
		if (strlen(methods[i].name) == len && memcmp(methods[i].name, name, len) == 0)
			return &methods[i];
	return NULL;
}

/* ---- what became of a call ---- */

static struct { unsigned times; int code; uint64_t tag; char *text; size_t len; } got;

static void done(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	(void)arg;
	got.times++;
	got.code = code;
	got.tag = tag;
	assert_int_equal(text[len], '\0');
	free(got.text);
	got.text = malloc(len + 1);
	assert_non_null(got.text);
	memcpy(got.text, text, len + 1);
	got.len = len;
}

static void ask(struct host *h, const char *method, const char *args, uint32_t wait_ms, uint64_t tag)
{
	call_host(h, method, args, strlen(args), wait_ms, done, NULL, tag);
}

static void assert_got(unsigned times, int code, const char *text)
{
	assert_int_equal(got.times, times);
	if (times == 0)
		return;
	assert_int_equal(got.code, code);
	assert_string_equal(got.text, text);
}

static int begin(void **state)
{
	(void)state;
	far_host.alive = up = taken = true;
	free(got.text);
	memset(&got, 0, sizeof got);
	ran = 0;
	kept = 0;
	while (first != NULL)
		lose();
	return 0;
}

/* Nothing may stay behind: what a test left under way is late now. */
static int end(void **state)
{
	(void)state;
	pass(CALL_WAIT_MAX + 100);
	pass(9000);
	while (first != NULL)
		lose();
	free(got.text);
	got.text = NULL;
	return 0;
}

/* ---- tests ---- */

static void test_answer(void **state)
{
	(void)state;
	ask(&far_host, "echo", "{\"say\":{\"a\":1}}", 1000, 42);
	assert_got(0, 0, NULL);
	assert_int_equal(nsent, 1);
	arrive();
	assert_got(1, CALL_OK, "{\"a\":1}\n");
	assert_int_equal(got.tag, 42);
	pass(5000);
	assert_int_equal(got.times, 1);
}

static void test_ourselves(void **state)
{
	(void)state;
	ask(&near_host, "echo", "{\"say\":1}", 1000, 1);
	assert_got(1, CALL_OK, "1\n");
	ask(&near_host, "nest", "{\"say\":\"outer\"}", 1000, 2);
	assert_got(3, CALL_OK, "\"outer\"\n");
	assert_int_equal(nsent, 0);
	ask(&near_host, "keep", "{}", 1000, 3);
	pass(1100);
	assert_got(4, CALL_LATE, "");
	assert_null(call_by_number(kept));
	ask(&near_host, "big", "{}", 1000, 3);
	assert_int_equal(got.len, sizeof big + 12);
}

static void test_errors_of_the_other_side(void **state)
{
	(void)state;
	ask(&far_host, "none such", "{}", 1000, 1);
	arrive();
	assert_got(1, CALL_UNKNOWN, "");
	static const char *const bad[] = { "", "[]", "7", "{", "{\"a\":1,\"a\":2}" };
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		ask(&far_host, "echo", bad[i], 1000, 1);
		arrive();
		assert_got(i + 2, CALL_BAD, "");
	}
	assert_int_equal(ran, 0);
}

static void test_large_answer_in_pieces(void **state)
{
	(void)state;
	ask(&far_host, "big", "{}", 1000, 1);
	arrive();
	assert_int_equal(got.times, 1);
	assert_int_equal(got.code, 5);
	assert_int_equal(got.len, sizeof big + 12);
	assert_memory_equal(got.text, "first\nb", 7);
	assert_memory_equal(got.text + 6, big, sizeof big);
	assert_string_equal(got.text + 6 + sizeof big, "\nlast\n");
}

static void test_a_hole_is_no_answer(void **state)
{
	struct sent *s;

	(void)state;
	for (unsigned hole = 0; hole < 7; hole++) {
		begin(NULL);
		ask(&far_host, "big", "{}", 1000, 1);
		s = sent_take();
		call_on_call(&far_host, &s->it.head);
		free(s);
		assert_int_equal(nsent, 8);	/* first, three and a rest, the line's end, last, the end */
		for (unsigned i = 0; i < 8; i++) {
			s = sent_take();
			if (i != hole)
				call_on_reply(&far_host, &s->it.head);
			free(s);
			assert_int_equal(got.times, i > hole);	/* known with the next piece */
		}
		assert_got(1, CALL_LATE, got.text);
	}
	begin(NULL);			/* the end itself is lost: only the deadline is left */
	ask(&far_host, "echo", "{\"say\":1}", 1000, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	free(s);
	s = sent_take();
	call_on_reply(&far_host, &s->it.head);
	free(s);
	lose();
	assert_got(0, 0, NULL);
	pass(1100);
	assert_int_equal(got.times, 1);
	assert_int_equal(got.code, CALL_LATE);
}

static void test_deadlines(void **state)
{
	struct sent *s;

	(void)state;
	ask(&far_host, "echo", "{\"say\":1}", 500, 1);
	pass(400);
	assert_got(0, 0, NULL);
	pass(200);
	assert_got(1, CALL_LATE, "");
	arrive();			/* too late, and for nobody */
	assert_int_equal(got.times, 1);

	ask(&far_host, "keep", "{}", 500, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	free(s);
	assert_non_null(call_by_number(kept));
	assert_in_range(call_until_ms(call_by_number(kept)), now + 499, now + 501);
	pass(600);
	assert_null(call_by_number(kept));
	assert_int_equal(got.times, 2);
}

/* A late answer must not be taken for that of a call which has the same place now. */
static void test_late_answer_and_reused_place(void **state)
{
	struct sent *s;

	(void)state;
	ask(&far_host, "echo", "{\"say\":\"old\"}", 500, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	free(s);
	struct sent *answer = sent_take(), *fin = sent_take();
	pass(600);
	assert_got(1, CALL_LATE, "");
	ask(&far_host, "keep", "{}", 500, 2);
	lose();
	call_on_reply(&far_host, &answer->it.head);
	call_on_reply(&far_host, &fin->it.head);
	assert_int_equal(got.times, 1);
	free(answer);
	free(fin);
}

static void test_absent_and_unreachable(void **state)
{
	(void)state;
	ask(NULL, "echo", "{}", 1000, 1);
	assert_got(1, CALL_ABSENT, "");
	far_host.alive = false;
	ask(&far_host, "echo", "{}", 1000, 1);
	assert_got(2, CALL_ABSENT, "");
	far_host.alive = true;
	taken = false;
	ask(&far_host, "echo", "{}", 1000, 1);
	assert_got(3, CALL_BUSY, "");
	up = false;
	ask(&far_host, "echo", "{}", 1000, 1);
	assert_got(4, CALL_LATE, "");
	taken = up = true;
	char *huge = malloc(LINK_ITEM + 1);
	memset(huge, ' ', LINK_ITEM);
	huge[LINK_ITEM] = '\0';
	ask(&far_host, "echo", huge, 1000, 1);
	assert_got(5, CALL_BAD, "");
	free(huge);
	assert_int_equal(nsent, 0);
}

static void test_host_gone(void **state)
{
	struct sent *s;

	(void)state;
	ask(&far_host, "keep", "{}", 60000, 1);
	ask(&far_host, "keep", "{}", 60000, 2);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	free(s);
	lose();
	assert_non_null(call_by_number(kept));
	call_host_gone(&far_host, far_host.epoch - 1);	/* a life before this one */
	assert_int_equal(got.times, 0);
	far_host.alive = false;
	call_host_gone(&far_host, far_host.epoch);
	assert_got(2, CALL_ABSENT, "");
	assert_null(call_by_number(kept));
	pass(60100);
	assert_int_equal(got.times, 2);
}

/* What takes long is for the lowest worker there is, and for us when it is not taken. */
static void test_what_lasts_goes_to_the_lowest(void **state)
{
	struct sent *s;

	(void)state;
	slots[3].state = SLOT_READY;
	ask(&far_host, "lasts", "{}", 5000, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	assert_int_equal(handed_to, UINT32_MAX);
	assert_non_null(call_by_number(kept));
	slots[0].state = SLOT_LEAVING;
	slots[1].state = slots[2].state = SLOT_READY;
	kept = 0;
	call_on_call(&far_host, &s->it.head);
	assert_int_equal(handed_to, 1);
	assert_int_equal(handed.from, far_host.key);
	assert_int_equal(handed.from_epoch, far_host.epoch);
	assert_int_equal(kept, 0);
	taken = false;
	call_on_call(&far_host, &s->it.head);
	assert_int_not_equal(kept, 0);
	free(s);
	taken = true;
	handed_to = UINT32_MAX;
	ask(&far_host, "keep", "{}", 5000, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	assert_int_equal(handed_to, UINT32_MAX);
	free(s);
}

/* Whoever asks is of a former life: its answer is dropped here, and a reply of one is not honoured. */
static void test_former_lives(void **state)
{
	struct sent *s;

	(void)state;
	ask(&far_host, "keep", "{}", 5000, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	free(s);
	far_host.epoch++;
	assert_false(call_say(call_by_number(kept), "x", 1));
	call_finish(call_by_number(kept), CALL_OK);
	assert_int_equal(nsent, 0);

	ask(&far_host, "echo", "{\"say\":1}", 5000, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	free(s);
	far_host.epoch++;
	arrive();
	assert_int_equal(got.times, 0);
}

static void test_an_answer_without_end(void **state)
{
	struct sent *s;
	struct call *c;
	size_t said = 0;

	(void)state;
	ask(&far_host, "keep", "{}", 60000, 1);
	s = sent_take();
	call_on_call(&far_host, &s->it.head);
	free(s);
	c = call_by_number(kept);
	while (call_put(c, big, 40000)) {
		said += 40000;
		assert_true(said <= CALL_ANSWER);
		arrive();
	}
	assert_true(said > CALL_ANSWER - 40000);
	call_finish(c, CALL_OK);
	arrive();
	assert_int_equal(got.times, 1);
	assert_int_equal(got.code, CALL_LONG);

	/* And one whose sender has no bound. */
	ask(&far_host, "keep", "{}", 60000, 2);
	s = sent_take();
	uint64_t id = ((struct link_call *)(void *)&s->it)->id;
	for (int32_t n = 0; got.times < 2; n++) {
		assert_true((size_t)n * 40000 < CALL_ANSWER + 40000);
		*(struct link_reply *)(void *)&s->it = (struct link_reply){ .head = { .type = LK_REPLY,
		    .len = sizeof(struct link_reply) + 40000 }, .slot = 3, .gen = 7, .id = id, .code = n };
		call_on_reply(&far_host, &s->it.head);
	}
	assert_int_equal(got.code, CALL_LONG);
	free(s);
}

static void test_too_many(void **state)
{
	struct sent *s;

	(void)state;
	for (unsigned i = 0; i < CALLS_MAX; i++)
		ask(&far_host, "keep", "{}", 5000, i);
	assert_int_equal(nsent, CALLS_MAX);
	assert_int_equal(got.times, 0);
	ask(&far_host, "keep", "{}", 5000, 1);
	assert_got(1, CALL_BUSY, "");
	while (nsent > 0) {
		s = sent_take();
		call_on_call(&far_host, &s->it.head);
		free(s);
	}
	assert_int_equal(got.times, 1);
	/* The table of what is asked of us is full as well: the next one is told. */
	struct { struct link_call call; char name[4]; } it = { .call = { .head = { .type = LK_CALL },
	    .slot = 3, .gen = 7, .id = 5, .wait_ms = 1000, .name_len = 4 }, .name = "keep" };
	it.call.head.len = sizeof it;
	call_on_call(&far_host, &it.call.head);
	s = sent_take();
	assert_int_equal(((struct link_reply *)(void *)&s->it)->code, CALL_BUSY);
	assert_int_equal(((struct link_reply *)(void *)&s->it)->last, 1);
	free(s);
	pass(5100);
	assert_int_equal(got.times, 1 + CALLS_MAX);
	assert_int_equal(got.code, CALL_LATE);
	for (unsigned i = 0; i < CALLS_MAX; i++)	/* every place is free again */
		ask(&far_host, "keep", "{}", 5000, i);
	assert_int_equal(got.times, 1 + CALLS_MAX);
}

static void test_what_is_malformed(void **state)
{
	struct { struct link_call call; char name[64]; } it = { .call = { .head = { .type = LK_CALL },
	    .wait_ms = 1000, .name_len = 1u << 31 } };
	struct link_reply r = { .head = { .type = LK_REPLY, .len = sizeof r }, .id = 0 };

	(void)state;
	for (uint32_t len = sizeof it.call; len <= sizeof it; len += 8) {
		it.call.head.len = len;
		call_on_call(&far_host, &it.call.head);
	}
	it.call.name_len = 4;
	it.call.head.len = sizeof it.call + 3;
	call_on_call(&far_host, &it.call.head);
	it.call.head.len = sizeof it.call - 8;
	call_on_call(&far_host, &it.call.head);
	for (uint64_t id = 0; id < 5000; id++) {
		r.id = id * 0x9e3779b97f4a7c15u;
		call_on_reply(&far_host, &r.head);
	}
	ask(&far_host, "keep", "{}", 5000, 1);
	struct sent *s = sent_take();
	r.id = ((struct link_call *)(void *)&s->it)->id;
	r.head.len = sizeof r - 8;
	r.last = 1;
	call_on_reply(&far_host, &r.head);
	free(s);
	assert_int_equal(nsent, 0);
	assert_int_equal(got.times, 0);
}

/* Places are named anew each time: an old number finds nobody. */
static void test_numbers_are_never_used_twice(void **state)
{
	uint64_t before = 0;

	(void)state;
	for (int i = 0; i < 3000; i++) {
		ask(&near_host, "keep", "{}", 5000, 1);
		assert_true(kept > before);
		assert_null(call_by_number(before));
		before = kept;
		call_finish(call_by_number(kept), CALL_OK);
	}
	assert_int_equal(got.times, 3000);
}

static void test_texts(void **state)
{
	(void)state;
	for (int code = CALL_LONG; code < CALL_OK; code++)
		assert_true(strlen(call_text(code)) > 10);
	assert_string_equal(call_text(CALL_OK), "");
	assert_non_null(call_text(17));
	assert_non_null(call_text(INT32_MIN));
}

#define T(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_answer),
		T(test_ourselves),
		T(test_errors_of_the_other_side),
		T(test_large_answer_in_pieces),
		T(test_a_hole_is_no_answer),
		T(test_deadlines),
		T(test_late_answer_and_reused_place),
		T(test_absent_and_unreachable),
		T(test_host_gone),
		T(test_what_lasts_goes_to_the_lowest),
		T(test_former_lives),
		T(test_an_answer_without_end),
		T(test_too_many),
		T(test_what_is_malformed),
		T(test_numbers_are_never_used_twice),
		T(test_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
