/*
 * conf.h - the configuration: one table of keys, one struct of values.
 *
 * Scope   reads "KEY = VALUE" lines ('#' starts a comment, outside quotes; a value may stand in double quotes), applies -o
 *         overrides on top, checks every value and every combination, and reports each error
 *         with file and line, not only the first. The table {key, type, min, max, default, unit,
 *         reloadable, sentence} drives parsing, `parleyd -t`, reload and the sample file's test.
 * Units   stated at each field. Sizes accept k, m, g (1024); durations a plain number of the
 *         key's unit, or with the suffix ms, s, m, h, d.
 * Owner   struct conf holds its own memory (conf_free). Plain values; safe to read from threads.
 * Errors  conf_* return the number of errors, told one by one to the callback.
 */
#ifndef PARLEY_BASE_CONF_H
#define PARLEY_BASE_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONF_LISTEN_MAX 16

enum conf_dialect { CONF_PLAIN = 0, CONF_CLASSIC = 1 };

struct conf_listen {
	char *text;			/* as written, without options */
	char *host;			/* numeric address, NULL for a unix path */
	char *path;			/* unix path, NULL for TCP */
	uint16_t port;
	enum conf_dialect dialect;	/* dialect=plain|classic */
	bool proxy;			/* "proxy": a PROXY protocol header comes first (proxyhdr.h) */
};

struct conf {
	/* where */
	struct conf_listen listen[CONF_LISTEN_MAX];	/* default 127.0.0.1:6000 */
	unsigned nlisten;
	bool listen_overridden;		/* private to conf.c: the command line has said it */
	char *store;			/* sqlite:PATH | mysql://...; default sqlite:<state_dir>/parley.db */
	char *store_password_file;	/* "" = none; first line, used where the URL has no password */
	char *control;			/* admin socket; default <state_dir>/parleyd.sock */
	char *pid_file;			/* "" = none (with -d: <state_dir>/parleyd.pid) */
	char *state_dir;		/* default /var/lib/parley; host id, lock, keys */
	char *host_id;			/* "" = made once, kept in state_dir; [A-Za-z0-9_.-]{1,64} */
	char *user, *group;		/* "" = stay who we are */
	char *log;			/* stderr | syslog | PATH; default stderr */
	int log_level;			/* debug|info|warn|error; default info */

	/* processes */
	unsigned workers;		/* number, or auto = online CPUs, at most max_workers */
	unsigned max_workers;		/* slots made at start, 1..512, default 64 */
	bool immortal;			/* on | off (default): workers have twins, master/twin.h */
	uint32_t hang_seconds;		/* 10; no heartbeat that long: killed */
	uint32_t stop_seconds;		/* 5 */

	/* size */
	uint32_t max_sessions;		/* records and hash of the host, default 1,000,000 (16..16M) */
	uint32_t max_connections;	/* client connections of the host; 0 (default) is made max_sessions */
	uint32_t max_connections_address;	/* a client address, loopback exempt; 0 = no limit; default 0 */
	uint32_t max_frame;		/* bytes; 64 KiB (1k..1m) */
	uint64_t memory_limit;		/* bytes of session memory a worker; 256 MiB (4m..64g) */
	uint32_t output_limit;		/* unsent bytes a connection; at least 256k and 4 * max_frame;
					 * default the larger of 1 MiB and that */
	uint32_t backlog;		/* listen(2); 4096 */

	/* manners */
	bool replace;			/* duplicate_login = reject (default) | replace */
	bool registration;		/* on (default) | off: REG_MSG answers 6 */
	uint32_t rate_messages;		/* chat messages a second a session, 0 = no limit; default 1000 */
	uint32_t rate_logins;		/* password attempts and registrations a minute an address; 30; loopback exempt */
	uint32_t offline_max;		/* messages waiting a user; 10,000; 0 = no limit */
	uint32_t friends_max;		/* a user; 1000 */
	uint32_t groups_max;		/* a user's memberships; 500 */
	uint32_t group_members_max;	/* 10,000 */
	uint32_t group_keep_days;	/* 30 */
	uint32_t password_min;		/* bytes, 1..128; 1 */

