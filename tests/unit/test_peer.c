/* Packets between workers: what is sent arrives in order; what is malformed does nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/base/log.h"
#include "worker/cmd.h"
#include "worker/group.h"
#include "worker/ipc.h"
#include "worker/peer.h"
#include "worker/presence.h"
#include "worker/route.h"
#include "worker/cluster.h"
#include "worker/link.h"
#include "worker/session.h"
#include "worker/state.h"

#define WORKERS 3

static struct worker self;
struct worker *wk = &self;

static struct segment seg;
static struct worker_boot boot;
static int ends[WORKERS], inbox[WORKERS];

/* ---- what the handlers heard ---- */

static struct { uint16_t type; uint32_t value, len; } heard[100000];
static uint32_t nheard;

static void hear(const struct item *it, uint32_t value)
{
	if (nheard < sizeof heard / sizeof *heard) {
		heard[nheard].type = it->type;
		heard[nheard].len = it->len;
		heard[nheard].value = value;
	}
	nheard++;
}

#define HEAR(name, kind, field) \
	void name(const struct item *it) { hear(it, ((const struct kind *)it)->field); }
HEAR(route_on_deliver, item_deliver, ref)
HEAR(route_on_verdict, item_verdict, ref)
HEAR(route_on_refused, item_refused, ref)
HEAR(route_on_notice, item_notice, user)
HEAR(group_on_dissolved, item_dissolved, group)
HEAR(presence_on_item, item_presence, user)
HEAR(session_on_end, item_end, user)
HEAR(cmd_on_forget, item_forget, user)
HEAR(link_on_item, item_link, from_epoch)

void cluster_look_again(void)
{
	const struct item it = { .type = IT_LOOK };

	hear(&it, IT_LOOK);
}

void group_on_message(const struct item *it)
{
	const struct item_group *g = (const struct item_group *)it;
	const char *body = (const char *)(g + 1);

	assert_int_equal(it->len, sizeof *g + g->body_len);
	for (uint32_t i = 0; i < g->body_len; i++)
		assert_int_equal((unsigned char)body[i], (unsigned char)(g->group + i));
	hear(it, g->group);
}

static int set_up_all(void **state)
{
	const struct segment_shape shape = { WORKERS, 16, 1 << 20 };

	(void)state;
	log_set_level(LOG_L_FATAL);
	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	boot = (struct worker_boot){ .slot = 0, .gen = 5, .peer_inbox = ends };
	self = (struct worker){ .boot = &boot, .slot = 0, .gen = 5, .s = slot_at(0) };
	return peer_init();
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
	for (int i = 0; i < WORKERS; i++) {
		int sv[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, sv), 0);
		inbox[i] = sv[0];
		ends[i] = sv[1];
		slot_at((uint32_t)i)->state = SLOT_READY;
		slot_at((uint32_t)i)->gen = 5 + (uint32_t)i;
	}
	nheard = 0;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	for (int i = 0; i < 1000 && !peer_idle(); i++) {
		for (int k = 0; k < WORKERS; k++)
			peer_read(inbox[k]);
		peer_flush();
	}
	assert_true(peer_idle());
	for (int i = 0; i < WORKERS; i++) {
		close(inbox[i]);
		close(ends[i]);
	}
	return 0;
}

static bool notice(uint32_t slot, uint32_t user)
{
	struct item_notice it = { .user = user };

	return peer_send(slot, IT_NOTICE, &it, sizeof it, NULL, 0);
}

static bool deliver(uint32_t slot, uint32_t ref)
{
	struct item_deliver it = { .ref = ref };

	return peer_send(slot, IT_DELIVER, &it, sizeof it, NULL, 0);
}

static bool group(uint32_t slot, uint32_t id, uint32_t body_len)
{
	struct item_group it = { .group = id, .body_len = body_len };
	unsigned char *body = malloc(body_len + 1);

	assert_non_null(body);
	for (uint32_t i = 0; i < body_len; i++)
		body[i] = (unsigned char)(id + i);
	bool rc = peer_send(slot, IT_GROUP, &it, sizeof it, body, body_len);
	free(body);
	return rc;
}

/* ---- what is sent ---- */

