/*
 * far.h - who is online on other hosts, as far as this worker has heard.
 *
 * Scope   what presence.c knows of users of other hosts: an entry for a user who is there and watched here, or
 *         who is being asked about. No entry: nothing is known, or offline. A small hash in the heap.
 * News    each event has a number, so that an answer of Redis that was on its way meanwhile does not
 *         undo it: far_now() before asking, and the same number with the answer.
 * Units   a host is named by its key (hosts.h), 0: none.
 * Errors  far_hold: false when out of memory; what it was for is not known then.
 */
#ifndef PARLEY_FAR_H
#define PARLEY_FAR_H

#include <stdbool.h>
#include <stdint.h>

bool far_online(uint32_t user);
/* Somebody is being asked for: nothing certain is known of them. */
bool far_asked(uint32_t user);
bool far_known(uint32_t user);			/* there is an entry */
uint32_t far_count(void);

/* Events. WATCHED: make an entry where there is none. True: it changed whether they are online. */
bool far_came(uint32_t user, uint64_t host, uint64_t login_ms, bool watched);
bool far_left(uint32_t user, uint64_t host);
/* They are served on this host, or nobody wants to know any more. */
void far_forget(uint32_t user);

/* Questions: an entry is held while it is asked about. */
uint64_t far_now(void);
bool far_hold(uint32_t user);
/* HOST 0: nobody serves them. SURE: believe that, even of somebody who was online. True: a change. */
bool far_answer(uint32_t user, uint64_t host, uint64_t since, bool sure);
/* KEEP: they are watched; an entry that says "online" stays. */
void far_release(uint32_t user, bool keep);

#endif
