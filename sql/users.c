#include "sql/users.h"

#include <stdlib.h>
#include <string.h>

#include "sql/engine.h"
#include "sql/groups_tx.h"

static const struct db_query q_add = DB_SAME(
	"INSERT INTO User (name, name_key, password, epoch, created) VALUES (?, ?, ?, 0, ?)");
static const struct db_query q_by_id = DB_SAME(
	"SELECT id, epoch, name, password FROM User WHERE id = ?");
static const struct db_query q_by_key = DB_SAME(
	"SELECT id, epoch, name, password FROM User WHERE name_key = ?");
static const struct db_query q_password = DB_SAME(
	"UPDATE User SET password = ?, epoch = epoch + 1 WHERE id = ?");
static const struct db_query q_names = DB_SAME("SELECT id, name FROM User WHERE id IN ({?})");
static const struct db_query q_list = DB_SAME(
	"SELECT id, name FROM User WHERE id > ? ORDER BY id LIMIT ?");

static void row_read(struct db_stmt *st, struct user_row *row_r)
{
	row_r->id = (int32_t)db_int(st, 0);
	row_r->epoch = (int32_t)db_int(st, 1);
	db_text(st, 2, row_r->name, sizeof row_r->name);
	db_text(st, 3, row_r->hash, sizeof row_r->hash);
}

static int hash_check(struct db *db, const char *hash)
{
	size_t len = strlen(hash);

	if (len == 0 || len >= DB_HASH)
		return db_fail(db, DB_BAD, "a password hash of %zu bytes", len);
	return DB_OK;
}

/* ---- adding ---- */

struct add { const char *name, *hash; char key[DB_NAME]; int64_t now; int32_t id; };

static int add_fn(struct db *db, void *arg)
{
	struct add *a = arg;
	struct db_stmt *st;
	int rc = db_use(db, &q_by_key, &st);

	if (rc != DB_OK)
		return rc;
	/* Asked first: a refused insert would use up an id in MySQL. */
	db_put_text(st, a->key);
	rc = db_step(st);
	if (rc != DB_OK)
		return rc == DB_ROW ? db_fail(db, DB_CONFLICT, "the name is taken") : rc;
	rc = db_use(db, &q_add, &st);
	if (rc != DB_OK)
		return rc;
	db_put_text(st, a->name);
	db_put_text(st, a->key);
	db_put_text(st, a->hash);
	db_put_int(st, a->now);
	rc = db_step_done(st);
	a->id = (int32_t)db_last_id(db);
	return rc;
}

int db_user_add(struct db *db, const char *name, const char *hash, int32_t *id_r)
{
	struct add a = { .name = name, .hash = hash, .now = db_now_ms() };
	int rc;

	if (db_name_fold(a.key, name) != DB_OK)
		return db_fail(db, DB_BAD, "not a user name");
	rc = hash_check(db, hash);
	if (rc == DB_OK)
		rc = db_run(db, DB_WRITE, add_fn, &a);
	if (rc == DB_OK)
		*id_r = a.id;
	return rc;
}

/* ---- importing ---- */

static const struct db_query q_taken = DB_SAME("SELECT name_key FROM User WHERE name_key IN ({?})");
static const struct db_query q_ids = DB_SAME(
	"SELECT name_key, id FROM User WHERE name_key IN ({?})");
static const struct db_query q_import = DB_SAME(
	"INSERT INTO User (name, name_key, password, epoch, created) VALUES {(?, ?, ?, 0, ?)}");

struct import {
	struct user_import *rows;
	size_t n;
	char (*keys)[DB_NAME];
	uint32_t *sorted;	/* the rows that make sense, by key, then by place */
	size_t nsorted;
	uint32_t *fresh;	/* those to insert, in the caller's order */
	int64_t now;
};

static int sorted_cmp(const void *a, const void *b, void *arg)
{
	const struct import *im = arg;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	int c = strcmp(im->keys[x], im->keys[y]);

	return c != 0 ? c : x < y ? -1 : x > y;
}

static void taken_put(struct db_stmt *st, void *ctx, size_t i)
{
	struct import *im = ctx;

	db_put_text(st, im->keys[im->sorted[i]]);
}

