/* Packets between hosts: what leaves, in which order, and what is done with what comes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/bus.h"
#include "worker/call.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/group.h"
#include "worker/hosts.h"
#include "worker/link.h"
#include "worker/notice.h"
#include "worker/peer.h"
#include "worker/presence.h"
#include "worker/route.h"
#include "worker/state.h"

#define OURS 77u		/* epoch of this host, and the same for the other one */
#define HIS  88u

static struct worker self;
struct worker *wk = &self;
static struct segment seg;
static struct worker_boot boot = { .host_id = "me" };

/* ---- Redis ---- */

static struct { char data[LINK_PACKET]; size_t len; } sent[64];
static unsigned nsent;
static bus_done_fn *done;
static void *done_arg;
static uint64_t done_tag;
static bool up, full;

bool bus_send(unsigned argc, const char *const *argv, const size_t *lens, bus_done_fn *fn, void *arg,
    uint64_t tag)
{
	if (full)
		return false;
	assert_int_equal(argc, 3);
	assert_string_equal(argv[0], "PUBLISH");
	assert_string_equal(argv[1], "p:to:him");
	assert_null(done);		/* one at a time */
	if (nsent < 64) {
		memcpy(sent[nsent].data, argv[2], lens[2]);
		sent[nsent].len = lens[2];
	}
	nsent++;
	done = fn;
	done_arg = arg;
	done_tag = tag;
	return true;
}

/* Redis says how many read it; -1: the connection is lost. */
static void answer(int64_t n)
{
	struct bus_value v = { .type = BUS_INT, .n = n };
	bus_done_fn *fn = done;

	assert_non_null(fn);
	done = NULL;
	fn(done_arg, done_tag, n < 0 ? NULL : &v);
}

/* ---- the other host ---- */

static struct host him, me;
static unsigned beats, misses;

struct host *hosts_at(unsigned i) { return i == 0 ? &me : i == 1 ? &him : NULL; }
struct host *hosts_find(uint64_t key) { return key == him.key ? &him : NULL; }
void hosts_refresh(void) { beats++; }
const char *hosts_name(const char *kind, const char *rest)
{
	static char name[100];

	snprintf(name, sizeof name, "p:%s:%s", kind, rest);
	return name;
}
struct host *hosts_meet(const char *id, size_t len, uint64_t epoch)
{
	return len == 3 && memcmp(id, "him", 3) == 0 && epoch == him.epoch && him.alive ? &him : NULL;
}
bool cluster_on(void) { return true; }
bool cluster_up(void) { return up; }
void cluster_missed(void) { misses++; }

/* ---- siblings, and who is asked ---- */

static struct { uint16_t type; uint32_t slot, inner, len; } handed[64];
static unsigned nhanded;
static uint32_t user_slot = UINT32_MAX;
static size_t backlog;

bool peer_send(uint32_t slot, enum item_type type, void *item, size_t len, const void *tail, size_t tail_len)
{
	(void)item;
	(void)len;
	if (nhanded < 64) {
		handed[nhanded].type = (uint16_t)type;
		handed[nhanded].slot = slot;
		handed[nhanded].inner = ((const struct item *)tail)->type;
		handed[nhanded].len = (uint32_t)tail_len;
	}
	nhanded++;
	return true;
}
size_t peer_backlog(uint32_t slot) { (void)slot; return backlog; }

int __wrap_sess_find(uint32_t user, struct sess_ref *ref);
int __wrap_sess_find(uint32_t user, struct sess_ref *ref)
{
	*ref = (struct sess_ref){ .user = user, .slot = user_slot, .slot_gen = 5 };
	return user_slot != UINT32_MAX ? SESS_OK : SESS_EMISSING;
}

static uint16_t heard[256];
static unsigned nheard;
static uint64_t sum;

/* Reads all of an item, so that a sanitizer sees what lies outside. */
static void hear(const struct item *it)
{
	const unsigned char *p = (const unsigned char *)it;

	assert_int_equal((uintptr_t)it & 7, 0);
	for (uint32_t i = 0; i < it->len; i++)
		sum += p[i];
	if (nheard < 256)
		heard[nheard] = it->type;
	nheard++;
}

#define FAR(name) void name(struct host *from, const struct item *it) { assert_ptr_equal(from, &him); hear(it); }
#define NEAR(name) void name(const struct item *it) { hear(it); }
FAR(route_on_far_verdict) FAR(route_on_far_refused) FAR(route_on_far_missed)
FAR(notice_on_notice) FAR(notice_on_noticed) FAR(presence_on_far) FAR(call_on_reply)
NEAR(group_on_dissolved) NEAR(cmd_on_forget)

