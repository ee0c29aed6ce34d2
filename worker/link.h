/*
 * link.h - what hosts send each other: packets of items, one publish a host a turn.
 *
 * Scope   items for a host gather in one open packet and leave at the end of the turn as one PUBLISH
 *         to that host's channel, at most LINK_PACKET bytes. The leading worker there reads them and
 *         hands each to the worker that it concerns, by inbox (IT_LINK): the owner of the user's
 *         session, the slot that asked, or all.
 * Loss    Redis carries a packet at most once. Each stream (host life, slot, generation) to a host
 *         counts its packets, and sends an empty one each heartbeat: the reader that misses one, or begins
 *         to read, has all sessions of its host look into the store (cluster_missed()), and tells that
 *         stream's worker (LK_MISSED), which sends what it still waits for again. A PUBLISH that
 *         nobody receives while the host's entry lives is tried again for a moment (a leader is being replaced);
 *         after it, and when Redis is lost, what was in it is gone: whoever sent an item that must not be lost
 *         waits for its answer, with a deadline.
 * Order   items from one worker to one host arrive in the order sent, or not at all.
 * Trust   whoever may publish in this Redis is believed to be a host; a packet is still checked for form
 *         before anything in it is done, and bounds everything that it can make.
 * Format  fixed-width fields of one byte order (the magic tells another); a struct item head each,
 *         padded to 8 bytes. LINK_VERSION is raised by every change that an older host cannot read.
 */
#ifndef PARLEY_LINK_H
#define PARLEY_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/peer.h"

#define LINK_MAGIC   0x6b6e6c79u
#define LINK_VERSION 1u
#define LINK_PACKET  65536u
#define LINK_ITEM    49152u		/* bytes of the largest item; a longer message goes through the store */
#define LINK_BOUND   (8u << 20)		/* bytes under way to a host that Redis has not answered */

struct host;

struct link_head {
	uint32_t magic, bytes;
	uint16_t version, id_len;	/* id_len bytes of the sender's id follow the head, padded to 8 */
	uint32_t items;
	uint64_t from_epoch, to_epoch;	/* to_epoch 0: whichever life there is */
	uint32_t slot, gen;		/* of the sending worker */
	uint64_t number;		/* of its packets to this host, from 1 */
};

enum link_type {
	LK_DELIVER = 1,		/* a message for a user of yours */
	LK_VERDICT,		/* what became of a message of yours */
	LK_REFUSED,		/* not taken: no such session here, or one before it is missing */
	LK_NOTICE,		/* the store holds something for a user of yours; answer */
	LK_NOTICED,		/* we know */
	LK_GROUP,		/* a group message was committed */
	LK_DISSOLVED,		/* a group is no more */
	LK_PRESENCE,		/* somebody came or went with us */
	LK_FORGET,		/* an account was deleted */
	LK_CALL,		/* a named method (call.h) */
	LK_REPLY,		/* its answer, or a part of it */
	LK_MISSED,		/* a packet of yours did not arrive: what you wait for, again */
	LK_NTYPES
};

struct link_deliver {			/* the body follows */
	struct item head;
	uint32_t slot, gen, ref, seq;	/* who answers for it, and its name there */
	uint32_t rcpt, sender, srec, sgen;
	uint64_t lane;			/* of that worker; K counts its messages from 1 */
	uint32_t k, flags;		/* flags: MF_CID */
	uint64_t ts;
	unsigned char mid[16];
	uint32_t to_off, core_len, cid_off, cid_len, body_len, pad;
};
struct link_verdict { struct item head; uint32_t slot, gen, ref, seq; int32_t result; uint32_t pad; };
struct link_refused { struct item head; uint32_t slot, gen, ref, seq; };
struct link_notice { struct item head; uint32_t slot, gen, user, token; };
struct link_noticed { struct item head; uint32_t slot, gen, user, token; };
struct link_missed { struct item head; uint32_t slot, gen; };	/* the stream's; gen 0: any of yours may have a hole */
/* LK_GROUP, LK_DISSOLVED, LK_FORGET are the items of peer.h with another type number. */
struct link_presence { struct item head; uint32_t user, online; uint64_t login_ms; };
struct link_call { struct item head; uint32_t slot, gen; uint64_t id; uint32_t wait_ms, name_len; };	/* name, then JSON */
struct link_reply { struct item head; uint32_t slot, gen; uint64_t id; int32_t code; uint32_t last; };	/* a piece of the answer follows */

/* Appends an item (head filled in here) and TAIL. False: no connection, that host is gone or we are one
 * ourselves, too long, or too much under way. */
bool link_send(struct host *h, enum link_type type, void *item, size_t len, const void *tail,
    size_t tail_len);
/* To every other live host. False if any of them was not reached: what it carried is found in the store. */
bool link_send_all(enum link_type type, void *item, size_t len, const void *tail, size_t tail_len);
/* End of turn. */
void link_flush(void);
/* An empty packet to every host: whoever missed the last one notices. */
void link_heartbeat(void);
/* From the host's channel (leading worker). */
void link_on_packet(const char *data, size_t len);
/* From a sibling that leads. */
void link_on_item(const struct item *it);
void link_host_gone(struct host *h);
/* The connection to Redis is lost: what waits is dropped. */
void link_drop_all(void);
/* This worker has begun to read the channel: it knows of no stream. */
void link_begin_reading(void);
/* Is it a packet, whole and of this version? */
bool link_packet_ok(const char *data, size_t len);

#endif
