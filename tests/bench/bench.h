/*
 * bench.h - the load generator's parts.
 *
 * Scope   bench_main.c: options, processes, the report; bench_load.c: the scenarios;
 *         bench_client.c: connections; bench_hist.c: a histogram of times.
 * Units   times are ns of the monotonic clock unless the name says otherwise.
 */
#ifndef PARLEY_BENCH_H
#define PARLEY_BENCH_H

#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- a histogram of times: 64 steps an octave, so within 1.6 % of the truth --- */

#define HIST_STEPS 64
#define HIST_SLOTS (42 * HIST_STEPS)

struct hist {
	uint64_t count, sum, max, slot[HIST_SLOTS];
};

void hist_add(struct hist *h, uint64_t ns);
void hist_merge(struct hist *into, const struct hist *from);
/* The time that the part P (0..1) of all values does not exceed. */
uint64_t hist_quantile(const struct hist *h, double p);

/* --- what was asked for --- */

enum mode { MODE_PAIRS, MODE_LOGIN, MODE_REGISTER, MODE_IDLE, MODE_GROUP, MODE_STORE, MODE_DRAIN };

struct user {
	uint32_t id;
	char token[512];
};

struct options {
	enum mode mode;
	struct sockaddr_in to;
	bool raw;			/* a relay: no login, no replies but what the partner sends */
	bool ack;			/* confirmed delivery */
	uint32_t conns, procs, window, size, count, parallel, first;
	uint32_t pids[64], npids;	/* the server's processes, whose CPU time is reported */
	double seconds, warmup, rate;	/* rate: messages a second in all; 0 is a closed loop */
	const char *users_file, *password, *out_file;
	struct user *users;
	uint32_t nusers;
	int cpu;			/* pinned to, or -1 */
};

/* --- what the processes share --- */

struct tally {				/* one a process */
	uint64_t sent, received, acked, refused, bytes_in, logins;
	uint64_t measured_ns;
	struct hist hist;
};

struct board {
	atomic_uint ready, failed;	/* processes */
	atomic_ullong start_ns;		/* when to begin, 0 until all are ready */
	atomic_uint group;		/* the group that process 0 made */
	atomic_bool stop;		/* idle sessions: go home */
	struct tally tally[];
};

extern struct options opt;
extern struct board *board;
extern struct tally *mine;		/* this process's own */

/* --- connections --- */

struct client {
	int fd;
	uint32_t index, id;		/* of this process; account */
	uint32_t in_len, in_cap, out_len, out_cap;
	char *in, *out;			/* an unfinished frame; what is not sent yet */
	bool dirty, want_out, ready;
	int64_t retry_ns;		/* when to send the login again, 0: not */
	int64_t began_ns;
	uint64_t seq;			/* of the messages that it sent */
	uint32_t open;			/* sent and not answered */
	uint32_t unconfirmed, n;	/* ack sessions: since the last RECEIVED; highest number */
	uint32_t step;			/* the scenario's */
};

/* FRAME is one frame without its end, valid during the call. */
typedef void frame_fn(struct client *c, const char *frame, size_t len);
/* The server closed the connection or it broke. */
typedef void lost_fn(struct client *c);

int64_t now_ns(void);
void client_setup(frame_fn *on_frame, lost_fn *on_lost);
/* Connects; 0 or -1. K spreads the source addresses over 127.0.0.0/8. */
int client_open(struct client *c, uint32_t k);
void client_close(struct client *c);
/* Queues bytes; they leave at the end of the turn. */
void client_send(struct client *c, const char *data, size_t len);
/* One turn: waits at most until UNTIL for input, handles it, writes what it caused. */
void client_turn(int64_t until);

/* The number after "NAME": in a frame, or FALLBACK. */
int64_t frame_number(const char *frame, size_t len, const char *name, int64_t fallback);
/* Copies the string value of NAME; false where there is none or it does not fit. */
bool frame_string(const char *frame, size_t len, const char *name, char *out, size_t cap);
/* How often WHAT occurs. */
uint32_t frame_count(const char *frame, size_t len, const char *what);

/* --- the scenarios: run in each process --- */

/* Process P of opt.procs: prepares, waits for the others, measures into *mine. 0 or -1. */
int load_run(uint32_t p);

#endif
