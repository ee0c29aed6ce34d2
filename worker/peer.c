/*
 * peer.c - packets between workers.
 *
 * Items gather in one open packet a peer. When it is full, or the turn ends, it is sent; what an
 * inbox does not take waits in a list of closed packets and is tried again every few milliseconds:
 * the send end is shared, so EPOLLOUT would wake every writer for one place.
 */
#include "worker/peer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/group.h"
#include "worker/ipc.h"
#include "worker/link.h"
#include "worker/presence.h"
#include "worker/route.h"
#include "worker/session.h"
#include "worker/state.h"

#define RETRY_MS 2
#define READS    64			/* packets a call */

struct packet {
	struct packet *next;
	size_t len;
	char data[];
};

struct peer {
	char *open;			/* the packet being filled, IPC_PACKET bytes */
	size_t len;			/* bytes in it, 0: none begun */
	struct packet *head, **tail;	/* closed packets that wait */
	size_t waiting;			/* bytes in those */
	bool listed;
};

static struct peer *peers;
static uint32_t *active, nactive;	/* peers with something to send */
static struct timer retry;
static char inbuf[IPC_PACKET] __attribute__((aligned(8)));

/* Which items may be refused when a peer does not keep up; the rest is tiny and must arrive. */
static bool droppable(enum item_type t)
{
	return t == IT_DELIVER || t == IT_GROUP || t == IT_PRESENCE;
}

int peer_init(void)
{
	uint32_t n = shm->head->max_workers;

	peers = calloc(n, sizeof *peers);
	active = calloc(n, sizeof *active);
	return peers != NULL && active != NULL ? 0 : -1;
}

static size_t pad8(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

/* True when the inbox took it. */
static bool packet_send(uint32_t slot, const char *data, size_t len)
{
	while (send(wk->boot->peer_inbox[slot], data, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != ENOBUFS)
			log_error("inbox of worker %u: %s", slot, strerror(errno));
		COUNT(inbox_full);
		return false;
	}
	COUNT(packets_out);
	return true;
}

static void packet_keep(struct peer *p, const char *data, size_t len)
{
	struct packet *k = malloc(sizeof *k + len);

	if (k == NULL) {
		log_error("out of memory: a packet of %zu bytes to another worker is lost", len);
		return;
	}
	k->next = NULL;
	k->len = len;
	memcpy(k->data, data, len);
	if (p->head == NULL)
		p->tail = &p->head;
	*p->tail = k;
	p->tail = &k->next;
	p->waiting += len;
}

static void peer_close_packet(uint32_t slot, struct peer *p)
{
	struct ipc_head *h = (struct ipc_head *)p->open;

	if (p->len == 0)
		return;
	h->bytes = (uint32_t)p->len;
	h->to_gen = atomic_load(&slot_at(slot)->gen);
	if (p->head != NULL || !packet_send(slot, p->open, p->len))
		packet_keep(p, p->open, p->len);
	p->len = 0;
}

static void activate(uint32_t slot, struct peer *p)
{
	if (p->listed)
		return;
	p->listed = true;
	active[nactive++] = slot;
}

static bool packet_begin(uint32_t slot, struct peer *p)
{
	if (p->open == NULL && (p->open = malloc(IPC_PACKET)) == NULL)
		return false;
	*(struct ipc_head *)p->open = (struct ipc_head){ .magic = IPC_MAGIC, .from_slot = wk->slot,
	    .from_gen = wk->gen, .to_slot = slot };
	p->len = sizeof(struct ipc_head);
	return true;
}

bool peer_send(uint32_t slot, enum item_type type, void *item, size_t len, const void *tail,
    size_t tail_len)
{
	struct peer *p = &peers[slot];
	struct item *it = item;
	size_t all = len + tail_len;

	if (slot >= shm->head->max_workers || pad8(all) > IPC_PACKET - sizeof(struct ipc_head))
		return false;
	if (p->waiting > (droppable(type) ? PEER_BOUND : PEER_HARD))
		return false;
	activate(slot, p);
	if (p->len > 0 && p->len + pad8(all) > IPC_PACKET)
		peer_close_packet(slot, p);
	if (p->len == 0 && !packet_begin(slot, p))
		return false;
	it->type = (uint16_t)type;
	it->len = (uint32_t)all;
	memcpy(p->open + p->len, item, len);
	if (tail_len > 0)
		memcpy(p->open + p->len + len, tail, tail_len);
	memset(p->open + p->len + all, 0, pad8(all) - all);
	p->len += pad8(all);
	((struct ipc_head *)p->open)->items++;
	return true;
}

void peer_send_all(enum item_type type, void *item, size_t len, const void *tail, size_t tail_len)
{
	for (uint32_t i = 0; i < shm->head->max_workers; i++) {
		uint32_t st = atomic_load(&slot_at(i)->state);

		if (i != wk->slot && st != SLOT_EMPTY)
			(void)peer_send(i, type, item, len, tail, tail_len);
	}
}

size_t peer_backlog(uint32_t slot)
{
	return peers[slot].waiting;
}

bool peer_idle(void)
{
	return nactive == 0;
}

static void on_retry(struct timer *t)
{
	(void)t;			/* the turn's end flushes */
}

void peer_flush(void)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < nactive; i++) {
		uint32_t slot = active[i];
		struct peer *p = &peers[slot];
		struct packet *k;

		while ((k = p->head) != NULL && packet_send(slot, k->data, k->len)) {
			p->head = k->next;
			p->waiting -= k->len;
			free(k);
		}
		peer_close_packet(slot, p);
		if (p->head != NULL)
			active[kept++] = slot;
		else
			p->listed = false;
	}
	nactive = kept;
	if (nactive > 0 && !timer_is_set(&retry))
		timer_set(&retry, clock_ms() + RETRY_MS, on_retry);
}

