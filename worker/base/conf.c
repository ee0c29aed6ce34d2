/*
 * One table drives everything: defaults are read from its text by the same code as a file's
 * values, so what the table says (and the documentation test compares) is what happens.
 *
 * Secrets: the values of `store` and `redis` are never repeated in an error (SECRET).
 */
#include "worker/base/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/base/conf_addr.h"

#define LINE_MAX_BYTES 4096
#define TEXT_MAX_BYTES 1024	/* so that conf_dump()'s lines, escapes included, are lines */
#define FILE_MAX_BYTES (1u << 20)
#define K 1024u
#define M (1024u * 1024u)
#define G (1024ull * 1024u * 1024u)
#define DAY_MS 86400000u

enum type {
	KEY_LISTEN,
	KEY_TEXT,		/* char * */
	KEY_COUNT,		/* uint32_t, digits only */
	KEY_SIZE, KEY_SIZE64,	/* uint32_t, uint64_t; k, m, g */
	KEY_TIME,		/* uint32_t; ms, s, m, h, d */
	KEY_WORD, KEY_FLAG	/* int, bool: the number of the word */
};

enum { RELOAD = 1, SECRET = 2, AUTO = 4 };	/* AUTO: the word auto is 0; conf_finish() computes */

typedef const char *check_fn(const char *value);

struct key {
	struct conf_key doc;
	enum type type;
	unsigned flags;
	size_t at;
	uint64_t min, max;		/* in the field's unit */
	uint32_t unit, field;		/* bytes or ms of a plain number, and of the field's one */
	check_fn *check;		/* of KEY_TEXT */
	const char *words[5];
};

static check_fn check_log, check_host_id, check_cluster, check_name, check_dir, check_control;

