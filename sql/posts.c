#include "sql/posts.h"

#include <stdlib.h>
#include <string.h>

#include "sql/engine.h"
#include "sql/rows.h"

static const struct db_query q_lock = DB_LOCKING(
	"SELECT id, head, dissolved_at FROM AllGroup WHERE id IN ({?}) ORDER BY id");
static const struct db_query q_members = DB_SAME(
	"SELECT groupid, userid FROM GroupUser"
	" WHERE {(groupid = ? AND userid = ? AND term = 0)| OR }");
static const struct db_query q_known = DB_SAME(
	"SELECT groupid, mid, number FROM GroupMessage WHERE {(groupid = ? AND mid = ?)| OR }");
static const struct db_query q_insert = DB_SAME(
	"INSERT INTO GroupMessage (groupid, number, senderid, mid, ts, body)"
	" VALUES {(?, ?, ?, ?, ?, ?)}");
static const struct db_query q_head = {
	"UPDATE AllGroup SET head = ? WHERE id = ?",
	"UPDATE ({SELECT ? AS head, ? AS id| UNION ALL }) n"
	" STRAIGHT_JOIN AllGroup g ON g.id = n.id SET g.head = n.head"
};

/* ---- storing ---- */

struct target { int32_t id; bool live; int64_t head; bool moved; };	/* a group of the batch */
struct speaker { int32_t group, user; bool member; };

struct add {
	struct db_post *rows;
	uint32_t *order;		/* by group, then as given */
	uint32_t *by_mid;		/* by group and mid, then as given */
	size_t n;
	uint32_t *first;		/* of a row: the first with the same group and mid */
	struct target *targets;
	size_t ntargets;
	struct speaker *speakers;
	size_t nspeakers;
	uint32_t *fresh;		/* rows to insert */
	uint32_t *moved;		/* targets whose head moved */
};

static int compare(int64_t x, int64_t y)
{
	return x < y ? -1 : x > y;
}

static int order_cmp(const void *a, const void *b, void *arg)
{
	const struct db_post *rows = arg;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	int c = compare(rows[x].group, rows[y].group);

	return c != 0 ? c : compare(x, y);
}

static int mid_cmp(const void *a, const void *b, void *arg)
{
	const struct db_post *rows = arg;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	int c = compare(rows[x].group, rows[y].group);

	if (c == 0)
		c = memcmp(rows[x].mid, rows[y].mid, DB_MID);
	return c != 0 ? c : compare(x, y);
}

static int target_cmp(const void *a, const void *b)
{
	return compare(((const struct target *)a)->id, ((const struct target *)b)->id);
}

static int speaker_cmp(const void *a, const void *b)
{
	const struct speaker *x = a, *y = b;
	int c = compare(x->group, y->group);

	return c != 0 ? c : compare(x->user, y->user);
}

static struct target *target_find(struct add *a, int32_t id)
{
	struct target key = { .id = id };

	return bsearch(&key, a->targets, a->ntargets, sizeof key, target_cmp);
}

static struct speaker *speaker_find(struct add *a, int32_t group, int32_t user)
{
	struct speaker key = { group, user, false };

	return bsearch(&key, a->speakers, a->nspeakers, sizeof key, speaker_cmp);
}

/* Sorts the batch in the three ways in which it will be looked at. */
static void add_sort(struct add *a)
{
	size_t n = 0;

	memcpy(a->by_mid, a->order, a->n * sizeof *a->order);
	qsort_r(a->order, a->n, sizeof *a->order, order_cmp, a->rows);
	qsort_r(a->by_mid, a->n, sizeof *a->by_mid, mid_cmp, a->rows);
	for (size_t i = 0; i < a->n; i++) {
		struct db_post *p = &a->rows[a->order[i]];
		uint32_t m = a->by_mid[i], before = i > 0 ? a->by_mid[i - 1] : m;
		bool same = i > 0 && a->rows[m].group == a->rows[before].group &&
			    memcmp(a->rows[m].mid, a->rows[before].mid, DB_MID) == 0;

		a->first[m] = same ? a->first[before] : m;
		if (a->ntargets == 0 || a->targets[a->ntargets - 1].id != p->group)
			a->targets[a->ntargets++] = (struct target){ .id = p->group };
		a->speakers[i] = (struct speaker){ p->group, p->sender, false };
	}
	qsort(a->speakers, a->n, sizeof *a->speakers, speaker_cmp);
	for (size_t i = 0; i < a->n; i++)
		if (n == 0 || speaker_cmp(&a->speakers[n - 1], &a->speakers[i]) != 0)
			a->speakers[n++] = a->speakers[i];
	a->nspeakers = n;
}

