#include "sql/db.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sql/engine.h"
#include "sql/url.h"

enum {
	TRIES = 12,		/* of a transaction that deadlocks */
	STATEMENT_BYTES = 512 << 10,
	META_NAME = 64
};

int db_open(const char *url, const struct db_options *opt, struct db **db_r, char *err_r, size_t size)
{
	struct db *db = calloc(1, sizeof *db);
	const char *why = "out of memory";
	int rc = DB_BAD;

	if (db == NULL)
		goto out;
	rc = url_parse(url, &db->url, &db->eng, &why);
	if (rc != DB_OK)
		goto out;
	if (opt != NULL)
		db->opt = *opt;
	if (db->opt.password != NULL && !url_password(&db->url, db->opt.password)) {
		url_fini(&db->url);
		rc = DB_BUSY;
		goto out;
	}
	db->opt.password = NULL;		/* the caller's memory */
	if (db->opt.connect_ms <= 0)
		db->opt.connect_ms = 3000;
	if (db->opt.io_ms <= 0)
		db->opt.io_ms = 5000;
	if (db->opt.busy_ms <= 0)
		db->opt.busy_ms = 5000;
	if (db->opt.journal_limit <= 0)
		db->opt.journal_limit = 64 << 20;
	*db_r = db;
	return DB_OK;
out:
	if (err_r != NULL && size > 0)
		snprintf(err_r, size, "%s", why);
	free(db);
	return rc;
}

void db_disconnect(struct db *db)
{
	if (db->conn == NULL)
		return;
	/* A handle from before a fork is the parent's: closing it would hang up on the parent. */
	if (db->pid == (int)getpid())
		db->eng->disconnect(db);	/* before the statements: then they send nothing */
	for (unsigned i = 0; i < DB_CACHE; i++) {
		if (db->cache[i] != NULL && db->pid == (int)getpid())
			db->eng->finalize(db->cache[i]);
		db->cache[i] = NULL;
	}
	db->cached = 0;
	db->active = NULL;
	db->conn = NULL;
	db->lost = false;
}

void db_close(struct db *db)
{
	if (db == NULL)
		return;
	db_disconnect(db);
	url_fini(&db->url);
	free(db);
}

void db_relax(struct db *db)
{
	if (db->conn != NULL && db->pid == (int)getpid() && db->eng->relax != NULL)
		db->eng->relax(db);
}

bool db_connected(const struct db *db)
{
	return db->conn != NULL;
}

const char *db_errmsg(const struct db *db)
{
	return db->errmsg;
}

const char *db_engine_name(const struct db *db)
{
	return db->eng->name;
}

const char *db_rc_name(int rc)
{
	static const char *const names[] = {
		"ok", "gone", "conflict", "full", "denied", "down", "unsure", "busy", "bad"
	};

	return rc <= 0 && rc >= DB_BAD ? names[-rc] : "unknown";
}

int db_fail(struct db *db, int rc, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(db->errmsg, sizeof db->errmsg, fmt, ap);
	va_end(ap);
	return rc;
}

int64_t db_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int db_name_fold(char key_r[DB_NAME], const char *name)
{
	size_t len = strlen(name);

	if (len == 0 || len >= DB_NAME)
		return DB_BAD;
	for (size_t i = 0; i <= len; i++)
		key_r[i] = name[i] >= 'A' && name[i] <= 'Z' ? (char)(name[i] - 'A' + 'a') : name[i];
	return DB_OK;
}

/* ---- runs ---- */

static int connection_want(struct db *db)
{
	int rc;

	if (db->conn != NULL)
		return DB_OK;
	db->lost = false;
	db->pid = (int)getpid();
	rc = db->eng->connect(db);
	db->lost = false;
	return rc;
}

static void statements_reset(struct db *db)
{
	struct db_stmt *st;

	while ((st = db->active) != NULL) {
		db->active = st->next;
		st->active = false;
		db->eng->reset(st);
	}
}

