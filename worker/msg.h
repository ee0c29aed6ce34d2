/*
 * msg.h - a chat message that a worker answers for: one chunk in the segment.
 *
 * Scope   what is in the chunk, and how it is rendered for a receiver of either dialect.
 *
 *           OUT    accepted here from a local sender; on its way to another worker (WAITING), to
 *                  the store (STORING), or a group message on its way into the store
 *           HELD   handed to a session of this worker, until written (silent receiver) or
 *                  confirmed (ack): with a body (DIRECT), or a reference to something that is in
 *                  the store already (ROW: an offline row; GREF: a group's message)
 *
 * Owner   exactly one worker answers for a message. msg.word = seq << 8 | state is the only word
 *         that another worker changes: the recipient's worker takes it (WAITING -> TAKEN), or the
 *         accepting one gives up (WAITING -> STORING), by compare-and-swap; one wins. seq grows
 *         whenever the chunk gets a new meaning, so a late claim finds nothing. Between hosts there is
 *         no such word: FAR ends by the other host's answer, or by this one's giving up, which stores it; should both store
 *         it, the message id makes it one.
 * Order   msg.order counts acceptances of the slot; a successor stores in that order.
 * Body    dialect-free: `"id":1,"name":"a","to":2,"msg":"..","time":".."` (the core) and then
 *         the tail `,"x":..,"ts":..,"mid":"..","cid":".."`. A plain receiver gets both.
 */
#ifndef PARLEY_MSG_H
#define PARLEY_MSG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shm/chunk.h"
#include "worker/base/json.h"
#include "worker/proto.h"
#include "worker/state.h"

enum msg_state {
	M_NONE = 0,
	M_WAITING,	/* OUT: in another worker's inbox */
	M_TAKEN,	/* OUT: the recipient's worker answers for it */
	M_STORING,	/* OUT or HELD: a store job has a copy; never forgotten before its commit */
	M_COMMITTED,	/* OUT group: has its number; the fan-out is due */
	M_PREPARED,	/* HELD: copied, not yet taken from the accepting worker */
	M_HELD,		/* HELD: written or about to be, unconfirmed */
	M_STORED,	/* HELD: unconfirmed for long, committed to the store meanwhile */
	M_DELETING,	/* HELD: confirmed; its row is being deleted */
	M_FAR		/* OUT: with another host, or on its way there: its answer decides */
};

enum msg_kind { MK_DIRECT = 1, MK_GROUP, MK_ROW, MK_GREF };

#define FAR_REFUSED UINT32_MAX

#define MF_CID    1u	/* the sender waits for CHAT_ACK */
#define MF_SILENT 2u	/* HELD: the receiver does not confirm: written is delivered */
#define MF_GONE   4u	/* HELD: confirmed while STORING: delete the row at commit */
#define MF_TOLD   8u	/* the sender has been answered */
#define MF_STORE 16u	/* HELD, but in no session's list: on its way to the store only */
#define MF_FREE  64u	/* confirmed and deleted: goes when the read in flight has been looked at */
#define MF_QUOTA 128u	/* MUST, but errno 8 is an answer: it was never handed to its receiver */
#define MF_MUST  32u	/* accepted: a store job that fails is repeated, not reported */

struct msg {
	_Atomic uint32_t word;		/* seq << 8 | enum msg_state */
	uint8_t kind, flags;
	uint16_t to_off;		/* offset of `"to"` in the body, 0 in group messages */
	uint64_t wend;			/* HELD: delivered when the stream was written up to here */
	uint32_t body_len;
	uint32_t n;			/* delivery number of an ack session */
	uint64_t order;
	/* what is looked at when a message is delivered is above: one cache line with the chunk's head */
	uint32_t sender, srec, sgen;	/* who sent it, on which connection */
	uint32_t rcpt;			/* user, or group of MK_GROUP and MK_GREF */
	uint32_t rrec, rgen;		/* the session it is for */
	unsigned char mid[16];
	uint64_t ts;
	uint64_t row;			/* MK_ROW: row id; groups: number in the group */
	uint64_t since_ms;		/* monotonic, when this worker became its owner */
	uint32_t origin_slot, origin_ref, origin_seq;	/* HELD: the accepting worker's entry */
	uint32_t origin_gen;		/* HELD, of another host: the accepting worker's generation */
	uint64_t origin_host, origin_epoch;	/* that host and its life; 0: this host */
	uint32_t lane_next;		/* OUT: next of its lane */
	uint32_t far_k;			/* OUT, FAR: its number on the lane; 0 not sent, FAR_REFUSED */
	uint32_t req_len;		/* OUT: the sender's `req`, behind the body; not copied */
	uint32_t core_len;
	uint32_t cid_off, cid_len;	/* the cid's text in the body, without quotes */
	char body[];
};

