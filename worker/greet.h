/*
 * greet.h - LOGIN_MSG_ACK: what a login shows, within the bounds of a frame.
 *
 * Scope   friends, groups and waiting messages from a STORE_LOAD job, and the first missed messages
 *         of lagging groups; as much as fits goes into the greeting, the rest follows: messages
 *         through the drain, friends and groups on request (FRIEND_LIST, GROUP_LIST).
 * Bounds  plain: max_frame bytes, 512 values; classic: 1,000 bytes, taken by messages first, then
 *         groups, then friends.
 */
#ifndef PARLEY_GREET_H
#define PARLEY_GREET_H

#include <stdint.h>

#include "worker/state.h"

struct store_job;

/* Group hints from MARK on may concern the session that is about to load. */
void greet_mark(struct conn *c, uint64_t mark);
/* Takes what it needs out of JOB; greets at once or after reading a few group messages. */
void greet_start(struct conn *c, struct store_job *job, const char *echo);
void greet_abort(struct conn *c);
/*
 * A finished store job whose answer shows people: THEN runs with it when it is known who of them is online
 * on other hosts; at once where no other host is to be asked.
 */
void greet_learn(struct store_job *job, void (*then)(struct store_job *));
/* A group as listed in several replies: {"id":..,"groupname":..,...,"users":[..]}, users bounded. */
struct store_group;
struct store_person;
struct json_out;
uint32_t greet_group(struct json_out *w, const struct conn *c, const struct store_group *g,
    const struct store_person *people, uint32_t npeople, uint32_t max_users);
/* One friend: {"id":..,"name":..,"state":..}. */
void greet_friend(struct json_out *w, const struct conn *c, const struct store_person *p,
    bool *online_r);

#endif
