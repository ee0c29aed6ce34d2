/*
 * conn.c - bytes of a client, both ways.
 *
 * Input is received straight into a chunk of the segment: [base, rend) of the stream, contiguous,
 * so that a frame never wraps; a partial frame that needs room moves into a larger chunk by
 * copy-then-switch, nothing is moved in place. Output is a chain of chunks addressed by stream
 * offset. An idle connection owns no chunk.
 */
#include "worker/conn.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "worker/addrs.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/base/proxyhdr.h"
#include "worker/cmd.h"
#include "worker/loop.h"
#include "worker/seat.h"
#include "worker/session.h"

#define READ_ROOM  16384u		/* a read takes at most about this */
#define OUT_CHUNK  4064u		/* 4 KiB with its header */
#define IOVECS     16
#define ACCEPTS    64			/* a listener a turn */
#define FRAMES     256			/* a connection a turn */
#define LINGER_MS  2000

static struct conn *dirty_head, *gone_head;
static struct conn **run_list;		/* parse on at the end of the turn; NULL: gone meanwhile */
static unsigned nrun, run_room;
static int spare_fd = -1;
static uint64_t accept_again_ms, dropped_ms;
static unsigned pressure;		/* as of this turn's beginning */
static uint32_t spare_in = CHUNK_NONE;	/* so that small requests are read when memory is used up */

static void on_timer(struct timer *t);

/* ---- the cache beside the records ---- */

static struct conn *conn_make(uint32_t rec, int fd)
{
	struct conn *c = seat_make(rec);

	if (c == NULL)
		return NULL;
	c->fd = fd;
	c->last_ms = c->since_ms = clock_ms();
	return c;
}

static void conn_release(struct conn *c)
{
	timer_stop(c->timer);
	timer_stop(&c->pace);
	timer_stop(&c->drain);
	timer_stop(&c->confirm);
	session_drop_cache(c);
	seat_release(c);
}

const char *conn_why(enum close_why why)
{
	static const char *const text[] = {
		[CLOSE_PEER] = "client closed", [CLOSE_IO] = "connection lost",
		[CLOSE_PROTO] = "no frame", [CLOSE_SLOW] = "reads too slowly",
		[CLOSE_IDLE] = "idle", [CLOSE_LOGIN] = "no login in time",
		[CLOSE_ENDED] = "session ended", [CLOSE_MEMORY] = "session memory used up",
		[CLOSE_STOP] = "worker stops", [CLOSE_FULL] = "too many from its address",
	};

	return text[why];
}

const char *conn_peer(const struct conn *c)
{
	static char text[64];
	char host[INET6_ADDRSTRLEN];
	static const unsigned char mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };

	if (c->r->port == 0)
		return "unix";
	if (memcmp(c->r->addr, mapped, 12) == 0)
		inet_ntop(AF_INET, c->r->addr + 12, host, sizeof host);
	else
		inet_ntop(AF_INET6, c->r->addr, host, sizeof host);
	snprintf(text, sizeof text, "%s:%u", host, c->r->port);
	return text;
}

/* ---- accept ---- */

int conn_init(void)
{
	spare_fd = dup(STDERR_FILENO);
	return 0;
}

void conn_tune_listener(int fd)
{
	const struct conf *cf = &wk->conf;
	int on = cf->keepalive_seconds > 0, idle = (int)cf->keepalive_seconds;
	int intvl = idle / 4 > 0 ? idle / 4 : 1, cnt = 4, ms = (int)cf->user_timeout_seconds * 1000;

	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
	if (on) {
		(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
		(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &intvl, sizeof intvl);
		(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &cnt, sizeof cnt);
	}
	(void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
}

static void fill_address(struct rec *r, const struct sockaddr_storage *ss)
{
	if (ss->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)ss;

		r->addr[10] = r->addr[11] = 0xff;
		memcpy(r->addr + 12, &in->sin_addr, 4);
		r->port = ntohs(in->sin_port);
	} else if (ss->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)ss;

		memcpy(r->addr, &in6->sin6_addr, 16);
		r->port = ntohs(in6->sin6_port);
	}
}

