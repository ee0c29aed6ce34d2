/*
 * The SQLite engine: one file in WAL mode, shared by all workers of a host.
 *
 * Every write takes the write lock at its beginning (BEGIN IMMEDIATE): a transaction that reads
 * first and then upgrades gets SQLITE_BUSY at once, whatever the time-out. The file is never
 * opened by other means: a close() of another descriptor would drop our POSIX locks.
 */
#include "sql/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { NFS_MAGIC = 0x6969, SMB2_MAGIC = 0x517b };

struct lite_stmt {
	struct db_stmt base;
	sqlite3_stmt *s;
	int bind_rc;		/* the first value that could not be given */
};

static sqlite3 *lite(struct db *db)
{
	return db->conn;
}

static struct lite_stmt *stmt(struct db_stmt *st)
{
	return (struct lite_stmt *)st;
}

static int constraint_class(int ext)
{
	switch (ext) {
	case SQLITE_CONSTRAINT_UNIQUE:
	case SQLITE_CONSTRAINT_PRIMARYKEY:
	case SQLITE_CONSTRAINT_ROWID:
		return DB_CONFLICT;
	case SQLITE_CONSTRAINT_FOREIGNKEY:
		return DB_GONE;
	default:
		return DB_BAD;
	}
}

/* Keeps the words and sorts CODE into our classes. */
static int fail(struct db *db, sqlite3 *h, int code)
{
	int ext = h != NULL ? sqlite3_extended_errcode(h) : code;

	db_fail(db, 0, "%s: %s", db->url.path, h != NULL ? sqlite3_errmsg(h) : sqlite3_errstr(code));
	switch (code & 0xff) {
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		/* a stale snapshot is cured by a new transaction; the rest has waited its time */
		return ext == SQLITE_BUSY_SNAPSHOT || ext == SQLITE_BUSY_RECOVERY ? DB_AGAIN : DB_BUSY;
	case SQLITE_NOMEM:
		return DB_BUSY;
	case SQLITE_CONSTRAINT:
		return constraint_class(ext);
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN:
	case SQLITE_FULL:
	case SQLITE_READONLY:
	case SQLITE_PROTOCOL:
	case SQLITE_PERM:
	case SQLITE_AUTH:
		db->lost = true;
		return DB_DOWN;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		db->lost = true;		/* whoever mends the file finds us with a fresh handle */
		return DB_BAD;
	default:
		return DB_BAD;
	}
}

static int lite_exec(struct db *db, const char *sql)
{
	int code = sqlite3_exec(lite(db), sql, NULL, NULL, NULL);

	return code == SQLITE_OK ? DB_OK : fail(db, lite(db), code);
}

static int pragmas(struct db *db)
{
	char sql[256];
	int rc = DB_AGAIN;

	/* The change to WAL needs the file alone for a moment and does not wait by itself. */
	for (int i = 0; i < 50 && (rc == DB_AGAIN || rc == DB_BUSY); i++) {
		if (i > 0)
			sqlite3_sleep(20);
		rc = lite_exec(db, "PRAGMA journal_mode = WAL");
	}
	if (rc != DB_OK)
		return rc == DB_AGAIN ? DB_BUSY : rc;
	snprintf(sql, sizeof sql, "PRAGMA synchronous = %s; PRAGMA journal_size_limit = %lld;"
		 "PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8192",
		 db->opt.sync_normal ? "NORMAL" : "FULL", (long long)db->opt.journal_limit);
	return lite_exec(db, sql);
}

/*
 * Makes an empty file that others cannot read: it will hold password hashes. Only where there
 * was none: then nobody holds a lock in it that our close() could drop.
 */
static int file_make(struct db *db)
{
	int fd = open(db->url.path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640);

	if (fd >= 0)
		close(fd);
	else if (errno != EEXIST)
		return db_fail(db, DB_DOWN, "%s: %s", db->url.path, strerror(errno));
	return DB_OK;
}

static int lite_connect(struct db *db)
{
	sqlite3 *h = NULL;
	int rc = db->create ? file_make(db) : DB_OK, code;

	if (rc != DB_OK)
		return rc;
	code = sqlite3_open_v2(db->url.path, &h, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
			       SQLITE_OPEN_EXRESCODE, NULL);
	if (code != SQLITE_OK) {
		rc = fail(db, h, code);
		sqlite3_close(h);
		return rc;
	}
	sqlite3_busy_timeout(h, db->opt.busy_ms);
	db->conn = h;
	rc = pragmas(db);
	if (rc != DB_OK) {
		sqlite3_close(h);
		db->conn = NULL;
	}
	return rc;
}

/* Statements may still exist: close_v2 waits for their end. */
static void lite_disconnect(struct db *db)
{
	sqlite3_close_v2(lite(db));
}

