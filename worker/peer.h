/*
 * peer.h - what workers of one host send each other, coalesced: one packet a peer a turn.
 *
 * Scope   items are appended to a buffer a peer and leave at the end of the turn; packets that
 *         the inbox does not take yet wait in order. A full inbox is back-pressure: peer_send() answers
 *         false for what may be dropped or go another way (see the table) once PEER_BOUND waits, and
 *         keeps what must arrive up to PEER_HARD.
 * Rules   items carry ids and generations, never state: whoever reads one checks it against the
 *         segment. A packet that is not well formed is dropped whole and counted in the log.
 *         Packets outlive their reader: a successor, or the sibling that serves the inbox of an
 *         empty slot, reads on where the dead one stopped.
 */
#ifndef PARLEY_PEER_H
#define PARLEY_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PEER_BOUND (4u << 20)
#define PEER_HARD  (64u << 20)

enum item_type {
	IT_DELIVER = 1,		/* a message in my region is for a session of yours */
	IT_VERDICT,		/* what became of a message of yours */
	IT_REFUSED,		/* that session is not here: your message again */
	IT_NOTICE,		/* the store holds something for that session */
	IT_GROUP,		/* a group message was committed */
	IT_DISSOLVED,		/* a group is no more */
	IT_PRESENCE,		/* somebody came or went */
	IT_END,			/* end that session */
	IT_FORGET,		/* an account was deleted */
	IT_LINK,		/* an item of another host is for you (link.h) */
	IT_LOOK,		/* something from other hosts may be lost: look into the store */
	IT_NTYPES
};

struct item { uint16_t type, flags; uint32_t len; };	/* len: with this head, before padding to 8 */

struct item_deliver { struct item head; uint32_t slot, ref, seq, rcpt, rrec, rgen; };
struct item_verdict { struct item head; uint32_t ref, seq, srec, sgen; uint32_t kind; int32_t result; };
struct item_refused { struct item head; uint32_t ref, seq; };
struct item_notice { struct item head; uint32_t user, rrec, rgen; };
struct item_group {			/* the body follows, unless it was too long for a packet */
	struct item head;
	uint32_t group, sender;
	uint64_t number, ts;
	unsigned char mid[16];
	uint32_t body_len, core_len;	/* body_len 0: read it from the store */
};
struct item_dissolved { struct item head; uint32_t group; };
struct item_presence { struct item head; uint32_t user, online; };	/* user 0: look at all */
struct item_forget { struct item head; uint32_t user; };
struct item_link { struct item head; uint64_t from, from_epoch; };	/* key and life of the host; the item follows */
struct item_look { struct item head; };
struct item_end { struct item head; uint32_t user, rrec, rgen; char reason[16]; };

int peer_init(void);
/* Appends an item (its head is filled in) and TAIL bytes behind it. False: not taken. */
bool peer_send(uint32_t slot, enum item_type type, void *item, size_t len, const void *tail,
    size_t tail_len);
/* To every other slot with a live worker. */
void peer_send_all(enum item_type type, void *item, size_t len, const void *tail, size_t tail_len);
/* Bytes waiting for that slot. */
size_t peer_backlog(uint32_t slot);
/* End of turn: packets leave. */
void peer_flush(void);
/* Everything handed to the inboxes? */
bool peer_idle(void);
/* Reads packets from an inbox (own, or one that this worker serves), bounded a call. */
void peer_read(int fd);

#endif
