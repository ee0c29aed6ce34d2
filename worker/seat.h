/*
 * seat.h - where the caches of this worker's connections lie; those with nothing to do are parked.
 *
 * Scope   a connection that is logged in and says nothing needs little beside its record: its place in
 *         the wheel of timers, when it was last heard of, its message rate. That is its seat. The
 *         struct conn of it is freed some seconds after it was last used, if all else in it is as in
 *         a new one, and is made again from seat and record when conn_get() is asked for it.
 * Rule    so a field of struct conn that says something of an idle session either makes it not
 *         idle (is_idle() in seat.c), or goes to the seat and comes back from there.
 * Owner   conn.c makes and releases; all others borrow for the turn, as ever. A conn whose address is
 *         kept beyond the turn (lists, jobs that name it) is not idle.
 * Errors  NULL: out of memory, of a new connection only. One that is parked is given its memory, or
 *         the worker ends.
 */
#ifndef PARLEY_SEAT_H
#define PARLEY_SEAT_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/state.h"

/* A seat and a cache for a record; all of it fresh but rec, r, gen, ix and timer. */
struct conn *seat_make(uint32_t rec);
/* Both go. Its timers are stopped, and nothing names it any more. */
void seat_release(struct conn *c);
/* The connection whose idle timer T is. */
struct conn *seat_of_timer(struct timer *t);
/* Calls FN for each connection; only for those that are not parked: nobody else has output, say. */
void seat_each_awake(void (*fn)(struct conn *c, void *arg), void *arg);
/* Parks, of those that are awake, what is idle and was not heard of for IDLE_MS; a bounded number a call. */
void seat_tidy(uint32_t idle_ms);
/* Connections that are not parked. */
uint32_t seat_awake(void);

#endif