/* The place in SORTED of the first row with the key in column 0; nsorted where there is none. */
static size_t sorted_find(struct import *im, struct db_stmt *st, char key_r[DB_NAME])
{
	size_t lo = 0, hi = im->nsorted;

	db_text(st, 0, key_r, DB_NAME);
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (strcmp(im->keys[im->sorted[mid]], key_r) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < im->nsorted && strcmp(im->keys[im->sorted[lo]], key_r) == 0 ? lo : im->nsorted;
}

static int taken_row(struct db_stmt *st, void *ctx)
{
	struct import *im = ctx;
	char key[DB_NAME];
	size_t at = sorted_find(im, st, key);

	for (; at < im->nsorted && strcmp(im->keys[im->sorted[at]], key) == 0; at++)
		im->rows[im->sorted[at]].rc = DB_CONFLICT;
	return DB_OK;
}

static int id_row(struct db_stmt *st, void *ctx)
{
	struct import *im = ctx;
	char key[DB_NAME];
	size_t at = sorted_find(im, st, key);

	if (at < im->nsorted && im->rows[im->sorted[at]].rc == DB_OK)
		im->rows[im->sorted[at]].id = (int32_t)db_int(st, 1);
	return DB_OK;
}

static void fresh_put(struct db_stmt *st, void *ctx, size_t i)
{
	struct import *im = ctx;
	uint32_t r = im->fresh[i];

	db_put_text(st, im->rows[r].name);
	db_put_text(st, im->keys[r]);
	db_put_text(st, im->rows[r].hash);
	db_put_int(st, im->now);
}

static int import_fn(struct db *db, void *arg)
{
	static const struct db_each taken = { taken_put, NULL, taken_row, 64, true };
	static const struct db_each insert = { fresh_put, NULL, NULL, 256, false };
	static const struct db_each ids = { taken_put, NULL, id_row, 64, true };
	struct import *im = arg;
	size_t nfresh = 0;
	int rc;

	for (size_t i = 0; i < im->nsorted; i++) {
		uint32_t r = im->sorted[i];
		bool again = i > 0 && strcmp(im->keys[r], im->keys[im->sorted[i - 1]]) == 0;

		im->rows[r].rc = again ? DB_CONFLICT : DB_OK;
	}
	rc = db_each(db, &q_taken, im->nsorted, &taken, im);
	if (rc != DB_OK)
		return rc;
	for (size_t r = 0; r < im->n; r++)
		if (im->rows[r].rc == DB_OK)
			im->fresh[nfresh++] = (uint32_t)r;
	rc = db_each(db, &q_import, nfresh, &insert, im);
	if (rc == DB_CONFLICT)
		return DB_AGAIN;		/* somebody took a name after our look: look again */
	return rc == DB_OK ? db_each(db, &q_ids, im->nsorted, &ids, im) : rc;
}

static void import_prepare(struct db *db, struct import *im)
{
	for (size_t r = 0; r < im->n; r++) {
		im->rows[r].rc = db_name_fold(im->keys[r], im->rows[r].name);
		if (im->rows[r].rc == DB_OK)
			im->rows[r].rc = hash_check(db, im->rows[r].hash);
		if (im->rows[r].rc == DB_OK)
			im->sorted[im->nsorted++] = (uint32_t)r;
	}
	qsort_r(im->sorted, im->nsorted, sizeof *im->sorted, sorted_cmp, im);
}

int db_user_import(struct db *db, struct user_import *rows, size_t n)
{
	struct import im = { .rows = rows, .n = n, .now = db_now_ms() };
	int rc;

	if (n == 0)
		return DB_OK;
	im.keys = malloc(n * sizeof *im.keys);
	im.sorted = malloc(n * sizeof *im.sorted);
	im.fresh = malloc(n * sizeof *im.fresh);
	if (im.keys == NULL || im.sorted == NULL || im.fresh == NULL) {
		rc = db_fail(db, DB_BUSY, "out of memory");
	} else {
		import_prepare(db, &im);
		rc = db_run(db, DB_WRITE, import_fn, &im);
	}
	for (size_t r = 0; rc != DB_OK && r < n; r++)
		rows[r].rc = rc;
	free(im.keys);
	free(im.sorted);
	free(im.fresh);
	return rc;
}

/* ---- finding ---- */

struct find { int64_t id; const char *key; struct user_row row; };

static int find_fn(struct db *db, void *arg)
{
	struct find *f = arg;
	struct db_stmt *st;
	int rc = db_use(db, f->key != NULL ? &q_by_key : &q_by_id, &st);

	if (rc != DB_OK)
		return rc;
	if (f->key != NULL)
		db_put_text(st, f->key);
	else
		db_put_int(st, f->id);
	rc = db_step_one(st);
	if (rc == DB_OK)
		row_read(st, &f->row);
	return rc;
}

int db_user_by_id(struct db *db, int32_t id, struct user_row *row_r)
{
	struct find f = { .id = id };
	int rc = db_run(db, DB_READ, find_fn, &f);

	if (rc == DB_OK)
		*row_r = f.row;
	return rc;
}

int db_user_by_name(struct db *db, const char *name, struct user_row *row_r)
{
	char key[DB_NAME];
	struct find f = { .key = key };
	int rc;

	if (db_name_fold(key, name) != DB_OK)
		return DB_GONE;			/* nobody has such a name */
	rc = db_run(db, DB_READ, find_fn, &f);
	if (rc == DB_OK)
		*row_r = f.row;
	return rc;
}

struct names {
	const int32_t *ids;
	void (*cb)(void *, int32_t, const char *);
	void *arg;
};

static int names_row(struct db_stmt *st, void *ctx)
{
	struct names *nm = ctx;
	char name[DB_NAME];

	db_text(st, 1, name, sizeof name);
	nm->cb(nm->arg, (int32_t)db_int(st, 0), name);
	return DB_OK;
}

static void names_put(struct db_stmt *st, void *ctx, size_t i)
{
	db_put_int(st, ((struct names *)ctx)->ids[i]);
}

struct names_run { struct names nm; size_t n; int32_t after; int limit; };

static int names_fn(struct db *db, void *arg)
{
	static const struct db_each ops = { names_put, NULL, names_row, 64, true };
	struct names_run *run = arg;

	return db_each(db, &q_names, run->n, &ops, &run->nm);
}

int db_user_names(struct db *db, const int32_t *ids, size_t n,
		  void (*cb)(void *arg, int32_t id, const char *name), void *arg)
{
	struct names_run run = { .nm = { ids, cb, arg }, .n = n };

	return db_run(db, DB_READ, names_fn, &run);
}

static int list_fn(struct db *db, void *arg)
{
	struct names_run *run = arg;
	struct db_stmt *st;
	int rc = db_use(db, &q_list, &st);

	if (rc != DB_OK)
		return rc;
	db_put_int(st, run->after);
	db_put_int(st, run->limit);
	while ((rc = db_step(st)) == DB_ROW)
		names_row(st, &run->nm);
	return rc;
}

int db_user_list(struct db *db, int32_t after, int limit,
		 void (*cb)(void *arg, int32_t id, const char *name), void *arg)
{
	struct names_run run = { .nm = { NULL, cb, arg }, .after = after, .limit = limit };

	return db_run(db, DB_READ, list_fn, &run);
}

/* ---- changing ---- */

struct password { int32_t id, epoch; const char *hash; };

static int password_fn(struct db *db, void *arg)
{
	struct password *p = arg;
	struct find f = { .id = p->id };
	struct db_stmt *st;
	int rc = db_use(db, &q_password, &st);

	if (rc != DB_OK)
		return rc;
	db_put_text(st, p->hash);
	db_put_int(st, p->id);
	rc = db_step_done(st);
	if (rc == DB_OK)
		rc = find_fn(db, &f);
	p->epoch = f.row.epoch;
	return rc;
}

int db_user_set_password(struct db *db, int32_t id, const char *hash, int32_t *epoch_r)
{
	struct password p = { .id = id, .hash = hash };
	int rc = hash_check(db, hash);

	if (rc == DB_OK)
		rc = db_run(db, DB_WRITE_KEYED, password_fn, &p);
	if (rc == DB_OK)
		*epoch_r = p.epoch;
	return rc;
}

static const struct db_query q_del_friends = DB_SAME("DELETE FROM Friend WHERE userid = ?");
static const struct db_query q_del_befriended = DB_SAME("DELETE FROM Friend WHERE friendid = ?");
static const struct db_query q_del_offline = DB_SAME("DELETE FROM OfflineMessage WHERE userid = ?");
static const struct db_query q_del_user = DB_SAME("DELETE FROM User WHERE id = ?");

static int del_fn(struct db *db, void *arg)
{
	static const struct db_query *const steps[] = {
		&q_del_friends, &q_del_befriended, &q_del_offline, &q_del_user
	};
	int64_t id = *(int32_t *)arg, changes = 0;
	int rc = group_tx_drop_user(db, id, db_now_ms());

	for (size_t i = 0; rc == DB_OK && i < sizeof steps / sizeof steps[0]; i++)
		rc = db_exec_ids(db, steps[i], 1, &id, &changes);
	return rc == DB_OK && changes == 0 ? DB_GONE : rc;
}

int db_user_del(struct db *db, int32_t id)
{
	return db_run(db, DB_WRITE, del_fn, &id);
}
