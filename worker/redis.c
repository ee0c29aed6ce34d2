/*
 * redis.c - bytes and answers of one connection to Redis.
 *
 * Answers are made straight into struct bus_value by functions that the reader calls, so that their
 * number is bounded before memory is taken. An array's elements are one block; the reader says for
 * each value in which array it stands.
 */
#include "worker/redis.h"

#include <errno.h>
#include <hiredis/read.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/base/clock.h"

#define READ_BYTES 65536u
#define READS      8			/* an event, so that one connection does not keep the loop */
#define OUT_KEPT   (1u << 20)		/* of the output's memory, when it is empty */

/* ---- answers ---- */

static void release(struct bus_value *v)
{
	for (size_t i = 0; i < v->nv; i++)
		release((struct bus_value *)(uintptr_t)&v->v[i]);
	free((void *)(uintptr_t)v->v);
	free((void *)(uintptr_t)v->s);
}

static void value_free(void *obj)
{
	struct bus_value *v = obj;

	if (v == NULL)
		return;
	release(v);
	free(v);
}

/* Where the value of this task goes: into its array, or alone. */
static struct bus_value *place(const redisReadTask *t)
{
	struct bus_value *array = t->parent != NULL ? t->parent->obj : NULL;

	if (t->parent == NULL)
		return calloc(1, sizeof(struct bus_value));
	if (array == NULL || t->idx < 0 || (size_t)t->idx >= array->nv)
		return NULL;
	return (struct bus_value *)(uintptr_t)&array->v[t->idx];
}

static void *make_string(const redisReadTask *t, char *s, size_t len)
{
	struct bus_value *v;
	char *copy = malloc(len + 1);

	if (copy == NULL || (v = place(t)) == NULL) {
		free(copy);
		return NULL;
	}
	memcpy(copy, s, len);
	copy[len] = '\0';
	v->type = t->type == REDIS_REPLY_ERROR ? BUS_ERROR : BUS_STR;
	v->s = copy;
	v->len = len;
	return v;
}

static void *make_array(const redisReadTask *t, int n)
{
	struct bus_value *v, *of = NULL;

	if (n < 0 || (unsigned)n > REDIS_ELEMENTS ||
	    (n > 0 && (of = calloc((size_t)n, sizeof *of)) == NULL))
		return NULL;
	if ((v = place(t)) == NULL) {
		free(of);
		return NULL;
	}
	v->type = BUS_ARRAY;
	v->v = of;
	v->nv = (size_t)n;
	return v;
}

static void *make_integer(const redisReadTask *t, long long n)
{
	struct bus_value *v = place(t);

	if (v != NULL) {
		v->type = BUS_INT;
		v->n = n;
	}
	return v;
}

static void *make_nil(const redisReadTask *t)
{
	struct bus_value *v = place(t);

	if (v != NULL)
		v->type = BUS_NIL;
	return v;
}

static redisReplyObjectFunctions makers = { make_string, make_array, make_integer, make_nil,
    value_free };

bool bus_is_error(const struct bus_value *v, const char *word)
{
	return v != NULL && v->type == BUS_ERROR && strncmp(v->s, word, strlen(word)) == 0;
}

/* ---- commands ---- */

static bool room_out(struct redis *r, size_t more)
{
	size_t cap = r->out_cap != 0 ? r->out_cap : 16384;
	char *p;

	if (r->out_len + more <= r->out_cap)
		return true;
	if (r->out_sent > r->out_len / 2) {
		memmove(r->out, r->out + r->out_sent, r->out_len - r->out_sent);
		r->out_len -= r->out_sent;
		r->out_sent = 0;
	}
	while (cap < r->out_len + more)
		cap *= 2;
	if (cap == r->out_cap)
		return true;
	if ((p = realloc(r->out, cap)) == NULL)
		return false;
	r->out = p;
	r->out_cap = cap;
	return true;
}

static bool room_ring(struct redis *r)
{
	uint32_t cap = r->cap != 0 ? r->cap * 2 : 256;
	struct redis_cmd *ring;

	if (r->count < r->cap)
		return true;
	if ((ring = malloc(cap * sizeof *ring)) == NULL)
		return false;
	for (uint32_t i = 0; i < r->count; i++)
		ring[i] = r->ring[(r->head + i) & (r->cap - 1)];
	free(r->ring);
	r->ring = ring;
	r->head = 0;
	r->cap = cap;
	return true;
}

#define ARG_HEAD 24			/* "$18446744073709551615\r\n" */

