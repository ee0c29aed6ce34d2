/*
 * Store jobs over a real SQLite file; what a file cannot do (a link that breaks while committing,
 * a server that refuses connections) is done by wrapping a few functions of sql/.
 */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "sql/engine.h"
#include "sql/messages.h"
#include "sql/users.h"
#include "worker/store.h"

static char dir[64], path[100], url[120];
static unsigned files;
static struct store *st;
static char state_log[200];

/* ---- the wrapped part of sql/ ---- */

static atomic_int unsure_before, unsure_after;	/* so many calls end unsure: undone, done */
static atomic_int gate;				/* 1: readers stop until it is 0 */
static atomic_int at_gate;			/* how many do */
static atomic_int refuse;			/* 1: user lookups and pings find the store down */
static atomic_int refuse_some;			/* so many lookups find it down */
static atomic_int user_adds;			/* calls */

int __real_db_user_add(struct db *db, const char *name, const char *hash, int32_t *id_r);
int __wrap_db_user_add(struct db *db, const char *name, const char *hash, int32_t *id_r);
int __real_db_offline_add(struct db *db, struct db_offline *rows, size_t n, int quota);
int __wrap_db_offline_add(struct db *db, struct db_offline *rows, size_t n, int quota);
int __real_db_user_by_id(struct db *db, int32_t id, struct user_row *row_r);
int __wrap_db_user_by_id(struct db *db, int32_t id, struct user_row *row_r);
int __real_db_ping(struct db *db);
int __wrap_db_ping(struct db *db);

static bool take(atomic_int *n)
{
	int v = atomic_load(n);

	while (v > 0)
		if (atomic_compare_exchange_weak(n, &v, v - 1))
			return true;
	return false;
}

int __wrap_db_user_add(struct db *db, const char *name, const char *hash, int32_t *id_r)
{
	int32_t id;

	atomic_fetch_add(&user_adds, 1);
	if (atomic_load(&refuse))
		return db_fail(db, DB_DOWN, "refused");
	if (take(&unsure_before))
		return DB_UNSURE;
	if (take(&unsure_after))
		return __real_db_user_add(db, name, hash, &id) == DB_OK ? DB_UNSURE : DB_BAD;
	return __real_db_user_add(db, name, hash, id_r);
}

int __wrap_db_offline_add(struct db *db, struct db_offline *rows, size_t n, int quota)
{
	bool after = take(&unsure_after);

	if (after && __real_db_offline_add(db, rows, n, quota) != DB_OK)
		return DB_BAD;
	if (!after && !take(&unsure_before))
		return __real_db_offline_add(db, rows, n, quota);
	for (size_t i = 0; i < n; i++)
		rows[i].rc = DB_UNSURE;
	return DB_UNSURE;
}

static void nap(void)
{
	struct timespec ts = { 0, 2 * 1000000 };

	nanosleep(&ts, NULL);
}

int __wrap_db_user_by_id(struct db *db, int32_t id, struct user_row *row_r)
{
	if (atomic_load(&refuse) || take(&refuse_some))
		return db_fail(db, DB_DOWN, "refused");
	if (atomic_load(&gate)) {
		atomic_fetch_add(&at_gate, 1);
		while (atomic_load(&gate))
			nap();
		atomic_fetch_sub(&at_gate, 1);
	}
	return __real_db_user_by_id(db, id, row_r);
}

int __wrap_db_ping(struct db *db)
{
	return atomic_load(&refuse) ? db_fail(db, DB_DOWN, "refused") : __real_db_ping(db);
}

/* ---- tools ---- */

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void on_state(void *arg, bool up, const char *why)
{
	size_t len = strlen(state_log);

	assert_ptr_equal(arg, state_log);
	snprintf(state_log + len, sizeof state_log - len, "%s%s ", up ? "up" : "down:", up ? "" : why);
}

static struct store_setup setup(void)
{
	return (struct store_setup){ .url = url, .pool_init = 1, .pool_max = 4, .pool_idle_seconds = 60,
		.pool_wait_ms = 20000, .timeout_seconds = 5, .keep_days = 7, .sqlite_full = true,
		.load = { 100, 100, 100, 100, 1 << 20 }, .on_state = on_state, .arg = state_log };
}

static void tell(const char *text)
{
	fail_msg("warning: %s", text);
}

/* An empty database and a store over it. */
static void begin(const struct store_setup *s)
{
	char why[200] = "";

	snprintf(path, sizeof path, "%s/%u.db", dir, ++files);
	snprintf(url, sizeof url, "sqlite:%s", path);
	state_log[0] = '\0';
	atomic_store(&unsure_before, 0);
	atomic_store(&unsure_after, 0);
	atomic_store(&gate, 0);
	atomic_store(&refuse, 0);
	atomic_store(&refuse_some, 0);
	if (store_migrate(s, tell, why, sizeof why) != STORE_OK)
		fail_msg("%s", why);
	st = store_new(s);
	assert_non_null(st);
}

static void end(void)
{
	store_free(st, 10000);
	st = NULL;
}

/* What is left of a job when done() has run. */
struct result {
	bool done;
	int rc, order;
	struct store_job out;		/* a shallow copy, with texts stolen below */
};

