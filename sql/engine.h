/*
 * Inside of sql/ only: statements, transactions, and what an engine must provide.
 *
 * A query is a constant with one text for each engine. Its prepared statement is kept by the
 * connection, found by the query's address and the number of repeats. "{x|sep}" in a text stands
 * for x repeated n times with sep between ("," when left out): multi-row inserts and IN lists.
 *
 * Every operation is a function run by db_run(). It asks for a statement by db_use(), gives the
 * values in order by db_put_*(), and steps it. It never resets: db_run() does, whatever happened.
 */
#ifndef SQL_ENGINE_H
#define SQL_ENGINE_H

#include "sql/db.h"

enum {
	DB_ROW = 1,		/* db_step(): a row is there */
	DB_AGAIN = -100		/* deadlock: roll back and run the function again; never leaves sql/ */
};

struct db_query { const char *lite, *mysql; };
#define DB_SAME(text) { text, text }
#define DB_LOCKING(text) { text, text " FOR UPDATE" }	/* SQLite's writer holds the one lock anyway */

struct db_url {
	char *buf, *given;	/* own the strings below */
	const char *user, *password, *host, *path, *database;	/* path: file, or unix socket */
	unsigned port;
};

struct db_stmt {		/* the engine's own struct begins with this */
	struct db *db;
	const struct db_query *query;
	unsigned repeats;
	int nput;		/* values given so far */
	bool active;		/* in db->active: to be reset at the end of the run */
	struct db_stmt *next;
};

enum { DB_LINK_NAME = 48 };	/* bytes of a link's name and its final 0 */
enum { DB_CACHE = 256 };	/* statements a connection keeps; a power of two */

struct db {
	const struct db_engine *eng;
	struct db_url url;
	struct db_options opt;
	void *conn;		/* the engine's; NULL when not connected */
	bool lost;		/* set by the engine: hang up when the run ends */
	bool create;		/* migrating: the engine may create the file or the database */
	bool rows_out;		/* this attempt has seen a row */
	int pid;		/* who connected */
	char ghost[DB_LINK_NAME];	/* the engine's: a link lost in a transaction; "" for none */
	struct db_stmt *active;
	struct db_stmt *cache[DB_CACHE];
	unsigned cached;
	char errmsg[320];
};

/*
 * The vtable. int results are DB_OK, an enum db_rc, or DB_AGAIN; an engine that sees its link
 * die answers DB_DOWN and sets db->lost. What it says goes through db_fail().
 */
struct db_engine {
	const char *name;
	unsigned fan;		/* most repeats in a statement: 1 where a call is no round trip */
	int (*connect)(struct db *db);
	void (*disconnect)(struct db *db);
	int (*ping)(struct db *db);
	void (*relax)(struct db *db);	/* NULL: there is nothing to give back */
	int (*begin)(struct db *db);	/* for writing */
	int (*commit)(struct db *db);
	void (*rollback)(struct db *db);
	int (*exec)(struct db *db, const char *sql);	/* one statement without values */
	int (*prepare)(struct db *db, const char *sql, struct db_stmt **st_r);
	void (*finalize)(struct db_stmt *st);
	void (*reset)(struct db_stmt *st);
	void (*put_int)(struct db_stmt *st, int64_t v);
	void (*put_blob)(struct db_stmt *st, const void *p, size_t len, bool text);
	int (*step)(struct db_stmt *st);	/* DB_ROW, DB_OK at the end, or an error */
	int64_t (*col_int)(struct db_stmt *st, int col);
	const void *(*col_blob)(struct db_stmt *st, int col, size_t *len_r);
	bool (*col_null)(struct db_stmt *st, int col);
	int64_t (*changes)(struct db *db);	/* rows that the last write matched */
	int64_t (*last_id)(struct db *db);
	int (*lock_schema)(struct db *db);	/* held until unlock_schema */
	int (*unlock_schema)(struct db *db, int rc);
	int (*warnings)(struct db *db, void (*cb)(void *, const char *), void *arg);
	const char *const *const *migrations;	/* [version - 1] -> statements, NULL at both ends */
};

extern const struct db_engine db_engine_sqlite, db_engine_mysql;

enum db_how {
	DB_READ,		/* single statements; run again once when an old link was dead */
	DB_WRITE,		/* one transaction; run again after a deadlock */
	DB_WRITE_KEYED		/* and once more when the commit is unsure: the keys make it harmless */
};

/*
 * Connects if need be and runs FN as HOW says. FN may be run several times: it sets its results
 * anew each time. It returns DB_OK to commit, anything else to roll back.
 */
int db_run(struct db *db, enum db_how how, int (*fn)(struct db *db, void *arg), void *arg) DB_MUST;

int db_use(struct db *db, const struct db_query *q, struct db_stmt **st_r) DB_MUST;
int db_use_n(struct db *db, const struct db_query *q, unsigned n, struct db_stmt **st_r) DB_MUST;
void db_put_int(struct db_stmt *st, int64_t v);
void db_put_text(struct db_stmt *st, const char *s);	/* lent until the last step */
void db_put_blob(struct db_stmt *st, const void *p, size_t len);	/* likewise */
int db_step(struct db_stmt *st) DB_MUST;
/* Steps a statement that gives no rows. */
int db_step_done(struct db_stmt *st) DB_MUST;
/* Steps a statement of which one row is expected: DB_OK with a row, or DB_GONE. */
int db_step_one(struct db_stmt *st) DB_MUST;
int64_t db_int(struct db_stmt *st, int col);
const void *db_blob(struct db_stmt *st, int col, size_t *len_r);
/* Copies a text column and ends it with a 0; longer text is cut. */
void db_text(struct db_stmt *st, int col, char *buf_r, size_t size);
bool db_null(struct db_stmt *st, int col);
int64_t db_changes(struct db *db);
int64_t db_last_id(struct db *db);

/* Runs Q with up to four ids as its values; the rows that a write matched go to *changes_r. */
int db_exec_ids(struct db *db, const struct db_query *q, int n, const int64_t *ids,
		int64_t *changes_r) DB_MUST;

/*
 * Runs Q over items 0..n-1, as many of them in one statement as the engine likes and MAX allows.
 *   put   gives the values of item i
 *   size  bytes of item i, so that statements stay small; may be NULL
 *   row   called for every row of the result; may be NULL
 *   pad   items may be repeated to fill up a statement (lookups, deletes: yes; inserts: no)
 */
struct db_each {
	void (*put)(struct db_stmt *st, void *ctx, size_t i);
	size_t (*size)(void *ctx, size_t i);
	int (*row)(struct db_stmt *st, void *ctx);
	unsigned max;
	bool pad;
};
int db_each(struct db *db, const struct db_query *q, size_t n, const struct db_each *ops,
	    void *ctx) DB_MUST;

/* Keeps the words of an error and hands RC back. */
int db_fail(struct db *db, int rc, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