static size_t args_bound(unsigned argc, const char *const *argv, const size_t *lens)
{
	size_t n = 0;

	for (unsigned i = 0; i < argc; i++)
		n += (lens != NULL ? lens[i] : strlen(argv[i])) + ARG_HEAD + 2;
	return n;
}

static char *write_args(char *p, unsigned argc, const char *const *argv, const size_t *lens)
{
	for (unsigned i = 0; i < argc; i++) {
		size_t len = lens != NULL ? lens[i] : strlen(argv[i]);

		p += sprintf(p, "$%zu\r\n", len);
		memcpy(p, argv[i], len);
		memcpy(p + len, "\r\n", 2);
		p += len + 2;
	}
	return p;
}

char *redis_pack(unsigned argc, const char *const *argv, const size_t *lens, size_t *len_r)
{
	char *p = malloc(args_bound(argc, argv, lens) + 1);

	if (p != NULL)
		*len_r = (size_t)(write_args(p, argc, argv, lens) - p);
	return p;
}

static bool put(struct redis *r, unsigned argc, const char *const *argv, const size_t *lens,
    unsigned more, const char *packed, size_t packed_len, const struct redis_cmd *cmd)
{
	size_t bound = args_bound(argc, argv, lens) + packed_len + ARG_HEAD;
	char *p, *from;

	if (r->state == REDIS_CLOSED || r->doomed || r->count >= REDIS_COMMANDS ||
	    bound > REDIS_BYTES || r->waiting > REDIS_BYTES - bound)
		return false;
	if (!room_ring(r) || !room_out(r, bound))
		return false;
	from = r->out + r->out_len;
	p = from + sprintf(from, "*%u\r\n", argc + more);
	p = write_args(p, argc, argv, lens);
	if (packed_len > 0)
		memcpy(p, packed, packed_len);
	p += packed_len;
	r->out_len += (size_t)(p - from);
	r->ring[(r->head + r->count) & (r->cap - 1)] = *cmd;
	r->ring[(r->head + r->count) & (r->cap - 1)].bytes = (size_t)(p - from);
	r->count++;
	r->waiting += (size_t)(p - from);
	return true;
}

bool redis_put(struct redis *r, unsigned argc, const char *const *argv, const size_t *lens,
    bus_done_fn *done, void *arg, uint64_t tag)
{
	struct redis_cmd cmd = { .done = done, .arg = arg, .tag = tag, .at_ms = clock_ms() };

	return put(r, argc, argv, lens, 0, NULL, 0, &cmd);
}

bool redis_put_packed(struct redis *r, unsigned argc, const char *const *argv, unsigned count,
    const char *packed, size_t packed_len, bus_done_fn *done, void *arg, uint64_t tag)
{
	struct redis_cmd cmd = { .done = done, .arg = arg, .tag = tag, .at_ms = clock_ms() };

	return put(r, argc, argv, NULL, count, packed, packed_len, &cmd);
}

/* The oldest command has this answer. */
static void answer(struct redis *r, const struct bus_value *v)
{
	struct redis_cmd cmd = r->ring[r->head];

	r->head = (r->head + 1) & (r->cap - 1);
	r->count--;
	r->waiting -= cmd.bytes;
	if (v != NULL && v->type == BUS_ERROR && r->failed != NULL)
		r->failed(r, v);
	if (cmd.done != NULL)
		cmd.done(cmd.arg, cmd.tag, v);
}

/* ---- the connection ---- */

