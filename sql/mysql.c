/*
 * The MySQL engine (libmysqlclient, or MariaDB's library of the same interface).
 *
 * One connection runs one prepared statement at a time; results are taken whole before the first
 * row is given out, so a link that breaks never leaves half a result. The library's automatic
 * reconnection stays off: it would lose the session's settings and statements without a word.
 * Time-outs make every wait end; db.c decides what a lost link means.
 *
 * Ghosts: when a link is lost in the middle of a transaction, its thread in the server may go on
 * with what it has (a frozen server that thaws, a COMMIT that comes late), after newer writes of
 * ours. So the next link ends that thread before it is used. It finds it by a lock whose name the
 * old link had made up for itself: thread ids are given again by a restarted server, names are
 * not. The lock is released when the transaction is committed or rolled back.
 */
#include "sql/engine.h"

#include <mysql.h>
#include <errmsg.h>
#include <mysqld_error.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#if defined(MARIADB_BASE_VERSION) || MYSQL_VERSION_ID < 80000
#define LIB_BOOL my_bool
#else
#define LIB_BOOL bool
#endif

enum {
	FAN = 256,			/* rows in one statement */
	FIRST_BUF = 256,		/* bytes of a text column's buffer, grown as needed */
	PACKET_WANTED = 4 << 20,	/* our largest statement is below 2 MiB */
	GHOST_MS = 2000,		/* for a killed thread to be gone */
	GHOST_LOOK_MS = 10,
	/* Numbers that not every mysqld_error.h has. */
	E_CONNECTION_KILLED = 1927,
	E_STATEMENT_TIMEOUT = 1969,
	E_QUERY_TIMEOUT = 3024,
	E_IDLE_DISCONNECT = 4031
};

struct my_conn {
	MYSQL *h;
	int64_t changes, last_id;
	char name[DB_LINK_NAME];	/* of the lock that this link holds while it lives */
	bool in_tx;
};

struct my_col {
	bool is_int;
	LIB_BOOL null;
	unsigned long len;
	long long num;
	char *buf;
	size_t size;
};

struct my_stmt {
	struct db_stmt base;
	MYSQL_STMT *s;
	unsigned nparam, ncol;
	MYSQL_BIND *in, *out;
	long long *nums;		/* the integers that IN points to */
	struct my_col *cols;
	bool executed, rebind, too_many;
};

static struct my_conn *conn(struct db *db)
{
	return db->conn;
}

static struct my_stmt *stmt(struct db_stmt *st)
{
	return (struct my_stmt *)st;
}

int db_global_init(void)
{
	return mysql_library_init(0, NULL, NULL) == 0 ? DB_OK : DB_BAD;
}

int db_thread_init(void)
{
	return mysql_thread_init() == 0 ? DB_OK : DB_BAD;
}

void db_thread_end(void)
{
	mysql_thread_end();
}