void route_on_far_deliver(struct host *from, const struct item *it)
{
	const struct link_deliver *d = (const struct link_deliver *)it;
	const char *body = (const char *)(d + 1);

	assert_ptr_equal(from, &him);
	hear(it);
	for (uint32_t i = 0; i < d->cid_len; i++)
		sum += (unsigned char)body[d->cid_off + i];
	sum += d->core_len > 0 ? (unsigned char)body[d->core_len - 1] : 0;
}

void call_on_call(struct host *from, const struct item *it)
{
	const struct link_call *c = (const struct link_call *)it;

	assert_ptr_equal(from, &him);
	hear(it);
	sum += c->name_len > 0 ? (unsigned char)((const char *)(c + 1))[c->name_len - 1] : 0;
}

void group_on_message(const struct item *it)
{
	const struct item_group *g = (const struct item_group *)it;

	hear(it);
	sum += g->body_len > 0 ? (unsigned char)((const char *)(g + 1))[g->body_len - 1] : 0;
}

/* ---- the stage ---- */

static int set_up_all(void **state)
{
	const struct segment_shape shape = { 3, 16, 1 << 20 };

	(void)state;
	log_set_level(LOG_L_FATAL);
	clock_tick();
	assert_int_equal(segment_open(&seg, &shape, OURS), 0);
	self = (struct worker){ .boot = &boot, .slot = 1, .gen = 5, .s = slot_at(1) };
	self.conf.heartbeat_ms = 100;
	for (uint32_t i = 0; i < 3; i++) {
		atomic_store(&slot_at(i)->state, SLOT_READY);
		atomic_store(&slot_at(i)->gen, 5);
	}
	return 0;
}

static int tear_down_all(void **state)
{
	(void)state;
	segment_close(&seg);
	return 0;
}

static int set_up(void **state)
{
	(void)state;
	him.key = 99;
	him.epoch++;			/* a new life: nothing of the last test is left */
	him.alive = true;
	memcpy(him.id, "him", 4);
	me = (struct host){ .key = 1, .epoch = OURS, .self = true, .alive = true };
	atomic_store(&shm->head->announced, SEGMENT_ANNOUNCED);
	done = NULL;
	up = true;
	full = false;
	backlog = 0;
	user_slot = UINT32_MAX;
	nsent = nhanded = nheard = misses = beats = 0;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	link_host_gone(&him);
	return 0;
}

static const struct link_head *head_of(unsigned i)
{
	return (const struct link_head *)sent[i].data;
}

static bool say(uint32_t user, size_t tail)
{
	static char body[LINK_ITEM];
	struct link_notice n = { .slot = 1, .gen = 5, .user = user };

	return link_send(&him, LK_NOTICE, &n, sizeof n, body, tail);
}

/* ---- out ---- */

static void a_turn_is_a_packet(void **state)
{
	(void)state;
	for (uint32_t i = 1; i <= 100; i++)
		assert_true(say(i, 0));
	assert_int_equal(nsent, 0);
	link_flush();
	assert_int_equal(nsent, 1);
	assert_true(link_packet_ok(sent[0].data, sent[0].len));
	assert_int_equal(head_of(0)->items, 100);
	assert_int_equal(head_of(0)->number, 1);
	assert_int_equal(head_of(0)->from_epoch, OURS);
	assert_int_equal(head_of(0)->to_epoch, him.epoch);
	/* While it is under way the next ones gather. */
	for (uint32_t i = 0; i < 5; i++) {
		assert_true(say(i, 0));
		link_flush();
	}
	assert_int_equal(nsent, 1);
	answer(1);
	assert_int_equal(nsent, 2);
	assert_int_equal(head_of(1)->items, 5);
	assert_int_equal(head_of(1)->number, 2);
	answer(1);
	assert_int_equal(nsent, 2);
}

static void packets_are_bounded(void **state)
{
	unsigned n = 0;

	(void)state;
	assert_false(say(1, LINK_ITEM));
	while (say(1, 40000))
		n++;
	assert_in_range(n, LINK_BOUND / 40100, LINK_BOUND / 40000 + 2);
	link_flush();
	assert_true(sent[0].len <= LINK_PACKET);
}