static void lock_put(struct db_stmt *st, void *ctx, size_t i)
{
	db_put_int(st, ((struct add *)ctx)->targets[i].id);
}

static int lock_row(struct db_stmt *st, void *ctx)
{
	struct target *t = target_find(ctx, (int32_t)db_int(st, 0));

	if (t != NULL) {
		t->head = db_int(st, 1);
		t->live = db_null(st, 2);
	}
	return DB_OK;
}

static void speaker_put(struct db_stmt *st, void *ctx, size_t i)
{
	const struct speaker *s = &((struct add *)ctx)->speakers[i];

	db_put_int(st, s->group);
	db_put_int(st, s->user);
}

static int speaker_row(struct db_stmt *st, void *ctx)
{
	struct speaker *s = speaker_find(ctx, (int32_t)db_int(st, 0), (int32_t)db_int(st, 1));

	if (s != NULL)
		s->member = true;
	return DB_OK;
}

static void known_put(struct db_stmt *st, void *ctx, size_t i)
{
	struct add *a = ctx;
	const struct db_post *p = &a->rows[a->by_mid[i]];

	db_put_int(st, p->group);
	db_put_blob(st, p->mid, DB_MID);
}

/* Stored before: the first row of that mid learns its number, the others ask that one. */
static int known_row(struct db_stmt *st, void *ctx)
{
	struct add *a = ctx;
	int32_t group = (int32_t)db_int(st, 0);
	size_t len, lo = 0, hi = a->n;
	const void *mid = db_blob(st, 1, &len);

	while (len == DB_MID && lo < hi) {
		size_t at = (lo + hi) / 2;
		const struct db_post *p = &a->rows[a->by_mid[at]];
		int c = compare(p->group, group);

		if (c == 0)
			c = memcmp(p->mid, mid, DB_MID);
		if (c < 0)
			lo = at + 1;
		else
			hi = at;
	}
	if (lo < a->n)
		a->rows[a->by_mid[lo]].number = db_int(st, 2);
	return DB_OK;
}

static void insert_put(struct db_stmt *st, void *ctx, size_t i)
{
	struct add *a = ctx;
	const struct db_post *p = &a->rows[a->fresh[i]];

	db_put_int(st, p->group);
	db_put_int(st, p->number);
	db_put_int(st, p->sender);
	db_put_blob(st, p->mid, DB_MID);
	db_put_int(st, p->ts);
	db_put_blob(st, p->body, p->len);
}

static size_t insert_size(void *ctx, size_t i)
{
	struct add *a = ctx;

	return a->rows[a->fresh[i]].len + 64;
}

static void head_put(struct db_stmt *st, void *ctx, size_t i)
{
	struct add *a = ctx;
	const struct target *t = &a->targets[a->moved[i]];

	db_put_int(st, t->head);
	db_put_int(st, t->id);
}

/* What becomes of the row, now that the group is locked; true: it is to be inserted. */
static bool add_decide(struct add *a, uint32_t i)
{
	struct db_post *p = &a->rows[i];
	struct target *t = target_find(a, p->group);

	p->fresh = false;
	p->rc = DB_OK;
	if (a->first[i] != i) {			/* given twice: one message */
		p->rc = a->rows[a->first[i]].rc;
		p->number = a->rows[a->first[i]].number;
		return false;
	}
	if (p->number != 0)
		return false;
	if (!t->live)
		p->rc = DB_GONE;
	else if (!speaker_find(a, p->group, p->sender)->member)
		p->rc = DB_DENIED;
	if (p->rc != DB_OK)
		return false;
	p->fresh = true;
	p->number = ++t->head;
	t->moved = true;
	return true;
}

static int add_fn(struct db *db, void *arg)
{
	static const struct db_each lock = { lock_put, NULL, lock_row, 64, true };
	static const struct db_each members = { speaker_put, NULL, speaker_row, 64, true };
	static const struct db_each known = { known_put, NULL, known_row, 64, true };
	static const struct db_each insert = { insert_put, insert_size, NULL, 256, false };
	static const struct db_each heads = { head_put, NULL, NULL, 64, false };
	struct add *a = arg;
	size_t nfresh = 0, nmoved = 0;
	int rc;

	for (size_t i = 0; i < a->ntargets; i++)
		a->targets[i].live = a->targets[i].moved = false;
	for (size_t i = 0; i < a->nspeakers; i++)
		a->speakers[i].member = false;
	for (size_t i = 0; i < a->n; i++)
		a->rows[a->order[i]].number = 0;
	rc = db_each(db, &q_lock, a->ntargets, &lock, a);
	if (rc == DB_OK)
		rc = db_each(db, &q_members, a->nspeakers, &members, a);
	if (rc == DB_OK)
		rc = db_each(db, &q_known, a->n, &known, a);
	if (rc != DB_OK)
		return rc;
	for (size_t i = 0; i < a->n; i++)
		if (add_decide(a, a->order[i]))
			a->fresh[nfresh++] = a->order[i];
	for (size_t i = 0; i < a->ntargets; i++)
		if (a->targets[i].moved)
			a->moved[nmoved++] = (uint32_t)i;
	rc = db_each(db, &q_insert, nfresh, &insert, a);
	return rc == DB_OK ? db_each(db, &q_head, nmoved, &heads, a) : rc;
}