static uint32_t host_connections(void)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		sum += atomic_load_explicit(&slot_at(i)->connections, memory_order_relaxed);
	return sum;
}

#define FROM_ADDRESS "too many connections from your address"

/* A refusal that a person can read: errno 9 in an ERROR. Empty for who knows no ERROR. */
static size_t refusal(enum proto_dialect d, const char *why, char *text, size_t cap)
{
	COUNT(refused);
	return d != DIALECT_PLAIN ? 0 : (size_t)snprintf(text, cap,
	    "{\"msgid\":29,\"errno\":9,\"errmsg\":\"%s\",\"retry_ms\":5000}\n", why);
}

/* Told as far as the socket takes it at once. */
static void refuse(int fd, enum proto_dialect d, const char *why)
{
	char text[200];
	size_t n = refusal(d, why, text, sizeof text);

	if (n > 0)
		(void)!send(fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT);
	close(fd);
}

void conn_accept_fd(int fd, unsigned listener)
{
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof ss;
	enum proto_dialect d = (enum proto_dialect)wk->conf.listen[listener].dialect;
	uint32_t limit = wk->conf.max_connections;

	if (limit > 0 && limit < shm->head->max_sessions && host_connections() >= limit) {
		refuse(fd, d, "too many connections");
		return;
	}
	uint32_t rec = rec_claim(wk->slot, wk->gen);
	if (rec == REC_NONE) {
		refuse(fd, d, "too many sessions");
		return;
	}
	struct conn *c = conn_make(rec, fd);
	if (c == NULL) {
		rec_free(rec, wk->slot);
		refuse(fd, d, "out of memory");
		return;
	}
	if (getpeername(fd, (struct sockaddr *)&ss, &len) == 0)
		fill_address(c->r, &ss);
	if (wk->conf.listen[listener].proxy) {
		c->r->flags |= REC_HEADER;	/* whose address counts is in there */
	} else if (!addrs_enter(c->r, wk->conf.max_connections_address)) {
		conn_release(c);
		rec_free(rec, wk->slot);
		refuse(fd, d, FROM_ADDRESS);
		return;
	}
	c->r->heap = c->ix;
	c->r->fd = fd;
	c->r->dialect = (uint8_t)d;
	c->r->listener = (uint8_t)listener;
	c->r->since_wall_ms = (int64_t)clock_wall_ms();
	rec_set_state(rec, wk->slot, REC_OPEN);
	atomic_fetch_add_explicit(&wk->s->connections, 1, memory_order_relaxed);
	COUNT(accepted);
	c->reading = true;
	if (loop_client_add(fd, rec, c->gen, EPOLLIN) != 0)
		conn_close(c, CLOSE_IO);
	else
		conn_rearm(c);
}

void conn_accept_from(int listen_fd, unsigned listener)
{
	if (clock_ms() < accept_again_ms)
		return;
	for (int i = 0; i < ACCEPTS; i++) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			conn_accept_fd(fd, listener);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE) {
			/* Out of descriptors: refuse one with the spare, or the listener spins. */
			close(spare_fd);
			fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			if (fd >= 0)
				refuse(fd, (enum proto_dialect)wk->conf.listen[listener].dialect,
				    "too many connections");
			spare_fd = dup(STDERR_FILENO);
		} else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
			log_warn("accept: %s", strerror(errno));
			accept_again_ms = clock_ms() + 100;
		}
		if (errno != EINTR && errno != ECONNABORTED)
			return;
	}
}

/* ---- interest and timers ---- */

void conn_want(struct conn *c)
{
	bool rd = c->state == CONN_LINGER || (c->state == CONN_OPEN && !c->blocked && !c->paused &&
	    !c->throttled && !c->eof && !c->leaving);
	bool wr = (c->state == CONN_OPEN || c->state == CONN_DRAIN_OUT) &&
	    c->r->wend > c->r->wsent;

	if (c->fd < 0 || c->state == CONN_MOVING || (rd == c->reading && wr == c->writing))
		return;
	c->reading = rd;
	c->writing = wr;
	(void)loop_client_mod(c->fd, c->rec, c->gen, (rd ? EPOLLIN : 0u) | (wr ? EPOLLOUT : 0u));
}