static void nobody_there(void **state)
{
	(void)state;
	up = false;
	assert_false(say(1, 0));
	up = true;
	him.alive = false;
	assert_false(say(1, 0));
	him.alive = true;
	atomic_store(&shm->head->announced, SEGMENT_UNKNOWN);
	assert_false(say(1, 0));
	assert_false(link_send(&me, LK_NOTICE, &(struct link_notice){ .slot = 1 }, sizeof(struct link_notice),
	    NULL, 0));
	link_flush();
	assert_int_equal(nsent, 0);
}

static void pass(uint64_t ms)
{
	uint64_t until = clock_now_ms() + ms;

	do {
		clock_tick();
		timer_run(clock_ms());
		link_flush();
	} while (clock_now_ms() < until && done == NULL);
}

/* Nothing newer passes what nobody has read yet; in the end it is dropped, with its number. */
static void an_unread_packet_is_tried_again(void **state)
{
	(void)state;
	assert_true(say(1, 0));
	link_flush();
	assert_true(say(2, 0));
	answer(0);
	link_flush();
	assert_int_equal(nsent, 1);
	pass(1000);
	assert_int_equal(nsent, 2);
	assert_int_equal(head_of(1)->number, 1);
	answer(1);
	assert_int_equal(nsent, 3);
	assert_int_equal(head_of(2)->number, 2);
	while (nsent < 20 && done != NULL) {
		answer(0);
		pass(1000);
	}
	assert_null(done);
	assert_in_range(nsent, 5, 12);
	assert_int_equal(head_of(nsent - 1)->number, 2);
	assert_true(say(3, 0));
	link_flush();
	assert_int_equal(head_of(nsent - 1)->number, 3);
	answer(1);
}

static void lost_with_the_connection(void **state)
{
	(void)state;
	assert_true(say(1, 0));
	link_flush();
	assert_true(say(2, 0));
	answer(-1);
	link_drop_all();
	link_flush();
	assert_int_equal(nsent, 1);
	assert_true(say(3, 0));
	link_flush();
	assert_int_equal(head_of(1)->items, 1);
	assert_int_equal(head_of(1)->number, 3);	/* the second was made and dropped: a hole */
	answer(1);
}

static void an_answer_of_former_times(void **state)
{
	(void)state;
	assert_true(say(1, 0));
	link_flush();
	bus_done_fn *fn = done;
	uint64_t tag = done_tag;
	void *arg = done_arg;
	struct bus_value v = { .type = BUS_INT, .n = 0 };

	done = NULL;
	link_host_gone(&him);
	him.epoch++;
	assert_true(say(2, 0));
	link_flush();
	fn(arg, tag, &v);
	assert_int_equal(nsent, 2);
	assert_int_equal(head_of(1)->number, 1);	/* a new life, a new stream */
	answer(1);
	assert_int_equal(nsent, 2);
}

static void heartbeats_when_it_is_quiet(void **state)
{
	(void)state;
	link_heartbeat();
	link_flush();
	assert_int_equal(nsent, 1);
	assert_int_equal(head_of(0)->items, 0);
	answer(1);
	assert_true(say(1, 0));
	link_heartbeat();
	link_flush();
	assert_int_equal(nsent, 2);
	assert_int_equal(head_of(1)->items, 1);
	answer(1);
}

/* ---- in ---- */

struct made { _Alignas(8) char data[LINK_PACKET]; size_t len; };

static void begin(struct made *m, uint32_t slot, uint32_t gen, uint64_t number)
{
	*(struct link_head *)m->data = (struct link_head){ .magic = LINK_MAGIC, .version = LINK_VERSION,
	    .id_len = 3, .from_epoch = him.epoch, .to_epoch = OURS, .slot = slot, .gen = gen, .number = number };
	memcpy(m->data + sizeof(struct link_head), "him\0\0\0\0", 8);
	m->len = sizeof(struct link_head) + 8;
	((struct link_head *)m->data)->bytes = (uint32_t)m->len;
}

static void add(struct made *m, enum link_type type, const void *item, size_t len, size_t tail)
{
	struct item *it = (struct item *)(m->data + m->len);

	memcpy(it, item, len);
	memset((char *)it + len, 'b', tail);
	it->type = (uint16_t)type;
	it->len = (uint32_t)(len + tail);
	memset((char *)it + len + tail, 0, ((len + tail + 7) & ~7u) - (len + tail));
	m->len += (len + tail + 7) & ~7u;
	((struct link_head *)m->data)->bytes = (uint32_t)m->len;
	((struct link_head *)m->data)->items++;
}