/* ---- reading ---- */

static void on_look(const struct item *it)
{
	(void)it;
	cluster_look_again();
}

static const struct {
	size_t min;
	void (*run)(const struct item *it);
} handlers[IT_NTYPES] = {
	[IT_DELIVER] = { sizeof(struct item_deliver), route_on_deliver },
	[IT_VERDICT] = { sizeof(struct item_verdict), route_on_verdict },
	[IT_REFUSED] = { sizeof(struct item_refused), route_on_refused },
	[IT_NOTICE] = { sizeof(struct item_notice), route_on_notice },
	[IT_GROUP] = { sizeof(struct item_group), group_on_message },
	[IT_DISSOLVED] = { sizeof(struct item_dissolved), group_on_dissolved },
	[IT_PRESENCE] = { sizeof(struct item_presence), presence_on_item },
	[IT_FORGET] = { sizeof(struct item_forget), cmd_on_forget },
	[IT_LINK] = { sizeof(struct item_link) + sizeof(struct item), link_on_item },
	[IT_LOOK] = { sizeof(struct item_look), on_look },
	[IT_END] = { sizeof(struct item_end), session_on_end },
};

static bool packet_ok(const char *data, size_t len)
{
	const struct ipc_head *h = (const struct ipc_head *)data;
	size_t pos = sizeof *h;

	if (len < sizeof *h || h->magic != IPC_MAGIC || h->bytes != len)
		return false;
	for (uint32_t i = 0; i < h->items; i++) {
		const struct item *it = (const struct item *)(data + pos);

		if (len - pos < sizeof *it || it->len < sizeof *it || it->len > len - pos ||
		    pad8(it->len) > len - pos || it->type == 0 || it->type >= IT_NTYPES ||
		    it->len < handlers[it->type].min)
			return false;
		pos += pad8(it->len);
	}
	return pos == len;
}

/* Looked at as a whole before anything of it is done. */
static bool packet_run(const char *data, size_t len)
{
	const struct ipc_head *h = (const struct ipc_head *)data;
	const char *p = data + sizeof *h;

	if (!packet_ok(data, len))
		return false;
	for (uint32_t i = 0; i < h->items; i++) {
		const struct item *it = (const struct item *)p;

		handlers[it->type].run(it);
		p += pad8(it->len);
	}
	return true;
}

void peer_read(int fd)
{
	for (int i = 0; i < READS; i++) {
		ssize_t n = recv(fd, inbuf, sizeof inbuf, MSG_DONTWAIT | MSG_TRUNC);

		if (n < 0)
			return;
		COUNT(packets_in);
		if ((size_t)n > sizeof inbuf || !packet_run(inbuf, (size_t)n))
			log_warn("dropped a malformed packet of %zd bytes from a worker", n);
	}
}
