/*
 * bench.h - the load tool's parts.
 *
 * Scope   bench_main.c: processes and their common start; bench_opt.c: options; bench_proc.c: the
 *         server's CPU time and memory; bench_report.c: what is printed; bench_hist.c: a histogram;
 *         bench_client.c: connections; bench_frame.c: JSON and texts; bench_load.c: what the scenarios share, pairs and idle;
 *         bench_group.c, bench_login.c, bench_store.c, bench_presence.c: the other scenarios;
 *         bench_parley.c, bench_relay.c, bench_mqtt.c, bench_resp.c, bench_irc.c, bench_xmpp.c:
 *         the protocols.
 * Units   times are ns of the monotonic clock unless the name says otherwise.
 * Errors  what cannot go on ends the process with a sentence on standard error (load_fatal()).
 */
#ifndef PARLEY_BENCH_H
#define PARLEY_BENCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

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

enum mode {
	MODE_PAIRS, MODE_GROUP, MODE_LOGIN, MODE_REGISTER, MODE_IDLE, MODE_STORE, MODE_DRAIN,
	MODE_PRESENCE, MODES
};

#define MAX_PROCS   512
#define MAX_ADDRS   1024
#define MAX_TOKEN   512

struct user {
	uint32_t id, len;
	const char *token;		/* LEN bytes in the mapped file; not terminated */
};

struct options {
	enum mode mode;
	const struct driver *driver;
	struct sockaddr_storage to[MAX_ADDRS];	/* connection k goes to k mod nto */
	uint32_t nto;
	uint32_t from, nfrom;		/* first IPv4 source, host order; 0: chosen for loopback */
	bool ack;			/* confirmed delivery */
	bool json;
	uint32_t conns, procs, window, size, count, parallel, first, senders, group, qos;
	uint32_t confirm;		/* RECEIVED after that many messages */
	uint64_t messages;		/* stop after so many were sent in all; 0: by time */
	uint32_t cpus[64], ncpus;	/* process p runs on cpus[p mod ncpus] */
	uint32_t watch[64], nwatch;	/* processes of the server; their children count as well */
	uint32_t think;			/* ns that a client is busy with a message */
	double seconds, warmup, interval;
	double rate, connect_rate;	/* messages, connections a second in all; 0: as fast as it goes */
	const char *users_file, *password, *out_file, *prefix;
	struct user *users;
	uint32_t nusers;
};

extern struct options opt;
extern const char *const mode_names[MODES];

void options_parse(int argc, char **argv);

/* --- what the processes share --- */

struct tally {				/* one a process, which alone writes it */
	uint64_t sent, received, acked, logins, bytes_in;	/* within the measurement */
	uint64_t sent_all, received_all, acked_all;		/* from the start to the end */
	uint64_t refused, disordered, lost, moved;	/* errors; out of order; connections */
	uint64_t measured_ns;
	int64_t first_connect_ns, last_ready_ns;
	struct hist hist;		/* sender to receiver, or the time of a login */
	struct hist ack_hist;		/* sender to its answer (CHAT_ACK, PUBACK) */
	struct hist late_hist;		/* open loop: how late the generator itself was */
	int64_t max_gap_ns;		/* longest time without a delivery */
};

struct board {
	atomic_uint ready, failed;	/* processes */
	atomic_ullong start_ns;		/* when to begin, 0 until all are ready */
	atomic_uint group;		/* the group that process 0 made */
	atomic_bool stop;		/* idle sessions: go home */
	struct tally tally[];
};

extern struct board *board;
extern struct tally *mine;		/* this process's own */

int64_t now_ns(void);

/* --- the server as /proc shows it --- */

/* Finds opt.watch and everything below them; again whenever workers may have changed. */
void proc_find(void);
/* CPU time of all of them so far, seconds. */
double proc_cpu(void);
/* That of this tool's own processes. */
double proc_cpu_load(void);
/* Their memory, each page counted once (PSS), bytes; 0 where that cannot be read. */
uint64_t proc_memory(void);

/* --- what is printed --- */

struct outcome {			/* seen by the parent around the measurement */
	double cpu_seconds, load_seconds;	/* of the server, of the tool */
	uint64_t memory_before, memory_after;
};

void report_interval(double at, double seconds);
void report_ready(const struct outcome *o);
void report_end(const struct outcome *o);

/* --- connections --- */

struct client {
	int fd;
	uint32_t index, serial;		/* in this process's array; of its connections */
	uint32_t user, id;		/* account: in opt.users; its id */
	uint32_t in_len, in_cap, out_len, out_cap;
	char *in, *out;			/* an unfinished frame; what is not sent yet */
	bool dirty, want_out, ready, logging;
	uint8_t step;			/* the driver's, while it logs in */
	int64_t began_ns, retry_ns;	/* login sent; when to send it again, 0: not */
	uint32_t seq, expect;		/* of the messages that it sent; of its partner's next */
	uint32_t open;			/* sent and not answered */
	uint32_t unconfirmed, n;	/* ack sessions: since the last RECEIVED; highest number */
	uint32_t count;			/* the scenario's */
	void *extra;			/* the driver's */
};

/*
 * A protocol. cut() says how long the first frame of what came is: 0 if more has to come, below 0
 * if it is nothing of this protocol. The others queue bytes with client_send(); hello() begins what
 * ends in load_ready(), frame() gets one whole frame, chat() sends a message to the partner and
 * group() one to the group of all clients (NULL: has none).
 */