void conn_rearm(struct conn *c)
{
	const struct conf *cf = &wk->conf;
	bool in = session_logged_in(c);
	uint64_t at = 0, first = UINT64_MAX;

	if (c->state != CONN_OPEN)
		return;
	if (!in && cf->login_ms > 0)
		first = c->since_ms + cf->login_ms;
	if (cf->idle_ms > 0 && (at = c->last_ms + cf->idle_ms) < first)
		first = at;
	if (in && c->r->ack && cf->ping_ms > 0 && (at = c->last_ms + cf->ping_ms) < first)
		first = at;
	if (first == UINT64_MAX)
		timer_stop(c->timer);
	else if (!timer_is_set(c->timer) || c->timer->at_ms > first)
		timer_set(c->timer, first, on_timer);
}

/* The timer is set early and looks again: traffic only moves last_ms, never the timer. */
static void on_timer(struct timer *t)
{
	struct conn *c = seat_of_timer(t);
	const struct conf *cf = &wk->conf;
	uint64_t quiet = clock_ms() - c->last_ms;
	bool in = session_logged_in(c);

	if (c->state == CONN_LINGER || c->state == CONN_DRAIN_OUT) {
		conn_close(c, CLOSE_ENDED);
		return;
	}
	if (c->state != CONN_OPEN)
		return;
	if (!in && c->login == NULL && cf->login_ms > 0 && clock_ms() - c->since_ms >= cf->login_ms) {
		session_end_notice(c, "idle", CLOSE_LOGIN);
		return;
	}
	if (cf->idle_ms > 0 && quiet >= cf->idle_ms) {
		session_end_notice(c, "idle", CLOSE_IDLE);
		return;
	}
	if (in && c->r->ack && cf->ping_ms > 0 && quiet >= cf->ping_ms) {
		if (c->ping_sent && quiet >= 2ull * cf->ping_ms) {
			session_end_notice(c, "idle", CLOSE_IDLE);
			return;
		}
		if (!c->ping_sent) {
			c->ping_sent = true;
			cmd_ping(c);
		}
		timer_set(c->timer, c->last_ms + 2ull * cf->ping_ms, on_timer);
		return;
	}
	conn_rearm(c);
}

/* ---- input ---- */

/* ---- session memory used up ---- */

#define DROP_EVERY_MS 5
#define DROP_UNSENT   32768u		/* who has less unsent than this is not what fills the memory */
#define STARVED_MS    20
#define PRESSED_ROOM  2048u		/* a read takes that much when memory is short */

struct slowest { struct conn *c; uint64_t unsent; };

static void slower(struct conn *c, void *arg)
{
	struct slowest *s = arg;

	if (c->fd >= 0 && c->state == CONN_OPEN && conn_unsent(c) > s->unsent)
		*s = (struct slowest){ c, conn_unsent(c) };
}

/* The reader that holds most goes, now and then: what it had not had is in the store afterwards. */
static bool drop_slowest(const struct conn *but)
{
	static uint64_t said_ms;
	struct slowest s = { NULL, DROP_UNSENT };

	if (clock_ms() - dropped_ms < DROP_EVERY_MS)
		return false;
	dropped_ms = clock_ms();
	seat_each_awake(slower, &s);
	if (clock_ms() - said_ms > 1000) {
		said_ms = clock_ms();
		log_warn("session memory is short: %llu of %llu bytes in use%s",
		    (unsigned long long)region_used(wk->region),
		    (unsigned long long)region_size(wk->region),
		    s.c != NULL ? ", the slowest reader is dropped" : "");
	}
	if (s.c == NULL || s.c == but)
		return false;
	COUNT(slow_closed);
	conn_close(s.c, CLOSE_SLOW);
	return true;
}

static void on_starved(struct timer *t)
{
	conn_resume((struct conn *)((char *)t - offsetof(struct conn, pace)));
}