static void test_a_packet_a_turn(void **state)
{
	char buf[IPC_PACKET];
	struct ipc_head h;

	(void)state;
	for (uint32_t i = 0; i < 50; i++)
		assert_true(notice(1, i));
	assert_false(peer_idle());
	assert_int_equal(recv(inbox[1], buf, sizeof buf, MSG_PEEK), -1);	/* not before the end */
	peer_flush();
	assert_true(peer_idle());
	assert_int_equal(recv(inbox[1], buf, sizeof buf, MSG_PEEK), sizeof h + 50 * 24);
	memcpy(&h, buf, sizeof h);
	assert_true(h.magic == IPC_MAGIC && h.items == 50 && h.from_slot == 0 && h.from_gen == 5 &&
	    h.to_slot == 1 && h.to_gen == 6);
	peer_read(inbox[1]);
	assert_int_equal(nheard, 50);
	for (uint32_t i = 0; i < 50; i++)
		assert_true(heard[i].type == IT_NOTICE && heard[i].value == i);
	peer_flush();
	assert_int_equal(recv(inbox[1], buf, sizeof buf, 0), -1);
}

static void test_every_type(void **state)
{
	struct item_verdict v = { .ref = 2 };
	struct item_refused r = { .ref = 3 };
	struct item_dissolved d = { .group = 6 };
	struct item_presence p = { .user = 7 };
	struct item_end e = { .user = 8 };
	struct item_forget f = { .user = 9 };
	struct item_link l = { .from_epoch = 10 };
	const struct item inner = { .type = 1, .len = sizeof inner };
	struct item_look k = { .head = { .type = 0 } };

	(void)state;
	assert_true(deliver(2, 1));
	assert_true(peer_send(2, IT_VERDICT, &v, sizeof v, "tail", 4));
	assert_true(peer_send(2, IT_REFUSED, &r, sizeof r, NULL, 0));
	assert_true(notice(2, 4));
	assert_true(group(2, 5, 1001));
	assert_true(peer_send(2, IT_DISSOLVED, &d, sizeof d, NULL, 0));
	assert_true(peer_send(2, IT_PRESENCE, &p, sizeof p, NULL, 0));
	assert_true(peer_send(2, IT_END, &e, sizeof e, NULL, 0));
	assert_true(peer_send(2, IT_FORGET, &f, sizeof f, NULL, 0));
	assert_true(peer_send(2, IT_LINK, &l, sizeof l, &inner, sizeof inner));
	assert_true(peer_send(2, IT_LOOK, &k, sizeof k, NULL, 0));
	peer_flush();
	peer_read(inbox[2]);
	assert_int_equal(nheard, IT_NTYPES - 1);
	for (uint32_t i = 0; i < nheard; i++)
		assert_true(heard[i].type == i + 1 && heard[i].value == i + 1);
	assert_int_equal(heard[1].len, sizeof v + 4);
}

static void test_to_all_that_live(void **state)
{
	struct item_presence p = { .user = 9 };

	(void)state;
	slot_at(2)->state = SLOT_EMPTY;
	peer_send_all(IT_PRESENCE, &p, sizeof p, NULL, 0);
	peer_flush();
	for (int i = 0; i < WORKERS; i++) {
		nheard = 0;
		peer_read(inbox[i]);
		assert_int_equal(nheard, i == 1);
	}
}

static void test_too_long(void **state)
{
	(void)state;
	assert_false(group(1, 1, IPC_PACKET));
	assert_false(group(1, 2, IPC_PACKET - sizeof(struct ipc_head) - sizeof(struct item_group) + 1));
	assert_true(group(1, 3, IPC_PACKET - sizeof(struct ipc_head) - sizeof(struct item_group)));
	assert_false(notice(WORKERS, 1));
	peer_flush();
	peer_read(inbox[1]);
	assert_int_equal(nheard, 1);
	assert_int_equal(heard[0].value, 3);
}

/* Nobody reads: what may be dropped is refused, the rest waits, and all comes in order. */
static void test_back_pressure(void **state)
{
	uint32_t n = 0, extra;

	(void)state;
	while (n < 50000 && group(1, n, 2000)) {
		n++;
		if (n % 10 == 0)
			peer_flush();
	}
	assert_in_range(n, PEER_BOUND / 2100, 49999);
	assert_true(peer_backlog(1) > PEER_BOUND);
	assert_false(deliver(1, 0));
	assert_true(notice(1, n));		/* must arrive */
	assert_true(group(2, 1, 10));		/* others are not concerned */
	assert_false(peer_idle());
	for (int i = 0; i < 10000 && !peer_idle(); i++) {
		peer_flush();
		peer_read(inbox[1]);
	}
	peer_read(inbox[1]);
	assert_int_equal(peer_backlog(1), 0);
	assert_int_equal(nheard, n + 1);
	for (uint32_t i = 0; i <= n; i++)
		assert_int_equal(heard[i].value, i);
	extra = nheard;
	assert_true(deliver(1, 1));
	peer_flush();
	peer_read(inbox[1]);
	assert_int_equal(nheard, extra + 1);
}