/* One attempt. *sent_r: the commit had been sent when it went wrong. */
static int run_once(struct db *db, enum db_how how, int (*fn)(struct db *, void *), void *arg,
		    bool *sent_r)
{
	int rc = DB_OK;

	*sent_r = false;
	db->rows_out = false;
	if (how != DB_READ)
		rc = db->eng->begin(db);
	if (rc == DB_OK) {
		rc = fn(db, arg);
		statements_reset(db);
		if (how != DB_READ && rc == DB_OK) {
			rc = db->eng->commit(db);
			*sent_r = rc != DB_OK;
		}
		if (how != DB_READ && rc != DB_OK && !db->lost)
			db->eng->rollback(db);
	}
	return rc;
}

static void pause_ms(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&ts, NULL);
}

int db_run(struct db *db, enum db_how how, int (*fn)(struct db *, void *), void *arg)
{
	bool unsure = false, stale_tried = false;
	unsigned seed = (unsigned)(uintptr_t)db ^ (unsigned)db->pid;
	int tries = 0;

	for (;;) {
		bool old_link = db->conn != NULL, sent = false, lost;
		int rc = connection_want(db);

		if (rc == DB_OK)
			rc = run_once(db, how, fn, arg, &sent);
		lost = db->lost;
		if (lost)
			db_disconnect(db);
		if (rc == DB_AGAIN) {
			if (++tries >= TRIES)
				return unsure ? DB_UNSURE : DB_BUSY;
			pause_ms(1 + (int)(rand_r(&seed) % (2u << (tries < 6 ? tries : 6))));
			continue;
		}
		if (lost && sent) {		/* the answer to COMMIT never came */
			if (how != DB_WRITE_KEYED || unsure)
				return DB_UNSURE;
			unsure = true;
			continue;
		}
		/* A link that died while idle says nothing about the server: try a new one. Not
		 * when rows were given out: the caller would see them twice. */
		if (lost && rc == DB_DOWN && old_link && !stale_tried &&
		    !(how == DB_READ && db->rows_out)) {
			stale_tried = true;
			continue;
		}
		if (unsure && (rc == DB_DOWN || rc == DB_BUSY))
			return DB_UNSURE;
		return rc;
	}
}

static int ping_fn(struct db *db, void *arg)
{
	(void)arg;
	return db->eng->ping(db);
}

int db_ping(struct db *db)
{
	return db_run(db, DB_READ, ping_fn, NULL);
}

/* ---- statements ---- */

/* Writes TEXT with each "{x|sep}" repeated N times. Returns the length; OUT may be NULL. */
static size_t query_expand(char *out, const char *text, unsigned n)
{
	size_t len = 0;

	while (*text != '\0') {
		const char *end = *text == '{' ? strchr(text, '}') : NULL, *bar;
		const char *sep = ",";
		size_t xlen, seplen = 1;

		if (end == NULL) {
			if (out != NULL)
				out[len] = *text;
			len++;
			text++;
			continue;
		}
		bar = memchr(text, '|', (size_t)(end - text));
		xlen = (size_t)((bar != NULL ? bar : end) - text) - 1;
		if (bar != NULL) {
			sep = bar + 1;
			seplen = (size_t)(end - sep);
		}
		for (unsigned i = 0; i < n; i++) {
			if (i > 0) {
				if (out != NULL)
					memcpy(out + len, sep, seplen);
				len += seplen;
			}
			if (out != NULL)
				memcpy(out + len, text + 1, xlen);
			len += xlen;
		}
		text = end + 1;
	}
	if (out != NULL)
		out[len] = '\0';
	return len;
}

static int statement_make(struct db *db, const struct db_query *q, unsigned n, struct db_stmt **st_r)
{
	const char *text = db->eng == &db_engine_sqlite ? q->lite : q->mysql;
	char *sql = malloc(query_expand(NULL, text, n) + 1);
	int rc;

	if (sql == NULL)
		return db_fail(db, DB_BUSY, "out of memory");
	query_expand(sql, text, n);
	rc = db->eng->prepare(db, sql, st_r);
	free(sql);
	return rc;
}