/* Not read for a moment: the bytes wait in the socket, and the client with them. */
static void starve(struct conn *c)
{
	(void)drop_slowest(NULL);
	if (c->state != CONN_OPEN || c->paused)
		return;
	conn_pause(c);
	timer_set(&c->pace, clock_ms() + STARVED_MS, on_starved);
}

unsigned conn_pressure(void)
{
	uint64_t used = region_used(wk->region), size = region_size(wk->region);

	return used < size / 2 ? 0 : used < size / 4 * 3 ? 1 : used < size / 8 * 7 ? 2 : 3;
}

static uint32_t in_alloc(struct conn *c, size_t need)
{
	uint32_t ref = chunk_alloc(wk->region, need, CHUNK_IN, c->rec, c->gen);

	if (ref == CHUNK_NONE && spare_in != CHUNK_NONE && need <= READ_ROOM) {
		chunk_free(wk->region, spare_in);
		spare_in = CHUNK_NONE;
		ref = chunk_alloc(wk->region, need, CHUNK_IN, c->rec, c->gen);
	}
	return ref;
}

/* Makes sure that the input chunk has room for a read behind what it holds. */
static struct chunk *in_room(struct conn *c, size_t *room_r)
{
	struct rec *r = c->r;
	struct chunk *ch = r->in_chunk != CHUNK_NONE ? chunk_at(wk->slot, r->in_chunk) : NULL;
	size_t have = ch != NULL ? (size_t)(r->rend - ch->base) : 0;

	if (ch != NULL && chunk_room(ch) - have >= 512) {
		*room_r = chunk_room(ch) - have;
		return ch;
	}
	size_t live = ch != NULL ? (size_t)(r->rend - r->rpos) : 0;
	size_t need = live < READ_ROOM / 2 ? READ_ROOM - 32 : live * 2;
	if (need > wk->conf.max_frame + READ_ROOM)
		need = wk->conf.max_frame + READ_ROOM;
	uint32_t ref = in_alloc(c, need);
	if (ref == CHUNK_NONE)
		return NULL;
	struct chunk *to = chunk_at(wk->slot, ref);
	to->base = r->rpos;
	to->next = CHUNK_NONE;
	if (ch != NULL) {
		memcpy(to->data, ch->data + (r->rpos - ch->base), live);
		frame_shift(&c->scan, (size_t)(r->rpos - ch->base));
		uint32_t old = r->in_chunk;
		r->in_chunk = ref;		/* the switch: either chunk is whole */
		chunk_free(wk->region, old);
	} else {
		frame_init(&c->scan);
		r->in_chunk = ref;
	}
	*room_r = chunk_room(to) - live;
	return to;
}

static void in_drop(struct conn *c)
{
	if (c->r->in_chunk == CHUNK_NONE)
		return;
	chunk_free(wk->region, c->r->in_chunk);
	c->r->in_chunk = CHUNK_NONE;
}

/* The byte behind the client's first frame says how it wants the server's frames to end. */
static void learn_term(struct conn *c, const struct chunk *ch)
{
	if (c->term_at == 0 || c->term_at < ch->base || c->term_at >= c->r->rend)
		return;
	unsigned char b = ch->data[c->term_at - ch->base];
	bool nul = b == '\0' || (b == '{' && c->r->dialect == DIALECT_CLASSIC);
	c->r->term = nul ? 1 : '\n';
}

char conn_term(const struct conn *c)
{
	if (c->r->term == 0)
		return c->r->dialect == DIALECT_CLASSIC ? '\0' : '\n';
	return c->r->term == 1 ? '\0' : '\n';
}

/* ---- what a proxy says of its client ---- */

static void bad_header(const struct conn *c, const char *why)
{
	static uint64_t said_ms, unsaid;

	COUNT(bad_frames);
	if (clock_ms() - said_ms < 1000) {
		unsaid++;
		return;
	}
	log_warn("conn %s: no PROXY header: %s (%llu more since the last such line)", conn_peer(c),
	    why, (unsigned long long)unsaid);
	said_ms = clock_ms();
	unsaid = 0;
}

