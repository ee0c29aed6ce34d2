/*
 * link.c - packets to other hosts, and what came in theirs.
 *
 * Out: one packet to a host is under way at a time, and the next one leaves when Redis has answered. So
 * a PUBLISH that found no reader can be tried again without anything newer having passed it, and
 * what a busy turn sends shares packets. Packets that wait are bounded by LINK_BOUND a host.
 *
 * In: the number of a packet says whether the stream has a hole. A reader that has just begun knows no
 * numbers: for FRESH_BEATS heartbeats it takes each stream as it comes, because it has had everybody look
 * into the store when it began; a stream that appears later must begin with 1.
 */
#include "worker/link.h"

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
#include "worker/notice.h"
#include "worker/presence.h"
#include "worker/route.h"
#include "worker/state.h"

#define RETRY_MIN   50u
#define RETRY_MAX   400u
#define GIVE_UP_MS  1000u
#define FRESH_BEATS 3u
#define SLOTS_MAX   512u		/* workers of a host */
#define COMPLAIN_MS 5000u

struct packet {
	struct packet *next;
	size_t len;
	uint32_t items;
	char data[];
};

struct stream { uint32_t gen; uint64_t next; };

struct link {
	struct host *host;
	uint64_t epoch;			/* the life that packets are for */
	uint64_t number;		/* of the last packet made */
	char *open;			/* LINK_PACKET bytes; LEN 0: none begun */
	size_t len;
	struct packet *head, **tail;	/* closed; the first one may be under way */
	size_t waiting;			/* bytes in those */
	uint32_t serial;		/* what an answer must carry to be for the first one */
	bool busy, sent;		/* busy: under way; sent: something, since the last heartbeat */
	uint32_t retry_ms;
	uint64_t unread_ms;		/* since when nobody reads; 0: somebody does */
	struct timer retry;
	struct stream *streams;		/* of its workers, by slot */
	uint32_t nstreams;
	struct link *next_dirty;
	bool dirty;
};

static struct link *dirty;
static uint64_t fresh_until_ms;

