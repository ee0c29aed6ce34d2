/*
 * route_in.h - lanes, as route.c and route_far.c share them; nobody else's.
 */
#ifndef PARLEY_ROUTE_IN_H
#define PARLEY_ROUTE_IN_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/msg.h"
#include "worker/state.h"

struct host;

enum path {
	PATH_PEER,			/* another worker's inbox */
	PATH_STORE,
	PATH_ASK,			/* who serves the recipient is being asked; entries wait in order */
	PATH_HOST			/* another host */
};

struct lane {
	struct lane *next;
	uint32_t srec, sgen, rcpt;
	enum path path;
	uint32_t slot, rrec, rgen;	/* PEER */
	uint32_t count;			/* unresolved entries */
	uint32_t head, tail;		/* PEER: those in the inbox; ASK, HOST: all; oldest first */
	struct host *host;		/* HOST */
	uint64_t epoch, number;		/* its life; this lane's number there */
	uint32_t k;			/* entries sent under that number */
	uint32_t tries;			/* refusals in a row */
	bool held_up;			/* one was refused: nothing more is sent before that is settled */
};

struct lane **lane_place(uint32_t srec, uint32_t sgen, uint32_t rcpt);
/* The lane of an entry, made where there is none; NULL: out of memory. */
struct lane *lane_make(const struct msg *m, enum path path);
/* One entry of a lane is resolved; without any the lane is gone. */
void lane_resolve(uint32_t srec, uint32_t sgen, uint32_t rcpt);
/* What nobody else has taken goes to the store, in order. */
void lane_divert(struct lane *l);
/* Calls FN for each lane; it may end the lane, or any other. */
void lane_each(void (*fn)(struct lane *l, void *arg), void *arg);
/* An entry is new on the sender's account. */
void lane_opened(uint32_t ref);
/* The recipient is served on this host now: all of the lane's entries go there. False: not (any more). */
bool lane_go_home(struct lane *l);

/* route_far.c: a fresh entry for somebody who is not on this host. False: the store's. */
bool far_send(uint32_t ref);
/* One more on a lane that is on ASK or HOST. */
void far_follow(struct lane *l, uint32_t ref);
/* Takes all entries off a lane, each with a new name and STORING. Returns the first, linked by lane_next. */
uint32_t far_revoke(struct lane *l);
/* Answers the host that a HELD entry came from. */
void far_tell(struct msg *m, int verdict);

#endif