/* From here on the connection is the client's: its address counts, its frames come. */
static bool enter_client(struct conn *c, const struct proxyhdr *h)
{
	struct rec *r = c->r;
	char text[200];

	if (h->known) {
		memcpy(r->addr, h->addr, sizeof r->addr);
		r->port = h->port != 0 ? h->port : 1;	/* a record's port 0 is a unix socket */
	}
	r->rpos += h->len;
	c->scan.pos = c->scan.start = (uint32_t)(r->rpos - chunk_at(wk->slot, r->in_chunk)->base);
	r->flags &= (uint8_t)~REC_HEADER;
	if (addrs_enter(r, wk->conf.max_connections_address))
		return true;
	size_t n = refusal((enum proto_dialect)r->dialect, FROM_ADDRESS, text, sizeof text);
	if (n > 0)
		conn_write(c, text, n);
	conn_finish(c, CLOSE_FULL);
	return false;
}

/*
 * A connection of a proxy listener before its first frame. False: the header is not complete, or
 * the connection is at its end. What there is of it lies in the input chunk, and the flag in the
 * record, so that a move in the middle is like any other.
 */
static bool read_header(struct conn *c)
{
	struct rec *r = c->r;
	size_t have = (size_t)(r->rend - r->rpos);
	enum proxyhdr_rc rc = PROXYHDR_MORE;
	const char *why = "it ends too early";
	struct proxyhdr h;

	if (c->state != CONN_OPEN || c->leaving || c->paused)
		return false;
	if (have > 0) {
		struct chunk *ch = chunk_at(wk->slot, r->in_chunk);
		rc = proxyhdr_read(ch->data + (r->rpos - ch->base), have, &h, &why);
	}
	if (rc == PROXYHDR_OK)
		return enter_client(c, &h);
	if (rc == PROXYHDR_BAD || c->eof) {
		if (have > 0)			/* else somebody only looked whether we are there */
			bad_header(c, why);
		conn_close(c, rc == PROXYHDR_BAD ? CLOSE_PROTO : CLOSE_PEER);
	}
	return false;
}

void conn_parse(struct conn *c)
{
	struct rec *r = c->r;
	struct frame_seen seen;
	int frames = 0;

	if ((r->flags & REC_HEADER) && !read_header(c))
		return;
	while (c->state == CONN_OPEN && !c->blocked && !c->paused && !c->throttled && !c->leaving &&
	    r->in_chunk != CHUNK_NONE) {
		struct chunk *ch = chunk_at(wk->slot, r->in_chunk);
		size_t start, end;

		if (r->term == 0)
			learn_term(c, ch);
		if (frames++ >= FRAMES) {	/* fairness: others first, no event will say so */
			conn_unblock(c);
			return;
		}
		size_t len = (size_t)(r->rend - ch->base);
		bool fits = cmd_fits(c, (char *)ch->data, len);
		enum frame_rc rc = fits ? FRAME_ONE : frame_find(&c->scan, (char *)ch->data, len,
		    wk->conf.max_frame, &start, &end, &seen);
		if (rc == FRAME_MORE) {
			if (frame_idle(&c->scan)) {
				r->rpos = r->rend;
				in_drop(c);
			} else {
				r->rpos = ch->base + c->scan.start;
			}
			break;
		}
		if (rc == FRAME_BAD) {
			COUNT(bad_frames);
			cmd_bad_frame(c, frame_why(&c->scan));
			return;
		}
		if (r->term == 0) {
			if (c->term_at == 0)
				c->term_at = ch->base + c->scan.pos;
			learn_term(c, ch);
		}
		COUNT(frames_in);
		r->rpos = ch->base + c->scan.pos;
		if (fits)
			cmd_run(c);
		else
			cmd_frame(c, (char *)ch->data + start, end - start, &seen);
	}
	if (c->eof && c->state == CONN_OPEN && !c->blocked && !c->paused && !c->throttled &&
	    !c->leaving)
		conn_finish(c, CLOSE_PEER);
}

