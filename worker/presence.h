/*
 * presence.h - who watches whom on this worker, and what they were told.
 *
 * Scope   an index watched user -> sessions that list them, in the heap, made at login from the
 *         friend list. Coming and going is one small item a worker; each expands it to its own
 *         sessions. A session is told only what it does not know already: the index remembers the
 *         state last shown. Going offline is told after presence_delay_ms of absence.
 * Hosts   the same small item goes to every other host. Where watched users are who are online elsewhere
 *         (far.h) is asked once, when somebody here begins to watch them; from there on the items tell, and where
 *         some may have been missed all are asked again, after the delay. "offline" counts only from
 *         the host where the user was last.
 */
#ifndef PARLEY_PRESENCE_H
#define PARLEY_PRESENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/state.h"

struct host;
struct item;

/* Is the user online, on this host or, as far as this worker knows, on another? */
bool presence_state(uint32_t user);
/*
 * Asks where those of IDS are who are neither served here nor watched, so that presence_state() knows, until
 * DONE has run; of those who are watched by then it goes on knowing. DONE runs at once where there is nothing to ask.
 */
typedef void presence_fn(uint64_t tag);
void presence_learn(const uint32_t *ids, uint32_t n, presence_fn *done, uint64_t tag);

/* The friends of a session, as ids in its lists chunk. */
bool presence_add(struct conn *c, uint32_t user, bool shown_online);
void presence_del(struct conn *c, uint32_t user);
bool presence_watches(const struct conn *c, uint32_t user);
void presence_index(struct conn *c);		/* an adopted session */
void presence_unindex(struct conn *c);
void presence_free_list(struct conn *c);

/* A user's session is live here: tell everybody. */
void presence_online(uint32_t user);
/* A user was unbound here: tell everybody after the delay, unless they are back. */
void presence_left(uint32_t user);
/*
 * A worker died or left, perhaps with absences that it had not told yet: after the delay everybody
 * compares what their sessions were told with what is.
 */
void presence_recheck_later(void);
void presence_on_item(const struct item *it);
/* Somebody came or went on another host. */
void presence_on_far(struct host *from, const struct item *it);
/* A host's life is over, or what was missed is unknown: after the delay all watched users are asked for again. */
void presence_hosts_changed(void);
/* End of turn: the PRESENCE frames. */
void presence_turn_end(void);

#endif
