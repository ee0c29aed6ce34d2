#include "client/net.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/frame.h"
#include "worker/proto.h"

#define CONNECT_MS    5000
#define RESOLVE_MS    5000
#define RESOLVE_POLL_MS 20
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 30000
#define SETTLE_MS     3000
#define QUIET_MS      45000	/* a server that pings is never quiet for so long */
#define QUIET_ASK_MS  15000	/* how long it may take to answer our own PING */
#define ADDRS_MAX     16

struct endpoint {
	char *host, *port;	/* or */
	char *path;
	char *name;
};

struct addr {
	struct sockaddr_storage sa;
	socklen_t len;
};

struct net {
	struct net_ops ops;
	void *arg;
	struct endpoint *ep;
	size_t nep, at;			/* endpoint in use or next */
	size_t tried;			/* endpoints that failed in this round */
	struct addr addr[ADDRS_MAX];	/* of endpoint `at` */
	size_t naddr, addr_at;

	/* a lookup in flight; it outlives our interest in it, because it cannot be interrupted */
	struct gaicb *lookup;
	struct addrinfo hints;

	enum net_state state;
	bool forever;
	uint64_t serial;
	int fd;
	uint64_t due_ms;		/* of the state: deadline, or next attempt */
	uint32_t backoff_ms;
	uint64_t heard_ms;		/* last byte read while up */
	bool asked;			/* our PING is out */
	uint64_t settled_ms;		/* since when this connection is of use; 0: it is not */
	bool held;
	bool more;			/* frames may stand in `in` that were not handed out */
	char why[200];

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
	return n;
}

static void drop_lookup(struct net *n)
{
	if (n->lookup == NULL)
		return;
	/* one that still runs writes into its request: that memory is then left to it */
	if (gai_cancel(n->lookup) != EAI_NOTCANCELED && gai_error(n->lookup) != EAI_INPROGRESS) {
		if (n->lookup->ar_result != NULL)
			freeaddrinfo(n->lookup->ar_result);
		free(n->lookup);
	}
	n->lookup = NULL;
}

static void close_fd(struct net *n)
{
	drop_lookup(n);
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
	for (size_t i = 0; i < n->nep; i++) {
		free(n->ep[i].host);
		free(n->ep[i].port);
		free(n->ep[i].path);
		free(n->ep[i].name);
	}
	free(n->ep);
	text_fini(&n->in);
	text_fini(&n->out);
	free(n);
}

static struct endpoint *add_endpoint(struct net *n)
{
	n->ep = text_resize(n->ep, (n->nep + 1) * sizeof n->ep[0]);
	memset(&n->ep[n->nep], 0, sizeof n->ep[0]);
	return &n->ep[n->nep++];
}