static int completions;

static void keep(struct store_job *job, void *arg)
{
	struct result *r = arg;

	r->done = true;
	r->rc = job->rc;
	r->order = ++completions;
	r->out = *job;
	job->people = NULL;
	job->groups = NULL;
	job->msgs = NULL;
	job->rows = NULL;
	job->body = NULL;
}

static void result_free(struct result *r)
{
	for (uint32_t i = 0; i < r->out.npeople; i++)
		free(r->out.people[i].name);
	for (uint32_t i = 0; i < r->out.nmsgs; i++)
		free(r->out.msgs[i].body);
	for (uint32_t i = 0; i < r->out.nrows; i++) {
		free(r->out.rows[i].name);
		free(r->out.rows[i].hash);
	}
	free(r->out.people);
	free(r->out.groups);
	free(r->out.msgs);
	free(r->out.rows);
	free(r->out.body);
	memset(r, 0, sizeof *r);
}

/* A turn of the loop: waits for the eventfd, at most MS. */
static void turn(int ms)
{
	struct pollfd p = { store_fd(st), POLLIN, 0 };

	store_flush(st);
	if (poll(&p, 1, ms) > 0)
		store_complete(st);
}

static void wait_for(struct result *r, int n)
{
	double until = now_s() + 20;

	for (int i = 0; i < n; i++)
		while (!r[i].done) {
			if (now_s() > until)
				fail_msg("job %d of %d does not come back", i, n);
			turn(100);
		}
}

static struct store_job *job_new(enum store_op op, struct result *r)
{
	memset(r, 0, sizeof *r);
	return store_job_new(op, keep, r);
}

static int run(struct store_job *job, struct result *r)
{
	store_submit(st, job);
	wait_for(r, 1);
	return r->rc;
}

static uint32_t user_new(const char *name)
{
	struct result r;
	struct store_job *j = job_new(STORE_USER_ADD, &r);
	uint32_t id;

	snprintf(j->name, sizeof j->name, "%s", name);
	snprintf(j->hash, sizeof j->hash, "$hash of %s", name);
	assert_int_equal(run(j, &r), STORE_OK);
	id = r.out.user.id;
	assert_string_equal(r.out.user.name, name);
	result_free(&r);
	return id;
}

static struct store_job *offline_new(struct result *r, uint32_t to, unsigned mid, const char *body)
{
	struct store_job *j = job_new(STORE_OFFLINE_ADD, r);

	j->id = to;
	j->other = 9;
	j->ts = 5;
	j->limit = 1000;
	memcpy(j->mid, &mid, sizeof mid);
	store_job_body(j, body, strlen(body));
	return j;
}

/* What waits for a user, as one text. */
static void waiting_is(uint32_t user, const char *want)
{
	struct result r;
	struct store_job *j = job_new(STORE_OFFLINE, &r);
	char got[4096] = "";

	j->id = user;
	j->limit = 100;
	j->bytes = 1 << 20;
	assert_int_equal(run(j, &r), STORE_OK);
	for (uint32_t i = 0; i < r.out.nmsgs; i++)
		strcat(strcat(got, r.out.msgs[i].body), " ");
	assert_string_equal(got, want);
	result_free(&r);
}

/* ---- the operations ---- */