/* There is room again while older packets wait: a new one may not slip in before them. */
static void test_no_overtaking(void **state)
{
	uint32_t n = 0;

	(void)state;
	while (peer_backlog(1) < 1000000 && n < 20000)
		assert_true(group(1, n++, 2000));
	assert_true(peer_backlog(1) >= 1000000);
	peer_read(inbox[1]);
	for (int i = 0; i < 100; i++)
		assert_true(group(1, n++, 2000));
	for (int i = 0; i < 10000 && !peer_idle(); i++) {
		peer_read(inbox[1]);
		peer_flush();
	}
	peer_read(inbox[1]);
	assert_int_equal(nheard, n);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(heard[i].value, i);
}

/* ---- what is read ---- */

static char packet[IPC_PACKET + 16] __attribute__((aligned(8)));

static struct ipc_head *head(void) { return (struct ipc_head *)packet; }
static struct item *item_at(size_t off) { return (struct item *)(packet + sizeof(struct ipc_head) + off); }

/* Two good notices of 20 bytes, each padded to 24. */
static size_t good_packet(void)
{
	memset(packet, 0, sizeof packet);
	*head() = (struct ipc_head){ .magic = IPC_MAGIC, .items = 2,
	    .bytes = sizeof(struct ipc_head) + 48, .from_slot = 1 };
	for (size_t i = 0; i < 2; i++) {
		struct item_notice *n = (struct item_notice *)item_at(i * 24);

		n->head.type = IT_NOTICE;
		n->head.len = sizeof *n;
		n->user = (uint32_t)i;
	}
	return sizeof(struct ipc_head) + 48;
}

static void give(size_t len)
{
	nheard = 0;
	assert_int_equal(send(ends[0], packet, len, 0), len);
	peer_read(inbox[0]);
}

static void test_malformed(void **state)
{
	size_t len = good_packet();

	(void)state;
	give(len);
	assert_int_equal(nheard, 2);
#define BAD(change) do { len = good_packet(); change; give(len); assert_int_equal(nheard, 0); } while (0)
	BAD(head()->magic ^= 1);
	BAD(head()->bytes--);
	BAD(head()->bytes++);
	BAD(len -= 1);
	BAD(len += 8);
	BAD(len = sizeof(struct ipc_head) - 1);
	BAD(len = 1);
	BAD(head()->items = 3);			/* more than there are */
	BAD(head()->items = UINT32_MAX);
	BAD(item_at(24)->type = 0);		/* the second is wrong: the first is not executed */
	BAD(item_at(24)->type = IT_NTYPES);
	BAD(item_at(24)->type = UINT16_MAX);
	BAD(item_at(24)->len = 0);
	BAD(item_at(24)->len = sizeof(struct item) - 1);
	BAD(item_at(24)->len = sizeof(struct item_notice) - 1);
	BAD(item_at(24)->len = 25);
	BAD(item_at(24)->len = UINT32_MAX);
	BAD(item_at(24)->len = UINT32_MAX - 3);	/* its padding wraps */
	BAD(item_at(24)->type = IT_END);	/* too short for that */
	BAD(head()->items = 1);			/* bytes that are no item's */
	BAD(head()->items = 1; head()->bytes -= 25; len -= 25);
#undef BAD
	len = good_packet();
	memset(packet + len, 0, sizeof packet - len);
	head()->bytes = IPC_PACKET + 8;
	give(IPC_PACKET + 8);			/* longer than any */
	assert_int_equal(nheard, 0);
	len = good_packet();
	give(len);
	assert_int_equal(nheard, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_a_packet_a_turn, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_every_type, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_to_all_that_live, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_too_long, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_back_pressure, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_overtaking, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_malformed, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, set_up_all, tear_down_all);
}