/* What CODE means to us. *lost_r: the link cannot be used any more. */
static int error_class(unsigned code, bool *lost_r)
{
	*lost_r = false;
	switch (code) {
	case ER_LOCK_DEADLOCK:
	case ER_LOCK_WAIT_TIMEOUT:
	case ER_CHECKREAD:
		return DB_AGAIN;
	case ER_NEED_REPREPARE:
	case ER_UNKNOWN_STMT_HANDLER:
		*lost_r = true;			/* a new link prepares all anew */
		return DB_AGAIN;
	case ER_DUP_ENTRY:
		return DB_CONFLICT;
	case ER_NO_REFERENCED_ROW:
	case ER_NO_REFERENCED_ROW_2:
		return DB_GONE;
	case ER_LOCK_TABLE_FULL:
	case ER_OUTOFMEMORY:
	case ER_OUT_OF_SORTMEMORY:
		return DB_BUSY;
	case ER_SERVER_SHUTDOWN:
	case ER_NORMAL_SHUTDOWN:
	case ER_NET_READ_ERROR:
	case ER_NET_READ_INTERRUPTED:
	case ER_NET_ERROR_ON_WRITE:
	case ER_NET_WRITE_INTERRUPTED:
	case E_CONNECTION_KILLED:
	case E_IDLE_DISCONNECT:
		*lost_r = true;
		return DB_DOWN;
	case ER_CON_COUNT_ERROR:
	case ER_TOO_MANY_USER_CONNECTIONS:
	case ER_USER_LIMIT_REACHED:
	case ER_HOST_IS_BLOCKED:
	case ER_HOST_NOT_PRIVILEGED:
	case ER_DBACCESS_DENIED_ERROR:
	case ER_ACCESS_DENIED_ERROR:
	case ER_BAD_DB_ERROR:
	case ER_TABLEACCESS_DENIED_ERROR:
	case ER_OPTION_PREVENTS_STATEMENT:
	case ER_DISK_FULL:
	case ER_RECORD_FILE_FULL:
	case ER_QUERY_INTERRUPTED:
	case E_STATEMENT_TIMEOUT:
	case E_QUERY_TIMEOUT:
		return DB_DOWN;
	case ER_NET_PACKET_TOO_LARGE:
	case CR_NET_PACKET_TOO_LARGE:
	case CR_COMMANDS_OUT_OF_SYNC:
	case CR_PARAMS_NOT_BOUND:
		*lost_r = true;
		return DB_BAD;
	default:
		*lost_r = (code >= CR_MIN_ERROR && code <= CR_MAX_ERROR) || code >= 5000;
		return *lost_r ? DB_DOWN : DB_BAD;
	}
}

static int fail(struct db *db, unsigned code, const char *text)
{
	bool lost;
	int rc = error_class(code, &lost);

	db->lost = db->lost || lost;
	return db_fail(db, rc, "MySQL error %u: %s", code, text);
}

static int fail_conn(struct db *db, MYSQL *h)
{
	return fail(db, mysql_errno(h), mysql_error(h));
}

static int fail_stmt(struct db *db, MYSQL_STMT *s)
{
	return fail(db, mysql_stmt_errno(s), mysql_stmt_error(s));
}

static int query(struct db *db, MYSQL *h, const char *sql)
{
	return mysql_real_query(h, sql, strlen(sql)) == 0 ? DB_OK : fail_conn(db, h);
}

/* The first column of the first row; DB_GONE where it is NULL or missing. */
static int query_int_on(struct db *db, MYSQL *h, const char *sql, int64_t *v_r)
{
	int rc = query(db, h, sql);
	MYSQL_RES *res;
	MYSQL_ROW row;

	if (rc != DB_OK)
		return rc;
	res = mysql_store_result(h);
	if (res == NULL)
		return fail_conn(db, h);
	row = mysql_fetch_row(res);
	if (row == NULL || row[0] == NULL)
		rc = DB_GONE;
	else
		*v_r = atoll(row[0]);
	mysql_free_result(res);
	return rc;
}

static int query_int(struct db *db, const char *sql, int64_t *v_r)
{
	return query_int_on(db, conn(db)->h, sql, v_r);
}

/* ---- the connection ---- */

static void options_set(struct db *db, MYSQL *h)
{
	unsigned connect_s = (unsigned)(db->opt.connect_ms + 999) / 1000;
	unsigned io_s = (unsigned)(db->opt.io_ms + 999) / 1000, off = 0;
	unsigned tcp = MYSQL_PROTOCOL_TCP;

	mysql_options(h, MYSQL_OPT_CONNECT_TIMEOUT, &connect_s);
	mysql_options(h, MYSQL_OPT_READ_TIMEOUT, &io_s);
	mysql_options(h, MYSQL_OPT_WRITE_TIMEOUT, &io_s);
	mysql_options(h, MYSQL_OPT_LOCAL_INFILE, &off);
	mysql_options(h, MYSQL_SET_CHARSET_NAME, "utf8mb4");
	if (db->url.port != 0)		/* "localhost" alone means the unix socket to the library */
		mysql_options(h, MYSQL_OPT_PROTOCOL, &tcp);
}

