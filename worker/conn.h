/*
 * conn.h - a client connection: bytes in, bytes out, and the one door through which it closes.
 *
 * Scope   accept and its limits, reading into the session's input chunk, frames, writing the
 *         output chain, epoll interest, time-outs. Knows nothing of users or messages: frames go
 *         to cmd_frame(), written bytes to session_written(), the end to session_closed().
 * Turn    at most one recv a readable connection; what it has to say is gathered and leaves with
 *         one send at the end of the turn (conn_flush_all).
 * Bounds  input: one frame (conf.max_frame) and a read; output: conf.output_limit.
 */
#ifndef PARLEY_CONN_H
#define PARLEY_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/state.h"

enum close_why {
	CLOSE_PEER,		/* the client closed */
	CLOSE_IO,		/* reset, time-out, unreachable */
	CLOSE_PROTO,		/* what it sent was no frame */
	CLOSE_SLOW,		/* read too slowly: over its output limit */
	CLOSE_IDLE,		/* idle_seconds, or no PONG */
	CLOSE_LOGIN,		/* login_seconds passed */
	CLOSE_ENDED,		/* SESSION_END was sent */
	CLOSE_MEMORY,		/* session memory used up */
	CLOSE_STOP,		/* the worker stops */
	CLOSE_FULL		/* max_connections_address, known from a PROXY header */
};

int conn_init(void);
void conn_event(uint32_t rec, uint32_t gen, uint32_t events);	/* loop hook */
/* A new client, as accepted from listener L. FD becomes the connection's. */
void conn_accept_fd(int fd, unsigned listener);
/* Socket options of a listening socket that its connections inherit. */
void conn_tune_listener(int fd);
/* Accepts what waits on a listener, bounded; pauses at EMFILE. */
void conn_accept_from(int listen_fd, unsigned listener);

/*
 * Room for MAX contiguous bytes of output, NULL when the region is full (the connection is then
 * closed). Write there, then conn_put() what was used.
 */
char *conn_room(struct conn *c, size_t max);
void conn_put(struct conn *c, size_t used);
void conn_write(struct conn *c, const char *bytes, size_t len);
uint64_t conn_unsent(const struct conn *c);
/* The byte that ends frames to this client; '\x01' for none known... never: LF until known. */
char conn_term(const struct conn *c);

/* A request is answered: parse on (at the end of the turn). */
void conn_unblock(struct conn *c);
/* Parses what is buffered until blocked; used after unblocking and after a move. */
void conn_parse(struct conn *c);
/* Reads no more until conn_resume(). */
void conn_pause(struct conn *c);
void conn_resume(struct conn *c);
/* Interest in epoll follows state. */
void conn_want(struct conn *c);

/* Sends what is queued, shuts the write side, reads and discards for 2 s, then closes. */
void conn_finish(struct conn *c, enum close_why why);
/* Closes now. The session's leavings are stored; the record stays until they are. */
void conn_close(struct conn *c, enum close_why why);
/* The session has nothing left: frees record and connection at the end of the turn. */
void conn_gone(struct conn *c);

/*
 * How full session memory is: 0 fine; 1 over half: what would be written to a slow reader is
 * stored instead; 2 over three quarters: who sends much is not read for a moment; 3 over seven
 * eighths: the slowest reader goes. The rest is for replies. Known anew each turn.
 */
unsigned conn_pressure(void);
void conn_mark_dirty(struct conn *c);
void conn_flush_all(void);		/* end of turn */
/* Makes the cache beside a record that this worker is about to own (a move); leaves the record alone. */
struct conn *conn_adopt(uint32_t rec, int fd);
/* Lets go of one without closing what the new owner has; frees only the cache. */
void conn_forget(struct conn *c);
/* Calls FN for each connection of this worker. FN may close it. */
void conn_each(void (*fn)(struct conn *c, void *arg), void *arg);
/* The same for at most N places from FROM on. The place to go on from, 0 when it is through. */
uint32_t conn_each_from(uint32_t from, uint32_t n, void (*fn)(struct conn *c, void *arg), void *arg);
/* Sets the timer to what comes first: login, idle, ping. */
void conn_rearm(struct conn *c);
const char *conn_why(enum close_why why);
/* "127.0.0.1:50123", for logs. */
const char *conn_peer(const struct conn *c);

#endif