/* Only between statements: those in use are in no run's hands any more. */
static void cache_empty(struct db *db)
{
	statements_reset(db);
	for (unsigned i = 0; i < DB_CACHE; i++) {
		if (db->cache[i] != NULL)
			db->eng->finalize(db->cache[i]);
		db->cache[i] = NULL;
	}
	db->cached = 0;
}

int db_use_n(struct db *db, const struct db_query *q, unsigned n, struct db_stmt **st_r)
{
	size_t h = ((uintptr_t)q >> 4) * 31 + n * 17;
	struct db_stmt *st;
	int rc;

	for (;; h++) {
		st = db->cache[h % DB_CACHE];
		if (st == NULL || (st->query == q && st->repeats == n))
			break;
	}
	if (st == NULL) {
		if (db->cached >= DB_CACHE * 3 / 4 && db->active == NULL)
			cache_empty(db);
		if (db->cached >= DB_CACHE - 1)
			return db_fail(db, DB_BAD, "too many statements at once");
		rc = statement_make(db, q, n, &st);
		if (rc != DB_OK)
			return rc;
		st->db = db;
		st->query = q;
		st->repeats = n;
		db->cache[h % DB_CACHE] = st;
		db->cached++;
	}
	if (st->active) {
		db->eng->reset(st);
	} else {
		st->active = true;
		st->next = db->active;
		db->active = st;
	}
	st->nput = 0;
	*st_r = st;
	return DB_OK;
}

int db_use(struct db *db, const struct db_query *q, struct db_stmt **st_r)
{
	return db_use_n(db, q, 1, st_r);
}

void db_put_int(struct db_stmt *st, int64_t v)
{
	st->db->eng->put_int(st, v);
	st->nput++;
}

void db_put_text(struct db_stmt *st, const char *s)
{
	st->db->eng->put_blob(st, s, strlen(s), true);
	st->nput++;
}

void db_put_blob(struct db_stmt *st, const void *p, size_t len)
{
	st->db->eng->put_blob(st, p, len, false);
	st->nput++;
}

int db_step(struct db_stmt *st)
{
	int rc = st->db->eng->step(st);

	if (rc == DB_ROW)
		st->db->rows_out = true;
	return rc;
}

int db_step_done(struct db_stmt *st)
{
	int rc = db_step(st);

	return rc == DB_ROW ? DB_OK : rc;
}

int db_step_one(struct db_stmt *st)
{
	int rc = db_step(st);

	return rc == DB_ROW ? DB_OK : rc == DB_OK ? DB_GONE : rc;
}

int64_t db_int(struct db_stmt *st, int col)
{
	return st->db->eng->col_int(st, col);
}

const void *db_blob(struct db_stmt *st, int col, size_t *len_r)
{
	return st->db->eng->col_blob(st, col, len_r);
}

void db_text(struct db_stmt *st, int col, char *buf_r, size_t size)
{
	size_t len;
	const void *p = db_blob(st, col, &len);

	if (len >= size)
		len = size - 1;
	if (len > 0)
		memcpy(buf_r, p, len);
	buf_r[len] = '\0';
}

bool db_null(struct db_stmt *st, int col)
{
	return st->db->eng->col_null(st, col);
}

int64_t db_changes(struct db *db)
{
	return db->eng->changes(db);
}

int64_t db_last_id(struct db *db)
{
	return db->eng->last_id(db);
}

int db_exec_ids(struct db *db, const struct db_query *q, int n, const int64_t *ids, int64_t *changes_r)
{
	struct db_stmt *st;
	int rc = db_use(db, q, &st);

	if (rc != DB_OK)
		return rc;
	for (int i = 0; i < n; i++)
		db_put_int(st, ids[i]);
	rc = db_step_done(st);
	if (rc == DB_OK && changes_r != NULL)
		*changes_r = db_changes(db);
	return rc;
}