/* The rows [from, from + n) of the caller, but those that are too long. */
static int add_range(struct db *db, void *ctx, size_t from, size_t n)
{
	struct add *a = ctx;

	a->n = a->ntargets = a->nspeakers = 0;
	for (size_t i = from; i < from + n; i++)
		if (a->rows[i].rc != DB_BAD)
			a->order[a->n++] = (uint32_t)i;
	if (a->n == 0)
		return DB_OK;
	add_sort(a);
	return db_run(db, DB_WRITE_KEYED, add_fn, a);
}

static void add_refuse(void *ctx, size_t i, int rc)
{
	((struct add *)ctx)->rows[i].rc = rc;
}

int db_post_add(struct db *db, struct db_post *rows, size_t n)
{
	struct add a = { .rows = rows };
	int rc = DB_BUSY;

	if (n == 0)
		return DB_OK;
	for (size_t i = 0; i < n; i++)
		rows[i].rc = rows[i].len <= DB_BODY_MAX ? DB_OK : DB_BAD;
	a.order = calloc(n, 5 * sizeof *a.order);
	a.targets = malloc(n * sizeof *a.targets);
	a.speakers = malloc(n * sizeof *a.speakers);
	if (a.order != NULL && a.targets != NULL && a.speakers != NULL) {
		a.by_mid = a.order + n;
		a.first = a.order + 2 * n;
		a.fresh = a.order + 3 * n;
		a.moved = a.order + 4 * n;
		rc = rows_bisect(db, 0, n, add_range, add_refuse, &a);
	} else {
		db_fail(db, rc, "out of memory");
	}
	for (size_t i = 0; rc != DB_OK && i < n; i++)
		rows[i].rc = rc;
	free(a.order);
	free(a.targets);
	free(a.speakers);
	return rc;
}

/* ---- loading ---- */

static const struct db_query q_load = DB_SAME(
	"SELECT number, senderid, mid, ts, body FROM GroupMessage"
	" WHERE groupid = ? AND number > ? AND number <= ? ORDER BY number LIMIT ?");

struct load { int64_t group, after, upto; struct rows_load out; };

static int load_fn(struct db *db, void *arg)
{
	struct load *l = arg;
	struct db_stmt *st;
	int rc = db_use(db, &q_load, &st);

	if (rc != DB_OK)
		return rc;
	db_put_int(st, l->group);
	db_put_int(st, l->after);
	db_put_int(st, l->upto);
	db_put_int(st, (int64_t)l->out.limit + 1);
	return rows_give(st, &l->out);
}

int db_post_load(struct db *db, int32_t group, int64_t after, int64_t upto, int limit,
		 size_t limit_bytes, void (*cb)(void *arg, const struct db_message *m), void *arg,
		 bool *more_r)
{
	struct load l = { group, after, upto, { limit, limit_bytes, cb, arg, false } };
	int rc = db_run(db, DB_READ, load_fn, &l);

	if (rc == DB_OK)
		*more_r = l.out.more;
	return rc;
}

/* ---- cursors ---- */

/* An ended stay (left_head set) is moved only by numbers that it could have received. */
static const struct db_query q_cursor = {
	"UPDATE GroupUser SET cursor = ?3 WHERE groupid = ?1 AND userid = ?2 AND cursor < ?3"
	" AND (left_head IS NULL OR left_head >= ?3)",
	"UPDATE ({SELECT ? AS groupid, ? AS userid, ? AS number| UNION ALL }) n"
	" STRAIGHT_JOIN GroupUser m ON m.groupid = n.groupid AND m.userid = n.userid"
	" SET m.`cursor` = n.number WHERE m.`cursor` < n.number"
	" AND (m.left_head IS NULL OR m.left_head >= n.number)"
};

struct cursors { struct db_cursor *c; size_t from, n; };

static int cursor_cmp(const void *a, const void *b)
{
	const struct db_cursor *x = a, *y = b;
	int c = compare(x->group, y->group);

	if (c == 0)
		c = compare(x->user, y->user);
	return c != 0 ? c : compare(x->number, y->number);
}

