/*
 * The database connection: one interface, two engines (SQLite, MySQL).
 *
 * Duty    open from a URL, migrate the schema, keep one connection alive, name every error class.
 *         The operations are in users.h, friends.h, groups.h, messages.h and posts.h.
 * Scope   a struct db belongs to one thread. Open it after fork: a handle that crossed a fork
 *         answers wrongly (SQLite) or hangs up on the parent (MySQL).
 * Units   times are milliseconds since the epoch, lengths are bytes, text is UTF-8 with a final 0.
 * Owner   the caller frees a struct db by db_close(); rows given to a callback are valid inside it.
 * Errors  0 or a negative enum db_rc; db_errmsg() has the engine's words. Nothing here logs.
 *         Out parameters are untouched on error, except where a comment says otherwise.
 * Locks   none of our own. Calls block, for a few seconds at most (struct db_options).
 * Callbacks  run inside the statement: they must not use the same struct db. When a call fails
 *         after its callback ran, the rows given so far are to be thrown away.
 */
#ifndef SQL_DB_H
#define SQL_DB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DB_MUST __attribute__((warn_unused_result))

enum db_rc {
	DB_OK = 0,
	DB_GONE = -1,		/* no such row */
	DB_CONFLICT = -2,	/* that key exists already */
	DB_FULL = -3,		/* a quota is used up */
	DB_DENIED = -4,		/* not a member, not the creator */
	DB_DOWN = -5,		/* server or file cannot be reached: not done */
	DB_UNSURE = -6,		/* the link broke while committing: done or not, nobody knows */
	DB_BUSY = -7,		/* locks held by others for too long: not done, ask again */
	DB_BAD = -8		/* corrupt data, a schema that is not ours, or our bug: not done */
};

enum {
	DB_MID = 16,		/* bytes of a message id */
	DB_NAME = 201,		/* 50 characters of at most 4 bytes, and the final 0 */
	DB_DESC = 801,		/* 200 characters likewise */
	DB_HASH = 160,		/* an encoded password hash with its final 0 */
	DB_BODY_MAX = 1 << 20	/* bytes of a stored message: far above any frame */
};

struct db_options {		/* a zero means the default */
	const char *password;	/* MySQL: where the URL has none; copied */
	int connect_ms;		/* MySQL: to be connected; 3000 */
	int io_ms;		/* MySQL: for one answer; 5000 */
	int busy_ms;		/* SQLite: to wait for other writers; 5000 */
	int64_t journal_limit;	/* SQLite: bytes the WAL file shrinks back to; 64 MiB */
	bool sync_normal;	/* SQLite: survives every crash but may lose the last commits when
				 * the power fails */
};

struct db;

/* Once a process, before its first thread; then around the life of every thread that uses a db. */
int db_global_init(void) DB_MUST;
int db_thread_init(void) DB_MUST;
void db_thread_end(void);

/*
 * Reads URL (sqlite:PATH, or mysql://user:password@host:port/database; user, password, host and
 * database are percent-decoded; a host that is a path, or ?socket=PATH, means a unix socket; IPv6
 * in brackets) and makes a connection that opens itself at its first use. OPT may be NULL. DB_BAD:
 * the URL is wrong, err_r (size bytes, may be NULL) says how.
 */
int db_open(const char *url, const struct db_options *opt, struct db **db_r, char *err_r,
	    size_t size) DB_MUST;
/* Frees DB; NULL is fine. In another process than the opener's it frees memory only. */
void db_close(struct db *db);
/* Hangs up; the next use connects again. For idle connections. */
void db_disconnect(struct db *db);
bool db_connected(const struct db *db);
/* Gives back memory that is only kept to be quick. For connections that nobody needs just now. */
void db_relax(struct db *db);
/* Connects if need be and asks the server for a sign of life. */
int db_ping(struct db *db) DB_MUST;
/* What went wrong last, for people; never NULL, valid until the next call. */
const char *db_errmsg(const struct db *db);
const char *db_engine_name(const struct db *db);
/* A constant word for an rc, for logs. */
const char *db_rc_name(int rc);

/*
 * Creates what is missing (the SQLite file, the MySQL database where permitted, the tables) and
 * upgrades the schema, under a lock that other hosts and processes respect. DB_BAD: the schema
 * is newer than this program, db_errmsg() says both numbers. To be called by one short-lived
 * process at start, as the user that the workers run as.
 */
int db_migrate(struct db *db) DB_MUST;
/* Calls CB once for each setting of the server that weakens what we promise. */
int db_warnings(struct db *db, void (*cb)(void *arg, const char *text), void *arg) DB_MUST;

/*
 * Small values shared by all hosts. Names are at most 64 bytes; a value longer than SIZE is
 * DB_BAD. db_meta_claim() stores VALUE unless the name exists, and returns what is stored now,
 * so that all who claim at once agree; *len_r is its length.
 */
int db_meta_get(struct db *db, const char *name, void *value_r, size_t size, size_t *len_r) DB_MUST;
int db_meta_set(struct db *db, const char *name, const void *value, size_t len) DB_MUST;
int db_meta_claim(struct db *db, const char *name, const void *value, size_t len, void *value_r,
		  size_t size, size_t *len_r) DB_MUST;

/* Wall clock, ms since the epoch: what the time columns hold. */
int64_t db_now_ms(void);
/*
 * The key by which names are unique: ASCII letters folded to lower case, nothing else. DB_BAD
 * when NAME is empty or does not fit.
 */
int db_name_fold(char key_r[DB_NAME], const char *name) DB_MUST;

#endif
