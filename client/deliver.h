/*
 * deliver.h - confirmed delivery, the client's half.
 *
 * Scope   outgoing: each message is in the outbox until the server's last word on it; after a
 *         reconnection all open ones go first, in the order typed; a recipient that the server
 *         asks us to wait for (errno 7, 9) is held, then sent all that is open for it, in order;
 *         after 7 days a message is given up. Incoming: what was seen is dropped; what has been
 *         written to the person's side is noted in the file of seen messages and then confirmed.
 * Units   monotonic milliseconds unless the name says wall.
 * Owner   owns outbox and seen; show is lent. send() gives a frame to the connection, or -1 when
 *         that takes none now.
 */
#ifndef PARLEY_CLIENT_DELIVER_H
#define PARLEY_CLIENT_DELIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DELIVER_FRAME_MAX (64u << 10)	/* what servers take unless configured otherwise */

#define DELIVER_BATCH 60			/* the protocol wants a confirmation every 64 */

struct deliver;
struct home;
struct outbox_msg;
struct show;

struct deliver_ops {
	int (*send)(void *arg, const char *frame, size_t len);
	void (*changed)(void *arg);		/* deliver_last() */
};

struct deliver *deliver_new(struct show *show, const struct deliver_ops *ops, void *arg);
void deliver_free(struct deliver *d);
/* Another account: its files. HOME NULL: memory only. */
void deliver_account(struct deliver *d, const struct home *home);

/* Logged in; SERIAL names the connection and is never 0. */
void deliver_up(struct deliver *d, uint64_t serial);
void deliver_down(struct deliver *d);

enum deliver_rc { DELIVER_OK = 0, DELIVER_ESIZE = -1, DELIVER_EFULL = -2 };
/* Takes a copy of the recipient and text of M and fills in the rest. */
int deliver_chat(struct deliver *d, const struct outbox_msg *m) __attribute__((warn_unused_result));
/* CHAT_ACK. Strings as received, "" where absent; STATE "delivered" or "stored". */
void deliver_ack(struct deliver *d, const char *cid, int err, const char *errmsg,
    uint64_t retry_ms, const char *mid, const char *state);
/* The server could not read a frame for its length: drops the longest one. False: none is open. */
bool deliver_too_large(struct deliver *d, const char *errmsg);

/* A message arrived: is it the first time? ("" is always.) */
bool deliver_is_new(struct deliver *d, const char *mid, size_t len);
/* It was given to show (or dropped). N is its delivery number, 0 for none. */
void deliver_took(struct deliver *d, int64_t n, bool was_new);

/* Messages taken and not yet confirmed: past DELIVER_BATCH, let deliver_turn() do so first. */
size_t deliver_unconfirmed(const struct deliver *d);

/* Sends, confirms and gives up what is due; lowers *timeout_ms to when it wants to be called. */
void deliver_turn(struct deliver *d, int *timeout_ms);

size_t deliver_open(const struct deliver *d, bool fresh_only);
unsigned deliver_failures(const struct deliver *d);
/* How the newest message typed fares: "", "sending", "sent", "stored", "delivered", "refused". */
const char *deliver_last(const struct deliver *d);
/* One line for each open message. */
void deliver_list(struct deliver *d);

#endif