static void conn_read(struct conn *c)
{
	size_t room;
	struct chunk *ch = in_room(c, &room);

	if (ch == NULL) {
		starve(c);
		return;
	}
	if (room > READ_ROOM)
		room = READ_ROOM;
	if (pressure >= 2 && c->r->rend - c->r->rpos > PRESSED_ROOM) {
		starve(c);	/* in the middle of something large: that can wait */
		return;
	}
	if (pressure >= 2 && room > PRESSED_ROOM)
		room = PRESSED_ROOM;
	ssize_t n = recv(c->fd, ch->data + (c->r->rend - ch->base), room, MSG_DONTWAIT);
	COUNT(reads);
	if (n > 0) {
		c->r->rend += (uint64_t)n;
		COUNT_N(bytes_in, (uint64_t)n);
		c->last_ms = clock_ms();
		c->ping_sent = false;
		session_heard(c);
		conn_parse(c);
		return;
	}
	if (c->r->rend == c->r->rpos)
		in_drop(c);
	if (n == 0) {
		c->eof = true;
		conn_parse(c);
		conn_want(c);
	} else if (errno != EAGAIN && errno != EINTR) {
		conn_close(c, CLOSE_IO);
	}
}

/* What a client still sends after it was told that this is the end: read, so that no reset overtakes. */
static void conn_discard(struct conn *c)
{
	char buf[4096];

	for (int i = 0; i < 4; i++) {
		ssize_t n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			conn_close(c, CLOSE_PEER);
			return;
		}
		if (n < 0)
			return;
	}
}

void conn_unblock(struct conn *c)
{
	c->blocked = false;
	if (c->queued)
		return;
	if (nrun == run_room) {
		run_room = run_room * 2 + 64;
		run_list = realloc(run_list, run_room * sizeof *run_list);
		ensure(run_list != NULL);
	}
	c->queued = true;
	run_list[nrun++] = c;
	loop_again();
}

void conn_pause(struct conn *c)
{
	c->paused = true;
	conn_want(c);
}

void conn_resume(struct conn *c)
{
	c->paused = false;
	if (c->blocked)
		conn_want(c);		/* what it waits for goes on */
	else
		conn_unblock(c);
}

void conn_event(uint32_t rec, uint32_t gen, uint32_t events)
{
	if (rec >= shm->head->max_sessions)
		return;
	struct conn *c = conn_get(rec, atomic_load(&rec_at(rec)->gen));
	if (c == NULL || (c->gen & 0x7fffffff) != gen || c->fd < 0 || c->state == CONN_MOVING)
		return;			/* closed by an earlier event of this batch */
	if (events & EPOLLOUT)
		conn_mark_dirty(c);
	if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) == 0)
		return;
	if (c->state == CONN_LINGER) {
		conn_discard(c);
	} else if (c->state == CONN_DRAIN_OUT) {
		if (events & (EPOLLERR | EPOLLHUP))
			conn_close(c, CLOSE_IO);
	} else if (!c->blocked && !c->paused && !c->throttled && !c->eof && !c->leaving) {
		atomic_store_explicit(&wk->s->inflight, rec + 1, memory_order_relaxed);
		conn_read(c);
	} else if (events & (EPOLLERR | EPOLLHUP)) {
		conn_close(c, CLOSE_IO);
	} else {
		conn_want(c);		/* not now: take the interest back, or the loop spins */
	}
}

/* ---- output ---- */

uint64_t conn_unsent(const struct conn *c)
{
	return c->r->wend - c->r->wsent;
}

void conn_mark_dirty(struct conn *c)
{
	if (c->dirty)
		return;
	c->dirty = true;
	c->next_dirty = dirty_head;
	dirty_head = c;
}

