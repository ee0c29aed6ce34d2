/*
 * control.c - the admin socket.
 *
 * A request that is handed on takes its connection with it, so nothing behind its newline may
 * have been read here: the line is looked at (MSG_PEEK) and then taken to the byte.
 */
#include "master/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/rec.h"
#include "shm/segment.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"

#define REQUEST_MS   10000
#define STALL_MS     30000
#define SETTLE_MS    60000
#define OUT_HIGH     (64u << 10)	/* long answers pause there */
#define OUT_MAX      (8u << 20)
#define HOST_ID_BYTES 65		/* with its end */
#define SESSION_STEP 2000		/* records looked at in one turn */

/* --- Output ----------------------------------------------------------------------------------- */

static void conn_close(struct control_conn *k)
{
	int fd = k->watch.fd;

	reactor_del(k->control->host.reactor, &k->watch);
	close(fd);
	free(k->out);
	k->out = NULL;
	k->out_len = k->out_sent = k->out_cap = 0;
	k->state = CONTROL_FREE;
}

/* Makes room for N more bytes at the end; NULL past OUT_MAX. */
static char *out_room(struct control_conn *k, size_t n)
{
	size_t want;
	char *p;

	if (k->out_sent > 0) {
		memmove(k->out, k->out + k->out_sent, k->out_len - k->out_sent);
		k->out_len -= k->out_sent;
		k->out_sent = 0;
	}
	want = k->out_len + n;
	if (want > OUT_MAX)
		return NULL;
	if (want > k->out_cap) {
		size_t cap = want < 8192 ? 8192 : want + want / 2;

		p = realloc(k->out, cap);
		if (p == NULL)
			return NULL;
		k->out = p;
		k->out_cap = cap;
	}
	return k->out + k->out_len;
}

static int out_line(struct control_conn *k, const char *text, size_t len)
{
	char *p = out_room(k, len + 1);

	if (p == NULL)
		return -1;
	memcpy(p, text, len);
	p[len] = '\n';
	k->out_len += len + 1;
	return 0;
}

static void flush(struct control_conn *k)
{
	while (k->out_sent < k->out_len) {
		ssize_t n = send(k->watch.fd, k->out + k->out_sent, k->out_len - k->out_sent,
		    MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			conn_close(k);
			return;
		}
		k->out_sent += (size_t)n;
		k->deadline_ms = clock_now_ms() + STALL_MS;
	}
	if (k->state == CONTROL_FLUSHING)
		conn_close(k);
}

/* The last line; the connection ends once it is sent. */
static void finish(struct control_conn *k, int code, const char *message)
{
	char buf[2048];
	struct json_out w;

	json_out_init(&w, buf, sizeof buf);
	json_open(&w, '{');
	json_kv_bool(&w, "done", true);
	json_kv_int(&w, "code", code);
	json_kv_text(&w, "message", message, strnlen(message, 1500));
	json_close(&w, '}');
	k->state = CONTROL_FLUSHING;
	k->deadline_ms = clock_now_ms() + STALL_MS;
	(void)out_line(k, buf, w.len);
	flush(k);
}

/* --- Commands --------------------------------------------------------------------------------- */

struct request {
	char cmd[32];
	unsigned nargs;
	char arg[2][64];		/* the first ones; the rest is for workers to read */
	bool elsewhere;			/* for another host: a worker sends it there */
};

static void cmd_status(struct control_conn *k, const struct request *rq)
{
	bool brief = rq->nargs > 0 && strcmp(rq->arg[0], "brief") == 0;
	size_t len = 0;
	char *text = report_status(&k->control->host.report, brief, &len);

	if (text == NULL || out_line(k, text, len) < 0) {
		finish(k, 1, "out of memory");
	} else {
		finish(k, 0, "");
	}
	free(text);
}

static void cmd_version(struct control_conn *k, const struct request *rq)
{
	static const char text[] = "{\"version\":\"" PARLEY_VERSION "\"}";

	(void)rq;
	(void)out_line(k, text, sizeof text - 1);
	finish(k, 0, "");
}

static void begin(struct control_conn *k, enum control_state state, uint32_t number, uint64_t ms)
{
	k->state = state;
	k->number = number;
	k->cursor = 0;
	k->deadline_ms = clock_now_ms() + ms;
}

static void cmd_sessions(struct control_conn *k, const struct request *rq)
{
	(void)rq;
	begin(k, CONTROL_SESSIONS, 0, STALL_MS);
}

static void cmd_metrics(struct control_conn *k, const struct request *rq)
{
	(void)rq;
	begin(k, CONTROL_METRICS, 0, STALL_MS);
}