#define AT(f) offsetof(struct conf, f)
#define DOC(n, d, u, fl, h) .doc = { n, d, u, h, ((fl) & RELOAD) != 0 }, .flags = (fl)
#define TEXT(n, d, fl, chk, h) \
	{ DOC(#n, d, "", fl, h), .type = KEY_TEXT, .at = AT(n), .check = chk }
#define COUNT(n, d, lo, hi, fl, h) \
	{ DOC(#n, d, "", fl, h), .type = KEY_COUNT, .at = AT(n), .min = lo, .max = hi, \
	    .unit = 1, .field = 1 }
#define SIZE(n, t, d, lo, hi, u, un, fl, h) \
	{ DOC(#n, d, u, fl, h), .type = t, .at = AT(n), .min = lo, .max = hi, \
	    .unit = un, .field = un }
#define TIME(n, f, d, lo, hi, u, un, fi, fl, h) \
	{ DOC(#n, d, u, fl, h), .type = KEY_TIME, .at = AT(f), .min = lo, .max = hi, \
	    .unit = un, .field = fi }
#define WORDS(n, f, t, d, fl, h, ...) \
	{ DOC(#n, d, "", fl, h), .type = t, .at = AT(f), .words = { __VA_ARGS__ } }

static const struct key keys[] = {
	{ DOC("listen", "127.0.0.1:6000", "", 0,
	    "Where clients connect: ADDRESS:PORT, [IPv6]:PORT, *:PORT or the path of a unix socket; "
	    "dialect=classic behind it for clients of the classic dialect, proxy where every "
	    "connection begins with a PROXY protocol header. May stand several times."),
	    .type = KEY_LISTEN },
	COUNT(workers, "auto", 1, 512, RELOAD | AUTO,
	    "Worker processes; auto is the number of CPUs."),
	COUNT(max_workers, "64", 1, 512, 0,
	    "Room that is made at start for workers added later."),
	TEXT(store, "sqlite:STATE_DIR/parley.db", SECRET | AUTO, conf_store_check,
	    "Where users, groups and waiting messages are kept: sqlite:PATH or "
	    "mysql://user:password@host:port/database."),
	TEXT(store_password_file, "", 0, NULL,
	    "A file whose first line is the store's password, where the URL has none."),
	TEXT(control, "STATE_DIR/parleyd.sock", AUTO, check_control,
	    "The unix socket that parleyctl talks to."),
	TEXT(pid_file, "", 0, NULL,
	    "Where the master's process id is written. Empty: nowhere (with -d "
	    "STATE_DIR/parleyd.pid)."),
	TEXT(state_dir, "/var/lib/parley", 0, check_dir,
	    "The folder of what outlives the daemon: host id, lock, and by default the store."),
	TEXT(host_id, "", 0, check_host_id,
	    "This host's name among its peers: letters, digits, _ . and -, at most 64. Empty: made "
	    "once and kept in state_dir."),
	TEXT(user, "", 0, check_name,
	    "The user to become when started as root. Empty: stay."),
	TEXT(group, "", 0, check_name,
	    "The group to become when started as root. Empty: the user's."),
	TEXT(log, "stderr", 0, check_log,
	    "Where log lines go: stderr, syslog or the path of a file."),
	WORDS(log_level, log_level, KEY_WORD, "info", RELOAD,
	    "The least severity that is logged: debug, info, warn or error.",
	    "debug", "info", "warn", "error"),
	WORDS(immortal, immortal, KEY_FLAG, "off", 0,
	    "Do the descriptors of a worker outlive it? on gives each worker two sleeping twins.",
	    "off", "on"),
	TIME(hang_seconds, hang_seconds, "10", 1, 3600, "s", 1000, 1000, RELOAD,
	    "A worker that gave no sign of life that long is killed and replaced."),
	TIME(stop_seconds, stop_seconds, "5", 1, 3600, "s", 1000, 1000, RELOAD,
	    "How long a stop may take to tell clients and store what is unconfirmed."),
	COUNT(max_sessions, "1000000", 16, 16u * M, 0,
	    "Sessions that the host has room for; memory is taken only as they come."),
	COUNT(max_connections, "0", 0, 16u * M, RELOAD,
	    "Client connections of the host; 0 is max_sessions."),
	COUNT(max_connections_address, "0", 0, 16u * M, RELOAD,
	    "Connections of one client address, loopback exempt; 0 is no limit."),
	SIZE(max_frame, KEY_SIZE, "64k", 1 * K, 1 * M, "bytes", 1, 0,
	    "The longest frame that a client may send."),
	SIZE(memory_limit, KEY_SIZE64, "256m", 4 * M, 64 * G, "bytes", 1, 0,
	    "Memory of a worker for input, output and waiting messages of its sessions."),
	SIZE(output_limit, KEY_SIZE, "1m", 256 * K, 1 * G, "bytes", 1, RELOAD | AUTO,
	    "Unsent bytes after which a slow reader is disconnected; at least 4 times max_frame."),
	COUNT(backlog, "4096", 1, 1u << 20, RELOAD,
	    "Connections that the kernel may hold for a worker before it accepts them."),
	WORDS(duplicate_login, replace, KEY_FLAG, "reject", RELOAD,
	    "What a login does to the account's present session: reject leaves it and refuses the "
	    "new one, replace ends it.",
	    "reject", "replace"),
	WORDS(registration, registration, KEY_FLAG, "on", RELOAD,
	    "May clients register accounts? off leaves it to parleyctl.",
	    "off", "on"),
	COUNT(rate_messages, "1000", 0, 1000000, RELOAD,
	    "Chat messages a second that a session may send; 0 is no limit."),
	COUNT(rate_logins, "30", 0, 1000000, RELOAD,
	    "Password attempts and registrations a minute of one address, loopback exempt; 0 is no "
	    "limit."),
	COUNT(offline_max, "10000", 0, 1000000000, RELOAD,
	    "Messages that may wait for a user who is away; 0 is no limit."),
	COUNT(friends_max, "1000", 1, 1000000, RELOAD, "Friends of a user."),
	COUNT(groups_max, "500", 1, 1000000, RELOAD, "Groups that a user may be in."),
	COUNT(group_members_max, "10000", 1, 1000000, RELOAD, "Members of a group."),
	TIME(group_keep_days, group_keep_days, "30", 0, 36500, "d", DAY_MS, DAY_MS, RELOAD,
	    "How long a group's messages wait for members who are away."),
	COUNT(password_min, "1", 1, 128, RELOAD, "The shortest password, in bytes."),
	TIME(login_seconds, login_ms, "30", 0, DAY_MS, "s", 1000, 1, RELOAD,
	    "A connection that has not logged in by then is closed; 0 is never."),
	TIME(idle_seconds, idle_ms, "0", 0, 30 * DAY_MS, "s", 1000, 1, RELOAD,
	    "A session that sent nothing that long is closed; 0 is never (classic clients never "
	    "ping)."),
	TIME(ping_seconds, ping_ms, "30", 0, DAY_MS, "s", 1000, 1, RELOAD,
	    "Silence after which the server pings a session with confirmed delivery; 0 is never."),
	TIME(keepalive_seconds, keepalive_seconds, "20", 0, 32767, "s", 1000, 1000, RELOAD,
	    "Silence after which TCP asks whether the other end is there; 0 is never."),
	TIME(user_timeout_seconds, user_timeout_seconds, "40", 0, 86400, "s", 1000, 1000, RELOAD,
	    "How long sent bytes may stay unacknowledged before the connection counts as dead; 0 is "
	    "the system's time."),
	TIME(presence_delay_ms, presence_delay_ms, "2000", 0, 600000, "ms", 1, 1, RELOAD,
	    "Absence after which friends are told that somebody went offline."),
	TIME(confirm_timeout, confirm_ms, "5", 10, 3600000, "s", 1000, 1, RELOAD,
	    "A delivered message that is not confirmed by then is stored."),
	TIME(classic_gap_ms, classic_gap_ms, "30", 0, 10000, "ms", 1, 1, RELOAD,
	    "Pause between waiting messages sent to a classic client."),
	TIME(token_days, token_days, "7", 1, 3650, "d", DAY_MS, DAY_MS, RELOAD,
	    "How long a resume token stands for the password."),
	SIZE(hash_memory, KEY_SIZE, "19456", 8, 4 * M, "KiB", K, RELOAD,
	    "Memory that hashing a password takes (argon2id)."),
	COUNT(hash_passes, "2", 1, 100, RELOAD, "Passes over that memory."),
	COUNT(hash_threads, "auto", 1, 512, AUTO,
	    "Passwords that the host hashes at a time; auto is half of the CPUs."),
	COUNT(pool_init, "4", 0, 4096, 0, "Store connections that are opened at start."),
	COUNT(pool_max, "32", 1, 4096, 0, "Store connections of the host at most."),
	TIME(pool_idle_seconds, pool_idle_seconds, "60", 0, 86400, "s", 1000, 1000, 0,
	    "An unused store connection above pool_init is closed after that time."),
	TIME(pool_wait_ms, pool_wait_ms, "5000", 1, 600000, "ms", 1, 1, 0,
	    "A request that waited longer for a store connection is answered \"try again\"."),
	TIME(store_timeout_seconds, store_timeout_seconds, "5", 1, 3600, "s", 1000, 1000, RELOAD,
	    "Time for connecting to the store, for a read and for a write."),
	WORDS(sqlite_synchronous, sqlite_full, KEY_FLAG, "full", 0,
	    "full keeps every commit through a power failure; normal may lose the last ones.",
	    "normal", "full"),
	TEXT(redis, "", SECRET, conf_redis_check,
	    "The Redis that joins several hosts: redis://user:password@host:port/db, host:port, "
	    "sentinel://:password@host:port,host:port;name or a path. Empty: this host is alone."),
	TEXT(redis_password_file, "", 0, NULL,
	    "A file whose first line is the password of Redis, where the URL has none."),
	TEXT(cluster, "parley", 0, check_cluster,
	    "What names in Redis begin with; hosts with the same one are one cluster. Letters, digits, "
	    "_ . and -, at most 32."),
	TEXT(advertise, "", RELOAD, conf_advertise_check,
	    "HOST:PORT that nginx, or clients, reach this host at. Empty: its first TCP listener, unless "
	    "that is every address."),
	TEXT(advertise_direct, "", RELOAD, conf_advertise_check,
	    "HOST:PORT that clients of a draining host are sent to. Empty: as advertise, or where a "
	    "listener is for a proxy, the first that is for clients."),
	COUNT(weight, "1", 1, 1000, RELOAD,
	    "The share of connections that this host gets, beside those of the others."),
	TIME(heartbeat_ms, heartbeat_ms, "2000", 50, 60000, "ms", 1, 1, RELOAD,
	    "How often a host says in Redis that it lives, and reads who else does."),
	TIME(host_timeout_ms, host_timeout_ms, "8000", 100, 3600000, "ms", 1, 1, RELOAD,
	    "A host that said nothing for that long is gone; at least twice heartbeat_ms."),
	TIME(redis_timeout_ms, redis_timeout_ms, "2000", 50, 60000, "ms", 1, 1, RELOAD,
	    "Time for connecting to Redis, and for its answer to a command."),
	TIME(drain_seconds, drain_seconds, "30", 0, 86400, "s", 1000, 1000, RELOAD,
	    "The clients of a host that is drained are sent away over that time.")
};

#define NKEYS (sizeof keys / sizeof *keys)

/* Where a value came from and who hears what is wrong with it. */
struct source {
	conf_error_fn *tell;
	void *arg;
	const char *file;
	int line;
	int errors;
};

static void __attribute__((format(printf, 2, 3)))
complain(struct source *src, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	src->errors++;
	if (src->tell != NULL)
		src->tell(src->arg, src->file, src->line, text);
}

static void *field(const struct conf *c, const struct key *k)
{
	return (char *)(uintptr_t)c + k->at;
}

static char **text_field(const struct conf *c, const struct key *k)
{
	return field(c, k);
}

static uint64_t number_of(const struct conf *c, const struct key *k)
{
	void *p = field(c, k);

	switch (k->type) {
	case KEY_WORD:
		return (uint64_t)*(int *)p;
	case KEY_FLAG:
		return *(bool *)p;
	case KEY_SIZE64:
		return *(uint64_t *)p;
	default:
		return *(uint32_t *)p;
	}
}

static void set_number(struct conf *c, const struct key *k, uint64_t n)
{
	void *p = field(c, k);

	switch (k->type) {
	case KEY_WORD:
		*(int *)p = (int)n;
		break;
	case KEY_FLAG:
		*(bool *)p = n != 0;
		break;
	case KEY_SIZE64:
		*(uint64_t *)p = n;
		break;
	default:
		*(uint32_t *)p = (uint32_t)n;
	}
}

/*
 * Single values.
 */
static const char *check_log(const char *s)
{
	if (strcmp(s, "stderr") == 0 || strcmp(s, "syslog") == 0 || strchr(s, '/') != NULL)
		return NULL;
	return "stderr, syslog or a path (with a / in it) is needed";
}

static bool is_word(const char *s)
{
	static const char allowed[] =
	    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";

	return s[strspn(s, allowed)] == '\0';
}

static const char *check_host_id(const char *s)
{
	if (strlen(s) > 64)
		return "at most 64 characters";
	return is_word(s) ? NULL : "only letters, digits, _ . and - are allowed";
}

static const char *check_cluster(const char *s)
{
	if (s[0] == '\0' || strlen(s) > 32)
		return "1 to 32 characters";
	return is_word(s) ? NULL : "only letters, digits, _ . and - are allowed";
}

static const char *check_name(const char *s)
{
	return strpbrk(s, " \t/:,") == NULL ? NULL : "not the name of a user or group";
}

static const char *check_dir(const char *s)
{
	return s[0] != '\0' ? NULL : "a path is missing";
}

static const char *check_control(const char *s)
{
	return conf_socket_check(s);
}

static void read_text(struct conf *c, const struct key *k, const char *value, struct source *src)
{
	const char *why = k->check != NULL ? k->check(value) : NULL;
	char *copy;

	if (why == NULL && strlen(value) > TEXT_MAX_BYTES)
		why = "longer than 1024 bytes";
	if (why != NULL) {
		if ((k->flags & SECRET) != 0 || value[0] == '\0')
			complain(src, "%s: %s", k->doc.name, why);
		else
			complain(src, "%s: %s, not \"%.100s\"", k->doc.name, why, value);
		return;
	}
	copy = strdup(value);
	if (copy == NULL) {
		complain(src, "%s: out of memory", k->doc.name);
		return;
	}
	free(*text_field(c, k));
	*text_field(c, k) = copy;
}

static void read_word(struct conf *c, const struct key *k, const char *value, struct source *src)
{
	char list[80];
	size_t n = 0;

	for (unsigned i = 0; k->words[i] != NULL; i++) {
		if (strcmp(value, k->words[i]) == 0) {
			set_number(c, k, i);
			return;
		}
		n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i == 0 ? "" :
		    k->words[i + 1] == NULL ? " or " : ", ", k->words[i]);
	}
	complain(src, "%s: %s is needed, not \"%.100s\"", k->doc.name, list, value);
}

/* Bytes or milliseconds of one of what a suffix names; 0 where there is no such suffix. */
static uint32_t suffix_unit(const struct key *k, const char *s)
{
	static const struct { const char *s; uint32_t n; } times[] = {
		{ "ms", 1 }, { "s", 1000 }, { "m", 60000 }, { "h", 3600000 }, { "d", DAY_MS }
	}, sizes[] = { { "k", K }, { "m", M }, { "g", (uint32_t)G } };

	if (*s == '\0')
		return k->unit;
	if (k->type == KEY_TIME)
		for (size_t i = 0; i < sizeof times / sizeof *times; i++)
			if (strcmp(s, times[i].s) == 0)
				return times[i].n;
	if (k->type == KEY_SIZE || k->type == KEY_SIZE64)
		for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
			if (strcasecmp(s, sizes[i].s) == 0)
				return sizes[i].n;
	return 0;
}

/* Digits, for times with a fraction, then a suffix. By hand: strtod() looks at the locale. */
static bool scan_number(const struct key *k, const char *s, double *n_r)
{
	double n = 0, place = 1;
	uint32_t unit;

	if (*s < '0' || *s > '9')
		return false;
	for (; *s >= '0' && *s <= '9'; s++)
		n = n * 10 + (*s - '0');
	if (k->type == KEY_TIME && *s == '.' && s[1] >= '0' && s[1] <= '9')
		for (s++; *s >= '0' && *s <= '9'; s++)
			n += (*s - '0') * (place /= 10);
	unit = suffix_unit(k, s + strspn(s, " \t"));
	*n_r = n * unit / k->field;
	return unit != 0;
}

static void read_number(struct conf *c, const struct key *k, const char *value,
    struct source *src)
{
	double n, scale = (double)k->field / k->unit;
	uint64_t whole;

	if ((k->flags & AUTO) != 0 && strcmp(value, "auto") == 0) {
		set_number(c, k, 0);
		return;
	}
	if (!scan_number(k, value, &n)) {
		complain(src, "%s: %s is needed%s, not \"%.100s\"", k->doc.name,
		    k->type == KEY_TIME ? "a time such as 30, 0.5, 500ms, 2s, 5m, 1h or 7d" :
		    k->type == KEY_COUNT ? "a whole number" : "a size such as 65536, 64k or 1m",
		    (k->flags & AUTO) != 0 && k->type == KEY_COUNT ? " (or auto)" : "", value);
		return;
	}
	if (n < (double)k->min - 1e-6 || n > (double)k->max + 1e-6) {
		complain(src, "%s: must be from %.15g to %.15g%s%s, not \"%.100s\"", k->doc.name,
		    (double)k->min * scale, (double)k->max * scale,
		    *k->doc.unit != '\0' ? " " : "", k->doc.unit, value);
		return;
	}
	whole = (uint64_t)(n + 0.5);
	if (n - (double)whole > 1e-6 || (double)whole - n > 1e-6) {
		complain(src, "%s: a whole number of %s is needed, not \"%.100s\"", k->doc.name,
		    k->field == 1 ? "ms" : k->field == 1000 ? "seconds" :
		    k->field == DAY_MS ? "days" : k->doc.unit, value);
		return;
	}
	set_number(c, k, whole);
}

static void drop_listeners(struct conf *c)
{
	while (c->nlisten > 0)
		conf_listen_fini(&c->listen[--c->nlisten]);
}

static void read_listen(struct conf *c, const char *value, struct source *src)
{
	const char *why;

	if (src->line == 0 && !c->listen_overridden) {
		drop_listeners(c);
		c->listen_overridden = true;
	}
	if (c->nlisten == CONF_LISTEN_MAX) {
		complain(src, "listen: at most %d addresses", CONF_LISTEN_MAX);
		return;
	}
	why = conf_listen_read(&c->listen[c->nlisten], value);
	if (why == NULL)
		c->nlisten++;
	else
		complain(src, "listen: %s, not \"%.150s\"", why, value);
}

static void read_value(struct conf *c, const struct key *k, const char *value,
    struct source *src)
{
	switch (k->type) {
	case KEY_LISTEN:
		read_listen(c, value, src);
		break;
	case KEY_TEXT:
		read_text(c, k, value, src);
		break;
	case KEY_WORD:
	case KEY_FLAG:
		read_word(c, k, value, src);
		break;
	default:
		read_number(c, k, value, src);
	}
}

/*
 * Keys.
 */
static const struct key *find_key(const char *name)
{
	for (size_t i = 0; i < NKEYS; i++)
		if (strcmp(keys[i].doc.name, name) == 0)
			return &keys[i];
	return NULL;
}

static size_t min_of(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* Levenshtein's distance, one row kept. */
static size_t distance(const char *a, const char *b)
{
	size_t row[33], n = min_of(strlen(b), 32);

	for (size_t k = 0; k <= n; k++)
		row[k] = k;
	for (size_t i = 1; a[i - 1] != '\0'; i++) {
		size_t corner = row[0];

		row[0] = i;
		for (size_t k = 1; k <= n; k++) {
			size_t swap = corner + (a[i - 1] != b[k - 1]);

			corner = row[k];
			row[k] = min_of(swap, min_of(row[k], row[k - 1]) + 1);
		}
	}
	return row[n];
}

static void unknown_key(const char *name, struct source *src)
{
	size_t best = strlen(name) / 2 + 1, d;
	const char *hint = NULL;

	if (best > 4)
		best = 4;
	for (size_t i = 0; i < NKEYS; i++) {
		d = distance(name, keys[i].doc.name);
		if (d < best) {
			best = d;
			hint = keys[i].doc.name;
		}
	}
	if (hint != NULL)
		complain(src, "%.64s: unknown key; did you mean %s?", name, hint);
	else
		complain(src, "%.64s: unknown key", name);
}

/*
 * Lines.
 */
static char *trim(char *s)
{
	char *end;

	s += strspn(s, " \t\r");
	for (end = s + strlen(s); end > s && strchr(" \t\r", end[-1]) != NULL; end--)
		;
	*end = '\0';
	return s;
}

/* Ends the line at a # that stands outside of the quotes around a value. */
static void cut_comment(char *line)
{
	char *p = line + strcspn(line, "=#");

	if (*p == '=') {
		p++;
		p += strspn(p, " \t");
	}
	if (*p == '"')
		for (p++; *p != '\0' && *p != '"'; p++)
			if (*p == '\\' && p[1] != '\0')
				p++;
	p[strcspn(p, "#")] = '\0';
}

/* Takes the quotes off a value, in place; \" and \\ stand for themselves in them. */
static bool unquote(char *s)
{
	char *out = s;

	for (s++; *s != '"'; s++) {
		if (*s == '\\' && (s[1] == '"' || s[1] == '\\'))
			s++;
		if (*s == '\0')
			return false;
		*out++ = *s;
	}
	*out = '\0';
	return s[1] == '\0';
}

/* TEXT is "KEY = VALUE", trimmed. SEEN marks the keys of this file, NULL for the command line. */
static void read_assignment(struct conf *c, char *text, bool *seen, struct source *src)
{
	char *equals = strchr(text, '='), *value;
	const struct key *k;

	if (equals == NULL || equals == text) {
		complain(src, "KEY = VALUE is needed");
		return;
	}
	*equals = '\0';
	text = trim(text);
	value = trim(equals + 1);
	k = find_key(text);
	if (k == NULL) {
		unknown_key(text, src);
		return;
	}
	if (seen != NULL && k->type != KEY_LISTEN) {
		if (seen[k - keys]) {
			complain(src, "%s: given twice in this file", k->doc.name);
			return;
		}
		seen[k - keys] = true;
	}
	if (value[0] == '"' && k->type != KEY_LISTEN && !unquote(value)) {
		complain(src, "%s: the quotes do not match", k->doc.name);
		return;
	}
	read_value(c, k, value, src);
}

static bool has_control(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (((unsigned char)s[i] < 0x20 && s[i] != '\t') || s[i] == 0x7f)
			return true;
	return false;
}

static void read_line(struct conf *c, const char *text, size_t len, bool *seen,
    struct source *src)
{
	char line[LINE_MAX_BYTES + 1], *s;

	if (len > 0 && text[len - 1] == '\r')
		len--;
	if (len > LINE_MAX_BYTES) {
		complain(src, "the line is longer than %d bytes", LINE_MAX_BYTES);
		return;
	}
	if (has_control(text, len)) {
		complain(src, "a control character (or NUL byte) stands in the line");
		return;
	}
	memcpy(line, text, len);
	line[len] = '\0';
	cut_comment(line);
	s = trim(line);
	if (*s != '\0')
		read_assignment(c, s, seen, src);
	explicit_bzero(line, sizeof line);
}

int conf_read_text(struct conf *c, const char *name, const char *text, size_t len,
    conf_error_fn *tell, void *arg)
{
	struct source src = { .tell = tell, .arg = arg, .file = name };
	bool seen[NKEYS] = { false };
	const char *end = text + len, *eol;

	if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
		text += 3;
	for (; text < end; text = eol + 1) {
		eol = memchr(text, '\n', (size_t)(end - text));
		if (eol == NULL)
			eol = end;
		src.line++;
		read_line(c, text, (size_t)(eol - text), seen, &src);
	}
	return src.errors;
}

/* All of the file into a buffer of FILE_MAX_BYTES + 1. Bytes, or -errno. */
static ssize_t read_whole(const char *path, char *buf)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return -errno;
	do {
		n = read(fd, buf + len, FILE_MAX_BYTES + 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;
		len += (size_t)n;
	} while (n != 0 && len <= FILE_MAX_BYTES);
	if (n < 0)
		n = -errno;
	close(fd);
	return n < 0 ? n : (ssize_t)len;
}

int conf_read(struct conf *c, const char *path, conf_error_fn *tell, void *arg)
{
	struct source src = { .tell = tell, .arg = arg, .file = path };
	char *buf = malloc(FILE_MAX_BYTES + 1);
	ssize_t len = buf != NULL ? read_whole(path, buf) : -ENOMEM;

	if (len < 0)
		complain(&src, "cannot be read: %s", strerror((int)-len));
	else if (len > (ssize_t)FILE_MAX_BYTES)
		complain(&src, "longer than 1 MiB: not a configuration");
	else
		src.errors = conf_read_text(c, path, buf, (size_t)len, tell, arg);
	if (buf != NULL)
		explicit_bzero(buf, len > 0 ? (size_t)len : 0);
	free(buf);
	return src.errors;
}

int conf_override(struct conf *c, const char *assignment, conf_error_fn *tell, void *arg)
{
	struct source src = { .tell = tell, .arg = arg };
	size_t len = strlen(assignment);
	char *copy = strdup(assignment);

	if (copy == NULL)
		complain(&src, "out of memory");
	else if (has_control(copy, len))
		complain(&src, "a control character stands in an option");
	else
		read_assignment(c, trim(copy), NULL, &src);
	if (copy != NULL)
		explicit_bzero(copy, len);
	free(copy);
	return src.errors;
}

/*
 * The whole.
 */
void conf_init(struct conf *c)
{
	struct source src = { .tell = NULL };

	memset(c, 0, sizeof *c);
	for (size_t i = 0; i < NKEYS; i++)
		if (keys[i].type != KEY_LISTEN && (keys[i].flags & AUTO) == 0)
			read_value(c, &keys[i], keys[i].doc.dflt, &src);
}

void conf_free(struct conf *c)
{
	drop_listeners(c);
	for (size_t i = 0; i < NKEYS; i++) {
		char **text = keys[i].type == KEY_TEXT ? text_field(c, &keys[i]) : NULL;

		if (text == NULL || *text == NULL)
			continue;
		if ((keys[i].flags & SECRET) != 0)
			explicit_bzero(*text, strlen(*text));
		free(*text);
		*text = NULL;
	}
}

static void join_path(char **text_r, const char *prefix, const char *dir, const char *name)
{
	size_t len = strlen(dir);

	if (*text_r != NULL)
		return;
	while (len > 1 && dir[len - 1] == '/')
		len--;
	if (asprintf(text_r, "%s%.*s/%s", prefix, (int)len, dir, name) < 0)
		*text_r = NULL;
}

static void fill_in(struct conf *c)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t least = 4 * c->max_frame;

	if (cpus < 1)
		cpus = 1;
	if (c->nlisten == 0 && conf_listen_read(&c->listen[0], keys[0].doc.dflt) == NULL)
		c->nlisten = 1;
	if (c->state_dir != NULL) {
		join_path(&c->store, "sqlite:", c->state_dir, "parley.db");
		join_path(&c->control, "", c->state_dir, "parleyd.sock");
	}
	if (c->workers == 0)
		c->workers = (unsigned)(cpus < (long)c->max_workers ? cpus : (long)c->max_workers);
	if (c->hash_threads == 0)
		c->hash_threads = cpus > 1 ? (uint32_t)(cpus / 2 < 512 ? cpus / 2 : 512) : 1;
	if (c->max_connections == 0)
		c->max_connections = c->max_sessions;
	if (c->output_limit == 0)
		c->output_limit = least > M ? least : M;
}

static void check_listeners(const struct conf *c, struct source *src)
{
	for (unsigned i = 0; i < c->nlisten; i++)
		for (unsigned k = 0; k < i; k++)
			if (conf_listen_same(&c->listen[i], &c->listen[k]))
				complain(src, "listen: %s is given twice", c->listen[i].text);
}

int conf_finish(struct conf *c, conf_error_fn *tell, void *arg)
{
	struct source src = { .tell = tell, .arg = arg };
	const char *why;

	fill_in(c);
	for (size_t i = 0; i < NKEYS; i++)
		if (keys[i].type == KEY_TEXT && *text_field(c, &keys[i]) == NULL)
			complain(&src, "%s: out of memory", keys[i].doc.name);
	if (c->nlisten == 0)
		complain(&src, "listen: out of memory");
	check_listeners(c, &src);
	if (c->store != NULL && (why = conf_store_check(c->store)) != NULL)
		complain(&src, "store: %s", why);	/* made of an odd state_dir */
	if (c->control != NULL && (why = conf_socket_check(c->control)) != NULL)
		complain(&src, "control: %s", why);
	if (c->workers > c->max_workers)
		complain(&src, "workers: %u is more than max_workers, %u", c->workers,
		    c->max_workers);
	if (c->pool_init > c->pool_max)
		complain(&src, "pool_init: %u is more than pool_max, %u", c->pool_init, c->pool_max);
	if (c->max_connections > c->max_sessions)
		complain(&src, "max_connections: %u is more than max_sessions, %u",
		    c->max_connections, c->max_sessions);
	if (c->host_timeout_ms < 2 * c->heartbeat_ms)
		complain(&src, "host_timeout_ms: %u is less than twice heartbeat_ms, %u",
		    c->host_timeout_ms, c->heartbeat_ms);
	if (c->output_limit < 4 * c->max_frame)
		complain(&src, "output_limit: %u is less than 4 times max_frame, %u",
		    c->output_limit, 4 * c->max_frame);
	return src.errors;
}

static bool same_listeners(const struct conf *a, const struct conf *b)
{
	if (a->nlisten != b->nlisten)
		return false;
	for (unsigned i = 0; i < a->nlisten; i++)
		if (!conf_listen_same(&a->listen[i], &b->listen[i]) ||
		    a->listen[i].dialect != b->listen[i].dialect ||
		    a->listen[i].proxy != b->listen[i].proxy)
			return false;
	return true;
}

static bool same_value(const struct conf *a, const struct conf *b, const struct key *k)
{
	const char *ta, *tb;

	switch (k->type) {
	case KEY_LISTEN:
		return same_listeners(a, b);
	case KEY_TEXT:
		ta = *text_field(a, k);
		tb = *text_field(b, k);
		return ta == tb || (ta != NULL && tb != NULL && strcmp(ta, tb) == 0);
	default:
		return number_of(a, k) == number_of(b, k);
	}
}

int conf_diff(const struct conf *old, const struct conf *new, conf_error_fn *tell, void *arg)
{
	struct source src = { .tell = tell, .arg = arg };

	for (size_t i = 0; i < NKEYS; i++)
		if (!keys[i].doc.reloadable && !same_value(old, new, &keys[i]))
			complain(&src, "%s: cannot be changed by a reload; a restart is needed",
			    keys[i].doc.name);
	return src.errors;
}

/*
 * As text.
 */
struct sink {
	char *out;
	size_t cap, len;
};

static void put(struct sink *s, const char *text)
{
	for (; *text != '\0'; text++, s->len++)
		if (s->len + 1 < s->cap)
			s->out[s->len] = *text;
}

static void put_quoted(struct sink *s, const char *text)
{
	char one[3] = "";

	put(s, "\"");
	for (; *text != '\0'; text++) {
		bool escape = *text == '"' || *text == '\\';

		one[0] = escape ? '\\' : *text;
		one[1] = escape ? *text : '\0';
		put(s, one);
	}
	put(s, "\"");
}

static void dump_value(struct sink *s, const struct conf *c, const struct key *k)
{
	uint64_t n = number_of(c, k);
	char text[40];

	if (k->type == KEY_WORD || k->type == KEY_FLAG) {
		put(s, k->words[n]);
		return;
	}
	/* a field finer than its key's unit is written in ms, so that nothing is rounded */
	snprintf(text, sizeof text, "%llu%s", (unsigned long long)n,
	    k->type == KEY_TIME && k->field != k->unit ? "ms" : "");
	put(s, text);
}

static void dump_listeners(struct sink *s, const struct conf *c)
{
	for (unsigned i = 0; i < c->nlisten; i++) {
		put(s, "listen = \"");
		put(s, c->listen[i].text);
		put(s, c->listen[i].dialect == CONF_CLASSIC ? "\" dialect=classic" : "\"");
		put(s, c->listen[i].proxy ? " proxy\n" : "\n");
	}
}

size_t conf_dump(const struct conf *c, char *out, size_t cap)
{
	struct sink s = { .out = out, .cap = cap };

	for (size_t i = 0; i < NKEYS; i++) {
		const struct key *k = &keys[i];

		if (k->type == KEY_LISTEN) {
			dump_listeners(&s, c);
			continue;
		}
		put(&s, k->doc.name);
		put(&s, " = ");
		if (k->type != KEY_TEXT)
			dump_value(&s, c, k);
		else if (*text_field(c, k) != NULL)
			put_quoted(&s, *text_field(c, k));
		put(&s, "\n");
	}
	if (cap > 0)
		out[s.len < cap ? s.len : cap - 1] = '\0';
	return s.len;
}

const struct conf_key *conf_key_at(size_t i)
{
	return i < NKEYS ? &keys[i].doc : NULL;
}