static size_t pad8(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

static struct link *link_of(struct host *h)
{
	struct link *l = h->link;

	if (l != NULL)
		return l;
	if ((l = calloc(1, sizeof *l)) == NULL)
		return NULL;
	l->host = h;
	l->tail = &l->head;
	l->epoch = h->epoch;
	h->link = l;
	return l;
}

/* ---- out ---- */

static void drop_waiting(struct link *l)
{
	struct packet *p;

	while ((p = l->head) != NULL) {
		l->head = p->next;
		COUNT_N(link_lost, p->items);
		free(p);
	}
	l->tail = &l->head;
	l->waiting = 0;
}

static void drop_all(struct link *l)
{
	drop_waiting(l);
	if (l->len > 0)
		COUNT_N(link_lost, ((struct link_head *)l->open)->items);
	l->len = 0;
	l->busy = false;
	l->serial++;
	l->retry_ms = 0;
	l->unread_ms = 0;
	timer_stop(&l->retry);
}

static void forget_streams(struct link *l)
{
	free(l->streams);
	l->streams = NULL;
	l->nstreams = 0;
}

/* The host began a new life: its streams begin anew, in both directions. */
static void renew(struct link *l)
{
	if (l->epoch == l->host->epoch)
		return;
	drop_all(l);
	l->epoch = l->host->epoch;
	l->number = 0;
	l->sent = false;
	forget_streams(l);
}

static void mark_dirty(struct link *l)
{
	if (l->dirty)
		return;
	l->dirty = true;
	l->next_dirty = dirty;
	dirty = l;
}

static bool open_packet(struct link *l)
{
	const char *id = wk->boot->host_id;
	size_t id_len = strlen(id);

	if (l->open == NULL && (l->open = malloc(LINK_PACKET)) == NULL)
		return false;
	*(struct link_head *)l->open = (struct link_head){ .magic = LINK_MAGIC, .version = LINK_VERSION,
	    .id_len = (uint16_t)id_len, .from_epoch = shm->head->epoch, .to_epoch = l->epoch,
	    .slot = wk->slot, .gen = wk->gen, .number = ++l->number };
	l->len = sizeof(struct link_head);
	memcpy(l->open + l->len, id, id_len);
	memset(l->open + l->len + id_len, 0, pad8(id_len) - id_len);
	l->len += pad8(id_len);
	return true;
}

/* The open packet joins those that wait. */
static bool close_packet(struct link *l)
{
	struct link_head *h = (struct link_head *)l->open;
	struct packet *p;

	if (l->len == 0)
		return true;
	if ((p = malloc(sizeof *p + l->len)) == NULL)
		return false;
	h->bytes = (uint32_t)l->len;
	p->next = NULL;
	p->len = l->len;
	p->items = h->items;
	memcpy(p->data, l->open, l->len);
	*l->tail = p;
	l->tail = &p->next;
	l->waiting += p->len;
	l->len = 0;
	return true;
}

static void on_published(void *arg, uint64_t tag, const struct bus_value *v);

static void publish(struct link *l)
{
	const char *argv[3] = { "PUBLISH", hosts_name("to", l->host->id), NULL };
	size_t lens[3] = { 7, strlen(argv[1]), 0 };

	if (l->busy || timer_is_set(&l->retry))
		return;
	if (l->head == NULL && !close_packet(l))
		return;
	if (l->head == NULL)
		return;
	argv[2] = l->head->data;
	lens[2] = l->head->len;
	l->serial++;
	l->busy = bus_send(3, argv, lens, on_published, l, l->serial);
	if (l->busy)
		COUNT(link_packets_out);
	else
		mark_dirty(l);		/* the line is full; where it is down, all of this is dropped */
}

static void drop_first(struct link *l)
{
	struct packet *p = l->head;

	l->head = p->next;
	if (l->head == NULL)
		l->tail = &l->head;
	l->waiting -= p->len;
	free(p);
}

static void on_retry(struct timer *t)
{
	struct link *l = (struct link *)((char *)t - offsetof(struct link, retry));

	publish(l);
}

/* Nobody read it: its reader is being replaced, or that host is about to be gone. */
static void unread(struct link *l)
{
	if (l->unread_ms == 0)
		l->unread_ms = clock_ms();
	if (clock_ms() - l->unread_ms >= GIVE_UP_MS) {
		log_warn("nobody reads what is for host %s: %zu bytes are dropped", l->host->id,
		    l->waiting);
		drop_waiting(l);
		l->unread_ms = 0;
		l->retry_ms = 0;
		return;
	}
	l->retry_ms = l->retry_ms == 0 ? RETRY_MIN : l->retry_ms * 2;
	if (l->retry_ms > RETRY_MAX)
		l->retry_ms = RETRY_MAX;
	timer_set(&l->retry, clock_ms() + l->retry_ms, on_retry);
}

static void on_published(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct link *l = arg;

	if ((uint32_t)tag != l->serial || !l->busy)
		return;			/* dropped meanwhile */
	l->busy = false;
	if (v == NULL)
		return;			/* the line is lost: link_lost_all() */
	if (v->type == BUS_INT && v->n == 0) {
		unread(l);
		return;
	}
	if (v->type == BUS_ERROR)
		COUNT_N(link_lost, l->head->items);
	l->retry_ms = 0;
	l->unread_ms = 0;
	drop_first(l);
	publish(l);
}

/* Others know this life of ours: what it says is honoured. */
static bool announced(void)
{
	return atomic_load_explicit(&shm->head->announced, memory_order_relaxed) == SEGMENT_ANNOUNCED;
}

bool link_send(struct host *h, enum link_type type, void *item, size_t len, const void *tail,
    size_t tail_len)
{
	struct link *l = h != NULL && !h->self && h->alive && cluster_up() && announced() ?
	    link_of(h) : NULL;
	struct item *it = item;
	size_t all = len + tail_len;

	if (l == NULL || all > LINK_ITEM)
		return false;
	renew(l);
	if (l->waiting + l->len > LINK_BOUND)
		return false;
	if (l->len > 0 && l->len + pad8(all) > LINK_PACKET && !close_packet(l))
		return false;
	if (l->len == 0 && !open_packet(l))
		return false;
	it->type = (uint16_t)type;
	it->len = (uint32_t)all;
	memcpy(l->open + l->len, item, len);
	if (tail_len > 0)
		memcpy(l->open + l->len + len, tail, tail_len);
	memset(l->open + l->len + all, 0, pad8(all) - all);
	l->len += pad8(all);
	((struct link_head *)l->open)->items++;
	l->sent = true;
	COUNT(link_items_out);
	mark_dirty(l);
	return true;
}

bool link_send_all(enum link_type type, void *item, size_t len, const void *tail, size_t tail_len)
{
	struct host *h;
	bool all = cluster_up() || !cluster_on();

	for (unsigned i = 0; (h = hosts_at(i)) != NULL; i++)
		if (!h->self && h->alive && !link_send(h, type, item, len, tail, tail_len))
			all = false;
	return all;
}

void link_flush(void)
{
	struct link *l = dirty;

	dirty = NULL;
	while (l != NULL) {
		struct link *next = l->next_dirty;

		l->dirty = false;
		publish(l);
		l = next;
	}
}

void link_heartbeat(void)
{
	struct host *h;

	for (unsigned i = 0; cluster_up() && announced() && (h = hosts_at(i)) != NULL; i++) {
		struct link *l = !h->self && h->alive ? link_of(h) : NULL;

		if (l == NULL)
			continue;
		renew(l);
		if (!l->sent && l->len == 0 && l->head == NULL && open_packet(l))
			mark_dirty(l);
		l->sent = false;
	}
}

void link_host_gone(struct host *h)
{
	if (h->link != NULL)
		drop_all(h->link);
}

void link_drop_all(void)
{
	struct host *h;

	for (unsigned i = 0; (h = hosts_at(i)) != NULL; i++)
		link_host_gone(h);
}

/* ---- the form of a packet ---- */

enum where { TO_USER, TO_WORKER, TO_ALL, TO_LEADER };

static void far_deliver(struct host *from, const struct item *it) { route_on_far_deliver(from, it); }
static void far_verdict(struct host *from, const struct item *it) { route_on_far_verdict(from, it); }
static void far_refused(struct host *from, const struct item *it) { route_on_far_refused(from, it); }
static void far_notice(struct host *from, const struct item *it) { notice_on_notice(from, it); }
static void far_noticed(struct host *from, const struct item *it) { notice_on_noticed(from, it); }
static void far_presence(struct host *from, const struct item *it) { presence_on_far(from, it); }
static void far_call(struct host *from, const struct item *it) { call_on_call(from, it); }
static void far_reply(struct host *from, const struct item *it) { call_on_reply(from, it); }
static void far_missed(struct host *from, const struct item *it) { route_on_far_missed(from, it); }
static void far_group(struct host *from, const struct item *it) { (void)from; group_on_message(it); }
static void far_dissolved(struct host *from, const struct item *it) { (void)from; group_on_dissolved(it); }
static void far_forget(struct host *from, const struct item *it) { (void)from; cmd_on_forget(it); }

static const struct {
	size_t min;
	enum where where;
	bool hint;			/* may be dropped where a worker does not keep up */
	void (*run)(struct host *from, const struct item *it);
} kinds[LK_NTYPES] = {
	[LK_DELIVER] = { sizeof(struct link_deliver), TO_USER, true, far_deliver },
	[LK_VERDICT] = { sizeof(struct link_verdict), TO_WORKER, false, far_verdict },
	[LK_REFUSED] = { sizeof(struct link_refused), TO_WORKER, false, far_refused },
	[LK_NOTICE] = { sizeof(struct link_notice), TO_USER, false, far_notice },
	[LK_NOTICED] = { sizeof(struct link_noticed), TO_WORKER, false, far_noticed },
	[LK_GROUP] = { sizeof(struct item_group), TO_ALL, true, far_group },
	[LK_DISSOLVED] = { sizeof(struct item_dissolved), TO_ALL, false, far_dissolved },
	[LK_PRESENCE] = { sizeof(struct link_presence), TO_ALL, true, far_presence },
	[LK_FORGET] = { sizeof(struct item_forget), TO_ALL, false, far_forget },
	[LK_CALL] = { sizeof(struct link_call), TO_LEADER, false, far_call },
	[LK_REPLY] = { sizeof(struct link_reply), TO_WORKER, false, far_reply },
	[LK_MISSED] = { sizeof(struct link_missed), TO_ALL, false, far_missed },
};

/* Are the parts of its tail within it? */
static bool tail_ok(const struct item *it)
{
	size_t tail = it->len - kinds[it->type].min;
	const struct link_deliver *d = (const struct link_deliver *)it;

	switch (it->type) {
	case LK_DELIVER:
		return d->body_len == tail && d->core_len <= tail && d->to_off <= tail &&
		    d->cid_off <= tail && d->cid_len <= tail - d->cid_off;
	case LK_CALL:
		return ((const struct link_call *)it)->name_len <= tail;
	case LK_GROUP:
		return ((const struct item_group *)it)->body_len <= tail;
	default:
		return true;
	}
}

static bool item_ok(const struct item *it, size_t room)
{
	return room >= sizeof *it && it->type > 0 && it->type < LK_NTYPES &&
	    it->len >= kinds[it->type].min && it->len <= LINK_ITEM && pad8(it->len) <= room &&
	    tail_ok(it);
}

bool link_packet_ok(const char *data, size_t len)
{
	const struct link_head *h = (const struct link_head *)data;
	size_t pos = sizeof *h;

	if (len < sizeof *h || len > LINK_PACKET || h->magic != LINK_MAGIC ||
	    h->version != LINK_VERSION || h->bytes != len || h->id_len == 0 || h->id_len > HOST_ID_MAX || h->slot >= SLOTS_MAX ||
	    h->gen == 0 || h->number == 0 || h->from_epoch == 0)
		return false;
	pos += pad8(h->id_len);
	if (pos > len)
		return false;
	for (uint32_t i = 0; i < h->items; i++) {
		const struct item *it = (const struct item *)(data + pos);

		if (!item_ok(it, len - pos))
			return false;
		pos += pad8(it->len);
	}
	return pos == len;
}

/* ---- in ---- */

static void tell_missed(struct host *h, uint32_t slot, uint32_t gen)
{
	struct link_missed it = { .slot = slot, .gen = gen };

	(void)link_send(h, LK_MISSED, &it, sizeof it, NULL, 0);
}

void link_begin_reading(void)
{
	struct host *h;

	fresh_until_ms = clock_ms() + (uint64_t)FRESH_BEATS * wk->conf.heartbeat_ms + 1000;
	for (unsigned i = 0; (h = hosts_at(i)) != NULL; i++)
		if (h->link != NULL)
			forget_streams(h->link);
	for (unsigned i = 0; (h = hosts_at(i)) != NULL; i++)
		if (!h->self && h->alive)
			tell_missed(h, 0, 0);	/* what the former reader took with it */
}

static struct stream *stream_of(struct link *l, uint32_t slot)
{
	if (slot >= l->nstreams) {
		struct stream *s = realloc(l->streams, (slot + 1) * sizeof *s);

		if (s == NULL)
			return NULL;
		memset(s + l->nstreams, 0, (slot + 1 - l->nstreams) * sizeof *s);
		l->streams = s;
		l->nstreams = slot + 1;
	}
	return &l->streams[slot];
}

/* Is the packet the one that its stream goes on with? */
static bool in_order(struct link *l, uint32_t slot, uint32_t gen, uint64_t number, bool fresh)
{
	struct stream *s = stream_of(l, slot);
	bool ok;

	if (s == NULL)
		return false;
	if (s->gen != 0 && gen < s->gen)
		return true;		/* of a worker that is dead: it was overtaken by its successor */
	ok = gen == s->gen ? number == s->next : number == 1 || (fresh && s->gen == 0);
	s->gen = gen;
	s->next = number + 1;
	return ok;
}

/* A hint that a busy worker does not get: what it says is in the store. */
static void not_taken(struct host *from, const struct item *it)
{
	const struct link_deliver *d = (const struct link_deliver *)it;
	struct link_refused r = { .slot = d->slot, .gen = d->gen, .ref = d->ref, .seq = d->seq };

	if (it->type == LK_DELIVER)
		(void)link_send(from, LK_REFUSED, &r, sizeof r, NULL, 0);
	else
		cluster_missed();
}

static void hand_on(struct host *from, const struct item *it, uint32_t slot)
{
	struct item_link head = { .from = from->key, .from_epoch = from->epoch };

	if ((kinds[it->type].hint && peer_backlog(slot) > PEER_BOUND) ||
	    !peer_send(slot, IT_LINK, &head, sizeof head, it, it->len))
		not_taken(from, it);
}

static void hand_to_worker(struct host *from, const struct item *it, uint32_t slot, uint32_t gen)
{
	if (slot == wk->slot && gen == wk->gen)
		kinds[it->type].run(from, it);
	else if (slot_alive(slot, gen) && slot != wk->slot)
		hand_on(from, it, slot);
}

static uint32_t user_of(const struct item *it)
{
	return it->type == LK_DELIVER ? ((const struct link_deliver *)it)->rcpt :
	    ((const struct link_notice *)it)->user;
}

/* Whoever serves the user; where nobody does, the handler says so by itself. */
static void hand_to_user(struct host *from, const struct item *it)
{
	struct sess_ref ref;

	if (sess_find(user_of(it), &ref) == SESS_OK && ref.slot != wk->slot &&
	    slot_alive(ref.slot, ref.slot_gen))
		hand_on(from, it, ref.slot);
	else
		kinds[it->type].run(from, it);
}

static void hand_to_all(struct host *from, const struct item *it)
{
	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		if (i != wk->slot && atomic_load(&slot_at(i)->state) != SLOT_EMPTY)
			hand_on(from, it, i);
	kinds[it->type].run(from, it);
}

static void run_item(struct host *from, const struct item *it)
{
	/* Those of one worker begin alike. */
	const struct link_refused *to = (const struct link_refused *)it;

	COUNT(link_items_in);
	switch (kinds[it->type].where) {
	case TO_USER:
		hand_to_user(from, it);
		break;
	case TO_WORKER:
		hand_to_worker(from, it, to->slot, to->gen);
		break;
	case TO_ALL:
		hand_to_all(from, it);
		break;
	case TO_LEADER:
		kinds[it->type].run(from, it);
	}
}

static void complain(const char *data, size_t len)
{
	static uint64_t said_ms;
	const struct link_head *h = (const struct link_head *)data;

	COUNT(link_bad);
	if (said_ms != 0 && clock_ms() - said_ms < COMPLAIN_MS)
		return;
	said_ms = clock_ms();
	if (len >= sizeof *h && h->magic == LINK_MAGIC && h->version != LINK_VERSION)
		log_warn("a host of the cluster speaks version %u of packets, this one version %u: they are "
		    "dropped", h->version, LINK_VERSION);
	else
		log_warn("dropped a malformed packet of %zu bytes from another host", len);
}

static void run_packet(const char *data, size_t len)
{
	const struct link_head *h = (const struct link_head *)data;
	struct host *from;
	struct link *l;

	if (!link_packet_ok(data, len)) {
		complain(data, len);
		return;
	}
	COUNT(link_packets_in);
	from = hosts_meet(data + sizeof *h, h->id_len, h->from_epoch);
	if (from == NULL || (h->to_epoch != 0 && h->to_epoch != shm->head->epoch) ||
	    (l = link_of(from)) == NULL) {
		COUNT(link_bad);
		return;
	}
	renew(l);
	if (!in_order(l, h->slot, h->gen, h->number, clock_ms() < fresh_until_ms)) {
		COUNT(link_misses);
		log_debug("packets of host %s, worker %u, are missing before number %llu", from->id, h->slot,
		    (unsigned long long)h->number);
		cluster_missed();
		tell_missed(from, h->slot, h->gen);
	}
	data += sizeof *h + pad8(h->id_len);
	for (uint32_t i = 0; i < h->items; i++) {
		const struct item *it = (const struct item *)data;

		run_item(from, it);
		data += pad8(it->len);
	}
}

void link_on_packet(const char *data, size_t len)
{
	static char copy[LINK_PACKET] __attribute__((aligned(8)));

	if (((uintptr_t)data & 7) != 0 && len <= sizeof copy) {
		memcpy(copy, data, len);
		data = copy;
	}
	run_packet(data, len);
}

void link_on_item(const struct item *it)
{
	const struct item_link *head = (const struct item_link *)it;
	const struct item *inner = (const struct item *)(head + 1);
	struct host *from;

	if (!item_ok(inner, pad8(it->len - sizeof *head)) || inner->len != it->len - sizeof *head)
		return;
	from = hosts_find(head->from);
	if (from != NULL && from->alive && from->epoch == head->from_epoch)
		kinds[inner->type].run(from, inner);
	else
		hosts_refresh();	/* not heard of yet, or over: what matters in it is asked again */
}
