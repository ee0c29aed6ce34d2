#include "client/net.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/place.h"
#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/frame.h"
#include "worker/proto.h"

#define CONNECT_MS    5000
#define CONNECT_SOON_MS 2500		/* where there is somebody else to ask */
#define CONNECT_TRY_MS 1500		/* an address that a server named may be none for us */
#define BAD_MS        60000		/* and is then left alone for so long */
#define RESOLVE_MS    5000
#define RESOLVE_SOON_MS 2000
#define RESOLVE_KNOWN_MS 300		/* where an earlier answer can stand in */
#define RESOLVE_POLL_MS 20
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 30000
#define SETTLE_MS     3000
#define QUIET_MS      45000	/* a server that pings is never quiet for so long */
#define QUIET_SENT_MS 10000	/* nor one that was just asked for something */
#define QUIET_ASK_MS  15000	/* how long it may take to answer our own PING */

struct net {
	struct net_ops ops;
	void *arg;
	struct places *places;
	size_t at;			/* place in use or next */
	size_t tried;			/* places that failed in this round */
	size_t addr_at;			/* next address of the place */

	enum net_state state;
	bool forever;
	uint64_t serial;
	int fd;
	uint64_t due_ms;		/* of the state: deadline, or next attempt */
	uint32_t backoff_ms;
	uint64_t heard_ms;		/* last byte read while up */
	uint64_t sent_ms;		/* first frame sent since then, 0 for none */
	bool asked;			/* our PING is out */
	uint64_t asked_ms;		/* since when */
	uint64_t settled_ms;		/* since when this connection is of use; 0: it is not */
	bool held;
	bool more;			/* frames may stand in `in` that were not handed out */
	char why[256];

	struct text in, out;
	size_t out_at;			/* bytes of out already written */
	struct frame frame;
};

static uint32_t jitter(uint32_t ms)
{
	return ms / 2 + randombytes_uniform(ms / 2 + 1);
}

struct net *net_new(const struct net_ops *ops, void *arg)
{
	struct net *n = text_alloc(sizeof *n);

	n->ops = *ops;
	n->arg = arg;
	n->fd = -1;
	n->backoff_ms = BACKOFF_MIN_MS;
	n->places = places_new();
	return n;
}

static void close_fd(struct net *n)
{
	if (n->fd >= 0)
		close(n->fd);
	n->fd = -1;
	text_clear(&n->in);
	text_clear(&n->out);
	n->out_at = 0;
	frame_init(&n->frame);
	n->asked = n->more = false;
}

void net_free(struct net *n)
{
	if (n == NULL)
		return;
	close_fd(n);
	places_free(n->places);
	text_fini(&n->in);
	text_fini(&n->out);
	free(n);
}

struct places *net_places(struct net *n)
{
	return n->places;
}

static struct place *here(const struct net *n)
{
	return places_at(n->places, n->at);
}

/* May a place that does not answer soon be left for another one? */
static bool has_others(const struct net *n)
{
	return n->tried + 1 < places_good(n->places, clock_ms());
}

static void go_on(struct net *n)
{
	do
		n->at = (n->at + 1) % places_count(n->places);
	while (!place_is_good(here(n), clock_ms()));	/* what was typed always is */
}

const char *net_name(const struct net *n)
{
	return places_count(n->places) > 0 ? places_at(n->places, 0)->name : "";
}

const char *net_place(const struct net *n)
{
	return places_count(n->places) > 0 ? here(n)->name : "";
}

enum net_state net_state(const struct net *n)
{
	return n->state;
}

uint64_t net_serial(const struct net *n)
{
	return n->serial;
}

const char *net_why(const struct net *n)
{
	return n->why;
}

void net_settled(struct net *n)
{
	n->settled_ms = clock_ms();
}

void net_hold(struct net *n, bool held)
{
	n->held = held;
}

static void try_place(struct net *n);

static void wait_for(struct net *n, uint32_t ms)
{
	n->state = NET_WAITING;
	n->due_ms = clock_ms() + ms;
}

