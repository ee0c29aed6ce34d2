/*
 * method_ctl.c - an admin request of another host.
 *
 * The connections are a fixed array and never freed: a stale event of the batch in which one ended
 * finds it unused, or its successor, which asks the socket and hears that there is nothing.
 */
#include "worker/method_ctl.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/loop.h"
#include "worker/state.h"
#include "worker/timer.h"

#define REQUEST 3072u			/* what the master reads as one */
#define READS   4			/* a wake-up */

struct ctl {
	struct watch w;			/* first: the loop hands it back */
	bool used;
	uint64_t number;		/* of the call */
	struct timer late;
	char line[REQUEST];
	size_t len, sent;
};

static struct ctl ctls[METHOD_CTL_MAX];
static char bytes[16384];

bool method_ctl_anywhere(const char *cmd)
{
	return strcmp(cmd, "user") == 0 || strcmp(cmd, "token") == 0;
}

static void ctl_close(struct ctl *x)
{
	loop_unwatch(&x->w);
	close(x->w.fd);
	timer_stop(&x->late);
	x->w.fd = -1;
	x->used = false;
}

/* A moment after the call's deadline, so that it is not us who end it. */
static void on_late(struct timer *t)
{
	ctl_close((struct ctl *)((char *)t - offsetof(struct ctl, late)));
}

/* False: the connection has ended. */
static bool ctl_send(struct ctl *x)
{
	while (x->sent < x->len) {
		ssize_t n = send(x->w.fd, x->line + x->sent, x->len - x->sent,
		    MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		x->sent += (size_t)n;
	}
	(void)loop_watch(&x->w, EPOLLIN);
	return true;
}

/* False: all has been read, or nobody wants the rest. */
static bool ctl_read(struct ctl *x, struct call *c)
{
	for (int i = 0; i < READS; i++) {
		ssize_t n = recv(x->w.fd, bytes, sizeof bytes, MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n <= 0 || !call_put(c, bytes, (size_t)n))
			return false;
	}
	return true;
}

static void on_event(struct watch *w, uint32_t events)
{
	struct ctl *x = (struct ctl *)w;
	struct call *c;

	if (!x->used)
		return;
	c = call_by_number(x->number);
	if (c == NULL) {
		ctl_close(x);
	} else if (((events & EPOLLOUT) != 0 && !ctl_send(x)) || !ctl_read(x, c)) {
		ctl_close(x);
		call_finish(c, CALL_OK);
	}
}

/* ---- the request ---- */

/* The request as the master is to read it. False: too long. */
static bool put_line(struct ctl *x, struct json *j, const struct json_val *args)
{
	struct json_val key, v;
	struct json_out w;

	json_out_init(&w, x->line, sizeof x->line - 1);
	json_open(&w, '{');
	for (struct json_it it = json_it(j, args); json_next(j, &it, &key, &v); ) {
		if (json_is(&key, "host") || json_is(&key, "ctl"))
			continue;
		json_put_raw(&w, key.raw, key.len);
		json_raw(&w, ":", 1);
		w.comma = false;
		json_put_raw(&w, v.raw, v.len);
	}
	json_kv_bool(&w, "ctl", true);
	json_close(&w, '}');
	if (w.over)
		return false;
	x->line[w.len] = '\n';
	x->len = w.len + 1;
	x->sent = 0;
	return true;
}

static bool ctl_connect(struct ctl *x)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	size_t len = strlen(wk->conf.control);

	if (len >= sizeof sa.sun_path)
		return false;
	memcpy(sa.sun_path, wk->conf.control, len + 1);
	x->w = (struct watch){ .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
	    .on_event = on_event };
	if (x->w.fd < 0)
		return false;
	if (connect(x->w.fd, (struct sockaddr *)&sa, sizeof sa) < 0 ||
	    loop_watch(&x->w, EPOLLIN | EPOLLOUT) != 0) {
		log_warn("an admin request of another host: %s: %s", wk->conf.control, strerror(errno));
		close(x->w.fd);
		return false;
	}
	return true;
}

void method_ctl(struct call *c, struct json *j, const struct json_val *args)
{
	static const char refused[] = "{\"done\":true,\"code\":1,\"message\":"
	    "\"accounts are the same on every host: ask any of them\"}";
	struct ctl *x = NULL;
	struct json_val v;
	char cmd[32];

	for (int i = 0; i < METHOD_CTL_MAX && x == NULL; i++)
		if (!ctls[i].used)
			x = &ctls[i];
	if (!json_get(j, args, "cmd", &v) || json_text(&v, cmd, sizeof cmd, NULL) != JSON_OK) {
		call_finish(c, CALL_BAD);
	} else if (method_ctl_anywhere(cmd)) {
		(void)call_say(c, refused, sizeof refused - 1);
		call_finish(c, CALL_OK);
	} else if (x == NULL) {
		call_finish(c, CALL_BUSY);
	} else if (!put_line(x, j, args)) {
		call_finish(c, CALL_BAD);
	} else if (!ctl_connect(x)) {
		call_finish(c, CALL_BUSY);
	} else {
		log_info("%s, asked for by another host", cmd);
		x->used = true;
		x->number = call_number(c);
		timer_set(&x->late, call_until_ms(c) + 100, on_late);
	}
}