static void test_people(void **state)
{
	struct store_setup s = setup();
	struct result r;
	struct store_job *j;
	uint64_t ids[] = { 3, 2, 77 };

	(void)state;
	begin(&s);
	assert_int_equal(user_new("ann"), 1);
	assert_int_equal(user_new("bob"), 2);
	assert_int_equal(user_new("cid"), 3);
	j = job_new(STORE_USER_ADD, &r);
	strcpy(j->name, "ANN");
	strcpy(j->hash, "$x");
	assert_int_equal(run(j, &r), STORE_CONFLICT);
	result_free(&r);

	j = job_new(STORE_USER, &r);
	strcpy(j->name, "Bob");
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.user.id, 2);
	assert_string_equal(r.out.user.hash, "$hash of bob");
	result_free(&r);
	j = job_new(STORE_USER, &r);
	j->id = 0x80000000u;
	assert_int_equal(run(j, &r), STORE_GONE);

	j = job_new(STORE_USER_PASSWD, &r);
	j->id = 2;
	strcpy(j->hash, "*");
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.user.epoch, 1);

	j = job_new(STORE_FRIEND_ADD, &r);
	j->id = 1;
	strcpy(j->name, "cid");
	j->limit = 2;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.user.id, 3);
	assert_string_equal(r.out.user.name, "cid");
	j = job_new(STORE_FRIEND_ADD, &r);
	j->id = 1;
	j->other = 2;
	assert_int_equal(run(j, &r), STORE_OK);
	j = job_new(STORE_FRIEND_ADD, &r);
	j->id = 1;
	j->other = 1;
	j->limit = 2;
	assert_int_equal(run(j, &r), STORE_FULL);

	j = job_new(STORE_FRIENDS, &r);
	j->id = 1;
	j->limit = 1;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.npeople, 1);
	assert_string_equal(r.out.people[0].name, "bob");
	assert_int_equal(r.out.people[0].group, 0);
	assert_true(r.out.more);
	result_free(&r);
	j = job_new(STORE_FRIENDS, &r);
	j->id = 1;
	j->after = 2;
	j->limit = 1;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.people[0].id, 3);
	assert_false(r.out.more);
	result_free(&r);

	j = job_new(STORE_ROSTER, &r);
	j->ids = malloc(sizeof ids);
	memcpy(j->ids, ids, sizeof ids);
	j->nids = 3;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.npeople, 2);
	result_free(&r);

	j = job_new(STORE_FRIEND_DEL, &r);
	j->id = 1;
	strcpy(j->name, "CID");
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.user.id, 3);
	j = job_new(STORE_FRIEND_DEL, &r);
	j->id = 1;
	j->other = 3;
	assert_int_equal(run(j, &r), STORE_GONE);

	j = job_new(STORE_USER_IMPORT, &r);
	j->nrows = 3;
	j->rows = calloc(3, sizeof *j->rows);
	for (int i = 0; i < 3; i++) {
		j->rows[i].name = strdup(i == 1 ? "ann" : i == 0 ? "dan" : "eve");
		j->rows[i].hash = strdup("*");
	}
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.rows[0].rc, STORE_OK);
	assert_int_equal(r.out.rows[0].id, 4);
	assert_int_equal(r.out.rows[1].rc, STORE_CONFLICT);
	assert_int_equal(r.out.rows[2].id, 5);
	result_free(&r);

	j = job_new(STORE_USER_DEL, &r);
	j->id = 2;
	assert_int_equal(run(j, &r), STORE_OK);
	j = job_new(STORE_USER_DEL, &r);
	j->id = 2;
	assert_int_equal(run(j, &r), STORE_GONE);

	j = job_new(STORE_META, &r);
	strcpy(j->name, "token");
	store_job_body(j, "first", 5);
	assert_int_equal(run(j, &r), STORE_OK);
	result_free(&r);
	j = job_new(STORE_META, &r);
	strcpy(j->name, "token");
	store_job_body(j, "second", 6);
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.len, 5);
	assert_memory_equal(r.out.body, "first", 5);
	result_free(&r);
	end();
	assert_string_equal(state_log, "");
}

static struct store_job *group_job(enum store_op op, struct result *r, uint32_t id, uint32_t group)
{
	struct store_job *j = job_new(op, r);

	j->id = id;
	j->group = group;
	return j;
}

static void say(uint32_t group, uint32_t sender, unsigned mid, int want, uint64_t number)
{
	struct result r;
	struct store_job *j = group_job(STORE_GROUP_MSG, &r, 0, group);

	j->other = sender;
	memcpy(j->mid, &mid, sizeof mid);
	store_job_body(j, "hello", 5);
	assert_int_equal(run(j, &r), want);
	assert_int_equal(r.out.number, number);
	result_free(&r);
}