/* How many of the REST items from I on go into the next statement, and how many slots it has. */
static unsigned chunk_take(const struct db *db, const struct db_each *ops, void *ctx, size_t i,
			   size_t rest, unsigned *slots_r)
{
	unsigned max = ops->max < db->eng->fan ? ops->max : db->eng->fan, n = 1;
	size_t bytes = 0, fit = 0;

	/* Power-of-two sizes only, so that a few prepared statements serve all batches. */
	while (fit < rest && fit < max) {
		bytes += ops->size != NULL ? ops->size(ctx, i + fit) : 0;
		if (fit > 0 && bytes > STATEMENT_BYTES)
			break;
		fit++;
	}
	while (n * 2 <= fit)
		n *= 2;
	if (ops->pad && n < fit)
		n *= 2;
	*slots_r = n;
	return n < fit ? n : (unsigned)fit;
}

int db_each(struct db *db, const struct db_query *q, size_t n, const struct db_each *ops, void *ctx)
{
	unsigned slots, take;
	int rc;

	for (size_t i = 0; i < n; i += take) {
		struct db_stmt *st;

		take = chunk_take(db, ops, ctx, i, n - i, &slots);
		rc = db_use_n(db, q, slots, &st);
		if (rc != DB_OK)
			return rc;
		for (unsigned k = 0; k < slots; k++)
			ops->put(st, ctx, i + (k < take ? k : take - 1));
		while ((rc = db_step(st)) == DB_ROW) {
			int row_rc = ops->row != NULL ? ops->row(st, ctx) : DB_OK;

			if (row_rc != DB_OK)
				return row_rc;
		}
		if (rc != DB_OK)
			return rc;
	}
	return DB_OK;
}

/* ---- schema ---- */

static const struct db_query q_version = DB_SAME(
	"SELECT value FROM Meta WHERE name = 'schema_version'");
static const struct db_query q_version_set = {
	"INSERT INTO Meta (name, value) VALUES ('schema_version', ?)"
	" ON CONFLICT (name) DO UPDATE SET value = excluded.value",
	"INSERT INTO Meta (name, value) VALUES ('schema_version', ?)"
	" ON DUPLICATE KEY UPDATE value = VALUES(value)"
};

static int version_get(struct db *db, int *version_r)
{
	struct db_stmt *st;
	char text[16];
	int rc = db_use(db, &q_version, &st);

	if (rc != DB_OK)
		return rc;
	rc = db_step(st);
	*version_r = 0;
	if (rc == DB_ROW) {
		db_text(st, 0, text, sizeof text);
		*version_r = atoi(text);
		rc = DB_OK;
	}
	statements_reset(db);
	return rc;
}

static int version_set(struct db *db, int version)
{
	struct db_stmt *st;
	char text[16];
	int rc = db_use(db, &q_version_set, &st);

	if (rc != DB_OK)
		return rc;
	snprintf(text, sizeof text, "%d", version);
	db_put_text(st, text);
	rc = db_step_done(st);
	statements_reset(db);
	return rc;
}

/* Every statement can be repeated: MySQL commits each by itself, and we may die between two. */
static int schema_upgrade(struct db *db)
{
	const char *const *const *migs = db->eng->migrations;
	int version = 0, known = 0, rc;

	while (migs[known] != NULL)
		known++;
	rc = db->eng->exec(db, migs[0][0]);	/* Meta, which says what else is there */
	if (rc == DB_OK)
		rc = version_get(db, &version);
	if (rc != DB_OK)
		return rc;
	if (version > known)
		return db_fail(db, DB_BAD, "the schema has version %d, this program knows up to %d: "
			       "use a newer program", version, known);
	for (; version < known; version++) {
		for (const char *const *s = migs[version]; *s != NULL; s++) {
			rc = db->eng->exec(db, *s);
			if (rc != DB_OK)
				return rc;
		}
		rc = version_set(db, version + 1);
		if (rc != DB_OK)
			return rc;
	}
	return DB_OK;
}