static int begin(struct redis *r, const struct sockaddr *to, socklen_t len)
{
	int one = 1, idle = 15, every = 5;

	r->fd = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (r->fd < 0)
		return -1;
	if (to->sa_family != AF_UNIX) {		/* only comfort: our own clock finds a dead peer */
		(void)setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		(void)setsockopt(r->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
		(void)setsockopt(r->fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
		(void)setsockopt(r->fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
	}
	if (connect(r->fd, to, len) == 0 || errno == EINPROGRESS)
		return 0;
	return -1;
}

int redis_open(struct redis *r, const struct sockaddr *to, socklen_t len)
{
	r->why[0] = '\0';
	r->doomed = false;
	r->heard_ms = clock_ms();
	r->fd = -1;
	r->reader = redisReaderCreateWithFunctions(&makers);
	if (r->reader != NULL && begin(r, to, len) == 0) {
		r->state = REDIS_CONNECTING;
		return 0;
	}
	snprintf(r->why, sizeof r->why, "%s", strerror(r->reader != NULL ? errno : ENOMEM));
	if (r->fd >= 0)
		close(r->fd);
	if (r->reader != NULL)
		redisReaderFree(r->reader);
	r->reader = NULL;
	r->fd = -1;
	return -1;
}

static void end(struct redis *r)
{
	if (r->state == REDIS_CLOSED)
		return;
	r->state = REDIS_CLOSED;		/* nothing more is taken from here on */
	close(r->fd);
	r->fd = -1;
	redisReaderFree(r->reader);
	r->reader = NULL;
	while (r->count > 0)
		answer(r, NULL);
	free(r->out);
	free(r->ring);
	r->out = NULL;
	r->ring = NULL;
	r->out_len = r->out_sent = r->out_cap = 0;
	r->head = r->cap = 0;
}

void redis_close(struct redis *r, const char *why)
{
	if (r->state == REDIS_CLOSED || r->doomed)
		return;
	snprintf(r->why, sizeof r->why, "%s", why);
	r->doomed = true;
	if (!r->busy)
		end(r);
}

static bool write_out(struct redis *r)
{
	while (r->out_sent < r->out_len) {
		ssize_t n = send(r->fd, r->out + r->out_sent, r->out_len - r->out_sent,
		    MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return true;
		if (n < 0) {
			redis_close(r, strerror(errno));
			return false;
		}
		r->out_sent += (size_t)n;
	}
	r->out_len = r->out_sent = 0;
	if (r->out_cap > OUT_KEPT) {
		free(r->out);
		r->out = NULL;
		r->out_cap = 0;
	}
	return true;
}

bool redis_flush(struct redis *r)
{
	if (r->state == REDIS_CLOSED)
		return false;
	if (r->state == REDIS_OPEN && r->out_sent < r->out_len)
		(void)write_out(r);
	return r->state != REDIS_CLOSED;
}

bool redis_wants_write(const struct redis *r)
{
	return r->state == REDIS_CONNECTING || r->out_sent < r->out_len;
}

static void connected(struct redis *r)
{
	int err = 0;
	socklen_t len = sizeof err;

	if (getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0)
		err = errno;
	if (err != 0)
		redis_close(r, strerror(err));
	else
		r->state = REDIS_OPEN;
}

static bool is_push(const struct redis *r, const struct bus_value *v)
{
	return r->pushed != NULL && v->type == BUS_ARRAY && v->nv == 3 && v->v[0].type == BUS_STR &&
	    strcmp(v->v[0].s, "message") == 0;
}

static void run_answers(struct redis *r)
{
	while (!r->doomed) {
		void *obj = NULL;

		if (redisReaderGetReply(r->reader, &obj) != REDIS_OK) {
			redis_close(r, r->reader->errstr);
			return;
		}
		if (obj == NULL) {
			if (r->reader->len > REDIS_ANSWER)
				redis_close(r, "an answer is too long");
			return;
		}
		r->heard_ms = clock_ms();
		if (is_push(r, obj))
			r->pushed(r, obj);
		else if (r->count > 0)
			answer(r, obj);
		else
			redis_close(r, ((struct bus_value *)obj)->type == BUS_ERROR ?
			    ((struct bus_value *)obj)->s : "it answers what was not asked");
		value_free(obj);
	}
}

static void read_in(struct redis *r)
{
	static char buf[READ_BYTES];

	for (int i = 0; i < READS && !r->doomed; i++) {
		ssize_t n = recv(r->fd, buf, sizeof buf, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n <= 0) {
			redis_close(r, n == 0 ? "it closed the connection" : strerror(errno));
			return;
		}
		if (redisReaderFeed(r->reader, buf, (size_t)n) != REDIS_OK) {
			redis_close(r, "out of memory");
			return;
		}
		run_answers(r);
		if ((size_t)n < sizeof buf)
			return;
	}
}

bool redis_event(struct redis *r, short events)
{
	if (r->state == REDIS_CLOSED)
		return false;
	r->busy = true;
	if (r->state == REDIS_CONNECTING && (events & (POLLOUT | POLLERR | POLLHUP)) != 0)
		connected(r);
	if (r->state == REDIS_OPEN && !r->doomed && (events & (POLLIN | POLLERR | POLLHUP)) != 0)
		read_in(r);
	if (r->state == REDIS_OPEN && !r->doomed)
		(void)write_out(r);
	r->busy = false;
	if (r->doomed)
		end(r);
	return r->state != REDIS_CLOSED;
}

bool redis_late(const struct redis *r, uint64_t now_ms, uint32_t limit_ms)
{
	uint64_t since;

	if (r->state == REDIS_CLOSED || r->count == 0)
		return false;
	since = r->ring[r->head].at_ms;
	if (since < r->heard_ms)
		since = r->heard_ms;
	return now_ms > since && now_ms - since > limit_ms;
}