static int session_set(struct db *db, MYSQL *h, const char *name)
{
	char sql[300];
	int wait_s = db->opt.io_ms / 1000 - 1;	/* the server gives up before our read does */
	int rc;

	/* Strict: a value that does not fit is an error, never cut. */
	snprintf(sql, sizeof sql, "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
		 " innodb_lock_wait_timeout = %d, autocommit = 1, @parley_link = GET_LOCK('%s', 0)",
		 wait_s > 1 ? wait_s : 1, name);
	rc = query(db, h, sql);
	if (rc == DB_OK)
		rc = query(db, h, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED");
	return rc;
}

/* ---- ghosts ---- */

static int link_name_make(struct db *db, char name_r[DB_LINK_NAME])
{
	unsigned char salt[16];
	int len = snprintf(name_r, DB_LINK_NAME, "parley.");

	if (getrandom(salt, sizeof salt, 0) != (ssize_t)sizeof salt)
		return db_fail(db, DB_BUSY, "no random bytes");
	for (size_t i = 0; i < sizeof salt; i++)
		len += snprintf(name_r + len, DB_LINK_NAME - (size_t)len, "%02x", salt[i]);
	return DB_OK;
}

static int ghost_kill(struct db *db, MYSQL *h, int64_t thread)
{
	char sql[64];
	int rc;

	snprintf(sql, sizeof sql, "KILL CONNECTION %lld", (long long)thread);
	if (mysql_real_query(h, sql, strlen(sql)) == 0 || mysql_errno(h) == ER_NO_SUCH_THREAD)
		return DB_OK;
	rc = fail_conn(db, h);
	return rc == DB_BAD ? DB_DOWN : rc;	/* not allowed to: until the server ends it */
}

/* Ends what is left in the server of the link that was lost, and waits until it has ended. */
static int ghost_end(struct db *db, MYSQL *h)
{
	struct timespec pause = { 0, GHOST_LOOK_MS * 1000000L };
	char sql[DB_LINK_NAME + 32];
	int64_t thread = 0, killed = 0;

	snprintf(sql, sizeof sql, "SELECT IS_USED_LOCK('%s')", db->ghost);
	for (int ms = 0; ms < GHOST_MS; ms += GHOST_LOOK_MS) {
		int rc = query_int_on(db, h, sql, &thread);

		if (rc == DB_GONE) {		/* nobody holds it */
			db->ghost[0] = '\0';
			return DB_OK;
		}
		if (rc == DB_OK && thread != killed)
			rc = ghost_kill(db, h, thread);
		if (rc != DB_OK)
			return rc;
		killed = thread;
		nanosleep(&pause, NULL);
	}
	return db_fail(db, DB_DOWN, "the MySQL server is still busy with a connection that was lost");
}

/* ---- opening and closing ---- */

static int database_make(struct db *db, MYSQL *h)
{
	char sql[160];
	int rc;

	snprintf(sql, sizeof sql, "CREATE DATABASE IF NOT EXISTS `%s` CHARACTER SET utf8mb4",
		 db->url.database);
	rc = query(db, h, sql);
	if (rc == DB_OK && mysql_select_db(h, db->url.database) != 0)
		rc = fail_conn(db, h);
	return rc;
}

static MYSQL *link_up(struct db *db, const char *database, int *rc_r)
{
	MYSQL *h = mysql_init(NULL);

	if (h == NULL) {
		*rc_r = db_fail(db, DB_BUSY, "out of memory");
		return NULL;
	}
	options_set(db, h);
	/* FOUND_ROWS: an update counts the rows that it matched, as SQLite does. */
	if (mysql_real_connect(h, db->url.path != NULL ? NULL : db->url.host, db->url.user,
			       db->url.password, database, db->url.port, db->url.path,
			       CLIENT_FOUND_ROWS) != NULL)
		return h;
	if (db->create && database != NULL && mysql_errno(h) == ER_BAD_DB_ERROR)
		*rc_r = DB_GONE;
	else
		*rc_r = fail_conn(db, h);
	mysql_close(h);
	return NULL;
}

static int my_connect(struct db *db)
{
	char name[DB_LINK_NAME] = "";
	struct my_conn *c;
	int rc = DB_OK;
	MYSQL *h = link_up(db, db->url.database, &rc);

	if (h == NULL && rc == DB_GONE) {
		h = link_up(db, NULL, &rc);
		rc = h != NULL ? database_make(db, h) : rc;
	}
	if (h == NULL)
		return rc;
	if (rc == DB_OK)
		rc = link_name_make(db, name);
	if (rc == DB_OK)
		rc = session_set(db, h, name);
	if (rc == DB_OK && db->ghost[0] != '\0')
		rc = ghost_end(db, h);
	c = rc == DB_OK ? calloc(1, sizeof *c) : NULL;
	if (c == NULL) {
		mysql_close(h);
		return rc != DB_OK ? rc : db_fail(db, DB_BUSY, "out of memory");
	}
	c->h = h;
	memcpy(c->name, name, sizeof c->name);
	db->conn = c;
	return DB_OK;
}

static void my_disconnect(struct db *db)
{
	if (conn(db)->in_tx)
		memcpy(db->ghost, conn(db)->name, sizeof db->ghost);
	mysql_close(conn(db)->h);
	free(db->conn);
}

static int my_exec(struct db *db, const char *sql)
{
	return query(db, conn(db)->h, sql);
}

static int my_ping(struct db *db)
{
	return mysql_ping(conn(db)->h) == 0 ? DB_OK : fail_conn(db, conn(db)->h);
}

static int my_begin(struct db *db)
{
	conn(db)->in_tx = true;
	return my_exec(db, "START TRANSACTION");
}

static int my_commit(struct db *db)
{
	int rc = my_exec(db, "COMMIT");

	conn(db)->in_tx = rc != DB_OK;
	return rc;
}

static void my_rollback(struct db *db)
{
	char words[sizeof db->errmsg];

	memcpy(words, db->errmsg, sizeof words);	/* why, not what came after */
	if (my_exec(db, "ROLLBACK") == DB_OK)
		conn(db)->in_tx = false;
	else
		db->lost = true;
	memcpy(db->errmsg, words, sizeof words);
}

/* ---- statements ---- */

static void my_finalize(struct db_stmt *base)
{
	struct my_stmt *st = stmt(base);

	if (st->s != NULL)
		mysql_stmt_close(st->s);
	for (unsigned i = 0; st->cols != NULL && i < st->ncol; i++)
		free(st->cols[i].buf);
	free(st->cols);
	free(st->out);
	free(st->in);
	free(st->nums);
	free(st);
}

static bool column_make(MYSQL_FIELD *f, struct my_col *c, MYSQL_BIND *b)
{
	b->is_null = &c->null;
	b->length = &c->len;
	switch (f->type) {
	case MYSQL_TYPE_TINY:
	case MYSQL_TYPE_SHORT:
	case MYSQL_TYPE_INT24:
	case MYSQL_TYPE_LONG:
	case MYSQL_TYPE_LONGLONG:
		c->is_int = true;
		b->buffer_type = MYSQL_TYPE_LONGLONG;
		b->buffer = &c->num;
		return true;
	default:
		c->buf = malloc(FIRST_BUF);
		c->size = FIRST_BUF;
		b->buffer_type = MYSQL_TYPE_BLOB;
		b->buffer = c->buf;
		b->buffer_length = FIRST_BUF;
		return c->buf != NULL;
	}
}

static bool columns_make(struct my_stmt *st)
{
	MYSQL_RES *meta = mysql_stmt_result_metadata(st->s);
	bool ok = true;

	if (meta == NULL)
		return true;			/* no result: a write */
	st->ncol = mysql_num_fields(meta);
	st->cols = calloc(st->ncol, sizeof *st->cols);
	st->out = calloc(st->ncol, sizeof *st->out);
	ok = st->cols != NULL && st->out != NULL;
	for (unsigned i = 0; ok && i < st->ncol; i++)
		ok = column_make(mysql_fetch_field_direct(meta, i), &st->cols[i], &st->out[i]);
	mysql_free_result(meta);
	st->rebind = true;
	return ok;
}

static int my_prepare(struct db *db, const char *sql, struct db_stmt **st_r)
{
	struct my_stmt *st = calloc(1, sizeof *st);
	int rc = DB_BUSY;

	if (st == NULL)
		goto out;
	st->s = mysql_stmt_init(conn(db)->h);
	if (st->s == NULL)
		goto out;
	if (mysql_stmt_prepare(st->s, sql, strlen(sql)) != 0) {
		rc = fail_stmt(db, st->s);
		my_finalize(&st->base);
		return rc;
	}
	st->nparam = (unsigned)mysql_stmt_param_count(st->s);
	st->in = calloc(st->nparam + 1, sizeof *st->in);
	st->nums = calloc(st->nparam + 1, sizeof *st->nums);
	if (st->in == NULL || st->nums == NULL || !columns_make(st))
		goto out;
	*st_r = &st->base;
	return DB_OK;
out:
	if (st != NULL)
		my_finalize(&st->base);
	return db_fail(db, rc, "out of memory");
}

/* mysql_stmt_reset() would be a round trip; freeing the result is enough. */
static void my_reset(struct db_stmt *base)
{
	struct my_stmt *st = stmt(base);

	if (st->executed && st->ncol > 0)
		mysql_stmt_free_result(st->s);
	st->executed = st->too_many = false;
}

static MYSQL_BIND *slot(struct db_stmt *st)
{
	if ((unsigned)st->nput >= stmt(st)->nparam) {
		stmt(st)->too_many = true;
		return NULL;
	}
	return &stmt(st)->in[st->nput];
}

static void my_put_int(struct db_stmt *st, int64_t v)
{
	MYSQL_BIND *b = slot(st);

	if (b == NULL)
		return;
	stmt(st)->nums[st->nput] = v;
	memset(b, 0, sizeof *b);
	b->buffer_type = MYSQL_TYPE_LONGLONG;
	b->buffer = &stmt(st)->nums[st->nput];
}

static void my_put_blob(struct db_stmt *st, const void *p, size_t len, bool text)
{
	MYSQL_BIND *b = slot(st);

	if (b == NULL)
		return;
	memset(b, 0, sizeof *b);
	b->buffer_type = text ? MYSQL_TYPE_STRING : MYSQL_TYPE_BLOB;
	b->buffer = (void *)(uintptr_t)(p != NULL ? p : "");
	b->buffer_length = len;
}

static int execute(struct db_stmt *base)
{
	struct my_stmt *st = stmt(base);
	struct db *db = base->db;

	if (st->too_many || (unsigned)base->nput != st->nparam)
		return db_fail(db, DB_BAD, "wrong values for: %s", base->query->mysql);
	if (st->nparam > 0 && mysql_stmt_bind_param(st->s, st->in) != 0)
		return fail_stmt(db, st->s);
	if (mysql_stmt_execute(st->s) != 0)
		return fail_stmt(db, st->s);
	st->executed = true;
	if (st->ncol > 0)
		return mysql_stmt_store_result(st->s) == 0 ? DB_OK : fail_stmt(db, st->s);
	conn(db)->changes = (int64_t)mysql_stmt_affected_rows(st->s);
	conn(db)->last_id = (int64_t)mysql_stmt_insert_id(st->s);
	return DB_OK;
}

/* Fetches again those columns of the present row that did not fit. */
static int columns_grow(struct db_stmt *base)
{
	struct my_stmt *st = stmt(base);

	for (unsigned i = 0; i < st->ncol; i++) {
		struct my_col *c = &st->cols[i];
		char *p;

		if (c->is_int || c->null || c->len <= c->size)
			continue;
		p = realloc(c->buf, c->len);
		if (p == NULL)
			return db_fail(base->db, DB_BUSY, "out of memory");
		c->buf = p;
		c->size = c->len;
		st->out[i].buffer = p;
		st->out[i].buffer_length = c->len;
		st->rebind = true;
		if (mysql_stmt_fetch_column(st->s, &st->out[i], i, 0) != 0)
			return fail_stmt(base->db, st->s);
	}
	return DB_OK;
}

static int my_step(struct db_stmt *base)
{
	struct my_stmt *st = stmt(base);
	int rc;

	if (!st->executed) {
		rc = execute(base);
		if (rc != DB_OK)
			return rc;
	}
	if (st->ncol == 0)
		return DB_OK;
	if (st->rebind && mysql_stmt_bind_result(st->s, st->out) != 0)
		return fail_stmt(base->db, st->s);
	st->rebind = false;
	switch (mysql_stmt_fetch(st->s)) {
	case 0:
		return DB_ROW;
	case MYSQL_DATA_TRUNCATED:
		rc = columns_grow(base);
		return rc == DB_OK ? DB_ROW : rc;
	case MYSQL_NO_DATA:
		return DB_OK;
	default:
		return fail_stmt(base->db, st->s);
	}
}

static int64_t my_col_int(struct db_stmt *st, int col)
{
	struct my_col *c = &stmt(st)->cols[col];

	return c->null || !c->is_int ? 0 : c->num;
}

static const void *my_col_blob(struct db_stmt *st, int col, size_t *len_r)
{
	struct my_col *c = &stmt(st)->cols[col];

	*len_r = c->null || c->is_int ? 0 : c->len;
	return c->buf;
}

static bool my_col_null(struct db_stmt *st, int col)
{
	return stmt(st)->cols[col].null != 0;
}

static int64_t my_changes(struct db *db)
{
	return conn(db)->changes;
}

static int64_t my_last_id(struct db *db)
{
	return conn(db)->last_id;
}

/* ---- schema and settings ---- */

static int my_lock_schema(struct db *db)
{
	int64_t got = 0;
	int rc = query_int(db, "SELECT GET_LOCK('parley.schema', 60)", &got);

	if (rc == DB_GONE || (rc == DB_OK && got != 1))
		return db_fail(db, DB_BUSY, "another process is changing the schema");
	return rc;
}

static int my_unlock_schema(struct db *db, int rc)
{
	int64_t got;

	if (!db->lost && query_int(db, "SELECT RELEASE_LOCK('parley.schema')", &got) != DB_OK)
		db->lost = true;	/* hanging up releases it, too */
	return rc;
}

static int my_warnings(struct db *db, void (*cb)(void *, const char *), void *arg)
{
	int64_t v = 0, log_bin = 0;
	int rc = query_int(db, "SELECT @@innodb_flush_log_at_trx_commit", &v);

	if (rc == DB_OK && v != 1)
		cb(arg, "the MySQL server's innodb_flush_log_at_trx_commit is not 1: a crash may "
		   "lose the last commits, though they were acknowledged");
	if (rc == DB_OK)
		rc = query_int(db, "SELECT @@log_bin", &log_bin);
	if (rc == DB_OK && log_bin != 0) {
		rc = query_int(db, "SELECT @@sync_binlog", &v);
		if (rc == DB_OK && v != 1)
			cb(arg, "the MySQL server writes a binary log and its sync_binlog is not 1: "
			   "after a crash replicas may differ");
	}
	if (rc == DB_OK)
		rc = query_int(db, "SELECT @@max_allowed_packet", &v);
	if (rc == DB_OK && v < PACKET_WANTED)
		cb(arg, "the MySQL server's max_allowed_packet is below 4 MiB: batches of messages "
		   "may be refused");
	return rc;
}

static const char *const schema_1[] = {
#include "sql/schema/mysql_0001.h"
	NULL
};
static const char *const *const migrations[] = { schema_1, NULL };

const struct db_engine db_engine_mysql = {
	.name = "mysql",
	.fan = FAN,
	.connect = my_connect,
	.disconnect = my_disconnect,
	.ping = my_ping,
	.begin = my_begin,
	.commit = my_commit,
	.rollback = my_rollback,
	.exec = my_exec,
	.prepare = my_prepare,
	.finalize = my_finalize,
	.reset = my_reset,
	.put_int = my_put_int,
	.put_blob = my_put_blob,
	.step = my_step,
	.col_int = my_col_int,
	.col_blob = my_col_blob,
	.col_null = my_col_null,
	.changes = my_changes,
	.last_id = my_last_id,
	.lock_schema = my_lock_schema,
	.unlock_schema = my_unlock_schema,
	.warnings = my_warnings,
	.migrations = migrations
};
