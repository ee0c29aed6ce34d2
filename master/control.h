/*
 * control.h - the admin socket: requests of parleyctl.
 *
 * Scope   one request a connection: a line {"cmd":"NAME","args":["...", ...]}. The answer is any
 *         number of lines, each a JSON object, and a last one
 *         {"done":true,"code":0,"message":"..."}; then the connection ends. What shared memory can
 *         answer is answered here and works while workers hang; the rest is handed to a
 *         worker together with the connection, and so is what names another host:
 *         {"host":"ID",...}. A request that came from another host says "ctl":true.
 * Limits  CONTROL_CONNS connections, CONTROL_REQUEST bytes a request, a time-out for the request
 *         and for a reader that does not read. Long answers are made while the reader takes them.
 * Rights  the socket's mode is 0600: whoever may open it may do everything.
 */
#ifndef PARLEY_MASTER_CONTROL_H
#define PARLEY_MASTER_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#include "master/listen.h"
#include "master/reactor.h"
#include "master/report.h"
#include "master/supervise.h"
#include "master/who.h"
#include "worker/base/conf.h"
#include "worker/base/json.h"

#define CONTROL_CONNS   16
#define CONTROL_REQUEST 3072

enum control_state {
	CONTROL_FREE, CONTROL_READING, CONTROL_SCALING, CONTROL_RELOADING, CONTROL_STOPPING,
	CONTROL_SESSIONS, CONTROL_METRICS, CONTROL_FLUSHING
};

struct control;

struct control_conn {
	struct watch watch;
	struct control *control;
	enum control_state state;
	char in[CONTROL_REQUEST];
	size_t in_len;
	char *out;
	size_t out_len, out_sent, out_cap;
	uint32_t events;		/* epoll interest in force */
	uint64_t deadline_ms;
	uint32_t cursor;		/* next record or metric */
	uint32_t number;		/* workers or version waited for */
};

struct control_host {
	struct sup *sup;
	struct reactor *reactor;
	struct report report;
	void *arg;
	/* Reloads the configuration; tells every error. 0 or -1. */
	int (*reload)(void *arg, conf_error_fn *tell, void *tell_arg);
	void (*stop)(void *arg, enum sup_how how);
};

struct control {
	struct control_host host;
	struct watch listener;
	int listen_fd;
	struct listen_file file;
	struct json *json;
	struct control_conn conn[CONTROL_CONNS];
};

int control_open(struct control *c, const struct control_host *host, const char *path,
    const struct who *who, char *why, size_t cap);
/* Goes on with what waits. How many ms until it wants to be called again, at most. */
int control_tick(struct control *c, uint64_t now_ms);
/* The daemon ends: answers those who asked for it. Their connections end with the process. */
void control_finish(struct control *c);
/* Closes the listener and removes its file. */
void control_close(struct control *c);
/* In a child: closes every descriptor. */
void control_child(struct control *c);

#endif
