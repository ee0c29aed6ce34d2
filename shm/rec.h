/*
 * rec.h - session records: what a client connection is, apart from its bytes.
 *
 * Scope   one record a connection, from accept to the end of what it left behind. The hash
 *         (sess.h) says which record a user is bound to; the record is the truth about it.
 * Owner   one word says state and owning slot, and the owner's generation changes with it, by one
 *         compare-and-swap, so no death leaves a record half claimed or half given. Write neither
 *         but through rec_*(). Only the owning slot's worker writes the rest.
 *         gen + 1 at each claim: (index, gen) names a connection for good.
 * Reading from other processes: fields are plain words written by their owner; a reader that
 *         needs more than the word checks gen before and after.
 * Order   records are handed out lowest index first, so that memory follows use.
 */
#ifndef PARLEY_SHM_REC_H
#define PARLEY_SHM_REC_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "shm/segment.h"

#define REC_NONE UINT32_MAX

enum rec_state {
	REC_FREE = 0,
	REC_ALLOC,		/* claimed, being filled in */
	REC_OPEN,		/* a connection with a descriptor */
	REC_CLOSING,		/* descriptor gone; stays until all it held is stored */
	REC_MOVING		/* offered to another worker; either side ends that by compare-and-swap */
};

/* What a bound session does with messages for its user. */
enum rec_live {
	LIVE_NO = 0,		/* not logged in */
	LIVE_DRAINING,		/* bound; the store is being read, new messages go behind it */
	LIVE_YES,
	LIVE_ENDING		/* bound until all that it was handed is stored */
};

struct rec {
	union {
		struct {
			_Atomic uint32_t word;		/* (slot + 1) << 8 | enum rec_state */
			_Atomic uint32_t slot_gen;	/* generation of the owning worker */
		};
		_Atomic uint64_t owner;		/* both, for rec.c: they change as one */
	};
	_Atomic uint32_t gen;
	_Atomic uint32_t user;		/* whom the session is for, while bound (sess.h) */
	_Atomic uint32_t bound;		/* 1 while the hash must know it; written under the shard lock */
	_Atomic uint32_t live;		/* enum rec_live */
	_Atomic uint64_t login;		/* login number: grows with every bind on the host */
	int32_t fd;
	uint8_t dialect, ack, term, flags;	/* term: 0 unknown, '\n', or 1 for NUL */
	uint8_t addr[16];		/* of the client, IPv4 mapped; zero for unix */
	uint16_t port;
	uint8_t listener;		/* index into conf.listen */
	uint8_t name_len;		/* bytes of name; 255: in the chunk `name_chunk` */
	uint32_t name_chunk;
	char name[24];
	int64_t since_wall_ms;		/* accept, then login */

	/* the byte streams: absolute offsets since accept */
	uint64_t rpos;			/* parsed and executed */
	uint64_t rend;			/* taken from the socket */
	uint64_t wend;			/* written for the client */
	uint64_t wsent;			/* handed to the socket */
	uint32_t in_chunk;		/* unparsed input: chunk holding [base, rend), CHUNK_NONE when empty */
	uint32_t out_head, out_tail;	/* chain of output chunks */

	/* messages held for the session's user until written (silent) or confirmed (ack) */
	uint32_t held_head, held_tail;	/* chain of CHUNK_MSG in order of n */
	uint32_t sent_n, seen_n;	/* delivery numbers written and confirmed */
	uint32_t lists;			/* chunk with friends and groups, CHUNK_NONE */
	uint32_t sent_msgs;		/* messages the user sent on this connection */
	uint32_t heap;			/* the owner's own index of it, meaningless to others */
} __attribute__((aligned(64)));

static inline enum rec_state rec_word_state(uint32_t w) { return (enum rec_state)(w & 0xff); }
static inline int rec_word_slot(uint32_t w) { return (int)(w >> 8) - 1; }
static inline uint32_t rec_word(uint32_t slot, enum rec_state s) { return (slot + 1) << 8 | s; }

/* i < max_sessions, asserted. */
static inline struct rec *rec_at(uint32_t i)
{
	assert(i < shm->max_sessions);
	return (struct rec *)(void *)shm->recs + i;
}
/*
 * Claims the lowest free record for worker (slot, gen): state REC_ALLOC, gen raised, all else zero
 * (chunk references CHUNK_NONE). REC_NONE when all are taken or memory cannot be had.
 */
uint32_t rec_claim(uint32_t slot, uint32_t slot_gen);
/* Frees a record that (slot) owns. It must not be bound. */
void rec_free(uint32_t i, uint32_t slot);
/* Changes the state of an own record. */
void rec_set_state(uint32_t i, uint32_t slot, enum rec_state s);
/* Hands an own record to another worker: the commit point of a move. */
void rec_give(uint32_t i, uint32_t from, uint32_t to, uint32_t to_gen);
/*
 * A move that may be called off: the owner offers (REC_MOVING); then exactly one of these two
 * succeeds: the other worker takes the record, OPEN, or the owner has it back, OPEN.
 */
void rec_offer(uint32_t i, uint32_t slot);
bool rec_take(uint32_t i, uint32_t from, uint32_t to, uint32_t to_gen);
bool rec_unoffer(uint32_t i, uint32_t slot);
/* Makes the hints agree with the records (after a death). Not under a lock. */
void rec_mend(void);
/* What is wrong with a record and its hints (of the moment: look again), or NULL. For checks. */
const char *rec_check(uint32_t i);
/* One consistent reading of word and slot_gen. */
static inline uint32_t rec_owner(const struct rec *r, uint32_t *slot_gen_r)
{
	uint64_t o = atomic_load_explicit(&r->owner, memory_order_acquire);

	*slot_gen_r = (uint32_t)(o >> 32);
	return (uint32_t)o;
}
/* Indices at or above this were never used. */
static inline uint32_t rec_high(void)
{
	return atomic_load_explicit(&shm->head->rec_high, memory_order_acquire);
}

#endif