static inline enum msg_state msg_word_state(uint32_t w) { return (enum msg_state)(w & 0xff); }
static inline uint32_t msg_word_seq(uint32_t w) { return w >> 8; }
static inline uint32_t msg_word(uint32_t seq, enum msg_state s) { return seq << 8 | s; }

static inline struct msg *msg_at(uint32_t ref)	/* own region */
{
	return (struct msg *)(void *)chunk_at(wk->slot, ref)->data;
}

struct msg *msg_of(uint32_t slot, uint32_t ref);	/* any slot's; NULL unless a sane CHUNK_MSG */
static inline enum msg_state msg_state(const struct msg *m)
{
	return msg_word_state(atomic_load_explicit(&m->word, memory_order_acquire));
}

static inline uint32_t msg_seq(const struct msg *m)
{
	return msg_word_seq(atomic_load_explicit(&m->word, memory_order_relaxed));
}

static inline void msg_set_state(struct msg *m, enum msg_state s)	/* keeps seq */
{
	atomic_store_explicit(&m->word, msg_word(msg_seq(m), s), memory_order_release);
}

/* Compare-and-swap of the state at sequence SEQ; false: somebody else was first. */
bool msg_claim(struct msg *m, uint32_t seq, enum msg_state from, enum msg_state to);

/* A fresh entry with room for BODY_LEN; state M_NONE, seq raised, order taken. CHUNK_NONE: full. */
uint32_t msg_new(enum msg_kind kind, uint32_t sess, uint32_t gen, size_t body_len);
/* Copies somebody else's entry (body included) into a new one. */
uint32_t msg_copy(const struct msg *from, uint32_t sess, uint32_t gen);
void msg_free(uint32_t ref);
/* A number for an entry that gets a new meaning. */
uint32_t msg_next_seq(void);

/* Bytes that msg_render() needs at the most. */
size_t msg_frame_max(const struct msg *m);
/* The frame for a receiver: N > 0 adds the delivery number. TERM: its line ending. Returns bytes. */
size_t msg_render(char *out, const struct msg *m, enum proto_dialect d, uint32_t n, char term);
/* The complete plain object as it is kept in the store: `{"msgid":5,` body `}`. */
size_t msg_store_text(char *out, const struct msg *m);
/*
 * An entry from the store's text: kind ROW or GREF, body rebuilt so that both dialects can be
 * rendered. CHUNK_NONE when the region is full, MSG_NOT_OURS when the text is not what we wrote.
 */
#define MSG_NOT_OURS (UINT32_MAX - 1)
uint32_t msg_from_text(enum msg_kind kind, uint32_t sess, uint32_t gen, const char *text,
    size_t len, uint32_t sender, const unsigned char mid[16], uint64_t ts, uint64_t row);


/* What a chat message says, apart from what its sender's client carried along. */
struct msg_parts {
	uint32_t sender, rcpt;
	bool group;
	const char *name;			/* of the sender, UTF-8 */
	size_t name_len;
	struct json_val msg, time;		/* time.type JSON_NONE: time_text stands for it */
	const char *time_text;			/* needs no escaping */
	size_t time_len;
	uint64_t ts;
	unsigned char mid[16];
	const char *cid;			/* plain text; NULL: none */
	size_t cid_len;
};

/* Members that the server knows in a chat message; all others are carried through. */
enum msg_key { MSG_K_OTHER = 0, MSG_K_MSGID, MSG_K_ID, MSG_K_NAME, MSG_K_TO, MSG_K_TOID,
	MSG_K_GROUPID, MSG_K_MSG, MSG_K_TIME, MSG_K_TS, MSG_K_MID, MSG_K_N, MSG_K_CID, MSG_K_REQ,
	MSG_NKEYS };
enum msg_key msg_key_of(const struct json_val *name);

/*
 * A fresh entry (msg_new) that says PARTS, with the N pairs carried through; sender, rcpt, mid, ts and
 * what tells of the body are filled in. EXTRA bytes (`req`) follow the body: req_len is theirs.
 */
uint32_t msg_make(enum msg_kind kind, uint32_t sess, uint32_t gen, const struct msg_parts *parts,
    const struct json_pair *carried, size_t n, const char *extra, size_t extra_len);

void msg_hex(const unsigned char mid[16], char out[33]);

#endif