static void test_groups(void **state)
{
	struct store_setup s = setup();
	struct result r;
	struct store_job *j;

	(void)state;
	begin(&s);
	user_new("ann");
	user_new("bob");
	for (int i = 0; i < 2; i++) {
		j = group_job(STORE_GROUP_ADD, &r, 1, 0);
		strcpy(j->name, i ? "two" : "one");
		strcpy(j->desc, "d");
		assert_int_equal(run(j, &r), STORE_OK);
		assert_int_equal(r.out.group, i + 1);
	}
	j = group_job(STORE_GROUP_ADD, &r, 1, 0);
	strcpy(j->name, "One");
	assert_int_equal(run(j, &r), STORE_CONFLICT);

	j = group_job(STORE_GROUP, &r, 2, 1);
	assert_int_equal(run(j, &r), STORE_OK);
	assert_false(r.out.groups[0].mine);
	result_free(&r);
	j = group_job(STORE_MEMBERS, &r, 2, 1);
	j->limit = 9;
	assert_int_equal(run(j, &r), STORE_DENIED);
	say(1, 2, 1, STORE_DENIED, 0);
	say(1, 1, 2, STORE_OK, 1);

	j = group_job(STORE_GROUP_JOIN, &r, 2, 0);
	strcpy(j->name, "ONE");
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.ngroups, 1);
	assert_int_equal(r.out.groups[0].members, 2);
	assert_int_equal(r.out.groups[0].head, 1);
	assert_int_equal(r.out.groups[0].cursor, 1);
	assert_int_equal(r.out.npeople, 2);
	assert_true(r.out.people[0].creator && !r.out.people[1].creator);
	assert_int_equal(r.out.people[1].group, 1);
	result_free(&r);
	j = group_job(STORE_GROUP_JOIN, &r, 2, 1);
	assert_int_equal(run(j, &r), STORE_CONFLICT);
	result_free(&r);
	j = group_job(STORE_GROUP_JOIN, &r, 2, 2);
	j->limit = 1;
	assert_int_equal(run(j, &r), STORE_FULL);
	j = group_job(STORE_GROUP_JOIN, &r, 2, 99);
	assert_int_equal(run(j, &r), STORE_GONE);

	j = group_job(STORE_MEMBERS, &r, 2, 1);
	j->after = 0;
	j->limit = 1;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.npeople, 1);
	assert_true(r.out.more && r.out.groups[0].mine);
	result_free(&r);
	j = group_job(STORE_GROUPS, &r, 1, 0);
	j->limit = 1;
	j->limit2 = 1;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.ngroups, 1);
	assert_int_equal(r.out.npeople, 1);
	assert_true(r.out.more && r.out.groups[0].is_creator);
	result_free(&r);

	say(1, 1, 3, STORE_OK, 2);
	say(1, 2, 4, STORE_OK, 3);
	say(1, 1, 3, STORE_OK, 2);
	j = group_job(STORE_RANGE, &r, 0, 1);
	j->after = 1;
	j->upto = 3;
	j->limit = 1;
	j->bytes = 100;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.nmsgs, 1);
	assert_int_equal(r.out.msgs[0].row, 2);
	assert_int_equal(r.out.msgs[0].len, 5);
	assert_true(r.out.more);
	result_free(&r);
	j = group_job(STORE_CURSORS, &r, 2, 0);
	j->ncursors = 1;
	j->cursors = malloc(sizeof *j->cursors);
	j->cursors[0] = (struct store_cursor){ 1, 2 };
	assert_int_equal(run(j, &r), STORE_OK);

	/* what a login shows */
	run(offline_new(&r, 2, 50, "while away"), &r);
	result_free(&r);
	j = group_job(STORE_FRIEND_ADD, &r, 2, 0);
	j->other = 1;
	run(j, &r);
	j = group_job(STORE_GROUP_LEAVE, &r, 2, 1);
	assert_int_equal(run(j, &r), STORE_OK);
	assert_false(r.out.dissolved);
	j = group_job(STORE_GROUP_JOIN, &r, 2, 2);
	assert_int_equal(run(j, &r), STORE_OK);
	result_free(&r);
	j = job_new(STORE_LOAD, &r);
	j->id = 2;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_string_equal(r.out.user.name, "bob");
	assert_int_equal(r.out.npeople, 3);		/* a friend, two members of the one group */
	assert_int_equal(r.out.people[0].group, 0);
	assert_int_equal(r.out.people[2].group, 2);
	assert_int_equal(r.out.ngroups, 2);
	assert_true(r.out.groups[0].mine);
	assert_int_equal(r.out.groups[0].id, 2);
	assert_false(r.out.groups[1].mine);
	assert_int_equal(r.out.groups[1].id, 1);
	assert_int_equal(r.out.groups[1].cursor, 2);
	assert_int_equal(r.out.groups[1].head, 3);
	assert_int_equal(r.out.nmsgs, 1);
	assert_string_equal(r.out.msgs[0].body, "while away");
	assert_false(r.out.more);
	result_free(&r);
	j = job_new(STORE_LOAD, &r);
	j->id = 99;
	assert_int_equal(run(j, &r), STORE_GONE);

	j = group_job(STORE_GROUP_LEAVE, &r, 1, 0);
	strcpy(j->name, "two");
	assert_int_equal(run(j, &r), STORE_OK);
	assert_true(r.out.dissolved);
	assert_int_equal(r.out.group, 2);
	j = group_job(STORE_GROUP_LEAVE, &r, 1, 2);
	assert_int_equal(run(j, &r), STORE_GONE);
	j = job_new(STORE_PURGE, &r);
	assert_int_equal(run(j, &r), STORE_OK);
	assert_false(r.out.more);
	end();
}

/* ---- the write lane ---- */

/* Jobs of a turn are few transactions, and each recipient's order stays. */
static void test_batches(void **state)
{
	enum { N = 1200 };
	struct store_setup s = setup();
	static struct result r[N];
	char want[3][2000] = { "", "", "" };
	uint64_t commits;
	int first;

	(void)state;
	begin(&s);
	commits = store_commits(st);
	for (unsigned i = 0; i < N; i++) {
		char body[16];

		snprintf(body, sizeof body, "%u", i);
		store_submit(st, offline_new(&r[i], i < 150 ? 1 + i % 3 : 10 + i, i, body));
		if (i < 150)
			strcat(strcat(want[i % 3], body), " ");
	}
	assert_int_equal(store_depth(st), N);
	wait_for(r, N);
	assert_int_equal(store_depth(st), 0);
	assert_int_equal(store_commits(st) - commits, 3);
	first = r[0].order;
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(r[i].rc, STORE_OK);
		assert_int_equal(r[i].order, first + (int)i);
		result_free(&r[i]);
	}
	for (uint32_t u = 0; u < 3; u++)
		waiting_is(1 + u, want[u]);
	end();
}