void net_add_host(struct net *n, const char *host, const char *port)
{
	struct endpoint *ep = add_endpoint(n);
	struct text name = { 0 };

	ep->host = text_copy(host);
	ep->port = text_copy(port);
	text_printf(&name, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s", host, port);
	ep->name = name.s;
}

void net_add_unix(struct net *n, const char *path)
{
	struct endpoint *ep = add_endpoint(n);

	ep->path = text_copy(path);
	ep->name = text_copy(path);
}

const char *net_name(const struct net *n)
{
	return n->nep > 0 ? n->ep[0].name : "";
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

static void try_endpoint(struct net *n);

static void wait_for(struct net *n, uint32_t ms)
{
	n->state = NET_WAITING;
	n->due_ms = clock_ms() + ms;
}

/* The endpoint in hand is of no use: the next one, and after all of them a pause or the end. */
static void endpoint_failed(struct net *n, const char *what)
{
	snprintf(n->why, sizeof n->why, "%.100s: %.90s", n->ep[n->at].name, what);
	close_fd(n);
	n->naddr = n->addr_at = 0;
	n->at = (n->at + 1) % n->nep;
	if (++n->tried < n->nep) {
		try_endpoint(n);
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
	n->naddr = n->addr_at = 0;
	n->heard_ms = clock_ms();
	n->asked = false;
	n->settled_ms = 0;
	n->ops.up(n->arg);
}

/* Starts connecting to the next address of the endpoint; 0 when one is under way. */
static int try_addr(struct net *n, int *err_r)
{
	while (n->addr_at < n->naddr) {
		const struct addr *a = &n->addr[n->addr_at++];
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
			n->due_ms = clock_ms() + CONNECT_MS;
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
		endpoint_failed(n, strerror(err));
}

static void take_addresses(struct net *n, const struct addrinfo *ai)
{
	n->naddr = n->addr_at = 0;
	for (; ai != NULL && n->naddr < ADDRS_MAX; ai = ai->ai_next) {
		struct addr *a = &n->addr[n->naddr];

		if (ai->ai_addrlen > sizeof a->sa)
			continue;
		memcpy(&a->sa, ai->ai_addr, ai->ai_addrlen);
		a->len = ai->ai_addrlen;
		n->naddr++;
	}
	next_addr(n, EADDRNOTAVAIL);
}

static void start_lookup(struct net *n, const struct endpoint *ep)
{
	struct gaicb *list[1];

	/* in one block, so that an abandoned lookup keeps all that it reads */
	n->lookup = text_alloc(sizeof *n->lookup + sizeof n->hints + strlen(ep->host) +
	    strlen(ep->port) + 2);
	struct addrinfo *hints = (struct addrinfo *)(n->lookup + 1);
	char *host = (char *)(hints + 1), *port = host + strlen(ep->host) + 1;

	*hints = n->hints;
	strcpy(host, ep->host);
	strcpy(port, ep->port);
	n->lookup->ar_name = host;
	n->lookup->ar_service = port;
	n->lookup->ar_request = hints;
	list[0] = n->lookup;
	if (getaddrinfo_a(GAI_NOWAIT, list, 1, NULL) != 0) {
		free(n->lookup);
		n->lookup = NULL;
		endpoint_failed(n, "the name cannot be looked up");
		return;
	}
	n->state = NET_RESOLVING;
	n->due_ms = clock_ms() + RESOLVE_MS;
}

static void try_endpoint(struct net *n)
{
	const struct endpoint *ep = &n->ep[n->at];
	struct addrinfo *ai = NULL;

	if (ep->path != NULL) {
		struct sockaddr_un *un = (struct sockaddr_un *)&n->addr[0].sa;

		if (strlen(ep->path) >= sizeof un->sun_path) {
			endpoint_failed(n, "the path is too long");
			return;
		}
		memset(un, 0, sizeof *un);
		un->sun_family = AF_UNIX;
		strcpy(un->sun_path, ep->path);
		n->addr[0].len = sizeof *un;
		n->naddr = 1;
		n->addr_at = 0;
		next_addr(n, 0);
		return;
	}
	n->hints = (struct addrinfo){ .ai_socktype = SOCK_STREAM,
	    .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
	if (getaddrinfo(ep->host, ep->port, &n->hints, &ai) == 0) {
		take_addresses(n, ai);
		freeaddrinfo(ai);
		return;
	}
	n->hints.ai_flags = AI_ADDRCONFIG;
	start_lookup(n, ep);
}

static void check_lookup(struct net *n)
{
	int rc = gai_error(n->lookup);

	if (rc == EAI_INPROGRESS && clock_ms() < n->due_ms)
		return;
	if (rc == 0) {
		struct addrinfo *ai = n->lookup->ar_result;

		free(n->lookup);
		n->lookup = NULL;
		take_addresses(n, ai);
		freeaddrinfo(ai);
		return;
	}
	endpoint_failed(n, rc == EAI_INPROGRESS ? "looking up the name takes too long" :
	    gai_strerror(rc));
}

void net_start(struct net *n, bool forever)
{
	n->forever = forever;
	if (n->state != NET_OFF && n->state != NET_WAITING)
		return;
	n->tried = 0;
	try_endpoint(n);
}

void net_stop(struct net *n)
{
	close_fd(n);
	n->state = NET_OFF;
	n->forever = false;
}

void net_again(struct net *n, const char *why, uint32_t ms)
{
	snprintf(n->why, sizeof n->why, "%.100s: %.90s", n->ep[n->at].name, why);
	close_fd(n);
	n->forever = true;
	n->tried = 0;
	wait_for(n, jitter(ms));
}

/*
 * Lost while up. The pause grows unless the connection was of use for a while, or a server that
 * hangs up after every login would be called many times a second.
 */
static void lost(struct net *n, const char *why)
{
	char said[100];

	if (n->settled_ms != 0 && clock_ms() >= n->settled_ms + SETTLE_MS)
		n->backoff_ms = BACKOFF_MIN_MS;
	snprintf(said, sizeof said, "%s", why);
	net_again(n, said, n->backoff_ms);
	n->backoff_ms = n->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : n->backoff_ms * 2;
	if (n->settled_ms == 0)
		n->at = (n->at + 1) % n->nep;	/* it answers and is of no use: another one */
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
		n->asked = false;
		split_frames(n);
	} else if (r == 0) {
		lost(n, "the server closed the connection");
	} else if (errno != EAGAIN && errno != EINTR) {
		lost(n, strerror(errno));
	}
}

static void check_quiet(struct net *n)
{
	static const char ping[] = "{\"msgid\":25}";
	uint64_t now = clock_ms();

	if (n->held) {
		n->heard_ms = now;		/* it is we who do not listen */
		return;
	}
	if (!n->asked && now >= n->heard_ms + QUIET_MS) {
		n->asked = true;
		net_send(n, ping, sizeof ping - 1);
	} else if (n->asked && now >= n->heard_ms + QUIET_MS + QUIET_ASK_MS) {
		lost(n, "the server does not answer");
	}
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
		ms = ms_until(n->heard_ms + QUIET_MS + (n->asked ? QUIET_ASK_MS : 0));
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
			try_endpoint(n);
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