static void cmd_scale(struct control_conn *k, const struct request *rq)
{
	char why[256], *end;
	unsigned long n;

	n = rq->nargs > 0 ? strtoul(rq->arg[0], &end, 10) : 0;
	if (rq->nargs != 1 || rq->arg[0][0] < '0' || rq->arg[0][0] > '9' || *end != '\0') {
		finish(k, 1, "scale takes the number of workers");
		return;
	}
	if (sup_scale(k->control->host.sup, n < UINT32_MAX ? (unsigned)n : UINT32_MAX,
	    why, sizeof why) < 0)
		finish(k, 1, why);
	else
		begin(k, CONTROL_SCALING, (uint32_t)n, SETTLE_MS);
}

static void tell_line(void *arg, const char *file, int line, const char *text)
{
	struct control_conn *k = arg;
	char buf[2048], where[1200];
	struct json_out w;

	if (file != NULL)
		snprintf(where, sizeof where, "%.500s:%d: %.600s", file, line, text);
	else
		snprintf(where, sizeof where, "%.1100s", text);
	json_out_init(&w, buf, sizeof buf);
	json_open(&w, '{');
	json_kv_str(&w, "error", where);
	json_close(&w, '}');
	if (!w.over)
		(void)out_line(k, buf, w.len);
}

static void cmd_reload(struct control_conn *k, const struct request *rq)
{
	(void)rq;
	if (k->control->host.reload(k->control->host.arg, tell_line, k) < 0)
		finish(k, 1, "reload failed, nothing was changed");
	else
		begin(k, CONTROL_RELOADING, atomic_load(&shm->head->conf_version), SETTLE_MS);
}

static void cmd_stop(struct control_conn *k, const struct request *rq)
{
	bool now = rq->nargs > 0 && strcmp(rq->arg[0], "now") == 0;

	/* Answered by control_finish(); the daemon's own bounds end the wait. */
	begin(k, CONTROL_STOPPING, 0, UINT32_MAX);
	k->control->host.stop(k->control->host.arg, now ? SUP_AT_ONCE : SUP_GRACEFUL);
}

static const struct { const char *name; void (*run)(struct control_conn *, const struct request *); }
commands[] = {
	{ "status", cmd_status }, { "reload", cmd_reload }, { "scale", cmd_scale },
	{ "sessions", cmd_sessions }, { "metrics", cmd_metrics }, { "stop", cmd_stop },
	{ "version", cmd_version }
};

/* Everything else needs a worker: it gets the connection. */
static void hand_on(struct control_conn *k)
{
	struct sup *s = k->control->host.sup;
	uint32_t slot = sup_lowest(s);

	if (slot == SUP_NOBODY) {
		finish(k, 1, "no worker is ready");
		return;
	}
	switch (sup_send_admin(s, slot, k->in, k->in_len, k->watch.fd)) {
	case IPC_OK:
		conn_close(k);			/* our copy; the worker has its own */
		break;
	case IPC_AGAIN:
		finish(k, 1, "the worker is busy; try again");
		break;
	case IPC_BAD:
	case IPC_EIO:
		finish(k, 1, "the request cannot be handed to a worker");
		break;
	}
}

/* --- Requests --------------------------------------------------------------------------------- */

/* SELF is our host's id; a name that is too long for one is another's. */
static int parse_request(struct json *j, const char *line, size_t len, const char *self,
    struct request *rq)
{
	struct json_val root, v, key;
	char host[HOST_ID_BYTES];

	*rq = (struct request){ .cmd = "" };
	if (json_parse(j, line, len) != 0)
		return -1;
	root = json_root(j);
	if (!json_get(j, &root, "cmd", &v) || json_text(&v, rq->cmd, sizeof rq->cmd, NULL) != 0)
		return -1;
	if (json_get(j, &root, "host", &v)) {
		if (v.type != JSON_STRING)
			return -1;
		rq->elsewhere = json_text(&v, host, sizeof host, NULL) != 0 || strcmp(host, self) != 0;
	}
	if (!json_get(j, &root, "args", &v))
		return 0;
	if (v.type != JSON_ARRAY)
		return -1;
	for (struct json_it it = json_it(j, &v); json_next(j, &it, &key, &v); rq->nargs++) {
		if (v.type != JSON_STRING && v.type != JSON_NUMBER)
			return -1;
		if (rq->nargs >= 2)
			continue;
		if (v.type == JSON_NUMBER)
			snprintf(rq->arg[rq->nargs], sizeof *rq->arg, "%.*s", (int)v.len, v.raw);
		else if (json_text(&v, rq->arg[rq->nargs], sizeof *rq->arg, NULL) != 0)
			rq->arg[rq->nargs][0] = '\0';	/* long: for a worker to judge */
	}
	return 0;
}