/* Kinds are grouped, yet what touches the same rows happens in the order asked. */
static void test_order(void **state)
{
	struct store_setup s = setup();
	struct result r[8];
	struct store_job *j;
	unsigned m = 1;

	(void)state;
	begin(&s);
	user_new("ann");
	user_new("bob");
	store_submit(st, offline_new(&r[0], 1, 1, "kept"));
	j = job_new(STORE_OFFLINE_DEL_MID, &r[1]);
	j->id = 2;
	memcpy(j->mid, &m, sizeof m);
	store_submit(st, j);				/* nothing there yet */
	store_submit(st, offline_new(&r[2], 2, 1, "after"));
	store_submit(st, offline_new(&r[3], 2, 2, "gone"));
	j = job_new(STORE_OFFLINE_DEL_MID, &r[4]);
	j->id = 2;
	m = 2;
	memcpy(j->mid, &m, sizeof m);
	store_submit(st, j);				/* deletes what was added before it */
	/* join, speak, leave, speak in one turn */
	j = group_job(STORE_GROUP_ADD, &r[5], 1, 0);
	strcpy(j->name, "one");
	store_submit(st, j);
	wait_for(r, 6);
	for (int i = 0; i < 6; i++) {
		assert_int_equal(r[i].rc, STORE_OK);
		result_free(&r[i]);
	}
	waiting_is(1, "kept ");
	waiting_is(2, "after ");
	for (int i = 0; i < 4; i++) {
		static const enum store_op ops[] = { STORE_GROUP_JOIN, STORE_GROUP_MSG,
			STORE_GROUP_LEAVE, STORE_GROUP_MSG };

		j = group_job(ops[i], &r[i], 2, 1);
		j->other = 2;
		j->mid[0] = (unsigned char)i;
		store_submit(st, j);
	}
	wait_for(r, 4);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(r[i].rc, i == 3 ? STORE_DENIED : STORE_OK);
		result_free(&r[i]);
	}
	end();
}

static void test_rows_alone(void **state)
{
	struct store_setup s = setup();
	struct result r[3];
	char *big = calloc(1, DB_BODY_MAX + 1);
	struct store_job *j;

	(void)state;
	begin(&s);
	store_submit(st, offline_new(&r[0], 1, 1, "a"));
	j = offline_new(&r[2], 1, 3, "b");
	j->limit = 1;					/* another quota than the others' */
	store_submit(st, j);
	j = offline_new(&r[1], 1, 2, "");
	store_job_body(j, big, DB_BODY_MAX + 1);
	store_submit(st, j);
	wait_for(r, 3);
	assert_int_equal(r[0].rc, STORE_OK);
	assert_int_equal(r[1].rc, STORE_BAD);
	assert_int_equal(r[2].rc, STORE_FULL);
	for (int i = 0; i < 3; i++)
		result_free(&r[i]);
	free(big);
	waiting_is(1, "a ");
	end();
}

static void test_unsure(void **state)
{
	struct store_setup s = setup();
	struct result r;
	struct store_job *j;

	(void)state;
	begin(&s);
	/* retried until it is known */
	atomic_store(&unsure_before, 2);
	assert_int_equal(run(offline_new(&r, 1, 1, "a"), &r), STORE_OK);
	result_free(&r);
	atomic_store(&unsure_after, 1);
	assert_int_equal(run(offline_new(&r, 1, 2, "b"), &r), STORE_OK);
	result_free(&r);
	waiting_is(1, "a b ");
	assert_true(store_up(st));
	/* our own row is no conflict, another's is */
	atomic_store(&unsure_after, 1);
	assert_int_equal(user_new("ann"), 1);
	atomic_store(&unsure_before, 1);
	assert_int_equal(user_new("bob"), 2);
	atomic_store(&unsure_before, 1);
	j = job_new(STORE_USER_ADD, &r);
	strcpy(j->name, "bob");
	strcpy(j->hash, "$other");
	assert_int_equal(run(j, &r), STORE_CONFLICT);
	/* not for ever; and others are not kept waiting */
	store_set_pool(st, 500, 7);
	atomic_store(&unsure_before, 1000);
	atomic_store(&refuse, 1);
	assert_int_equal(run(offline_new(&r, 1, 3, "c"), &r), STORE_UNSURE);
	result_free(&r);
	assert_false(store_up(st));
	atomic_store(&unsure_before, 0);
	atomic_store(&refuse, 0);
	for (double until = now_s() + 10; !store_up(st) && now_s() < until;)
		turn(20);
	assert_true(store_up(st));
	end();
	assert_non_null(strstr(state_log, "down:"));
	assert_non_null(strstr(state_log, "up "));
}

/* ---- bounds ---- */

static struct db *file_open(void)
{
	struct db *db = NULL;

	assert_int_equal(db_open(url, NULL, &db, NULL, 0), DB_OK);
	return db;
}

/* Another process's long transaction: everything queues behind the write thread. */
struct blocker { struct db *db; pthread_t thread; atomic_int held, free; };

static int block_fn(struct db *db, void *arg)
{
	struct blocker *b = arg;

	(void)db;
	atomic_store(&b->held, 1);
	while (!atomic_load(&b->free))
		nap();
	return DB_DENIED;
}

static void *block_main(void *arg)
{
	struct blocker *b = arg;

	return db_run(b->db, DB_WRITE, block_fn, b) == DB_DENIED ? NULL : b;
}

static void block(struct blocker *b)
{
	memset(b, 0, sizeof *b);
	b->db = file_open();
	assert_int_equal(pthread_create(&b->thread, NULL, block_main, b), 0);
	while (!atomic_load(&b->held))
		nap();
}