/* A file that was moved away or replaced would swallow our writes without a word. */
static int moved_check(struct db *db)
{
	int moved = 0;

	if (sqlite3_file_control(lite(db), "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK &&
	    moved) {
		db->lost = true;
		return db_fail(db, DB_DOWN, "%s: the file was moved or replaced", db->url.path);
	}
	return DB_OK;
}

static int lite_begin(struct db *db)
{
	int rc = moved_check(db);

	return rc == DB_OK ? lite_exec(db, "BEGIN IMMEDIATE") : rc;
}

static int lite_commit(struct db *db)
{
	return lite_exec(db, "COMMIT");
}

static void lite_rollback(struct db *db)
{
	if (sqlite3_get_autocommit(lite(db)))
		return;			/* some errors roll back by themselves */
	if (sqlite3_exec(lite(db), "ROLLBACK", NULL, NULL, NULL) != SQLITE_OK)
		db->lost = true;
}

static int lite_ping(struct db *db)
{
	int rc = moved_check(db);

	return rc == DB_OK ? lite_exec(db, "SELECT 1 FROM sqlite_schema LIMIT 1") : rc;
}

static int lite_prepare(struct db *db, const char *sql, struct db_stmt **st_r)
{
	struct lite_stmt *st = calloc(1, sizeof *st);
	int code;

	if (st == NULL)
		return db_fail(db, DB_BUSY, "out of memory");
	code = sqlite3_prepare_v3(lite(db), sql, -1, SQLITE_PREPARE_PERSISTENT, &st->s, NULL);
	if (code != SQLITE_OK) {
		free(st);
		return fail(db, lite(db), code);
	}
	*st_r = &st->base;
	return DB_OK;
}

static void lite_finalize(struct db_stmt *st)
{
	sqlite3_finalize(stmt(st)->s);
	free(st);
}

static void lite_reset(struct db_stmt *st)
{
	sqlite3_reset(stmt(st)->s);
	stmt(st)->bind_rc = SQLITE_OK;
}

static void bind_note(struct db_stmt *st, int code)
{
	if (code != SQLITE_OK && stmt(st)->bind_rc == SQLITE_OK)
		stmt(st)->bind_rc = code;
}

static void lite_put_int(struct db_stmt *st, int64_t v)
{
	bind_note(st, sqlite3_bind_int64(stmt(st)->s, st->nput + 1, v));
}

static void lite_put_blob(struct db_stmt *st, const void *p, size_t len, bool text)
{
	int i = st->nput + 1;

	if (len > INT_MAX)
		bind_note(st, SQLITE_TOOBIG);
	else if (text)
		bind_note(st, sqlite3_bind_text(stmt(st)->s, i, p, (int)len, SQLITE_STATIC));
	else	/* a NULL pointer would bind NULL, not an empty value */
		bind_note(st, sqlite3_bind_blob(stmt(st)->s, i, p != NULL ? p : "", (int)len,
						SQLITE_STATIC));
}

static int lite_step(struct db_stmt *st)
{
	struct db *db = st->db;
	int code = stmt(st)->bind_rc;

	if (code != SQLITE_OK || st->nput != sqlite3_bind_parameter_count(stmt(st)->s))
		return db_fail(db, DB_BAD, "wrong values for: %s", sqlite3_sql(stmt(st)->s));
	code = sqlite3_step(stmt(st)->s);
	if (code == SQLITE_ROW)
		return DB_ROW;
	if (code == SQLITE_DONE)
		return DB_OK;
	return fail(db, lite(db), code);
}

static int64_t lite_col_int(struct db_stmt *st, int col)
{
	return sqlite3_column_int64(stmt(st)->s, col);
}

static const void *lite_col_blob(struct db_stmt *st, int col, size_t *len_r)
{
	const void *p = sqlite3_column_blob(stmt(st)->s, col);

	*len_r = (size_t)sqlite3_column_bytes(stmt(st)->s, col);
	return p;
}

static bool lite_col_null(struct db_stmt *st, int col)
{
	return sqlite3_column_type(stmt(st)->s, col) == SQLITE_NULL;
}

static int64_t lite_changes(struct db *db)
{
	return sqlite3_changes(lite(db));
}

static int64_t lite_last_id(struct db *db)
{
	return sqlite3_last_insert_rowid(lite(db));
}

static int lite_lock_schema(struct db *db)
{
	return lite_exec(db, "BEGIN IMMEDIATE");
}

static int lite_unlock_schema(struct db *db, int rc)
{
	if (rc == DB_OK)
		rc = lite_exec(db, "COMMIT");
	if (rc != DB_OK && !db->lost)
		lite_rollback(db);
	return rc;
}

static int lite_warnings(struct db *db, void (*cb)(void *, const char *), void *arg)
{
	struct statfs fs;

	if (db->opt.sync_normal)
		cb(arg, "SQLite runs with synchronous=NORMAL: a power failure may lose the last "
		   "commits, though they were acknowledged");
	if (statfs(db->url.path, &fs) == 0 && (fs.f_type == NFS_MAGIC || fs.f_type == SMB2_MAGIC))
		cb(arg, "the SQLite file is on a network file system, where its locks cannot be "
		   "trusted");
	if (sqlite3_threadsafe() == 0)
		cb(arg, "the SQLite library was built without threads");
	return DB_OK;
}

static const char *const schema_1[] = {
#include "sql/schema/sqlite_0001.h"
	NULL
};
static const char *const *const migrations[] = { schema_1, NULL };

/* Pages of the file; what is in use stays. */
static void lite_relax(struct db *db)
{
	(void)sqlite3_db_release_memory(lite(db));
}

const struct db_engine db_engine_sqlite = {
	.name = "sqlite",
	.fan = 1,
	.connect = lite_connect,
	.disconnect = lite_disconnect,
	.ping = lite_ping,
	.relax = lite_relax,
	.begin = lite_begin,
	.commit = lite_commit,
	.rollback = lite_rollback,
	.exec = lite_exec,
	.prepare = lite_prepare,
	.finalize = lite_finalize,
	.reset = lite_reset,
	.put_int = lite_put_int,
	.put_blob = lite_put_blob,
	.step = lite_step,
	.col_int = lite_col_int,
	.col_blob = lite_col_blob,
	.col_null = lite_col_null,
	.changes = lite_changes,
	.last_id = lite_last_id,
	.lock_schema = lite_lock_schema,
	.unlock_schema = lite_unlock_schema,
	.warnings = lite_warnings,
	.migrations = migrations
};