static void one_of_each(struct made *m)
{
	struct link_deliver d = { .slot = 1, .gen = 5, .rcpt = 7, .core_len = 50, .cid_off = 10, .cid_len = 5,
	    .body_len = 60 };
	struct link_refused r = { .slot = 1, .gen = 5 };
	struct link_notice n = { .slot = 1, .gen = 5, .user = 7 };
	struct item_group g = { .body_len = 33, .core_len = 20 };
	struct link_call c = { .slot = 1, .gen = 5, .name_len = 6 };
	struct link_reply p = { .slot = 1, .gen = 5 };
	struct link_verdict v = { .slot = 1, .gen = 5 };
	struct link_presence s = { .user = 7 };
	struct item_dissolved x = { .group = 1 };
	struct item_forget f = { .user = 3 };

	add(m, LK_DELIVER, &d, sizeof d, 60);
	add(m, LK_VERDICT, &v, sizeof v, 0);
	add(m, LK_REFUSED, &r, sizeof r, 0);
	add(m, LK_NOTICE, &n, sizeof n, 0);
	add(m, LK_NOTICED, &n, sizeof n, 0);
	add(m, LK_GROUP, &g, sizeof g, 33);
	add(m, LK_DISSOLVED, &x, sizeof x, 0);
	add(m, LK_PRESENCE, &s, sizeof s, 0);
	add(m, LK_FORGET, &f, sizeof f, 0);
	add(m, LK_CALL, &c, sizeof c, 20);
	add(m, LK_REPLY, &p, sizeof p, 7);
}

static void every_item_finds_its_worker(void **state)
{
	static struct made m;

	(void)state;
	begin(&m, 0, 1, 1);
	one_of_each(&m);
	link_on_packet(m.data, m.len);
	assert_int_equal(nheard, 11);
	for (unsigned i = 0; i < nheard; i++)
		assert_int_equal(heard[i], i + 1);
	assert_int_equal(nhanded, 4 * 2);		/* what concerns all, to two siblings */
	assert_int_equal(misses, 0);
	/* Somebody else's user: only that worker hears. */
	nheard = nhanded = 0;
	user_slot = 2;
	begin(&m, 0, 1, 2);
	add(&m, LK_NOTICE, &(struct link_notice){ .user = 7 }, sizeof(struct link_notice), 0);
	add(&m, LK_VERDICT, &(struct link_verdict){ .slot = 0, .gen = 5 }, sizeof(struct link_verdict), 0);
	add(&m, LK_VERDICT, &(struct link_verdict){ .slot = 0, .gen = 4 }, sizeof(struct link_verdict), 0);
	add(&m, LK_VERDICT, &(struct link_verdict){ .slot = 1, .gen = 4 }, sizeof(struct link_verdict), 0);
	add(&m, LK_VERDICT, &(struct link_verdict){ .slot = 9999, .gen = 5 }, sizeof(struct link_verdict), 0);
	link_on_packet(m.data, m.len);
	assert_int_equal(nheard, 0);
	assert_int_equal(nhanded, 2);
	assert_int_equal(handed[0].slot, 2);
	assert_int_equal(handed[1].slot, 0);
}

static void a_busy_worker_refuses(void **state)
{
	static struct made m;

	(void)state;
	user_slot = 2;
	backlog = PEER_BOUND + 1;
	begin(&m, 0, 1, 1);
	add(&m, LK_DELIVER, &(struct link_deliver){ .slot = 3, .gen = 2, .ref = 11, .seq = 12, .rcpt = 7,
	    .body_len = 8 }, sizeof(struct link_deliver), 8);
	link_on_packet(m.data, m.len);
	assert_int_equal(nheard + nhanded, 0);
	link_flush();
	assert_int_equal(nsent, 1);
	const struct link_refused *r = (const struct link_refused *)(sent[0].data + sizeof(struct link_head) + 8);
	assert_int_equal(r->head.type, LK_REFUSED);
	assert_int_equal(r->slot, 3);
	assert_int_equal(r->gen, 2);
	assert_int_equal(r->ref, 11);
	assert_int_equal(r->seq, 12);
	answer(1);
}

static void get(uint32_t slot, uint32_t gen, uint64_t number)
{
	static struct made m;

	begin(&m, slot, gen, number);
	link_on_packet(m.data, m.len);
	link_flush();
	if (done != NULL)
		answer(1);
}