static void unblock(struct blocker *b)
{
	void *bad = b;

	atomic_store(&b->free, 1);
	pthread_join(b->thread, &bad);
	assert_null(bad);
	db_close(b->db);
}

static void test_deadline(void **state)
{
	struct store_setup s = setup();
	struct result r[3];
	struct store_job *j;
	struct blocker b;
	double t;

	(void)state;
	s.pool_wait_ms = 200;
	begin(&s);
	block(&b);
	store_submit(st, offline_new(&r[0], 1, 1, "in the thread"));
	store_flush(st);
	for (double until = now_s() + 5; now_s() < until && store_depth(st) == 1 && !r[0].done;) {
		turn(10);
		if (now_s() > until - 4.9)		/* the thread has it by now, or never */
			break;
	}
	store_submit(st, offline_new(&r[1], 1, 2, "waits"));
	j = offline_new(&r[2], 1, 3, "must");
	j->flags = STORE_MUST;
	store_submit(st, j);
	t = now_s();
	while (!r[1].done && now_s() < t + 10)
		turn(20);
	assert_int_equal(r[1].rc, STORE_BUSY);
	assert_true(now_s() - t >= 0.19 && now_s() - t < 4);
	assert_false(r[2].done);
	unblock(&b);
	wait_for(r, 3);
	assert_int_equal(r[0].rc, STORE_OK);
	assert_int_equal(r[2].rc, STORE_OK);
	for (int i = 0; i < 3; i++)
		result_free(&r[i]);
	waiting_is(1, "in the thread must ");
	end();
}

static struct store_job *from_new(struct result *r, uint32_t sender, unsigned mid, const char *body)
{
	struct store_job *j = offline_new(r, 1, mid, body);

	j->other = sender;
	return j;
}

/*
 * A message that was refused comes again, so none of its sender's may be stored before the loop
 * knows of the refusal, though the store be back by then.
 */
static void test_order_over_outage(void **state)
{
	struct store_setup s = setup();
	struct store_job *j;
	struct result r[9];

	(void)state;
	s.pool_wait_ms = 500;
	begin(&s);
	atomic_store(&unsure_before, 1000);
	atomic_store(&refuse, 1);
	store_submit(st, from_new(&r[0], 9, 1, "a"));
	store_flush(st);
	for (double until = now_s() + 10; store_up(st) && now_s() < until;)
		nap();
	assert_false(store_up(st));
	j = from_new(&r[3], 7, 4, "must");
	j->flags = STORE_MUST;
	store_submit(st, j);
	store_submit(st, from_new(&r[7], 6, 5, "c"));
	store_flush(st);
	for (double until = now_s() + 10; store_depth(st) > 0 && now_s() < until;)
		nap();
	assert_int_equal(store_depth(st), 0);
	atomic_store(&unsure_before, 0);
	atomic_store(&refuse, 0);
	for (double until = now_s() + 10; !store_up(st) && now_s() < until;)
		nap();
	assert_true(store_up(st));		/* and nobody has been told of anything */
	store_submit(st, from_new(&r[1], 9, 2, "b"));
	store_submit(st, from_new(&r[2], 8, 3, "other"));
	store_submit(st, from_new(&r[8], 6, 6, "d"));
	store_flush(st);
	while (store_depth(st) > 0)
		nap();
	turn(0);
	assert_int_equal(r[0].rc, STORE_UNSURE);
	assert_int_equal(r[1].rc, STORE_BUSY);
	assert_int_equal(r[2].rc, STORE_OK);
	assert_int_equal(r[3].rc, STORE_DOWN);
	assert_int_equal(r[7].rc, STORE_DOWN);		/* turned away at once, and the next */
	assert_int_equal(r[8].rc, STORE_BUSY);
	assert_non_null(strstr(state_log, "down:"));	/* though it is up again */
	assert_string_equal(strrchr(state_log, 'u'), "up ");
	store_submit(st, from_new(&r[4], 9, 1, "a"));
	store_submit(st, from_new(&r[5], 9, 2, "b"));
	store_submit(st, from_new(&r[6], 7, 4, "must"));
	wait_for(r + 4, 3);
	for (int i = 0; i < 9; i++) {
		assert_true(i < 4 || i > 6 || r[i].rc == STORE_OK);
		result_free(&r[i]);
	}
	waiting_is(1, "other a b must ");
	end();
}

/* The same when the first one waited too long, and the second one would not have. */
static void test_order_over_deadline(void **state)
{
	struct store_setup s = setup();
	struct result r[4];
	struct store_job *j;
	struct blocker b;

	(void)state;
	begin(&s);
	block(&b);
	j = job_new(STORE_META, &r[0]);			/* keeps the thread busy */
	strcpy(j->name, "x");
	store_job_body(j, "y", 1);
	store_submit(st, j);
	store_set_pool(st, 1, 7);
	store_submit(st, from_new(&r[1], 9, 1, "a"));
	store_flush(st);
	nap();						/* more than its millisecond */
	store_set_pool(st, 20000, 7);
	store_submit(st, from_new(&r[2], 9, 2, "b"));
	j = from_new(&r[3], 9, 3, "must");
	j->flags = STORE_MUST;
	store_submit(st, j);
	unblock(&b);
	wait_for(r, 4);
	assert_int_equal(r[1].rc, STORE_BUSY);
	assert_int_equal(r[2].rc, STORE_BUSY);
	assert_int_equal(r[3].rc, STORE_OK);
	for (int i = 0; i < 4; i++)
		result_free(&r[i]);
	waiting_is(1, "must ");
	end();
}

