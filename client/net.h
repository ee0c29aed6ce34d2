/*
 * net.h - the connection to a server: addresses, reconnection, frames in and out.
 *
 * Scope   one connection at a time to one of several places, never blocking: names are
 *         resolved in the background, connects and writes wait in the caller's poll(). It knows
 *         frames, not messages. After a loss it goes on by itself, at the next place first and
 *         through all in turn, with exponential back-off and jitter, until net_stop(). A server
 *         that is silent for too long, or for a while after it was sent something, is asked with
 *         a PING and given up if it stays silent.
 * Units   monotonic milliseconds (clock_ms()), bytes.
 * Owner   struct net owns descriptors and buffers. The frame handed to net_ops.frame is valid
 *         until the handler returns; handlers may call any net function but net_free.
 * Errors  told through net_ops.down; net_send() answers 0 or -1.
 */
#ifndef PARLEY_CLIENT_NET_H
#define PARLEY_CLIENT_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NET_FRAME_MAX (128u << 10)	/* longer frames end the connection */
#define NET_OUT_MAX   (512u << 10)	/* unsent bytes past which net_send() refuses */
#define NET_POLL_FDS  1

struct net;
struct pollfd;

enum net_state {
	NET_OFF,		/* stopped, or every place failed at the first start */
	NET_RESOLVING,
	NET_CONNECTING,
	NET_UP,
	NET_WAITING		/* for the next attempt */
};

struct places;

struct net_ops {
	void (*up)(void *arg);
	void (*frame)(void *arg, const char *text, size_t len);
	/* The connection that was up is gone; net tries again by itself. */
	void (*down)(void *arg, const char *why);
};

struct net *net_new(const struct net_ops *ops, void *arg);
void net_free(struct net *n);
/* Where to connect, tried in the order given. Lent; add to it before net_start(). */
struct places *net_places(struct net *n);
/* "host:port", "[host]:port" or the path: of the first place; of that in use or tried next. */
const char *net_name(const struct net *n);
const char *net_place(const struct net *n);

/*
 * Connects. FOREVER: goes on after failures with back-off. Otherwise one round through the
 * places; when none answers the state is NET_OFF and net_why() says why.
 */
void net_start(struct net *n, bool forever);
/* Closes at once; no reconnection. down() is not called. */
void net_stop(struct net *n);
/* Gives up this connection and connects again after a pause of MS and some jitter. */
void net_again(struct net *n, const char *why, uint32_t ms);
/* The same, but goes on at the next place. */
void net_other(struct net *n, const char *why, uint32_t ms);
/*
 * Hangs up and goes at once to the first of NAMES ("host:port") that is not this place; all of
 * them are remembered, but one that cannot be reached is left alone for a while: it may be an
 * address of the servers' own network. False, and nothing is done: there is none.
 */
bool net_try(struct net *n, const char *const *names, size_t count);
/* What was hoped for was reached (logged in): if it lasts, the next pause is the shortest again. */
void net_settled(struct net *n);

enum net_state net_state(const struct net *n);
/* Counts connections that came up; never 0 while NET_UP. */
uint64_t net_serial(const struct net *n);
const char *net_why(const struct net *n);

/* Queues one frame (a newline is added). -1: not up, or too much is unsent already. */
int net_send(struct net *n, const char *frame, size_t len);
size_t net_unsent(const struct net *n);
/*
 * While held, nothing is read and no frame is handed out, not even one that is here already: the
 * person's side does not keep up. May be called by net_ops.frame.
 */
void net_hold(struct net *n, bool held);

/* For the caller's poll(): fills fds (NET_POLL_FDS), returns how many; lowers *timeout_ms. */
int net_poll_before(struct net *n, struct pollfd *fds, int *timeout_ms);
void net_poll_after(struct net *n, const struct pollfd *fds, int count);

#endif