static void run_request(struct control_conn *k)
{
	struct request rq;

	if (parse_request(k->control->json, k->in, k->in_len, k->control->host.report.host_id,
	    &rq) < 0) {
		finish(k, 1, "the request is malformed");
		return;
	}
	log_debug("control: %s", rq.cmd);
	for (size_t i = 0; !rq.elsewhere && i < sizeof commands / sizeof *commands; i++)
		if (strcmp(commands[i].name, rq.cmd) == 0) {
			commands[i].run(k, &rq);
			return;
		}
	hand_on(k);
}

static void read_request(struct control_conn *k)
{
	char *at = k->in + k->in_len, *nl;
	ssize_t n = recv(k->watch.fd, at, sizeof k->in - k->in_len, MSG_PEEK | MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		conn_close(k);
		return;
	}
	nl = memchr(at, '\n', (size_t)n);
	n = recv(k->watch.fd, at, nl != NULL ? (size_t)(nl - at) + 1 : (size_t)n, MSG_DONTWAIT);
	if (n <= 0) {
		conn_close(k);
		return;
	}
	k->in_len += (size_t)n;
	if (nl != NULL) {
		k->in_len--;
		run_request(k);
	} else if (k->in_len == sizeof k->in) {
		finish(k, 1, "the request is too long");
	}
}

/* --- Answers that take their time ------------------------------------------------------------- */

static void go_on_sessions(struct control_conn *k)
{
	uint32_t high = rec_high(), step = 0;

	if (high > shm->head->max_sessions)	/* nothing in the segment can make us fail */
		high = shm->head->max_sessions;
	while (k->cursor < high && step++ < SESSION_STEP && k->out_len - k->out_sent < OUT_HIGH) {
		char *p = out_room(k, REPORT_SESSION_MAX + 1);
		struct json_out w;

		if (p == NULL) {
			finish(k, 1, "out of memory");
			return;
		}
		json_out_init(&w, p, REPORT_SESSION_MAX);
		if (report_session(k->cursor++, &w)) {
			p[w.len] = '\n';
			k->out_len += w.len + 1;
			k->number++;
		}
	}
	if (k->cursor >= high) {
		char text[64];

		snprintf(text, sizeof text, "%u connections", k->number);
		finish(k, 0, text);
	} else {
		flush(k);
	}
}

static void go_on_metrics(struct control_conn *k)
{
	while (k->state == CONTROL_METRICS && k->out_len - k->out_sent < OUT_HIGH) {
		size_t len = 0;
		char *text = report_metric(&k->control->host.report, k->cursor++, &len), *p;
		struct json_out w;

		if (text == NULL || (len > 0 && (p = out_room(k, 2 * len + 64)) == NULL)) {
			finish(k, 1, "out of memory");
		} else if (len == 0) {
			finish(k, 0, "");
		} else {
			json_out_init(&w, p, 2 * len + 63);
			json_open(&w, '{');
			json_kv_text(&w, "text", text, len);
			json_close(&w, '}');
			p[w.len] = '\n';
			k->out_len += w.len + 1;
		}
		free(text);
	}
	if (k->state == CONTROL_METRICS)
		flush(k);
}

static void go_on_settling(struct control_conn *k, uint64_t now_ms)
{
	struct sup *s = k->control->host.sup;
	bool reload = k->state == CONTROL_RELOADING;
	char text[128];

	if (sup_settled(s) && (!reload || sup_runs_conf(s, k->number))) {
		if (reload)
			snprintf(text, sizeof text, "configuration %u is in force in %u workers", k->number,
			    sup_ready(s));
		else
			snprintf(text, sizeof text, "%u workers are running", sup_ready(s));
		finish(k, 0, text);
	} else if (now_ms >= k->deadline_ms) {
		snprintf(text, sizeof text, "accepted, but only %u of %u workers are ready so far",
		    sup_ready(s), s->wanted);
		finish(k, 1, text);
	} else if (s->phase == SUP_STOPPING) {
		finish(k, 1, "the daemon is stopping");
	}
}

static void go_on(struct control_conn *k, uint64_t now_ms)
{
	switch (k->state) {
	case CONTROL_SESSIONS:
		if (k->out_len - k->out_sent < OUT_HIGH)
			go_on_sessions(k);
		break;
	case CONTROL_METRICS:
		if (k->out_len - k->out_sent < OUT_HIGH)
			go_on_metrics(k);
		break;
	case CONTROL_SCALING:
	case CONTROL_RELOADING:
		go_on_settling(k, now_ms);
		break;
	case CONTROL_FREE:
	case CONTROL_READING:
	case CONTROL_STOPPING:
	case CONTROL_FLUSHING:
		break;
	}
}

/* --- Events ----------------------------------------------------------------------------------- */

static void want(struct control_conn *k)
{
	uint32_t events = (k->state == CONTROL_READING ? EPOLLIN : 0) |
	    (k->out_sent < k->out_len ? EPOLLOUT : 0);

	if (k->state != CONTROL_FREE && events != k->events &&
	    reactor_mod(k->control->host.reactor, &k->watch, events) == 0)
		k->events = events;
}