char *conn_room(struct conn *c, size_t max)
{
	struct rec *r = c->r;

	if (c->fd < 0)
		return NULL;
	if (r->out_tail != CHUNK_NONE) {
		struct chunk *t = chunk_at(wk->slot, r->out_tail);
		size_t have = (size_t)(r->wend - t->base);

		if (chunk_room(t) - have >= max)
			return (char *)t->data + have;
	}
	size_t want = max > OUT_CHUNK ? max : conn_unsent(c) > 32768 ? 16384 - 32 : OUT_CHUNK;
	uint32_t ref = chunk_alloc(wk->region, want < max ? max : want, CHUNK_OUT, c->rec, c->gen);
	if (ref == CHUNK_NONE && drop_slowest(c))
		ref = chunk_alloc(wk->region, max, CHUNK_OUT, c->rec, c->gen);
	if (ref == CHUNK_NONE) {
		conn_close(c, CLOSE_MEMORY);
		return NULL;
	}
	struct chunk *n = chunk_at(wk->slot, ref);
	n->base = r->wend;
	n->next = CHUNK_NONE;
	if (r->out_tail != CHUNK_NONE)
		chunk_at(wk->slot, r->out_tail)->next = ref;
	else
		r->out_head = ref;
	r->out_tail = ref;
	return (char *)n->data;
}

void conn_put(struct conn *c, size_t used)
{
	c->r->wend += used;
	conn_mark_dirty(c);
}

void conn_write(struct conn *c, const char *bytes, size_t len)
{
	char *p = conn_room(c, len);

	if (p == NULL)
		return;
	memcpy(p, bytes, len);
	conn_put(c, len);
}

static void out_trim(struct conn *c)
{
	struct rec *r = c->r;

	while (r->out_head != CHUNK_NONE) {
		struct chunk *h = chunk_at(wk->slot, r->out_head);
		uint32_t next = h->next;
		uint64_t end = next != CHUNK_NONE ? chunk_at(wk->slot, next)->base : r->wend;

		if (r->wsent < end)
			return;
		uint32_t ref = r->out_head;
		r->out_head = next;
		if (next == CHUNK_NONE)
			r->out_tail = CHUNK_NONE;
		chunk_free(wk->region, ref);
	}
}

/* One send for all that the turn gathered. Returns false when the connection is lost. */
static bool out_send(struct conn *c)
{
	struct rec *r = c->r;
	struct iovec iov[IOVECS];
	struct msghdr mh = { .msg_iov = iov };
	uint64_t pos = r->wsent;

	for (uint32_t ref = r->out_head; ref != CHUNK_NONE && mh.msg_iovlen < IOVECS; ) {
		struct chunk *ch = chunk_at(wk->slot, ref);
		uint64_t end = ch->next != CHUNK_NONE ? chunk_at(wk->slot, ch->next)->base : r->wend;

		if (end > pos) {
			iov[mh.msg_iovlen].iov_base = ch->data + (pos - ch->base);
			iov[mh.msg_iovlen++].iov_len = (size_t)(end - pos);
			pos = end;
		}
		ref = ch->next;
	}
	ssize_t n = sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
	COUNT(writes);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR || errno == ENOBUFS;
	r->wsent += (uint64_t)n;
	COUNT_N(bytes_out, (uint64_t)n);
	out_trim(c);
	return true;
}

static void conn_flush(struct conn *c)
{
	if (c->r == NULL || c->fd < 0 || c->state == CONN_MOVING || c->state == CONN_LINGER)
		return;
	if (c->r->wend > c->r->wsent && !out_send(c)) {
		conn_close(c, CLOSE_IO);
		return;
	}
	session_written(c);
	if (c->r == NULL || c->fd < 0)
		return;
	if (conn_unsent(c) > wk->conf.output_limit) {
		COUNT(slow_closed);
		log_info("conn %s user %u: %s, %llu bytes unsent", conn_peer(c),
		    atomic_load(&c->r->user), conn_why(CLOSE_SLOW),
		    (unsigned long long)conn_unsent(c));
		conn_close(c, CLOSE_SLOW);
		return;
	}
	if (c->state == CONN_DRAIN_OUT && conn_unsent(c) == 0) {
		c->state = CONN_LINGER;
		(void)shutdown(c->fd, SHUT_WR);
		if (c->eof) {
			conn_close(c, CLOSE_PEER);
			return;
		}
	}
	conn_want(c);
}

static void free_gone(void)
{
	struct conn *c;

	while ((c = gone_head) != NULL) {
		gone_head = c->next_dirty;
		uint32_t rec = c->rec;
		bool moved = c->state == CONN_MOVING;

		conn_release(c);
		if (!moved)
			rec_free(rec, wk->slot);
	}
}