static void note_failure(struct net *n, const char *what)
{
	size_t count = places_good(n->places, clock_ms());

	if (n->tried < count || count <= 1)
		snprintf(n->why, sizeof n->why, "%.100s: %.90s", here(n)->name, what);
	else
		snprintf(n->why, sizeof n->why, "none of %zu servers answers; the last was %.60s: %.80s",
		    count, here(n)->name, what);
}

/* The place in hand is of no use: the next one, and after all of them a pause or the end. */
static void place_failed(struct net *n, const char *what)
{
	if (here(n)->learned)
		here(n)->bad_until_ms = clock_ms() + BAD_MS;
	else
		n->tried++;
	note_failure(n, what);
	close_fd(n);
	n->addr_at = 0;
	go_on(n);
	if (n->tried < places_good(n->places, clock_ms())) {
		try_place(n);
		return;
	}
	n->tried = 0;
	if (!n->forever) {
		n->state = NET_OFF;
		return;
	}
	wait_for(n, jitter(n->backoff_ms));
	n->backoff_ms = n->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : n->backoff_ms * 2;
}

static void came_up(struct net *n)
{
	n->state = NET_UP;
	n->serial++;
	n->tried = 0;
	n->addr_at = 0;
	n->heard_ms = clock_ms();
	n->sent_ms = 0;
	n->asked = false;
	n->settled_ms = 0;
	n->ops.up(n->arg);
}