static void cursor_put(struct db_stmt *st, void *ctx, size_t i)
{
	const struct cursors *cs = ctx;
	const struct db_cursor *c = &cs->c[cs->from + i];

	db_put_int(st, c->group);
	db_put_int(st, c->user);
	db_put_int(st, c->number);
}

static int cursors_fn(struct db *db, void *arg)
{
	static const struct db_each ops = { cursor_put, NULL, NULL, 64, false };
	struct cursors cs = *(struct cursors *)arg;
	size_t n = cs.n, end;

	/* A statement with several tables updates a row once: no member twice in one. */
	for (cs.from = 0; cs.from < n; cs.from = end) {
		const struct db_cursor *c = cs.c;
		int rc;

		for (end = cs.from + 1; end < n; end++)
			if (c[end].group == c[end - 1].group && c[end].user == c[end - 1].user)
				break;
		rc = db_each(db, &q_cursor, end - cs.from, &ops, &cs);
		if (rc != DB_OK)
			return rc;
	}
	return DB_OK;
}

int db_cursor_set(struct db *db, struct db_cursor *cursors, size_t n)
{
	struct cursors cs = { cursors, 0, n };

	if (n == 0)
		return DB_OK;
	qsort(cursors, n, sizeof *cursors, cursor_cmp);
	return db_run(db, DB_WRITE_KEYED, cursors_fn, &cs);
}

/* ---- what is to be received ---- */

static const struct db_query q_backlog = DB_SAME(
	"SELECT g.id, g.creator, g.members, g.head, g.groupname, g.groupdesc, m.`cursor`,"
	" m.role = 'creator', m.left_head"
	" FROM GroupUser m JOIN AllGroup g ON g.id = m.groupid"
	" WHERE m.userid = ? AND m.`cursor` < COALESCE(m.left_head, g.head)"
	" AND (m.term = 0 OR m.left_at >= ?)"
	" ORDER BY m.groupid, m.term = 0, m.term LIMIT ?");

struct backlog {
	int64_t ids[3];			/* user, since, limit */
	void (*cb)(void *, const struct db_backlog *);
	void *arg;
};

static int backlog_fn(struct db *db, void *arg)
{
	struct backlog *bl = arg;
	struct db_stmt *st;
	int rc = db_use(db, &q_backlog, &st);

	if (rc != DB_OK)
		return rc;
	for (int i = 0; i < 3; i++)
		db_put_int(st, bl->ids[i]);
	while ((rc = db_step(st)) == DB_ROW) {
		struct db_backlog b;
		struct group_row *g = &b.mine.group;

		g->id = (int32_t)db_int(st, 0);
		g->creator = (int32_t)db_int(st, 1);
		g->members = (int32_t)db_int(st, 2);
		g->head = db_int(st, 3);
		db_text(st, 4, g->name, sizeof g->name);
		db_text(st, 5, g->desc, sizeof g->desc);
		b.mine.cursor = db_int(st, 6);
		b.mine.is_creator = db_int(st, 7) != 0;
		b.left = !db_null(st, 8);
		b.upto = b.left ? db_int(st, 8) : g->head;
		bl->cb(bl->arg, &b);
	}
	return rc;
}

int db_backlog(struct db *db, int32_t user, int64_t left_since, int limit,
	       void (*cb)(void *arg, const struct db_backlog *b), void *arg)
{
	struct backlog bl = { { user, left_since, limit }, cb, arg };

	return db_run(db, DB_READ, backlog_fn, &bl);
}

static const struct db_query q_heads = DB_SAME(
	"SELECT id, head FROM AllGroup WHERE id IN ({?}) AND dissolved_at IS NULL");

struct heads {
	const int32_t *groups;
	size_t n;
	void (*cb)(void *, int32_t, int64_t);
	void *arg;
};

static void heads_put(struct db_stmt *st, void *ctx, size_t i)
{
	db_put_int(st, ((struct heads *)ctx)->groups[i]);
}

static int heads_row(struct db_stmt *st, void *ctx)
{
	struct heads *h = ctx;

	h->cb(h->arg, (int32_t)db_int(st, 0), db_int(st, 1));
	return DB_OK;
}

static int heads_fn(struct db *db, void *arg)
{
	static const struct db_each ops = { heads_put, NULL, heads_row, 64, true };

	return db_each(db, &q_heads, ((struct heads *)arg)->n, &ops, arg);
}

int db_group_heads(struct db *db, const int32_t *groups, size_t n,
		   void (*cb)(void *arg, int32_t group, int64_t head), void *arg)
{
	struct heads h = { groups, n, cb, arg };

	return db_run(db, DB_READ, heads_fn, &h);
}
