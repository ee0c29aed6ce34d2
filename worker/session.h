/*
 * session.h - a user's session: what it is handed, what it has confirmed, how it ends.
 *
 * Scope   from the bind in the hash to the unbind. Three places hold messages for a session:
 *
 *           the store      rows not yet read in this session ("behind")
 *           the held list  written to the client, or about to be; not yet delivered
 *           on their way   store jobs of this session (storing): accepted while it was behind
 *
 *         Order for one sender: while anything is behind or storing, new messages go behind it, into the
 *         store, and come out through the drain; only when both are empty they are written live.
 * Delivered means written (silent session) or confirmed with RECEIVED (ack). What a silent session was
 *         written is kept until TCP says that it has arrived (SIOCOUTQ, asked now and then), so that a
 *         connection that dies with bytes under way loses none of them.
 * End     logout or close: what is not delivered goes to the store, and only when all jobs are
 *         answered and the sender's own lanes are resolved is the user unbound: whoever logs in
 *         next finds everything there.
 */
#ifndef PARLEY_SESSION_H
#define PARLEY_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/conn.h"
#include "worker/msg.h"
#include "worker/state.h"

struct item;
struct store_msg;

enum session_end { END_NONE = 0, END_LOGOUT, END_CLOSE, END_REFUSED };

static inline bool session_logged_in(const struct conn *c) { return c->greeted && c->ending == END_NONE; }

/* An own entry (its rrec and rgen are this session) is handed to the session. Takes REF. */
void session_deliver(struct conn *c, uint32_t ref);
/* A stored row or a group's message as an entry with a body; written now, tracked in the held list. */
bool session_write_entry(struct conn *c, uint32_t ref);
/* May something be written to it now, without overtaking what is behind? */
bool session_can_live(const struct conn *c);
/* Room for one more unconfirmed message, and in the output? */
bool session_has_room(const struct conn *c);
/* The store holds something new for the user: read it. */
void session_notice(struct conn *c);
/* Goes on reading the store, if there is reason and room. */
void session_drain(struct conn *c);
/* A row or message id that is in the session's hands already. */
bool session_has(const struct conn *c, uint64_t row, const unsigned char mid[16]);

/* Puts an entry at the end of the held list without writing it (its bytes are part of a larger frame). */
void session_hold(struct conn *c, uint32_t ref, uint32_t n);
/* Those bytes were queued: they end at the stream's present end. */
void session_held_until(struct conn *c, uint32_t from_ref);

/* RECEIVED n: 0, or -1 when n was never written. */
int session_received(struct conn *c, int64_t n);

/* conn.c: bytes came in; they are looked at afterwards. */
void session_heard(struct conn *c);
/* Bytes went out: what that delivers. */
void session_written(struct conn *c);
/* The greeting was queued: the session is live, or drains first. */
void session_greeted(struct conn *c);
void session_logout(struct conn *c, const char *req);
/* A bound login is refused after all (it has been answered): unbound as soon as what was handed to it is stored. */
void session_refused(struct conn *c);
/* conn.c: the descriptor is about to be closed: what has the other end not acknowledged? */
void session_closing(struct conn *c);
/* conn.c: the descriptor is closed. */
void session_closed(struct conn *c);
void session_drop_cache(struct conn *c);
/* Something was answered: is an ending session settled now? */
void session_settle(struct conn *c);
/* conn.c: it will be closed as soon as its output is out. The session ends now: whoever waits for
 * its user must not wait for a slow reader. */
void session_finished(struct conn *c);
/* SESSION_END with a reason, then the end of the connection. */
void session_end_notice(struct conn *c, const char *reason, enum close_why why);
void session_on_end(const struct item *it);
/*
 * Ends the session of a user wherever on this host it is, unless LOGIN is not 0 and not its login
 * number. False: there is none.
 */
bool session_end_user(uint32_t user, const char *reason, uint64_t login);

/* A group cursor of the session moved. */
void session_cursor_dirty(struct conn *c);
void session_turn_end(void);
/* Sends cursor changes now (stop, leave). */
void session_flush_cursors(void);
void session_confirm_arm(struct conn *c);

#endif