struct driver {
	const char *name;
	ssize_t (*cut)(const char *p, size_t len);
	void (*hello)(struct client *c);
	void (*frame)(struct client *c, const char *p, size_t len);
	void (*chat)(struct client *c, int64_t stamp);
	void (*group)(struct client *c, int64_t stamp);
	void (*tick)(void);		/* every 50 ms; NULL: nothing to do */
};

extern const struct driver driver_parley, driver_relay, driver_mqtt, driver_resp, driver_irc,
    driver_xmpp;

/* The server closed the connection or it broke. WHY is a sentence. */
typedef void lost_fn(struct client *c, const char *why);

void client_setup(lost_fn *on_lost);
/* Begins to connect: number K among all connections of all processes. 0 or -errno. */
int client_open(struct client *c, uint32_t k);
/* Where its Kth connection goes, in words; valid until the next call. */
const char *client_where(uint32_t k);
/* HARD: so that no port stays behind in TIME_WAIT. */
void client_close(struct client *c, bool hard);
/* Queues bytes; they leave at the end of the turn. */
void client_send(struct client *c, const char *data, size_t len);
/* Room for CAP bytes at the end of the queue; client_sent() says how many were written there. */
char *client_room(struct client *c, size_t cap);
void client_sent(struct client *c, size_t len);
/* One turn: waits at most until UNTIL for input, handles it, writes what it caused. */
void client_turn(int64_t until);
/* When the bytes at hand were read. */
extern int64_t read_ns;

/* --- frames of JSON --- */

/* The number after "NAME": in a frame, or FALLBACK. */
int64_t frame_number(const char *frame, size_t len, const char *name, int64_t fallback);
/* Copies the string value of NAME; false where there is none or it does not fit. */
bool frame_string(const char *frame, size_t len, const char *name, char *out, size_t cap);
/* How often WHAT occurs. */
uint32_t frame_count(const char *frame, size_t len, const char *what);

char *put_text(char *p, const char *text);
char *put_number(char *p, uint64_t v);
char *put_hex(char *p, uint64_t v, int digits);
/* Below 0: it is no number. */
int64_t get_hex(const char *p, int digits);

/* --- the text of a message: T, when it was due, who sends it, its number; then padding --- */

#define TEXT_HEAD 33			/* T and 32 hex digits */

/* Writes opt.size bytes. */
char *text_put(char *p, int64_t stamp, uint32_t sender, uint32_t seq);
/* Reads them back from the first that look so; false if there are none. */
bool text_find(const char *p, size_t len, int64_t *stamp_r, uint32_t *sender_r, uint32_t *seq_r);

/* --- what scenarios and protocols tell each other --- */

extern struct client *clients;
extern uint32_t nclients, client_base;	/* this process's; number of its first among all */
extern uint32_t nready;
extern int64_t begin_ns, end_ns;	/* of the measurement */
extern bool running;			/* past the preparations */

void load_fatal(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* Counts a refusal, and shows the first. */
void load_refused(const char *frame, size_t len);
/* The client at the other end of C's pair. */
struct client *load_partner(const struct client *c);
/* A client is through its login. */
void load_ready(struct client *c);
/* Has it send hello() again in so many ms. */
void load_retry(struct client *c, int64_t ms);
/* A chat message came to C: whole frame, or as much of it as holds the text. */
void load_message(struct client *c, const char *p, size_t len);
/* The server answered C's oldest message. STAMP: when it was sent, 0 unknown. */
void load_acked(struct client *c, int64_t stamp, bool good);
/* One turn, with the log-ins that are due. */
void load_turn(int64_t until);
/* Connects and logs in clients FROM to below TO. */
void load_login(uint32_t from, uint32_t to);
/* Connects one client: number K among all connections. */
void load_open(struct client *c, uint32_t k);
/* Everybody starts together. */
void load_together(void);
/* Is it within the measurement? */
static inline bool load_within(int64_t ns)
{
	return running && ns >= begin_ns && ns < end_ns;
}
/* Sends and counts one message, to the partner or the group. */
void load_send(struct client *c, bool group, int64_t stamp);
/* Waits for what is under way, while more comes. */
void load_settle(void);

/*
 * A scenario. prepare() comes when this process's clients are logged in, run() when those of all
 * are. What a client is told goes to message() and acked(), after it was counted, and for parley to
 * frame(), which says whether it took it. Any may be NULL.
 */
struct scenario {
	bool few;			/* opt.parallel clients, not opt.conns */
	bool late;			/* run() connects them */
	uint32_t (*extra)(void);	/* clients beside these, not logged in */
	void (*prepare)(uint32_t p);
	void (*run)(uint32_t p);
	void (*message)(struct client *c);
	void (*acked)(struct client *c);
	bool (*frame)(struct client *c, int64_t msgid, int64_t error, const char *frame, size_t len);
};

extern const struct scenario *scene;
extern const struct scenario scene_pairs, scene_idle, scene_group, scene_login, scene_register,
    scene_store, scene_drain, scene_presence;

/* parley: sends LOGIN, REG_MSG, anything; what several scenarios need of it. */
void parley_login(struct client *c);
void parley_chat(struct client *c, uint32_t to, bool group, bool with_cid, int64_t stamp);
/* "Busy", "too fast" and "still closing there" are answers to ask again after. */
bool parley_must_retry(struct client *c, const char *frame, size_t len, int64_t error);

/* Process P of opt.procs: prepares, waits for the others, measures into *mine. */
void load_run(uint32_t p);

#endif