static int counted[9];

static void count(struct store_job *job, void *arg)
{
	(void)arg;
	counted[-job->rc]++;
}

static void test_full(void **state)
{
	struct store_setup s = setup();
	struct blocker b;

	(void)state;
	begin(&s);
	block(&b);
	memset(counted, 0, sizeof counted);
	for (unsigned i = 0; i < STORE_DEPTH + 100; i++) {
		struct store_job *j = store_job_new(STORE_OFFLINE_ADD, count, NULL);

		j->id = 1 + i;
		memcpy(j->mid, &i, sizeof i);
		j->flags = i >= STORE_DEPTH + 90 ? STORE_MUST : 0;
		store_submit(st, j);
	}
	store_flush(st);
	store_complete(st);
	assert_int_equal(counted[-STORE_BUSY], 90);
	unblock(&b);
	for (double until = now_s() + 60; store_depth(st) > 0 && now_s() < until;)
		turn(100);
	store_complete(st);
	assert_int_equal(counted[-STORE_OK], STORE_DEPTH + 10);
	end();
}

/* ---- the read lane ---- */

static int threads(const char *what)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0;

	assert_non_null(d);
	while ((e = readdir(d)) != NULL) {
		char name[300], comm[32] = "";
		int fd;

		snprintf(name, sizeof name, "/proc/self/task/%s/comm", e->d_name);
		fd = open(name, O_RDONLY);
		if (fd >= 0 && read(fd, comm, sizeof comm - 1) > 0 && strncmp(comm, what, strlen(what)) == 0)
			n++;
		if (fd >= 0)
			close(fd);
	}
	closedir(d);
	return n;
}

static void test_pool(void **state)
{
	struct store_setup s = setup();
	struct result r[10];

	(void)state;
	s.pool_idle_seconds = 1;
	begin(&s);
	user_new("ann");
	assert_int_equal(threads("store-read"), 1);
	atomic_store(&gate, 1);
	for (int i = 0; i < 10; i++) {
		struct store_job *j = job_new(STORE_USER, &r[i]);

		j->id = 1;
		store_submit(st, j);
	}
	for (double until = now_s() + 10; atomic_load(&at_gate) < 4 && now_s() < until;)
		turn(5);
	assert_int_equal(atomic_load(&at_gate), 4);	/* and not more than pool_max */
	assert_int_equal(threads("store-read"), 4);
	atomic_store(&gate, 0);
	wait_for(r, 10);
	for (int i = 0; i < 10; i++)
		assert_int_equal(r[i].rc, STORE_OK);
	for (double until = now_s() + 10; threads("store-read") > 1 && now_s() < until;)
		turn(50);
	assert_int_equal(threads("store-read"), 1);
	end();
	for (double until = now_s() + 5; threads("store-read") > 0 && now_s() < until;)
		nap();
	assert_int_equal(threads("store-read"), 0);
}

/* One refused connection among several is not the end; no connection at all is. */
static void test_down(void **state)
{
	struct store_setup s = setup();
	struct result r[4];
	double t;

	(void)state;
	s.pool_init = 3;
	begin(&s);
	user_new("ann");
	for (double until = now_s() + 5; threads("store-read") < 3 && now_s() < until;)
		nap();
	atomic_store(&refuse_some, 1);
	for (int i = 0; i < 4; i++) {
		struct store_job *j = job_new(STORE_USER, &r[i]);

		j->id = 1;
		store_submit(st, j);
	}
	wait_for(r, 4);
	for (int i = 0; i < 4; i++)
		assert_int_equal(r[i].rc, STORE_OK);
	assert_string_equal(state_log, "");

	atomic_store(&refuse, 1);
	for (int i = 0; i < 4; i++) {
		struct store_job *j = job_new(STORE_USER, &r[i]);

		j->id = 1;
		store_submit(st, j);
	}
	wait_for(r, 4);
	for (int i = 0; i < 4; i++)
		assert_int_equal(r[i].rc, STORE_DOWN);
	assert_false(store_up(st));
	assert_string_equal(state_log, "down:refused ");
	t = now_s();
	assert_int_equal(run(offline_new(&r[0], 1, 1, "x"), &r[0]), STORE_DOWN);	/* writes, too */
	result_free(&r[0]);
	assert_true(now_s() - t < 1);
	atomic_store(&refuse, 0);
	for (double until = now_s() + 10; strcmp(state_log, "down:refused up ") != 0 && now_s() < until;)
		turn(20);
	assert_string_equal(state_log, "down:refused up ");
	r[0].out.id = 0;
	{
		struct store_job *j = job_new(STORE_USER, &r[0]);

		j->id = 1;
		assert_int_equal(run(j, &r[0]), STORE_OK);
	}
	end();
}