/* Starts connecting to the next address of the place; 0 when one is under way. */
static int try_addr(struct net *n, int *err_r)
{
	const struct place *p = here(n);

	while (n->addr_at < p->naddr) {
		const struct place_addr *a = &p->addr[n->addr_at++];
		int one = 1;

		n->fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (n->fd < 0) {
			*err_r = errno;
			continue;
		}
		if (a->sa.ss_family != AF_UNIX)
			setsockopt(n->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		if (connect(n->fd, (const struct sockaddr *)&a->sa, a->len) == 0 ||
		    errno == EINPROGRESS) {
			n->state = NET_CONNECTING;
			n->due_ms = clock_ms() + (p->learned ? CONNECT_TRY_MS :
			    n->addr_at < p->naddr || has_others(n) ? CONNECT_SOON_MS : CONNECT_MS);
			return 0;
		}
		*err_r = errno;
		close(n->fd);
		n->fd = -1;
	}
	return -1;
}

static void next_addr(struct net *n, int err)
{
	if (n->fd >= 0)
		close(n->fd);
	n->fd = -1;
	if (try_addr(n, &err) != 0)
		place_failed(n, strerror(err));
}

static void connect_place(struct net *n)
{
	n->addr_at = 0;
	next_addr(n, EADDRNOTAVAIL);
}

static void try_place(struct net *n)
{
	struct place *p = here(n);
	const char *why;

	switch (place_ask(p, &why)) {
	case PLACE_KNOWN:
		connect_place(n);
		break;
	case PLACE_PENDING:
		n->state = NET_RESOLVING;
		n->due_ms = clock_ms() + (p->naddr > 0 ? RESOLVE_KNOWN_MS :
		    has_others(n) ? RESOLVE_SOON_MS : RESOLVE_MS);
		break;
	case PLACE_FAILED:
		place_failed(n, why);
		break;
	}
}

/* A lookup that takes too long goes on by itself: the next round finds its answer. */
static void check_lookup(struct net *n)
{
	const char *why;

	switch (place_look(here(n), &why)) {
	case PLACE_KNOWN:
		connect_place(n);
		break;
	case PLACE_PENDING:
		if (clock_ms() < n->due_ms)
			break;
		if (here(n)->naddr > 0)
			connect_place(n);
		else
			place_failed(n, "looking up the name takes too long");
		break;
	case PLACE_FAILED:
		place_failed(n, why);
		break;
	}
}

void net_start(struct net *n, bool forever)
{
	n->forever = forever;
	if (n->state != NET_OFF && n->state != NET_WAITING)
		return;
	n->tried = 0;
	try_place(n);
}

void net_stop(struct net *n)
{
	close_fd(n);
	n->state = NET_OFF;
	n->forever = false;
}

void net_again(struct net *n, const char *why, uint32_t ms)
{
	snprintf(n->why, sizeof n->why, "%.100s: %.90s", here(n)->name, why);
	close_fd(n);
	n->forever = true;
	n->tried = 0;
	wait_for(n, jitter(ms));
}

void net_other(struct net *n, const char *why, uint32_t ms)
{
	net_again(n, why, ms);
	go_on(n);
}

bool net_try(struct net *n, const char *const *names, size_t count)
{
	char *was = text_copy(here(n)->name);
	const char *first = NULL;

	for (size_t i = 0; i < count; i++) {
		int at = places_learn(n->places, names[i]);
		const struct place *p = at >= 0 ? places_at(n->places, (size_t)at) : NULL;

		if (p != NULL && first == NULL && strcmp(p->name, was) != 0 && place_is_good(p, clock_ms()))
			first = names[i];
	}
	if (first == NULL) {			/* what was learned may have moved the others */
		size_t at = 0;

		while (at + 1 < places_count(n->places) && strcmp(places_at(n->places, at)->name, was) != 0)
			at++;
		n->at = at;
		free(was);
		return false;
	}
	free(was);
	close_fd(n);
	n->at = (size_t)places_learn(n->places, first);
	n->tried = 0;
	wait_for(n, 0);
	return true;
}

/*
 * Lost while up: another place first, for this one may be gone. The pause grows unless the
 * connection was of use for a while, or a server that hangs up after every login would be called
 * many times a second.
 */
static void lost(struct net *n, const char *why)
{
	char said[100];

	if (n->settled_ms != 0 && clock_ms() >= n->settled_ms + SETTLE_MS)
		n->backoff_ms = BACKOFF_MIN_MS;
	snprintf(said, sizeof said, "%s", why);
	net_other(n, said, n->backoff_ms);
	n->backoff_ms = n->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : n->backoff_ms * 2;
	n->ops.down(n->arg, said);
}

static void write_out(struct net *n)
{
	while (n->state == NET_UP && n->out_at < n->out.len) {
		ssize_t w = send(n->fd, n->out.s + n->out_at, n->out.len - n->out_at, MSG_NOSIGNAL);

		if (w < 0 && errno == EINTR)
			continue;
		/* a broken connection may still hold a last word for us: reading finds the end */
		if (w < 0)
			break;
		n->out_at += (size_t)w;
	}
	if (n->out_at == n->out.len) {
		text_clear(&n->out);
		n->out_at = 0;
	} else if (n->out_at > (64u << 10)) {
		text_drop(&n->out, n->out_at);
		n->out_at = 0;
	}
}

int net_send(struct net *n, const char *frame, size_t len)
{
	if (n->state != NET_UP || net_unsent(n) > NET_OUT_MAX)
		return -1;
	text_add(&n->out, frame, len);
	text_add(&n->out, "\n", 1);
	if (n->sent_ms == 0)
		n->sent_ms = clock_ms();
	return 0;
}

size_t net_unsent(const struct net *n)
{
	return n->out.len - n->out_at;
}

static void split_frames(struct net *n)
{
	uint64_t serial = n->serial;
	size_t from, to, done = 0;
	enum frame_rc rc;

	while ((rc = frame_next(&n->frame, n->in.s, n->in.len, NET_FRAME_MAX, &from, &to)) ==
	    FRAME_ONE) {
		n->ops.frame(n->arg, n->in.s + from, to - from);
		if (n->state != NET_UP || n->serial != serial)
			return;			/* the handler hung up: nothing of this is left */
		done = to;
		if (n->held)
			break;
	}
	n->more = rc == FRAME_ONE;
	if (rc == FRAME_BAD) {
		lost(n, frame_why(&n->frame));
		return;
	}
	if (rc == FRAME_MORE && frame_idle(&n->frame))
		done = n->frame.pos;
	if (done > 0) {
		frame_shift(&n->frame, done);
		text_drop(&n->in, done);
	}
}

static void read_in(struct net *n)
{
	ssize_t r;

	text_reserve(&n->in, 64u << 10);
	r = recv(n->fd, n->in.s + n->in.len, 64u << 10, 0);
	if (r > 0) {
		n->in.len += (size_t)r;
		n->in.s[n->in.len] = '\0';
		n->heard_ms = clock_ms();
		n->sent_ms = 0;
		n->asked = false;
		split_frames(n);
	} else if (r == 0) {
		lost(n, "the server closed the connection");
	} else if (errno != EAGAIN && errno != EINTR) {
		lost(n, strerror(errno));
	}
}

/*
 * When the silence is long enough for a question, or our question was open for long enough. Before
 * the login a server may be silent for as long as its password hash takes.
 */
static uint64_t quiet_due(const struct net *n)
{
	uint64_t due = n->heard_ms + QUIET_MS;

	if (n->asked)
		return n->asked_ms + QUIET_ASK_MS;
	if (n->settled_ms != 0 && n->sent_ms != 0 && n->sent_ms + QUIET_SENT_MS < due)
		due = n->sent_ms + QUIET_SENT_MS;
	return due;
}

static void check_quiet(struct net *n)
{
	static const char ping[] = "{\"msgid\":25}";
	uint64_t now = clock_ms();

	if (n->held) {
		n->heard_ms = now;		/* it is we who do not listen */
		n->sent_ms = 0;
		n->asked = false;
		return;
	}
	if (now < quiet_due(n))
		return;
	if (n->asked) {
		lost(n, "the server does not answer");
		return;
	}
	n->asked = true;
	n->asked_ms = now;
	net_send(n, ping, sizeof ping - 1);
}

static int ms_until(uint64_t due)
{
	uint64_t now = clock_ms();

	return due <= now ? 0 : due - now > 60000 ? 60000 : (int)(due - now);
}

int net_poll_before(struct net *n, struct pollfd *fds, int *timeout_ms)
{
	int ms = -1, count = 0;

	switch (n->state) {
	case NET_OFF:
		return 0;
	case NET_RESOLVING:
		ms = RESOLVE_POLL_MS;
		break;
	case NET_WAITING:
		ms = ms_until(n->due_ms);
		break;
	case NET_CONNECTING:
		ms = ms_until(n->due_ms);
		fds[count++] = (struct pollfd){ .fd = n->fd, .events = POLLOUT };
		break;
	case NET_UP:
		write_out(n);
		ms = ms_until(quiet_due(n));
		if (n->held)		/* not at all: its hang-up would wake us without end */
			break;
		if (n->more)
			ms = 0;
		fds[count++] = (struct pollfd){ .fd = n->fd,
		    .events = (short)(POLLIN | (net_unsent(n) > 0 ? POLLOUT : 0)) };
		break;
	}
	if (ms >= 0 && (*timeout_ms < 0 || ms < *timeout_ms))
		*timeout_ms = ms;
	return count;
}

static void check_connect(struct net *n, short revents)
{
	int err = 0;
	socklen_t len = sizeof err;

	if (revents == 0) {
		if (clock_ms() >= n->due_ms)
			next_addr(n, ETIMEDOUT);
		return;
	}
	getsockopt(n->fd, SOL_SOCKET, SO_ERROR, &err, &len);
	if (err != 0)
		next_addr(n, err);
	else
		came_up(n);
}

void net_poll_after(struct net *n, const struct pollfd *fds, int count)
{
	short revents = count > 0 ? fds[0].revents : 0;

	switch (n->state) {
	case NET_OFF:
		break;
	case NET_RESOLVING:
		check_lookup(n);
		break;
	case NET_WAITING:
		if (clock_ms() >= n->due_ms)
			try_place(n);
		break;
	case NET_CONNECTING:
		check_connect(n, revents);
		break;
	case NET_UP:
		if (revents & POLLOUT)
			write_out(n);
		if (n->more && !n->held)
			split_frames(n);
		else if ((revents & (POLLIN | POLLHUP | POLLERR)) && !n->held)
			read_in(n);
		if (n->state == NET_UP)
			check_quiet(n);
		break;
	}
}
