/*
 * notice.h - after a commit: whoever serves the user hears that the store holds something for them.
 *
 * Scope   a user served on this host: their worker is told by inbox, and that is all. Otherwise, in a
 *         cluster: who serves them is asked after the commit (claim.h); nobody: done, because their next login
 *         reads the store; a host: it is sent a notice and answers. Without a connection to Redis, or with
 *         no answer in time, the user is kept in a set; the set goes out before anything else when the connection is back.
 * Order   notice_pending() says that a user's host may not know yet of something stored: what follows for that
 *         user goes through the store, too.
 * Bound   NOTICE_MAX users; past it the set is "all": every host has all its sessions look into the store.
 * Death   the set is in the heap; that it was not empty is in the slot, and "all" in the segment: whoever
 *         notices takes it over. What a dead host owed is found by the others, who look when one comes or goes.
 */
#ifndef PARLEY_NOTICE_H
#define PARLEY_NOTICE_H

#include <stdbool.h>
#include <stdint.h>

struct host;
struct item;
struct slot;

#define NOTICE_MAX 65536u

/* What has waited for it; TAG and TAG2 are the caller's. Runs once, perhaps at once. */
typedef void notice_fn(uint64_t tag, uint64_t tag2);
void notice_send(uint32_t user, notice_fn *done, uint64_t tag, uint64_t tag2);
/* Something was committed that other hosts' sessions should have heard of, and could not. */
void notice_owe_all(void);
/* Tells everybody, where that is owed (by whatever worker) and possible. */
void notice_pay(void);
/* What the worker of that slot left behind: it is dead, or has left. */
void notice_take_over(struct slot *s);
bool notice_pending(uint32_t user);
/* Nothing more is waited for: what is asked is answered, what cannot be sent is kept. */
bool notice_idle(void);
void notice_bus_up(void);
void notice_bus_down(void);
/* An answer, or a request of another host about a user who is, or is not, served by this worker. */
void notice_on_notice(struct host *from, const struct item *it);
void notice_on_noticed(struct host *from, const struct item *it);

#endif
