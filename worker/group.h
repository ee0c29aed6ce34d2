/*
 * group.h - which sessions of this worker are in which group, and how far each has read.
 *
 * Scope   an index group -> sessions in the heap, rebuilt from each session's list in the segment
 *         (a CHUNK_LISTS chunk of struct member). A group message is committed first, then hinted at
 *         by one packet a worker; a session writes it only when its number is the one that follows what it
 *         has, otherwise it reads the range from the store.
 */
#ifndef PARLEY_GROUP_H
#define PARLEY_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/msg.h"
#include "worker/state.h"

struct item;
struct store_group;

#define GM_LEFT 1u			/* left or dissolved: reads what was said before, may not speak */

struct member {			/* one group of a session, in its lists chunk */
	uint32_t group, flags;
	uint64_t sent;			/* number up to which it was written (own ones count) */
	uint64_t acked;			/* delivered */
	uint64_t saved;			/* known to the store */
	uint64_t want;			/* highest number heard of */
};

/* The session's groups: N of them. Valid until the next change of membership. */
struct member *group_list(const struct conn *c, uint32_t *n_r);
struct member *group_of(const struct conn *c, uint32_t group);
/* Adds one (false: no memory); index included. */
bool group_enter(struct conn *c, uint32_t group, uint64_t cursor, uint64_t head, uint32_t flags);
/* Room for N at once, at login. */
bool group_reserve(struct conn *c, uint32_t n);
void group_quit(struct conn *c, uint32_t group);
/* Index of all of the session's groups; for an adopted session, and at the end. */
void group_index(struct conn *c);
void group_unindex(struct conn *c);
void group_free_list(struct conn *c);

/* Sends an accepted group message (fresh MK_GROUP entry) into the store, then to all. Takes REF. */
void group_send(struct conn *c, uint32_t ref);
/* Commits one that a dead worker had accepted; DONE is called with its reference when all is said. */
void group_resend(uint32_t ref);
/* Something may have been said while nobody listened: looks into every group. */
void group_recheck(struct conn *c);
/* Reads what the session has missed, if there is room. */
void group_catch_up(struct conn *c);
/* Number of the latest hint of this worker: what came since a point in time can be looked up. */
uint64_t group_hint_mark(void);
void group_hints_since(struct conn *c, uint64_t mark);

void group_on_message(const struct item *it);
void group_on_dissolved(const struct item *it);
/* Marks a group dissolved for the sessions here and tells the other workers. */
void group_dissolved(uint32_t group);
uint32_t group_sessions(uint32_t group);

#endif