void conn_flush_all(void)
{
	struct conn *c;
	unsigned n = nrun;		/* what these add is for the next turn */

	for (unsigned i = 0; i < n; i++) {
		if ((c = run_list[i]) == NULL)
			continue;
		run_list[i] = NULL;
		c->queued = false;
		if (c->blocked)
			continue;
		conn_parse(c);
		conn_want(c);
	}
	nrun -= n;
	if (nrun > 0)
		memmove(run_list, run_list + n, nrun * sizeof *run_list);
	session_turn_end();
	while ((c = dirty_head) != NULL) {
		dirty_head = c->next_dirty;
		c->dirty = false;
		conn_flush(c);
	}
	pressure = conn_pressure();
	if (pressure == 3)
		(void)drop_slowest(NULL);
	free_gone();
	if (spare_in == CHUNK_NONE && wk->nconns > 0)
		spare_in = chunk_alloc(wk->region, READ_ROOM - 32, CHUNK_IN, REC_NONE, 0);
	else if (spare_in != CHUNK_NONE && wk->nconns == 0) {
		chunk_free(wk->region, spare_in);
		spare_in = CHUNK_NONE;
	}
	atomic_store_explicit(&wk->s->inflight, 0, memory_order_relaxed);
}

/* ---- the end ---- */

void conn_finish(struct conn *c, enum close_why why)
{
	if (c->state != CONN_OPEN)
		return;
	log_debug("conn %s user %u: finish, %s", conn_peer(c), atomic_load(&c->r->user), conn_why(why));
	c->state = CONN_DRAIN_OUT;
	in_drop(c);
	c->r->rpos = c->r->rend;
	timer_set(c->timer, clock_ms() + LINGER_MS, on_timer);
	conn_mark_dirty(c);
	conn_want(c);
	session_finished(c);
}

void conn_close(struct conn *c, enum close_why why)
{
	struct rec *r = c->r;

	if (c->state == CONN_CLOSED)
		return;
	log_debug("conn %s user %u: closed, %s", conn_peer(c), atomic_load(&r->user), conn_why(why));
	c->state = CONN_CLOSED;
	session_closing(c);
	loop_client_del(c->fd);
	close(c->fd);
	c->fd = -1;
	r->fd = -1;
	addrs_leave(r);
	rec_set_state(c->rec, wk->slot, REC_CLOSING);
	atomic_fetch_sub_explicit(&wk->s->connections, 1, memory_order_relaxed);
	COUNT(closed);
	timer_stop(c->timer);
	in_drop(c);
	while (r->out_head != CHUNK_NONE) {
		uint32_t ref = r->out_head;

		r->out_head = chunk_at(wk->slot, ref)->next;
		chunk_free(wk->region, ref);
	}
	r->out_tail = CHUNK_NONE;
	session_closed(c);
}

/* Not freed on the spot: lists of this turn may still name it. */
void conn_gone(struct conn *c)
{
	if (c->dirty) {			/* leave that list first: both use next_dirty */
		for (struct conn **p = &dirty_head; *p != NULL; p = &(*p)->next_dirty)
			if (*p == c) {
				*p = c->next_dirty;
				break;
			}
		c->dirty = false;
	}
	for (unsigned i = 0; c->queued && i < nrun; i++)
		if (run_list[i] == c)
			run_list[i] = NULL;
	c->queued = false;
	c->next_dirty = gone_head;
	gone_head = c;
	loop_again();
}

struct conn *conn_adopt(uint32_t rec, int fd)
{
	struct conn *c = conn_make(rec, fd);

	if (c == NULL)
		return NULL;
	atomic_fetch_add_explicit(&wk->s->connections, 1, memory_order_relaxed);
	return c;
}

/* The record has a new owner: the cache goes like any other, but keeps its hands off the record. */
void conn_forget(struct conn *c)
{
	loop_client_del(c->fd);
	close(c->fd);
	c->fd = -1;
	c->state = CONN_MOVING;
	atomic_fetch_sub_explicit(&wk->s->connections, 1, memory_order_relaxed);
	conn_gone(c);
}