	/* time */
	uint32_t login_ms;		/* login_seconds, 30 s; 0 = no limit */
	uint32_t idle_ms;		/* idle_seconds, 0 = never */
	uint32_t ping_ms;		/* ping_seconds, 30 s: ack sessions; 0 = never */
	uint32_t keepalive_seconds;	/* TCP keepalive idle, 20; 0 = off */
	uint32_t user_timeout_seconds;	/* TCP_USER_TIMEOUT, 40; 0 = system's */
	uint32_t presence_delay_ms;	/* 2000: offline is told after that absence */
	uint32_t confirm_ms;		/* confirm_timeout, 5 s */
	uint32_t classic_gap_ms;	/* 30: between offline frames to a classic client */
	uint32_t token_days;		/* 7 */

	/* passwords */
	uint32_t hash_memory;		/* KiB; 19456 (8..4m) */
	uint32_t hash_passes;		/* 2 (1..100) */
	uint32_t hash_threads;		/* of the host; 0 = auto: CPUs/2, at least 1 */

	/* store */
	uint32_t pool_init, pool_max;	/* connections of the host; 4, 32 */
	uint32_t pool_idle_seconds;	/* 60 */
	uint32_t pool_wait_ms;		/* 5000: a job that waited longer fails */
	uint32_t store_timeout_seconds;	/* connect, read, write; 5 */
	bool sqlite_full;		/* sqlite_synchronous = full (default) | normal */

	/* cluster */
	char *redis;			/* "" = no cluster; redis_url.h reads it */
	char *redis_password_file;	/* "" = none; first line, used where the URL has no password */
	char *cluster;			/* what names in Redis begin with; [A-Za-z0-9_.-]{1,32}; parley */
	char *advertise;		/* what nginx, or clients, connect to; "" = the first TCP listener */
	char *advertise_direct;		/* where clients of a draining host are sent; "" = see conf.c */
	uint32_t weight;		/* among the hosts, 1..1000; 1 */
	uint32_t heartbeat_ms;		/* 2000 */
	uint32_t host_timeout_ms;	/* 8000; at least 2 * heartbeat_ms */
	uint32_t redis_timeout_ms;	/* connecting, and the oldest command without an answer; 2000 */
	uint32_t drain_seconds;		/* 30: clients of a draining host are sent away over that time */
};

/* FILE may be NULL (command line: LINE is 0 then, KEY names the override). */
typedef void conf_error_fn(void *arg, const char *file, int line, const char *text);

/* All defaults, computed ones included after conf_finish(). */
void conf_init(struct conf *c);
void conf_free(struct conf *c);
/* Reads a file. 0, or the number of errors told. A missing file is one error. */
int conf_read(struct conf *c, const char *path, conf_error_fn *tell, void *arg);
/* The same from memory; NAME stands for the file in errors. */
int conf_read_text(struct conf *c, const char *name, const char *text, size_t len,
    conf_error_fn *tell, void *arg);
/* One "KEY=VALUE" of the command line. `listen` given so replaces those of the file. */
int conf_override(struct conf *c, const char *assignment, conf_error_fn *tell, void *arg);
/* Fills in what depends on other keys and checks combinations (pool_init <= pool_max, store
 * URL's form, listen addresses twice, workers <= max_workers, ...). */
int conf_finish(struct conf *c, conf_error_fn *tell, void *arg);

/* Compares two finished configurations; each differing key that cannot be reloaded is told.
 * Returns their number. workers is reloadable. */
int conf_diff(const struct conf *old, const struct conf *new, conf_error_fn *tell, void *arg);

/*
 * A finished configuration as text that conf_read_text() reads back to the same values; how the
 * master hands a reload to its workers. Bytes needed without the terminator; truncated at cap.
 */
size_t conf_dump(const struct conf *c, char *out, size_t cap);

/* The table, for `parleyd -t -v`, documentation tests and completion. NULL past the end. */
struct conf_key {
	const char *name, *dflt, *unit, *help;
	bool reloadable;
};
const struct conf_key *conf_key_at(size_t i);

#endif