/* Of the jobs that a thread has in hand one finds out; the others are not tried in vain. */
static void test_down_in_hand(void **state)
{
	struct store_setup s = setup();
	struct result r[5];

	(void)state;
	begin(&s);
	atomic_store(&refuse, 1);
	atomic_store(&user_adds, 0);
	for (int i = 0; i < 5; i++) {
		struct store_job *j = job_new(STORE_USER_ADD, &r[i]);

		snprintf(j->name, sizeof j->name, "u%d", i);
		strcpy(j->hash, "$x");
		store_submit(st, j);
	}
	wait_for(r, 5);
	for (int i = 0; i < 5; i++)
		assert_int_equal(r[i].rc, STORE_DOWN);
	assert_int_equal(atomic_load(&user_adds), 1);
	atomic_store(&refuse, 0);
	end();
}

static void test_file_away(void **state)
{
	struct store_setup s = setup();
	struct result r;
	struct db *db;
	char away[120], side[120];

	(void)state;
	begin(&s);
	user_new("ann");
	end();						/* the WAL goes into the file */
	snprintf(away, sizeof away, "%s.away", path);
	snprintf(side, sizeof side, "%s-wal", path);
	assert_int_not_equal(access(side, F_OK), 0);
	assert_int_equal(rename(path, away), 0);
	state_log[0] = '\0';
	st = store_new(&s);				/* starts all the same */
	assert_non_null(st);
	assert_int_equal(run(offline_new(&r, 1, 1, "x"), &r), STORE_DOWN);
	result_free(&r);
	assert_int_equal(rename(away, path), 0);
	for (double until = now_s() + 10; !store_up(st) && now_s() < until;)
		turn(20);
	assert_int_equal(run(offline_new(&r, 1, 1, "y"), &r), STORE_OK);
	result_free(&r);
	waiting_is(1, "y ");
	end();
	db = file_open();
	db_close(db);
}

/* ---- the end ---- */

static void test_free_drains(void **state)
{
	struct store_setup s = setup();
	struct result r;
	struct store_job *j;

	(void)state;
	begin(&s);
	memset(counted, 0, sizeof counted);
	for (unsigned i = 0; i < 3000; i++) {
		j = store_job_new(STORE_OFFLINE_ADD, count, NULL);
		j->id = 1;
		memcpy(j->mid, &i, sizeof i);
		store_submit(st, j);
	}
	end();
	assert_int_equal(counted[-STORE_OK], 3000);
	st = store_new(&s);
	j = job_new(STORE_OFFLINE, &r);
	j->id = 1;
	j->limit = 10000;
	j->bytes = 1 << 20;
	assert_int_equal(run(j, &r), STORE_OK);
	assert_int_equal(r.out.nmsgs, 3000);
	result_free(&r);
	end();
}

static void resubmit(struct store_job *job, void *arg)
{
	struct store_job *again = store_job_new(STORE_OFFLINE_ADD, resubmit, arg);

	counted[-job->rc]++;
	again->flags = STORE_MUST;
	store_submit(st, again);
}

/* The file is locked by somebody else: bounded all the same, even where the loop never gives up. */
static void test_free_bounded(void **state)
{
	struct store_setup s = setup();
	struct blocker b;
	double t;

	(void)state;
	begin(&s);
	atomic_store(&user_adds, 0);
	memset(counted, 0, sizeof counted);
	block(&b);
	for (int i = 0; i < 10; i++) {
		struct store_job *j = store_job_new(STORE_USER_ADD, resubmit, NULL);

		strcpy(j->name, "x");
		strcpy(j->hash, "$x");
		store_submit(st, j);
	}
	t = now_s();
	store_free(st, 500);
	assert_true(now_s() - t < 3);
	/* what had begun ends by itself; nothing more is begun, though the file is free again */
	unblock(&b);
	for (t = now_s(); threads("store-") > 0 && now_s() < t + 5;)
		nap();
	assert_int_equal(threads("store-"), 0);
	assert_int_equal(atomic_load(&user_adds), 1);
	assert_int_equal(counted[-STORE_OK], 0);
}

static int dir_make(void **state)
{
	(void)state;
	snprintf(dir, sizeof dir, "/tmp/parley-store-XXXXXX");
	return mkdtemp(dir) != NULL ? 0 : -1;
}

static int dir_remove(void **state)
{
	char cmd[100];

	(void)state;
	snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
	return system(cmd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_people), cmocka_unit_test(test_groups),
		cmocka_unit_test(test_batches), cmocka_unit_test(test_order),
		cmocka_unit_test(test_rows_alone), cmocka_unit_test(test_unsure),
		cmocka_unit_test(test_order_over_outage), cmocka_unit_test(test_order_over_deadline),
		cmocka_unit_test(test_deadline), cmocka_unit_test(test_full),
		cmocka_unit_test(test_pool), cmocka_unit_test(test_down),
		cmocka_unit_test(test_down_in_hand),
		cmocka_unit_test(test_file_away), cmocka_unit_test(test_free_drains),
		cmocka_unit_test(test_free_bounded)
	};

	return cmocka_run_group_tests(tests, dir_make, dir_remove);
}