static void on_conn(struct watch *w, uint32_t events)
{
	struct control_conn *k = w->arg;

	if (k->state == CONTROL_READING && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
		read_request(k);
	else if ((events & (EPOLLHUP | EPOLLERR)) != 0)
		conn_close(k);			/* nobody is there to read an answer */
	else if ((events & EPOLLOUT) != 0)
		flush(k);
	if (k->state != CONTROL_FREE)
		go_on(k, clock_now_ms());
	want(k);
}

static void refuse(int fd)
{
	static const char text[] =
	    "{\"done\":true,\"code\":1,\"message\":\"too many admin connections\"}\n";

	(void)send(fd, text, sizeof text - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	close(fd);
}

static void on_listener(struct watch *w, uint32_t events)
{
	struct control *c = w->arg;
	struct control_conn *k = NULL;
	int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			reactor_del(c->host.reactor, w);	/* the next tick listens again */
		return;
	}
	for (unsigned i = 0; i < CONTROL_CONNS && k == NULL; i++)
		if (c->conn[i].state == CONTROL_FREE)
			k = &c->conn[i];
	if (k == NULL) {
		refuse(fd);
		return;
	}
	*k = (struct control_conn){ .watch = { .fd = fd, .on_event = on_conn, .arg = k },
	    .control = c, .state = CONTROL_READING, .events = EPOLLIN,
	    .deadline_ms = clock_now_ms() + REQUEST_MS };
	if (reactor_add(c->host.reactor, &k->watch, EPOLLIN) < 0) {
		close(fd);
		k->state = CONTROL_FREE;
	}
}

/* --- Opening, ticking, closing ---------------------------------------------------------------- */

int control_open(struct control *c, const struct control_host *host, const char *path,
    const struct who *who, char *why, size_t cap)
{
	*c = (struct control){ .host = *host, .listen_fd = -1, .listener = { .fd = -1 } };
	for (unsigned i = 0; i < CONTROL_CONNS; i++)
		c->conn[i].watch.fd = -1;
	c->json = json_new(JSON_UNTRUSTED);
	if (c->json == NULL) {
		snprintf(why, cap, "control: out of memory");
		return -1;
	}
	c->listen_fd = listen_unix(path, 0600, 64, &c->file, why, cap);
	if (c->listen_fd < 0) {
		control_close(c);
		return -1;
	}
	if (who->drop && lchown(path, who->uid, who->gid) < 0)
		log_warn("control: cannot give %s to its user: %s", path, strerror(errno));
	c->listener = (struct watch){ .fd = c->listen_fd, .on_event = on_listener, .arg = c };
	if (reactor_add(host->reactor, &c->listener, EPOLLIN) < 0) {
		snprintf(why, cap, "epoll: %s", strerror(errno));
		control_close(c);
		return -1;
	}
	return 0;
}

int control_tick(struct control *c, uint64_t now_ms)
{
	int next = 1000;

	if (c->listener.fd < 0 && c->listen_fd >= 0) {
		c->listener.fd = c->listen_fd;
		if (reactor_add(c->host.reactor, &c->listener, EPOLLIN) < 0)
			c->listener.fd = -1;
	}
	for (unsigned i = 0; i < CONTROL_CONNS; i++) {
		struct control_conn *k = &c->conn[i];

		if (k->state == CONTROL_FREE)
			continue;
		go_on(k, now_ms);
		if (k->state != CONTROL_FREE && now_ms >= k->deadline_ms)
			conn_close(k);
		want(k);
		if (k->state == CONTROL_SCALING || k->state == CONTROL_RELOADING)
			next = next < 20 ? next : 20;
		if ((k->state == CONTROL_SESSIONS || k->state == CONTROL_METRICS) &&
		    k->out_len - k->out_sent < OUT_HIGH)
			next = 0;
	}
	return next;
}

void control_finish(struct control *c)
{
	for (unsigned i = 0; i < CONTROL_CONNS; i++) {
		struct control_conn *k = &c->conn[i];
		static const char text[] = "{\"done\":true,\"code\":0,\"message\":\"stopped\"}\n";

		if (k->state == CONTROL_STOPPING)
			(void)send(k->watch.fd, text, sizeof text - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	}
}

void control_close(struct control *c)
{
	if (c->listener.fd >= 0)
		reactor_del(c->host.reactor, &c->listener);
	if (c->listen_fd >= 0)
		close(c->listen_fd);
	c->listen_fd = -1;
	listen_unlink(&c->file);
	json_free(c->json);
	c->json = NULL;
}

void control_child(struct control *c)
{
	if (c->listen_fd >= 0)
		close(c->listen_fd);
	for (unsigned i = 0; i < CONTROL_CONNS; i++)
		if (c->conn[i].state != CONTROL_FREE)
			close(c->conn[i].watch.fd);
}