static int migrate_fn(struct db *db, void *arg)
{
	int rc = db->eng->lock_schema(db);

	(void)arg;
	if (rc == DB_OK) {
		rc = schema_upgrade(db);
		statements_reset(db);
		rc = db->eng->unlock_schema(db, rc);
	}
	return rc;
}

int db_migrate(struct db *db)
{
	int io_ms = db->opt.io_ms, rc;

	db_disconnect(db);
	db->create = true;
	db->opt.io_ms = 600 * 1000;	/* changing a big table takes its time */
	rc = db_run(db, DB_READ, migrate_fn, NULL);
	db->create = false;
	db->opt.io_ms = io_ms;
	db_disconnect(db);
	return rc;
}

struct warnings { void (*cb)(void *, const char *); void *arg; };

static int warnings_fn(struct db *db, void *arg)
{
	struct warnings *w = arg;

	return db->eng->warnings(db, w->cb, w->arg);
}

int db_warnings(struct db *db, void (*cb)(void *arg, const char *text), void *arg)
{
	struct warnings w = { cb, arg };

	return db_run(db, DB_READ, warnings_fn, &w);
}

/* ---- meta ---- */

static const struct db_query q_meta_get = DB_SAME("SELECT value FROM Meta WHERE name = ?");
static const struct db_query q_meta_set = {
	"INSERT INTO Meta (name, value) VALUES (?, ?)"
	" ON CONFLICT (name) DO UPDATE SET value = excluded.value",
	"INSERT INTO Meta (name, value) VALUES (?, ?) ON DUPLICATE KEY UPDATE value = VALUES(value)"
};
static const struct db_query q_meta_claim = {
	"INSERT INTO Meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
	"INSERT INTO Meta (name, value) VALUES (?, ?) ON DUPLICATE KEY UPDATE name = name"
};

struct meta {
	const char *name;
	const void *value;
	size_t len;
	void *value_r;
	size_t size;
	size_t *len_r;
	const struct db_query *put;
};

static int meta_get_fn(struct db *db, void *arg)
{
	struct meta *m = arg;
	struct db_stmt *st;
	const void *p;
	size_t len;
	int rc = db_use(db, &q_meta_get, &st);

	if (rc != DB_OK)
		return rc;
	db_put_text(st, m->name);
	rc = db_step_one(st);
	if (rc != DB_OK)
		return rc;
	p = db_blob(st, 0, &len);
	if (len > m->size)
		return db_fail(db, DB_BAD, "the value of %s has %zu bytes", m->name, len);
	if (len > 0)
		memcpy(m->value_r, p, len);
	*m->len_r = len;
	return DB_OK;
}

static int meta_put_fn(struct db *db, void *arg)
{
	struct meta *m = arg;
	struct db_stmt *st;
	int rc = db_use(db, m->put, &st);

	if (rc != DB_OK)
		return rc;
	db_put_text(st, m->name);
	db_put_blob(st, m->value, m->len);
	rc = db_step_done(st);
	if (rc == DB_OK && m->len_r != NULL)
		rc = meta_get_fn(db, m);
	return rc;
}

int db_meta_get(struct db *db, const char *name, void *value_r, size_t size, size_t *len_r)
{
	struct meta m = { .name = name, .value_r = value_r, .size = size, .len_r = len_r };

	return db_run(db, DB_READ, meta_get_fn, &m);
}

int db_meta_set(struct db *db, const char *name, const void *value, size_t len)
{
	struct meta m = { .name = name, .value = value, .len = len, .put = &q_meta_set };

	if (strlen(name) > META_NAME)
		return db_fail(db, DB_BAD, "name too long: %s", name);
	return db_run(db, DB_WRITE_KEYED, meta_put_fn, &m);
}

int db_meta_claim(struct db *db, const char *name, const void *value, size_t len, void *value_r,
		  size_t size, size_t *len_r)
{
	struct meta m = { name, value, len, value_r, size, len_r, &q_meta_claim };

	if (strlen(name) > META_NAME)
		return db_fail(db, DB_BAD, "name too long: %s", name);
	return db_run(db, DB_WRITE_KEYED, meta_put_fn, &m);
}
