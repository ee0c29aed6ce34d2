/*
 * route.h - where a chat message goes, and in which order: lanes, claims, verdicts.
 *
 * Scope   one-to-one messages between sessions of this host, other hosts (route_far.c) and the store.
 * Lane    (sender's connection, recipient). What is unresolved on a lane keeps it on its path
 *         (another worker's inbox, or the store): a later message takes another path only when
 *         every earlier one is resolved: taken by the recipient's worker, or committed and the
 *         recipient's present worker told. A lane exists only while something is unresolved.
 * Claims  an entry in another worker's inbox is WAITING. That worker takes it, or this one gives up
 *         (deadline, refusal) and stores it, by compare-and-swap on its word: exactly one wins.
 * Verdict what became of a message, told to its sender if it asked (cid), or if it failed.
 */
#ifndef PARLEY_ROUTE_H
#define PARLEY_ROUTE_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/msg.h"
#include "worker/state.h"

struct host;
struct item;
struct store_job;

enum verdict { V_DELIVERED = 0, V_STORED = 1, V_FULL = -8, V_DOWN = -9, V_UNKNOWN = -5, V_DENIED = -6 };

int route_init(void);
/* Sends an accepted message (fresh entry, sender and rcpt filled in) on its way. Takes REF. */
void route_send(struct conn *c, uint32_t ref);

/* What is known of a sender who came from another host (REC_UNSURE): their session is over. */
void route_forget_sure(struct conn *c);

/* Tells the sender of an entry; once (MF_TOLD). */
void route_tell(struct msg *m, enum verdict v);
/* The same by its parts: the sender's session may be anywhere on this host. */
void route_answer(uint32_t srec, uint32_t sgen, enum msg_kind kind, enum verdict v,
    const struct msg *m);

/* Entry REF becomes a row of its recipient: a store job that must succeed or be told about. */
void route_store(uint32_t ref, void (*done)(struct store_job *, void *));
/* Something was committed for USER: the worker that serves them now reads the store. */
void route_notice(uint32_t user);

/* What the sender has unresolved, of any kind: +1 / -1 on its connection. */
/* An unresolved message more, or one less: a sender with too many is not read for a while. */
void route_opened(struct conn *c);
void route_closed(uint32_t srec, uint32_t sgen);
void route_lane_done(uint32_t srec, uint32_t sgen);

/* End of turn: frees what was taken, diverts what waits too long. */
void route_poll(void);
/* Are entries of this worker still unresolved? (leave, stop) */
bool route_idle(void);
/* Stop waiting for other workers: everything unresolved goes to the store now. */
void route_divert_all(void);

/* Of other hosts (link.h). */
void route_on_far_deliver(struct host *from, const struct item *it);
void route_on_far_verdict(struct host *from, const struct item *it);
void route_on_far_refused(struct host *from, const struct item *it);
void route_on_far_missed(struct host *from, const struct item *it);
/* Packets to a host were lost, or (NULL) answers of any: what is unresolved is sent again. Whoever has it
 * already answers, or will. */
void route_resend(struct host *h);
/* A host's life is over: what waits there goes another way. NULL: the connection to Redis is; what
 * has no answer when it is not back soon is stored. */
void route_host_gone(struct host *h, uint64_t epoch);

void route_on_deliver(const struct item *it);
void route_on_verdict(const struct item *it);
void route_on_refused(const struct item *it);
void route_on_notice(const struct item *it);

#endif