static void holes_are_noticed(void **state)
{
	static const struct { uint32_t slot, gen; uint64_t number; unsigned misses; } rows[] = {
		{ 0, 1, 1, 0 }, { 0, 1, 2, 0 }, { 0, 1, 4, 1 }, { 0, 1, 5, 1 },
		{ 511, 1, 1, 1 }, { 3, 1, 2, 2 }, { 3, 1, 3, 2 },	/* the first one never came */
		{ 0, 2, 1, 2 }, { 0, 1, 9, 2 }, { 0, 2, 2, 2 },		/* a successor, then its predecessor's last */
		{ 0, 3, 3, 3 }, { 0, 3, 3, 4 }, { 0, 3, 4, 4 },		/* twice is odd, too */
	};

	(void)state;
	for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
		get(rows[i].slot, rows[i].gen, rows[i].number);
		assert_int_equal(misses, rows[i].misses);
	}
}

static void a_new_reader_takes_streams_as_they_are(void **state)
{
	(void)state;
	get(0, 1, 1);
	link_begin_reading();
	link_flush();
	if (done != NULL)
		answer(1);
	get(0, 1, 50);
	get(2, 9, 7);
	assert_int_equal(misses, 0);
	get(0, 1, 52);
	assert_int_equal(misses, 1);
}

static void what_is_not_for_this_life_is_dropped(void **state)
{
	static struct made m;
	struct link_head *h = (struct link_head *)m.data;
	uint64_t epoch = him.epoch;

	(void)state;
	for (int i = 0; i < 4; i++) {
		begin(&m, 0, 1, 1);
		add(&m, LK_FORGET, &(struct item_forget){ .user = 3 }, sizeof(struct item_forget), 0);
		if (i == 0)
			h->from_epoch = epoch - 1;
		else if (i == 1)
			h->to_epoch = OURS + 1;
		else if (i == 2)
			memcpy(m.data + sizeof *h, "his", 3);
		else
			him.alive = false;
		link_on_packet(m.data, m.len);
		assert_int_equal(nheard, 0);
	}
	him.alive = true;
	begin(&m, 0, 1, 1);
	h->to_epoch = 0;
	add(&m, LK_FORGET, &(struct item_forget){ .user = 3 }, sizeof(struct item_forget), 0);
	link_on_packet(m.data, m.len);
	assert_int_equal(nheard, 1);
}

/* Bytes changed, cut or added: nothing is read outside of the packet, nothing crashes. */
static void random_packets(void **state)
{
	static struct made m, good;

	(void)state;
	srandom(11);
	begin(&good, 0, 1, 1);
	one_of_each(&good);
	for (int round = 0; round < 30000; round++) {
		size_t len = good.len;
		char *copy;

		memcpy(m.data, good.data, good.len);
		for (long k = random() % 4; k > 0; k--)
			m.data[(size_t)random() % len] = (char)(random() % 3 == 0 ? random() : random() % 9);
		if (random() % 4 == 0)
			((struct link_head *)m.data)->bytes = (uint32_t)(len = len - (size_t)random() % len);
		copy = malloc(len);		/* so that its end is an end */
		memcpy(copy, m.data, len);
		link_on_packet(copy, len);
		free(copy);
		link_flush();
		if (done != NULL)
			answer(1);
	}
	assert_true(nheard > 1000);
}

static void random_items(void **state)
{
	(void)state;
	srandom(13);
	for (int round = 0; round < 30000; round++) {
		size_t len = sizeof(struct item_link) + sizeof(struct item) + (size_t)random() % 120;
		char *copy = malloc((len + 7) & ~7u);
		struct item_link *l = (struct item_link *)copy;
		struct item *inner = (struct item *)(l + 1);

		for (size_t i = 0; i < len; i++)
			copy[i] = (char)(random() % 60);
		l->head.len = (uint32_t)len;
		l->from = him.key;
		l->from_epoch = him.epoch;
		inner->type = (uint16_t)(random() % (LK_NTYPES + 2));
		if (random() % 8 != 0)
			inner->len = (uint32_t)(len - sizeof *l);
		link_on_item(&l->head);
		free(copy);
	}
	assert_true(nheard > 100);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(a_turn_is_a_packet), T(packets_are_bounded), T(nobody_there), T(an_unread_packet_is_tried_again),
		T(lost_with_the_connection), T(an_answer_of_former_times), T(heartbeats_when_it_is_quiet),
		T(every_item_finds_its_worker), T(a_busy_worker_refuses), T(holes_are_noticed),
		T(a_new_reader_takes_streams_as_they_are), T(what_is_not_for_this_life_is_dropped),
		T(random_packets), T(random_items),
	};

	him.epoch = HIS;
	return cmocka_run_group_tests(tests, set_up_all, tear_down_all);
}
