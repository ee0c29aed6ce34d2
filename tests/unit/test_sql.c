/*
 * The storage layer, every operation on both engines, then what only one of them can suffer.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sql/engine.h"
#include "sql/friends.h"
#include "sql/groups.h"
#include "sql/posts.h"
#include "sql/url.h"
#include "sql/users.h"
#include "tests/unit/sql_env.h"

#define OK(call) assert_rc((call), DB_OK, db, #call, __LINE__)
#define RC(call, want) assert_rc((call), (want), db, #call, __LINE__)

static void assert_rc(int rc, int want, struct db *db, const char *call, int line)
{
	if (rc != want)
		fail_msg("line %d: %s is %s, not %s (%s)", line, call, db_rc_name(rc),
			 db_rc_name(want), db_errmsg(db));
}

static int32_t user_new(struct db *db, const char *name)
{
	int32_t id = 0;

	OK(db_user_add(db, name, "hash", &id));
	return id;
}

static int32_t group_new(struct db *db, int32_t creator, const char *name)
{
	int32_t id = 0;

	OK(db_group_create(db, creator, name, "about", 0, &id));
	return id;
}

static void join(struct db *db, int32_t group, int32_t user)
{
	OK(db_group_join(db, group, user, 0, 0, NULL));
}

static void mid_make(unsigned char *mid, unsigned v)
{
	memset(mid, 0xa5, DB_MID);
	memcpy(mid, &v, sizeof v);
}

/* A callback target that writes what it gets as text, to be compared whole. */
struct text { char buf[4096]; size_t len; };

__attribute__((format(printf, 2, 3)))
static void text_add(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->len, sizeof t->buf - t->len, fmt, ap);
	va_end(ap);
	assert_true(n >= 0 && (size_t)n < sizeof t->buf - t->len);
	t->len += (size_t)n;
}

static void person_cb(void *arg, int32_t id, const char *name)
{
	text_add(arg, "%d=%s ", (int)id, name);
}

static void member_cb(void *arg, int32_t id, const char *name, bool creator)
{
	text_add(arg, "%d=%s%s ", (int)id, name, creator ? "*" : "");
}

static void mine_cb(void *arg, const struct group_mine *g)
{
	text_add(arg, "%d=%s/%s n%d%s %d..%d ", (int)g->group.id, g->group.name, g->group.desc,
		 (int)g->group.members, g->is_creator ? "*" : "", (int)g->cursor, (int)g->group.head);
}

static void message_cb(void *arg, const struct db_message *m)
{
	text_add(arg, "%.*s<%d ", (int)m->len, (const char *)m->body, (int)m->sender);
}

static void number_cb(void *arg, const struct db_message *m)
{
	text_add(arg, "%d:%.*s ", (int)m->row, (int)m->len, (const char *)m->body);
}

static void backlog_cb(void *arg, const struct db_backlog *b)
{
	text_add(arg, "%d%s %d..%d ", (int)b->mine.group.id, b->left ? " left" : "",
		 (int)b->mine.cursor, (int)b->upto);
}

static void head_cb(void *arg, int32_t id, int64_t head)
{
	text_add(arg, "%d=%d ", (int)id, (int)head);
}

/* ---- connection and schema ---- */

static void test_url(void **state)
{
	static const struct { const char *url, *want; } cases[] = {
		{ "sqlite:/a/b.db", "- - - /a/b.db - 0" },
		{ "sqlite:b", "- - - b - 0" },
		{ "mysql://u:p@h:3307/d", "u p h - d 3307" },
		{ "mysql://u@h/d", "u  h - d 0" },
		{ "mysql://u%40x:p%2F%3a@h/d%5f", "u@x p/: h - d_ 0" },
		{ "mysql://u:p/w@h/d", "u p/w h - d 0" },
		{ "mysql://u@[::1]:33/d", "u  ::1 - d 33" },
		{ "mysql://u@[::1]/d", "u  ::1 - d 0" },
		{ "mysql://u@%2Frun%2Fs/d", "u  - /run/s d 0" },
		{ "mysql://u@/d?socket=/run/s", "u  localhost /run/s d 0" },
		{ "sqlite:", NULL }, { "sqlite::memory:", NULL }, { "mysql://h/d", NULL },
		{ "mysql://u@h", NULL }, { "mysql://u@h/", NULL }, { "mysql://@h/d", NULL },
		{ "mysql://u@h:0/d", NULL }, { "mysql://u@h:70000/d", NULL },
		{ "mysql://u@h:x/d", NULL }, { "mysql://u@::1/d", NULL }, { "mysql://u@[::1/d", NULL },
		{ "mysql://u:%4@h/d", NULL }, { "mysql://u:%00@h/d", NULL },
		{ "mysql://u@h/d?x=1", NULL }, { "mysql://u@h/a`b", NULL }, { "postgres://u@h/d", NULL },
		{ "", NULL }
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct db_url u = { 0 };
		const struct db_engine *eng;
		const char *why = NULL;
		char got[200];

		if (url_parse(cases[i].url, &u, &eng, &why) != DB_OK) {
			if (cases[i].want != NULL)
				fail_msg("%s: %s", cases[i].url, why);
			assert_non_null(why);
			continue;
		}
		snprintf(got, sizeof got, "%s %s %s %s %s %u", u.user ? u.user : "-",
			 u.password ? u.password : "-", u.host ? u.host : "-", u.path ? u.path : "-",
			 u.database ? u.database : "-", u.port);
		assert_non_null(cases[i].want);
		assert_string_equal(got, cases[i].want);
		url_fini(&u);
	}
}

static void test_password_apart(void **state)
{
	struct db_options opt = { .password = "apart" };
	struct db *db;

	(void)state;
	assert_int_equal(db_open("mysql://u@h/d", &opt, &db, NULL, 0), DB_OK);
	assert_string_equal(db->url.password, "apart");
	db_close(db);
	assert_int_equal(db_open("mysql://u:own@h/d", &opt, &db, NULL, 0), DB_OK);
	assert_string_equal(db->url.password, "own");
	db_close(db);
}

static int migrate_child(int me)
{
	struct db *db = env_open(NULL);
	int rc = db_migrate(db);

	(void)me;
	if (rc != DB_OK)
		fprintf(stderr, "migrate: %s: %s\n", db_rc_name(rc), db_errmsg(db));
	db_close(db);
	return rc != DB_OK;
}

static void test_migrate(void **state)
{
	struct db *db = *state;
	char v[16];
	size_t len;

	OK(db_migrate(db));
	OK(db_meta_get(db, "schema_version", v, sizeof v, &len));
	assert_memory_equal(v, "1", len);
	OK(db_meta_set(db, "schema_version", "99", 2));
	RC(db_migrate(db), DB_BAD);
	assert_non_null(strstr(db_errmsg(db), "99"));
	/* half done before: what is there is left alone */
	OK(db_meta_set(db, "schema_version", "0", 1));
	assert_int_equal(user_new(db, "ann"), 1);
	OK(db_migrate(db));
	assert_int_equal(user_new(db, "bob"), 2);
}

static void test_migrate_together(void **state)
{
	size_t at = strlen(env_url);

	(void)state;
	if (strncmp(env_url, "sqlite", 6) != 0) {
		env_fork(4, migrate_child);		/* again, over what is there */
		return;
	}
	snprintf(env_url + at, sizeof env_url - at, ".new");
	env_fork(4, migrate_child);
}

static void test_meta(void **state)
{
	struct db *db = *state;
	unsigned char v[8], long_name[80];
	size_t len = 0;

	RC(db_meta_get(db, "k", v, sizeof v, &len), DB_GONE);
	OK(db_meta_claim(db, "k", "one", 3, v, sizeof v, &len));
	assert_memory_equal(v, "one", len);
	OK(db_meta_claim(db, "k", "two", 3, v, sizeof v, &len));
	assert_int_equal(len, 3);
	assert_memory_equal(v, "one", 3);
	OK(db_meta_set(db, "k", "\0\xff", 2));
	OK(db_meta_get(db, "k", v, sizeof v, &len));
	assert_int_equal(len, 2);
	assert_memory_equal(v, "\0\xff", 2);
	OK(db_meta_set(db, "k", "123456789", 9));
	RC(db_meta_get(db, "k", v, sizeof v, &len), DB_BAD);
	memset(long_name, 'x', sizeof long_name - 1);
	long_name[sizeof long_name - 1] = '\0';
	RC(db_meta_set(db, (char *)long_name, "", 0), DB_BAD);
}

static void warn_cb(void *arg, const char *text)
{
	text_add(arg, "%s. ", text);
}

static void test_warnings(void **state)
{
	struct db *db = *state;
	struct text t = { .len = 0 };

	OK(db_ping(db));
	OK(db_warnings(db, warn_cb, &t));
	assert_string_equal(t.buf, "");
}

struct value { const struct db_query *q; int64_t v; };

static int value_fn(struct db *db, void *arg)
{
	struct value *v = arg;
	struct db_stmt *st;
	int rc = db_use(db, v->q, &st);

	if (rc == DB_OK)
		rc = db_step_one(st);
	if (rc == DB_OK)
		v->v = db_int(st, 0);
	return rc;
}

static int64_t value(struct db *db, const struct db_query *q)
{
	struct value v = { q, -1 };

	OK(db_run(db, DB_READ, value_fn, &v));
	return v.v;
}

static int changes_fn(struct db *db, void *arg)
{
	static const struct db_query same = DB_SAME("UPDATE User SET epoch = 0 WHERE id = ?");
	int64_t id = 1;

	return db_exec_ids(db, &same, 1, &id, arg);
}

/* A row that an update leaves as it was has been found all the same: both engines count it. */
static void test_changes(void **state)
{
	struct db *db = *state;
	int64_t changes = 0;

	user_new(db, "ann");
	OK(db_run(db, DB_WRITE, changes_fn, &changes));
	assert_int_equal(changes, 1);
}

/* ---- people ---- */

static void test_users(void **state)
{
	struct db *db = *state;
	struct user_row u;
	char name[DB_NAME + 1];
	int32_t id = 0;

	assert_int_equal(user_new(db, "Ann"), 1);
	RC(db_user_add(db, "aNN", "h", &id), DB_CONFLICT);
	assert_int_equal(user_new(db, "Ann "), 2);		/* a blank counts */
	assert_int_equal(user_new(db, "\xc3\x84nn"), 3);	/* Änn: only ASCII is folded */
	assert_int_equal(user_new(db, "\xc3\xa4nn"), 4);
	assert_int_equal(user_new(db, "\xf0\x9f\x98\x80"), 5);
	OK(db_user_by_id(db, 1, &u));
	assert_string_equal(u.name, "Ann");
	assert_string_equal(u.hash, "hash");
	assert_int_equal(u.epoch, 0);
	OK(db_user_by_name(db, "ANN", &u));
	assert_int_equal(u.id, 1);
	OK(db_user_by_name(db, "\xf0\x9f\x98\x80", &u));
	assert_int_equal(u.id, 5);
	RC(db_user_by_id(db, 99, &u), DB_GONE);
	RC(db_user_by_name(db, "nobody", &u), DB_GONE);
	RC(db_user_by_name(db, "", &u), DB_GONE);
	RC(db_user_add(db, "", "h", &id), DB_BAD);
	RC(db_user_add(db, "x", "", &id), DB_BAD);
	memset(name, 'n', sizeof name);
	name[DB_NAME] = '\0';
	RC(db_user_add(db, name, "h", &id), DB_BAD);
	OK(db_user_set_password(db, 1, "other", &id));
	assert_int_equal(id, 1);
	OK(db_user_set_password(db, 1, "*", &id));
	assert_int_equal(id, 2);
	OK(db_user_by_id(db, 1, &u));
	assert_string_equal(u.hash, "*");
	assert_int_equal(u.epoch, 2);
	RC(db_user_set_password(db, 99, "x", &id), DB_GONE);
	RC(db_user_set_password(db, 1, "", &id), DB_BAD);
}

static void test_user_lists(void **state)
{
	struct db *db = *state;
	struct text t = { .len = 0 };
	int32_t ids[300];

	user_new(db, "ann");
	user_new(db, "bob");
	user_new(db, "cid");
	OK(db_user_list(db, 0, 2, person_cb, &t));
	OK(db_user_list(db, 2, 2, person_cb, &t));
	assert_string_equal(t.buf, "1=ann 2=bob 3=cid ");
	t.len = 0;
	for (int i = 0; i < 300; i++)
		ids[i] = 300 - i;
	OK(db_user_names(db, ids + 296, 3, person_cb, &t));
	assert_non_null(strstr(t.buf, "2=bob "));
	assert_non_null(strstr(t.buf, "3=cid "));
	assert_int_equal(t.len, 12);
	t.len = 0;
	OK(db_user_names(db, ids, 300, person_cb, &t));
	assert_int_equal(t.len, 18);
	t.len = 0;
	OK(db_user_names(db, ids, 0, person_cb, &t));
	assert_int_equal(t.len, 0);
}

static void test_import(void **state)
{
	enum { N = 3000 };
	struct db *db = *state;
	static struct user_import rows[N];
	static char names[N][16];
	struct user_row u;

	user_new(db, "U7");
	for (int i = 0; i < N; i++) {
		snprintf(names[i], sizeof names[i], "u%d", i);
		rows[i] = (struct user_import){ names[i], "hash", 1, 0 };
	}
	rows[8].name = "u9";		/* the first of two gets it */
	rows[20].name = "";
	rows[21].hash = "";
	OK(db_user_import(db, rows, N));
	for (int i = 0; i < N; i++)
		assert_int_equal(rows[i].rc, i == 7 || i == 9 ? DB_CONFLICT :
				 i == 20 || i == 21 ? DB_BAD : DB_OK);
	OK(db_user_by_name(db, "u2999", &u));
	assert_int_equal(u.id, 1 + N - 4);	/* sequential, none skipped */
	assert_int_equal(rows[2999].id, u.id);
	assert_int_equal(rows[0].id, 2);
	assert_int_equal(rows[8].id, 9);
	assert_int_equal(rows[9].id, 0);
	OK(db_user_import(db, rows, 100));
	assert_int_equal(rows[0].rc, DB_CONFLICT);
	OK(db_user_import(db, rows, 0));
}

static void test_friends(void **state)
{
	struct db *db = *state;
	struct text t = { .len = 0 };

	for (int i = 0; i < 5; i++)
		user_new(db, (char[]){ (char)('a' + i), '\0' });
	OK(db_friend_add(db, 1, 3, 3));
	OK(db_friend_add(db, 1, 2, 3));
	RC(db_friend_add(db, 1, 2, 3), DB_CONFLICT);
	RC(db_friend_add(db, 1, 99, 3), DB_GONE);
	RC(db_friend_add(db, 99, 1, 3), DB_GONE);
	OK(db_friend_add(db, 1, 1, 3));
	RC(db_friend_add(db, 1, 4, 3), DB_FULL);
	RC(db_friend_add(db, 1, 3, 3), DB_CONFLICT);	/* says what is so, not that it is full */
	OK(db_friend_add(db, 1, 4, 0));
	OK(db_friend_list(db, 1, 0, 3, person_cb, &t));
	OK(db_friend_list(db, 1, 3, 3, person_cb, &t));
	assert_string_equal(t.buf, "1=a 2=b 3=c 4=d ");
	t.len = 0;
	OK(db_friend_list(db, 3, 0, 9, person_cb, &t));
	assert_int_equal(t.len, 0);			/* one way */
	OK(db_friend_del(db, 1, 3));
	RC(db_friend_del(db, 1, 3), DB_GONE);
	OK(db_friend_list(db, 1, 0, 9, person_cb, &t));
	assert_string_equal(t.buf, "1=a 2=b 4=d ");
}

/* ---- groups ---- */

static void test_groups(void **state)
{
	struct db *db = *state;
	struct text t = { .len = 0 };
	struct group_row g;
	struct group_mine mine;
	int32_t id = 0;
	bool creator = false, member = false;

	for (int i = 0; i < 4; i++)
		user_new(db, (char[]){ (char)('a' + i), '\0' });
	assert_int_equal(group_new(db, 1, "Club"), 1);
	RC(db_group_create(db, 2, "cLUB", "", 0, &id), DB_CONFLICT);
	RC(db_group_create(db, 99, "x", "", 0, &id), DB_GONE);
	RC(db_group_create(db, 1, "", "", 0, &id), DB_BAD);
	RC(db_group_create(db, 1, "x", "", 1, &id), DB_FULL);
	assert_int_equal(group_new(db, 1, "\xc3\xa4"), 2);
	OK(db_group_by_name(db, "CLUB", &g));
	assert_int_equal(g.id, 1);
	assert_int_equal(g.creator, 1);
	assert_int_equal(g.members, 1);
	assert_string_equal(g.name, "Club");
	assert_string_equal(g.desc, "about");
	RC(db_group_by_id(db, 99, &g), DB_GONE);

	OK(db_group_join(db, 1, 3, 2, 3, &mine));
	assert_int_equal(mine.group.members, 2);
	assert_int_equal(mine.is_creator, false);
	RC(db_group_join(db, 1, 1, 0, 0, &mine), DB_CONFLICT);
	assert_int_equal(mine.is_creator, true);
	assert_int_equal(mine.group.members, 2);
	RC(db_group_join(db, 99, 3, 0, 0, NULL), DB_GONE);
	RC(db_group_join(db, 1, 99, 0, 0, NULL), DB_GONE);
	RC(db_group_join(db, 2, 3, 1, 0, NULL), DB_FULL);
	RC(db_group_join(db, 1, 2, 0, 2, NULL), DB_FULL);
	OK(db_group_join(db, 1, 2, 0, 3, NULL));
	OK(db_group_members(db, 1, 0, 2, member_cb, &t));
	OK(db_group_members(db, 1, 2, 2, member_cb, &t));
	assert_string_equal(t.buf, "1=a* 2=b 3=c ");
	t.len = 0;
	OK(db_group_list(db, 1, 0, 9, mine_cb, &t));
	assert_string_equal(t.buf, "1=Club/about n3* 0..0 2=\xc3\xa4/about n1* 0..0 ");
	t.len = 0;
	t.buf[0] = '\0';
	OK(db_group_list(db, 1, 2, 9, mine_cb, &t));
	assert_string_equal(t.buf, "");
	OK(db_group_is_member(db, 1, 1, &creator));
	assert_true(creator);
	OK(db_group_is_member(db, 1, 2, &creator));
	assert_false(creator);
	RC(db_group_is_member(db, 1, 4, NULL), DB_DENIED);
	RC(db_group_is_member(db, 99, 4, NULL), DB_GONE);
	OK(db_group_view(db, 1, 1, &mine, &member));
	assert_true(member && mine.is_creator);
	assert_int_equal(mine.group.members, 3);
	OK(db_group_view(db, 1, 4, &mine, &member));
	assert_false(member || mine.is_creator);
	RC(db_group_view(db, 99, 4, &mine, &member), DB_GONE);
}

static void test_group_end(void **state)
{
	struct db *db = *state;
	struct group_row g;
	struct text t = { .len = 0 };
	bool dissolved = true;

	for (int i = 0; i < 3; i++)
		user_new(db, (char[]){ (char)('a' + i), '\0' });
	group_new(db, 1, "club");
	join(db, 1, 2);
	RC(db_group_leave(db, 1, 3, &dissolved), DB_DENIED);
	RC(db_group_leave(db, 99, 3, &dissolved), DB_GONE);
	RC(db_group_dissolve(db, 1, 2), DB_DENIED);
	RC(db_group_dissolve(db, 1, 3), DB_DENIED);
	OK(db_group_leave(db, 1, 2, &dissolved));
	assert_false(dissolved);
	RC(db_group_leave(db, 1, 2, &dissolved), DB_DENIED);
	OK(db_group_by_id(db, 1, &g));
	assert_int_equal(g.members, 1);
	join(db, 1, 2);
	OK(db_group_leave(db, 1, 1, &dissolved));
	assert_true(dissolved);
	RC(db_group_by_id(db, 1, &g), DB_GONE);
	RC(db_group_by_name(db, "club", &g), DB_GONE);
	RC(db_group_join(db, 1, 3, 0, 0, NULL), DB_GONE);
	RC(db_group_leave(db, 1, 2, &dissolved), DB_GONE);
	RC(db_group_is_member(db, 1, 2, NULL), DB_GONE);
	OK(db_group_list(db, 2, 0, 9, mine_cb, &t));
	assert_int_equal(t.len, 0);
	assert_int_equal(group_new(db, 2, "Club"), 2);	/* the name is free, the number is not */
	RC(db_group_dissolve(db, 2, 1), DB_DENIED);
	OK(db_group_dissolve(db, 2, 2));
}

static void post(struct db *db, int32_t group, int32_t sender, unsigned mid, const char *body,
		 int want, int64_t number)
{
	struct db_post p = { .group = group, .sender = sender, .ts = 1000 + mid, .body = body,
			     .len = strlen(body) };

	mid_make(p.mid, mid);
	OK(db_post_add(db, &p, 1));
	RC(p.rc, want);
	if (want == DB_OK)
		assert_int_equal(p.number, number);
}

static void test_user_del(void **state)
{
	struct db *db = *state;
	struct db_offline m = { .user = 1, .sender = 2, .body = "x", .len = 1 };
	struct text t = { .len = 0 };
	struct user_row u;
	struct group_row g;
	bool more = true;

	user_new(db, "ann");
	user_new(db, "bob");
	OK(db_friend_add(db, 1, 2, 0));
	OK(db_friend_add(db, 2, 1, 0));
	group_new(db, 1, "of ann");
	group_new(db, 2, "of bob");
	join(db, 1, 2);
	join(db, 2, 1);
	post(db, 1, 1, 1, "a", DB_OK, 1);
	post(db, 2, 2, 2, "b", DB_OK, 1);	/* ann has not received it: her stay would be kept */
	OK(db_offline_add(db, &m, 1, 0));
	OK(db_user_del(db, 1));
	RC(db_user_del(db, 1), DB_GONE);
	RC(db_user_by_id(db, 1, &u), DB_GONE);
	RC(db_group_by_id(db, 1, &g), DB_GONE);
	OK(db_group_by_id(db, 2, &g));
	assert_int_equal(g.members, 1);
	OK(db_friend_list(db, 2, 0, 9, person_cb, &t));
	OK(db_offline_load(db, 1, 0, 9, 999, message_cb, &t, &more));
	OK(db_backlog(db, 1, 0, 9, backlog_cb, &t));
	assert_int_equal(t.len, 0);
	OK(db_backlog(db, 2, 0, 9, backlog_cb, &t));	/* bob still gets what ann had said */
	assert_string_equal(t.buf, "1 left 0..1 2 0..1 ");
	assert_int_equal(user_new(db, "ann"), 3);
}

/* ---- messages to persons ---- */

static void offline_fill(struct db_offline *m, int32_t user, unsigned mid, const char *body)
{
	*m = (struct db_offline){ .user = user, .sender = 9, .ts = 1700000000000 + mid, .body = body,
				  .len = strlen(body), .rc = 1 };
	mid_make(m->mid, mid);
}

static void check_cb(void *arg, const struct db_message *m)
{
	unsigned *next = arg, mid;
	size_t want = *next % 7 * 10000;

	memcpy(&mid, m->mid, sizeof mid);
	assert_int_equal(mid, *next);
	assert_int_equal(m->ts, 1700000000000 + (int64_t)mid);
	assert_int_equal(m->sender, 9);
	assert_int_equal(m->len, want);
	for (size_t i = 0; i < m->len; i++)
		assert_int_equal(((const unsigned char *)m->body)[i], (i * 31 + mid) & 255);
	*next += 3;
}

/* Every byte value, sizes from nothing to 60,000, three recipients mixed: order and content. */
static void test_offline_order(void **state)
{
	enum { N = 150 };
	struct db *db = *state;
	static struct db_offline rows[N];
	bool more = true;

	for (unsigned i = 0; i < N; i++) {
		unsigned char *body = malloc(60001);

		for (size_t k = 0; k < 60000; k++)
			body[k] = (unsigned char)(k * 31 + i);
		offline_fill(&rows[i], 1 + (int32_t)(i % 3), i, "");
		rows[i].body = body;
		rows[i].len = i % 7 * 10000;
	}
	OK(db_offline_add(db, rows, N, 1000));
	for (unsigned u = 0; u < 3; u++) {
		unsigned next = u;

		OK(db_offline_load(db, 1 + (int32_t)u, 0, 1000, SIZE_MAX, check_cb, &next, &more));
		assert_int_equal(next, N + u);
		assert_false(more);
	}
	for (unsigned i = 0; i < N; i++) {
		RC(rows[i].rc, DB_OK);
		free((void *)(uintptr_t)rows[i].body);
	}
}

static void test_offline_quota(void **state)
{
	struct db *db = *state;
	struct db_offline rows[7];
	struct text t = { .len = 0 };
	bool more = true;

	offline_fill(&rows[0], 1, 1, "a");
	offline_fill(&rows[1], 2, 1, "x");
	offline_fill(&rows[2], 1, 2, "b");
	offline_fill(&rows[3], 1, 1, "again");		/* twice in the batch */
	offline_fill(&rows[4], 1, 3, "c");
	offline_fill(&rows[5], 1, 4, "d");
	offline_fill(&rows[6], 2, 2, "y");
	OK(db_offline_add(db, rows, 7, 3));
	for (int i = 0; i < 7; i++)
		RC(rows[i].rc, i == 5 ? DB_FULL : DB_OK);
	OK(db_offline_load(db, 1, 0, 9, 999, message_cb, &t, &more));
	OK(db_offline_load(db, 2, 0, 9, 999, message_cb, &t, &more));
	assert_string_equal(t.buf, "a<9 b<9 c<9 x<9 y<9 ");
	/* full; but what is there already is no new message */
	OK(db_offline_add(db, rows, 7, 3));
	for (int i = 0; i < 7; i++)
		RC(rows[i].rc, i == 5 ? DB_FULL : DB_OK);
	OK(db_offline_add(db, rows, 7, 0));
	RC(rows[5].rc, DB_OK);
	t.len = 0;
	OK(db_offline_load(db, 1, 0, 9, 999, message_cb, &t, &more));
	assert_string_equal(t.buf, "a<9 b<9 c<9 d<9 ");
	/* to the brim, and one above */
	for (unsigned i = 0; i < 7; i++)
		offline_fill(&rows[i], i < 3 ? 5 : 6, i, "z");
	OK(db_offline_add(db, rows, 7, 3));
	for (int i = 0; i < 7; i++)
		RC(rows[i].rc, i == 6 ? DB_FULL : DB_OK);
}

struct rows { int64_t row[64]; int n; };

static void rows_cb(void *arg, const struct db_message *m)
{
	struct rows *r = arg;

	assert_true(r->n < 64);
	r->row[r->n++] = m->row;
}

static void test_offline_load_del(void **state)
{
	struct db *db = *state;
	struct db_offline rows[40];
	struct db_offline_key keys[10];
	struct db_offline_mid mids[3];
	struct rows got = { .n = 0 };
	struct text t = { .len = 0 };
	bool more = false;

	for (unsigned i = 0; i < 40; i++)
		offline_fill(&rows[i], 1 + (int32_t)(i & 1), i, "0123456789");
	OK(db_offline_add(db, rows, 40, 0));
	OK(db_offline_load(db, 1, 0, 7, 9999, rows_cb, &got, &more));
	assert_int_equal(got.n, 7);
	assert_true(more);
	OK(db_offline_load(db, 1, got.row[6], 13, 9999, rows_cb, &got, &more));
	assert_int_equal(got.n, 20);
	assert_false(more);			/* exactly all: no more */
	for (int i = 1; i < 20; i++)
		assert_true(got.row[i] > got.row[i - 1]);
	got.n = 0;
	OK(db_offline_load(db, 1, 0, 20, 25, rows_cb, &got, &more));
	assert_int_equal(got.n, 3);		/* 30 bytes: the limit is reached by the third */
	assert_true(more);
	got.n = 0;
	OK(db_offline_load(db, 1, 0, 20, 1, rows_cb, &got, &more));
	assert_int_equal(got.n, 1);

	got.n = 0;
	OK(db_offline_load(db, 1, 0, 20, 9999, rows_cb, &got, &more));
	for (int i = 0; i < 10; i++)
		keys[i] = (struct db_offline_key){ i == 9 ? 2 : 1, got.row[i] };
	OK(db_offline_del(db, keys, 10));
	OK(db_offline_del(db, keys, 10));
	got.n = 0;
	OK(db_offline_load(db, 1, 0, 20, 9999, rows_cb, &got, &more));
	assert_int_equal(got.n, 11);		/* row 9 was named with another's user */
	assert_int_equal(got.row[0], keys[9].row);
	mids[0].user = 1;
	mid_make(mids[0].mid, 38);
	mids[1].user = 1;
	mid_make(mids[1].mid, 39);		/* is user 2's */
	mids[2].user = 7;
	mid_make(mids[2].mid, 38);
	OK(db_offline_del_mid(db, mids, 3));
	got.n = 0;
	OK(db_offline_load(db, 1, 0, 20, 9999, rows_cb, &got, &more));
	assert_int_equal(got.n, 10);
	OK(db_offline_load(db, 2, 0, 99, 9999, rows_cb, &got, &more));
	assert_int_equal(got.n, 30);
	OK(db_offline_load(db, 3, 0, 99, 9999, message_cb, &t, &more));
	assert_int_equal(t.len, 0);
	assert_false(more);
	/* a number is never given again */
	OK(db_offline_add(db, rows, 1, 0));
	t.len = 0;
	got.n = 0;
	OK(db_offline_load(db, 1, 0, 99, 9999, rows_cb, &got, &more));
	assert_true(got.row[10] > keys[9].row + 20);
}

static void test_offline_bad_row(void **state)
{
	struct db *db = *state;
	struct db_offline rows[5];
	struct text t = { .len = 0 };
	bool more;
	char *big = calloc(1, DB_BODY_MAX + 1);

	for (unsigned i = 0; i < 5; i++)
		offline_fill(&rows[i], 1, i, "ok");
	rows[2].body = big;
	rows[2].len = DB_BODY_MAX + 1;
	OK(db_offline_add(db, rows, 5, 0));
	for (int i = 0; i < 5; i++)
		RC(rows[i].rc, i == 2 ? DB_BAD : DB_OK);
	OK(db_offline_load(db, 1, 0, 99, 9999, message_cb, &t, &more));
	assert_string_equal(t.buf, "ok<9 ok<9 ok<9 ok<9 ");
	rows[2].len = DB_BODY_MAX;
	OK(db_offline_add(db, rows, 5, 0));
	RC(rows[2].rc, DB_OK);
	free(big);
}

/* ---- messages to groups ---- */

static void test_posts(void **state)
{
	struct db *db = *state;
	struct db_post rows[9];
	struct text t = { .len = 0 };
	bool more = true;

	for (int i = 0; i < 3; i++)
		user_new(db, (char[]){ (char)('a' + i), '\0' });
	group_new(db, 1, "one");
	group_new(db, 1, "two");
	group_new(db, 1, "old");
	join(db, 1, 2);
	OK(db_group_dissolve(db, 3, 1));
	for (unsigned i = 0; i < 9; i++) {
		rows[i] = (struct db_post){ .group = 2 - (int32_t)(i & 1), .sender = 1, .ts = i,
					    .body = &"abcdefghi"[i], .len = 1, .rc = 1 };
		mid_make(rows[i].mid, i);
	}
	rows[3].sender = 2;
	rows[4].sender = 2;			/* no member of two */
	rows[5].group = 3;			/* dissolved */
	rows[6].group = 99;
	mid_make(rows[8].mid, 0);		/* the first again */
	OK(db_post_add(db, rows, 9));
	RC(rows[4].rc, DB_DENIED);
	RC(rows[5].rc, DB_GONE);
	RC(rows[6].rc, DB_GONE);
	RC(rows[8].rc, DB_OK);
	assert_int_equal(rows[0].number, 1);	/* two: 0 2, one: 1 3 7 */
	assert_int_equal(rows[2].number, 2);
	assert_int_equal(rows[1].number, 1);
	assert_int_equal(rows[3].number, 2);
	assert_int_equal(rows[7].number, 3);
	assert_int_equal(rows[8].number, 1);
	assert_true(rows[0].fresh && rows[7].fresh && !rows[8].fresh);
	OK(db_post_load(db, 1, 0, 99, 99, 999, number_cb, &t, &more));
	assert_string_equal(t.buf, "1:b 2:d 3:h ");
	assert_false(more);
	t.len = 0;
	OK(db_post_load(db, 1, 1, 2, 99, 999, number_cb, &t, &more));
	assert_string_equal(t.buf, "2:d ");
	assert_false(more);
	t.len = 0;
	OK(db_post_load(db, 1, 0, 99, 2, 999, number_cb, &t, &more));
	assert_string_equal(t.buf, "1:b 2:d ");
	assert_true(more);
	/* all again: the same numbers, nothing new; also for one who left meanwhile */
	OK(db_group_leave(db, 1, 2, &more));
	mid_make(rows[8].mid, 100);
	OK(db_post_add(db, rows, 9));
	for (int i = 0; i < 8; i++)
		assert_false(rows[i].fresh);
	RC(rows[3].rc, DB_OK);
	assert_int_equal(rows[3].number, 2);
	assert_true(rows[8].fresh);
	assert_int_equal(rows[8].number, 3);
	t.len = 0;
	OK(db_group_heads(db, (int32_t[]){ 1 }, 1, head_cb, &t));
	OK(db_group_heads(db, (int32_t[]){ 2, 3, 99 }, 3, head_cb, &t));
	assert_string_equal(t.buf, "1=3 2=3 ");
}

static void test_posts_many(void **state)
{
	enum { N = 777 };
	struct db *db = *state;
	static struct db_post rows[N];
	static char big[70000];

	user_new(db, "a");
	for (int g = 0; g < 100; g++) {
		char name[16];

		snprintf(name, sizeof name, "g%d", g);
		group_new(db, 1, name);
	}
	for (unsigned i = 0; i < N; i++) {
		rows[i] = (struct db_post){ .group = 100 - (int32_t)(i % 100), .sender = 1,
					    .body = big, .len = i % 50 == 0 ? sizeof big : 10 };
		mid_make(rows[i].mid, i);
	}
	OK(db_post_add(db, rows, N));
	for (unsigned i = 0; i < N; i++) {
		RC(rows[i].rc, DB_OK);
		assert_int_equal(rows[i].number, i / 100 + 1);
		assert_true(rows[i].fresh);
	}
	OK(db_post_add(db, rows, N));
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(rows[i].number, i / 100 + 1);
		assert_false(rows[i].fresh);
	}
}

static void backlog_is(struct db *db, int32_t user, int64_t since, const char *want)
{
	struct text t = { .len = 0 };

	t.buf[0] = '\0';
	OK(db_backlog(db, user, since, 99, backlog_cb, &t));
	assert_string_equal(t.buf, want);
}

static void cursor(struct db *db, int32_t group, int32_t user, int64_t number)
{
	struct db_cursor c = { group, user, number };

	OK(db_cursor_set(db, &c, 1));
}

static void test_cursors(void **state)
{
	struct db *db = *state;
	struct db_cursor many[200];
	bool dissolved;

	for (int i = 0; i < 3; i++)
		user_new(db, (char[]){ (char)('a' + i), '\0' });
	group_new(db, 1, "one");
	group_new(db, 1, "two");
	join(db, 1, 2);
	for (unsigned i = 1; i <= 4; i++)
		post(db, 1, 1, i, "x", DB_OK, i);
	join(db, 1, 3);				/* begins at the head */
	backlog_is(db, 3, 0, "");
	backlog_is(db, 2, 0, "1 0..4 ");
	cursor(db, 1, 2, 3);
	backlog_is(db, 2, 0, "1 3..4 ");
	cursor(db, 1, 2, 1);			/* never back */
	backlog_is(db, 2, 0, "1 3..4 ");
	cursor(db, 2, 2, 3);			/* no member: nothing */
	/* leaves with one to come, comes back: two stays */
	OK(db_group_leave(db, 1, 2, &dissolved));
	backlog_is(db, 2, 0, "1 left 3..4 ");
	post(db, 1, 1, 5, "y", DB_OK, 5);
	join(db, 1, 2);
	post(db, 1, 1, 6, "z", DB_OK, 6);
	backlog_is(db, 2, 0, "1 left 3..4 1 5..6 ");
	cursor(db, 1, 2, 6);			/* is no word about the first stay */
	backlog_is(db, 2, 0, "1 left 3..4 ");
	backlog_is(db, 2, INT64_MAX, "");	/* its time is over */
	cursor(db, 1, 2, 4);
	backlog_is(db, 2, 0, "");
	/* both at once, with repeats */
	OK(db_group_leave(db, 1, 2, &dissolved));
	post(db, 1, 1, 7, "7", DB_OK, 7);
	for (int i = 0; i < 200; i++)
		many[i] = (struct db_cursor){ 1, 1 + i % 3, 1 + i % 7 };
	OK(db_cursor_set(db, many, 200));
	backlog_is(db, 1, 0, "");
	backlog_is(db, 3, 0, "");
	post(db, 2, 1, 1, "x", DB_OK, 1);
	post(db, 2, 1, 2, "x", DB_OK, 2);
	many[0] = (struct db_cursor){ 2, 1, 2 };
	many[1] = (struct db_cursor){ 2, 1, 1 };
	OK(db_cursor_set(db, many, 2));
	backlog_is(db, 1, 0, "");
	/* dissolved with something to come */
	post(db, 1, 3, 8, "8", DB_OK, 8);
	cursor(db, 1, 3, 8);
	OK(db_group_dissolve(db, 1, 1));
	backlog_is(db, 1, 0, "1 left 7..8 ");
	backlog_is(db, 3, 0, "");
	post(db, 1, 1, 9, "9", DB_GONE, 0);
	post(db, 1, 1, 8, "8", DB_OK, 8);	/* known: a resend is answered all the same */
}

static int purge_all(struct db *db, int64_t left_before, int64_t stored_before, int limit)
{
	struct db_purge p = { left_before, stored_before, limit, 0 };
	int calls = 0;
	bool more = true;

	for (; more && calls < 1000; calls++)
		OK(db_post_purge(db, &p, &more));
	assert_false(more);
	return calls;
}

static void numbers_are(struct db *db, int32_t group, const char *want)
{
	struct text t = { .len = 0 };
	bool more;

	t.buf[0] = '\0';
	OK(db_post_load(db, group, 0, 999, 999, 9999, number_cb, &t, &more));
	assert_string_equal(t.buf, want);
}

static int64_t value(struct db *db, const struct db_query *q);

static void test_purge(void **state)
{
	static const struct db_query q_groups = DB_SAME("SELECT COUNT(*) FROM AllGroup");
	struct db *db = *state;
	bool dissolved;

	for (int i = 0; i < 3; i++)
		user_new(db, (char[]){ (char)('a' + i), '\0' });
	group_new(db, 1, "one");
	group_new(db, 1, "two");
	join(db, 1, 2);
	join(db, 2, 3);
	for (unsigned i = 1; i <= 6; i++)
		post(db, 1, 1, i, "x", DB_OK, i);
	for (unsigned i = 1; i <= 3; i++)
		post(db, 2, 1, i, "x", DB_OK, i);
	cursor(db, 1, 1, 6);
	cursor(db, 1, 2, 4);
	purge_all(db, 0, 1003, 100);		/* ts of post i is 1000 + i */
	numbers_are(db, 1, "3:x 4:x 5:x 6:x ");
	numbers_are(db, 2, "1:x 2:x 3:x ");
	assert_true(purge_all(db, 0, INT64_MAX, 1) > 2);	/* a piece at a time */
	numbers_are(db, 1, "5:x 6:x ");
	numbers_are(db, 2, "1:x 2:x 3:x ");
	/* left with two to come: they stay until the stay's time is over */
	OK(db_group_leave(db, 1, 2, &dissolved));
	purge_all(db, 0, INT64_MAX, 100);
	numbers_are(db, 1, "5:x 6:x ");
	purge_all(db, INT64_MAX, INT64_MAX, 100);
	numbers_are(db, 1, "");
	backlog_is(db, 2, 0, "");
	post(db, 1, 1, 7, "x", DB_OK, 7);	/* numbers go on */
	/* dissolved: kept for those who wait, then forgotten */
	OK(db_group_dissolve(db, 2, 1));
	purge_all(db, 0, INT64_MAX, 100);
	numbers_are(db, 2, "1:x 2:x 3:x ");
	cursor(db, 2, 1, 3);
	cursor(db, 2, 3, 3);
	assert_int_equal(value(db, &q_groups), 2);
	purge_all(db, 0, INT64_MAX, 100);
	numbers_are(db, 2, "");
	assert_int_equal(value(db, &q_groups), 1);
	post(db, 2, 1, 1, "x", DB_GONE, 0);
	assert_int_equal(group_new(db, 1, "two"), 3);
}

/* ---- several writers ---- */

enum { WRITERS = 3, ROUNDS = 30, BATCH = 20 };

static int poster(int me)
{
	struct db *db = env_open(NULL);

	for (unsigned r = 0; r < ROUNDS; r++) {
		struct db_post rows[BATCH];

		for (unsigned i = 0; i < BATCH; i++) {
			rows[i] = (struct db_post){ .group = 1 + (int32_t)((r + i) % 2), .sender = 1,
						    .ts = me, .body = "x", .len = 1 };
			mid_make(rows[i].mid, (unsigned)me << 16 | r << 8 | i);
		}
		if (db_post_add(db, rows, BATCH) != DB_OK || rows[BATCH - 1].rc != DB_OK)
			return 1;
	}
	db_close(db);
	return 0;
}

struct sequence { int64_t last; int count; };

static void sequence_cb(void *arg, const struct db_message *m)
{
	struct sequence *s = arg;

	assert_int_equal(m->row, s->last + 1);
	s->last = m->row;
	s->count++;
}

static int reader_or_poster(int me)
{
	struct sequence s = { 0, 0 };
	struct db *db;
	bool more;

	if (me < WRITERS)
		return poster(me);
	/* Follows group 1 while it grows: a gap that is filled later would be seen here. */
	db = env_open(NULL);
	for (int tries = 0; s.count < WRITERS * ROUNDS * BATCH / 2 && tries < 200000; tries++)
		if (db_post_load(db, 1, s.last, INT64_MAX, 1000, SIZE_MAX, sequence_cb, &s, &more) != DB_OK)
			return 2;
	db_close(db);
	return s.count == WRITERS * ROUNDS * BATCH / 2 ? 0 : 3;
}

static void test_writers_numbers(void **state)
{
	struct db *db = *state;
	struct text t = { .len = 0 };

	user_new(db, "a");
	group_new(db, 1, "one");
	group_new(db, 1, "two");
	db_disconnect(db);
	env_fork(WRITERS + 1, reader_or_poster);
	OK(db_group_heads(db, (int32_t[]){ 1 }, 1, head_cb, &t));
	OK(db_group_heads(db, (int32_t[]){ 2 }, 1, head_cb, &t));
	assert_string_equal(t.buf, "1=900 2=900 ");
}

/* Every operation that locks more than a row, all over each other. */
static int mixer(int me)
{
	struct db *db = env_open(NULL);
	bool flag;

	for (unsigned r = 0; r < 40; r++) {
		struct db_offline rows[8];
		struct db_cursor c[4];
		int32_t g = 1 + (int32_t)(r % 2), u = 2 + me, id;
		int rc;

		for (unsigned i = 0; i < 8; i++) {
			offline_fill(&rows[i], 1 + (int32_t)((i + (unsigned)me) % 4), r << 8 | i, "m");
			if (i < 4)
				c[i] = (struct db_cursor){ 1 + (int32_t)(i % 2), 1 + (int32_t)(i / 2), r };
		}
		rc = db_group_join(db, g, u, 0, 0, NULL);
		if (rc == DB_OK || rc == DB_CONFLICT)
			rc = db_offline_add(db, rows, 8, 1000);
		if (rc == DB_OK)
			rc = db_cursor_set(db, c, 4);
		if (rc == DB_OK)
			rc = db_group_leave(db, g, u, &flag);
		if (rc == DB_OK)
			rc = db_friend_add(db, u, 1, 0);
		if (rc == DB_OK)
			rc = db_friend_del(db, u, 1);
		if (rc == DB_OK)
			rc = db_user_set_password(db, 1, "h", &id);
		if (rc != DB_OK) {
			fprintf(stderr, "writer %d: %s: %s\n", me, db_rc_name(rc), db_errmsg(db));
			return 1;
		}
	}
	db_close(db);
	return 0;
}

static void test_writers_mixed(void **state)
{
	struct db *db = *state;
	struct text t = { .len = 0 };
	struct rows got = { .n = 0 };
	bool more;

	for (int i = 0; i < 4; i++)
		user_new(db, (char[]){ (char)('a' + i), '\0' });
	group_new(db, 1, "one");
	group_new(db, 1, "two");
	db_disconnect(db);
	env_fork(3, mixer);
	OK(db_group_list(db, 1, 0, 9, mine_cb, &t));
	assert_string_equal(t.buf, "1=one/about n1* 39..0 2=two/about n1* 39..0 ");
	OK(db_offline_load(db, 1, 0, 60, SIZE_MAX, rows_cb, &got, &more));
	assert_true(more);			/* all three wrote the same mids: none is doubled */
}

/* All register the same names at once: each is given once, and nobody sees an error. */
static int importer(int me)
{
	enum { N = 60 };
	struct db *db = env_open(NULL);
	char names[N][16];

	for (int round = 0; round < 20; round++) {
		struct user_import rows[N];

		for (int i = 0; i < N; i++) {
			snprintf(names[i], sizeof names[i], "r%dn%d", round, me & 1 ? i : N - 1 - i);
			rows[i] = (struct user_import){ names[i], "h", 0, 0 };
		}
		if (db_user_import(db, rows, N) != DB_OK) {
			fprintf(stderr, "importer: %s\n", db_errmsg(db));
			return 1;
		}
		for (int i = 0; i < N; i++)
			if (rows[i].rc != DB_OK && rows[i].rc != DB_CONFLICT)
				return 2;
	}
	db_close(db);
	return 0;
}

static void test_writers_import(void **state)
{
	static const struct db_query q_users = DB_SAME("SELECT COUNT(*) FROM User");
	struct db *db = *state;

	db_disconnect(db);
	env_fork(3, importer);
	assert_int_equal(value(db, &q_users), 20 * 60);
}

/* ---- trouble ---- */

static void file_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT, 0600);

	assert_true(fd >= 0);
	for (int i = 0; i < 300; i++)
		assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

static void test_lite_garbage(void **state)
{
	struct db *db = *state;
	char path[600], kept[610], side[610];
	struct user_row u;

	user_new(db, "ann");
	db_disconnect(db);			/* the WAL goes into the file */
	RC(db_user_by_id(db, 1, &u), DB_OK);
	snprintf(path, sizeof path, "%s", env_url + strlen("sqlite:"));
	snprintf(kept, sizeof kept, "%s.kept", path);
	/* moved away under an open connection: never writes into the void */
	assert_int_equal(rename(path, kept), 0);
	RC(db_user_set_password(db, 1, "x", &u.id), DB_DOWN);
	RC(db_user_by_id(db, 1, &u), DB_DOWN);
	db_disconnect(db);
	snprintf(side, sizeof side, "%s-wal", path);
	unlink(side);
	snprintf(side, sizeof side, "%s-shm", path);
	unlink(side);
	file_write(path, "this is no database at all. ");
	RC(db_user_by_id(db, 1, &u), DB_BAD);
	assert_non_null(strstr(db_errmsg(db), "not a database"));
	RC(db_migrate(db), DB_BAD);
	RC(db_ping(db), DB_BAD);
	assert_int_equal(rename(kept, path), 0);
	OK(db_user_by_id(db, 1, &u));		/* mended: goes on by itself */
	assert_string_equal(u.name, "ann");
}

static void test_lite_absent(void **state)
{
	struct db *db = *state, *other;
	struct stat sb;
	struct user_row u;
	char url[600];

	snprintf(url, sizeof url, "%s.absent", env_url);
	assert_int_equal(db_open(url, NULL, &other, NULL, 0), DB_OK);
	RC(db_user_by_id(other, 1, &u), DB_DOWN);	/* only migrating creates */
	assert_int_not_equal(stat(url + strlen("sqlite:"), &sb), 0);
	OK(db_migrate(other));
	RC(db_user_by_id(other, 1, &u), DB_GONE);
	assert_int_equal(stat(url + strlen("sqlite:"), &sb), 0);
	assert_int_equal(sb.st_mode & 0007, 0);		/* hashes are nobody else's business */
	db_close(other);
	assert_int_equal(db_open("sqlite:/nonexistent/x.db", NULL, &other, NULL, 0), DB_OK);
	RC(db_migrate(other), DB_DOWN);
	db_close(other);
}

static int hold_fn(struct db *db, void *arg)
{
	struct db_options opt = { .busy_ms = 100 };
	struct db *other = env_open(&opt);
	int32_t id;

	(void)arg;
	assert_int_equal(db_user_add(other, "late", "h", &id), DB_BUSY);
	db_close(other);
	return db_fail(db, DB_DENIED, "done");
}

static void test_lite_busy(void **state)
{
	struct db *db = *state;

	RC(db_run(db, DB_WRITE, hold_fn, NULL), DB_DENIED);
	assert_int_equal(user_new(db, "late"), 1);
}

static int killed_writer(int me)
{
	struct db *db = env_open(NULL);

	(void)me;
	for (unsigned r = 0;; r++) {
		struct db_offline rows[20];

		for (unsigned i = 0; i < 20; i++)
			offline_fill(&rows[i], 1, r * 20 + i, "m");
		if (db_offline_add(db, rows, 20, 0) != DB_OK)
			return 1;
	}
}

static void count_cb(void *arg, const struct db_message *m)
{
	(void)m;
	++*(int *)arg;
}

/* A writer killed anywhere leaves whole batches, and nobody locked out. */
static void test_lite_kill(void **state)
{
	struct db *db = *state;

	db_disconnect(db);
	for (int i = 0; i < 10; i++) {
		struct timespec ts = { 0, 15 * 1000000 };
		pid_t pid = fork();
		int stored = 0;
		bool more;

		if (pid == 0)
			_exit(killed_writer(0));
		nanosleep(&ts, NULL);		/* any moment will do */
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) != pid)
			;
		OK(db_offline_load(db, 1, 0, 1000000, SIZE_MAX, count_cb, &stored, &more));
		assert_int_equal(stored % 20, 0);
		db_disconnect(db);
	}
}

static void test_lite_options(void **state)
{
	struct db *db = *state;
	struct db_options opt = { .sync_normal = true };
	struct db *other = env_open(&opt);
	struct text t = { .len = 0 };

	OK(db_warnings(other, warn_cb, &t));
	assert_non_null(strstr(t.buf, "NORMAL"));
	db_close(other);
}

static void test_my_restart(void **state)
{
	struct db *db = *state;
	struct db_offline m;
	struct user_row u;
	struct timespec a, b;

	if (!env_server_mine())
		skip();
	user_new(db, "ann");
	env_server_kill();
	clock_gettime(CLOCK_MONOTONIC, &a);
	RC(db_user_by_id(db, 1, &u), DB_DOWN);
	RC(db_user_by_id(db, 1, &u), DB_DOWN);
	offline_fill(&m, 1, 1, "m");
	RC(db_offline_add(db, &m, 1, 0), DB_DOWN);
	RC(m.rc, DB_DOWN);
	clock_gettime(CLOCK_MONOTONIC, &b);
	assert_true(b.tv_sec - a.tv_sec < 3);
	env_server_again();
	OK(db_user_by_id(db, 1, &u));		/* reopened and prepared anew */
	assert_string_equal(u.name, "ann");
	OK(db_offline_add(db, &m, 1, 0));
}

static void test_my_frozen(void **state)
{
	struct db_options opt = { .io_ms = 1000, .connect_ms = 1000 };
	struct db *db = *state, *other;
	struct user_row u;
	struct timespec a, b;
	int rc, stopped = 0;

	if (!env_server_mine())
		skip();
	user_new(db, "ann");
	other = env_open(&opt);
	RC(db_user_by_id(other, 1, &u), DB_OK);
	kill(env_server_pid(), SIGSTOP);
	assert_int_equal(waitpid(env_server_pid(), &stopped, WUNTRACED), env_server_pid());
	clock_gettime(CLOCK_MONOTONIC, &a);
	rc = db_user_by_id(other, 1, &u);
	clock_gettime(CLOCK_MONOTONIC, &b);
	kill(env_server_pid(), SIGCONT);
	assert_true(WIFSTOPPED(stopped));	/* all its threads */
	assert_int_equal(rc, DB_DOWN);
	assert_true(b.tv_sec - a.tv_sec < 6);
	RC(db_user_by_id(other, 1, &u), DB_OK);
	db_close(other);
}

struct streamer { struct db *db; atomic_int stored; int rc; };

/* Stores numbered messages in batches until one fails. */
static void *stream_main(void *arg)
{
	enum { N = 20 };
	struct streamer *s = arg;
	struct db_offline m[N];

	s->rc = db_thread_init();
	while (s->rc == DB_OK) {
		unsigned at = (unsigned)atomic_load(&s->stored);

		for (unsigned i = 0; i < N; i++)
			offline_fill(&m[i], 1, at + i, "x");
		s->rc = db_offline_add(s->db, m, N, 0);
		if (s->rc == DB_OK)
			atomic_fetch_add(&s->stored, N);
	}
	db_thread_end();
	return NULL;
}

static void ascending_cb(void *arg, const struct db_message *m)
{
	int64_t *seen = arg;			/* the last number, and how many */
	unsigned mid;

	memcpy(&mid, m->mid, sizeof mid);
	assert_true((int64_t)mid > seen[0]);
	seen[0] = mid;
	seen[1]++;
}

/* A batch that the server was frozen with is there before what was written later, or never. */
static void test_my_frozen_write(void **state)
{
	struct db_options opt = { .io_ms = 1000, .connect_ms = 1000 };
	struct db *db = *state;
	struct db_offline newer;
	struct timespec ts = { 0, 200 * 1000000 };

	if (!env_server_mine())
		skip();
	for (int round = 0; round < 3; round++) {
		struct streamer s = { .db = env_open(&opt), .stored = round * 1000000 };
		int64_t seen[2] = { -1, 0 }, again[2] = { -1, 0 };
		int stopped = 0;
		pthread_t t;
		bool more;

		assert_int_equal(pthread_create(&t, NULL, stream_main, &s), 0);
		while (atomic_load(&s.stored) < round * 1000000 + 100 + 20 * round)
			sched_yield();
		kill(env_server_pid(), SIGSTOP);
		assert_int_equal(waitpid(env_server_pid(), &stopped, WUNTRACED), env_server_pid());
		pthread_join(t, NULL);
		kill(env_server_pid(), SIGCONT);
		assert_true(s.rc == DB_DOWN || s.rc == DB_UNSURE);
		offline_fill(&newer, 1, (unsigned)round * 1000000 + 999999, "newer");
		assert_int_equal(db_offline_add(s.db, &newer, 1, 0), DB_OK);
		OK(db_offline_load(db, 1, 0, 100000, SIZE_MAX, ascending_cb, seen, &more));
		nanosleep(&ts, NULL);		/* for whoever is late */
		OK(db_offline_load(db, 1, 0, 100000, SIZE_MAX, ascending_cb, again, &more));
		assert_int_equal(seen[0], round * 1000000 + 999999);
		assert_int_equal(seen[1], again[1]);
		db_close(s.db);
	}
}

/* An idle link that the server hung up is nothing that a caller should hear of. */
static int timeout_fn(struct db *db, void *arg)
{
	return db->eng->exec(db, arg);
}

static void test_my_idle(void **state)
{
	struct db *db = *state;
	struct timespec ts = { 0, 50 * 1000000 };
	struct user_row u;
	int32_t id;

	user_new(db, "ann");
	for (int write = 0; write < 2; write++) {
		OK(db_run(db, DB_READ, timeout_fn, (char[]){ "SET SESSION wait_timeout = 1" }));
		for (int i = 0; i < 30; i++)	/* no event says that the server has hung up */
			nanosleep(&ts, NULL);
		if (write)
			OK(db_user_set_password(db, 1, "x", &id));
		else
			OK(db_user_by_id(db, 1, &u));
	}
}

struct crosser { struct db *db; pthread_barrier_t *both; int64_t first, second; int runs, rc; };

static int cross_fn(struct db *db, void *arg)
{
	static const struct db_query touch = DB_SAME("UPDATE User SET epoch = epoch + 1 WHERE id = ?");
	struct crosser *c = arg;
	int rc = db_exec_ids(db, &touch, 1, &c->first, NULL);

	if (c->runs++ == 0)
		pthread_barrier_wait(c->both);		/* each has what the other wants */
	return rc == DB_OK ? db_exec_ids(db, &touch, 1, &c->second, NULL) : rc;
}

static void *cross_main(void *arg)
{
	struct crosser *c = arg;

	c->rc = db_thread_init();
	if (c->rc == DB_OK)
		c->rc = db_run(c->db, DB_WRITE, cross_fn, c);
	db_thread_end();
	return NULL;
}

static void test_my_deadlock(void **state)
{
	struct db *db = *state;
	struct crosser c[2];
	pthread_barrier_t both;
	pthread_t t[2];
	struct user_row u;

	user_new(db, "a");
	user_new(db, "b");
	pthread_barrier_init(&both, NULL, 2);
	for (int i = 0; i < 2; i++) {
		c[i] = (struct crosser){ env_open(NULL), &both, 1 + i, 2 - i, 0, 1 };
		assert_int_equal(pthread_create(&t[i], NULL, cross_main, &c[i]), 0);
	}
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	for (int i = 0; i < 2; i++) {
		RC(c[i].rc, DB_OK);
		db_close(c[i].db);
		OK(db_user_by_id(db, 1 + i, &u));
		assert_int_equal(u.epoch, 2);
	}
	assert_int_equal(c[0].runs + c[1].runs, 3);
	pthread_barrier_destroy(&both);
}

/* The link is cut at COMMIT: before the server heard it, or before we heard the answer. */
static void test_my_unsure(void **state)
{
	struct db *db = *state;

	if (!env_server_mine())
		skip();
	user_new(db, "ann");
	for (int after = 0; after < 2; after++) {
		char url[600];
		pid_t pid = env_proxy_start(after ? PROXY_CUT_AFTER : PROXY_CUT_BEFORE, url,
					    sizeof url);
		struct db *cut;
		struct user_row u;
		int32_t id = 0;

		assert_int_equal(db_open(url, NULL, &cut, NULL, 0), DB_OK);
		assert_int_equal(db_user_add(cut, "bob", "h", &id), DB_UNSURE);
		assert_int_equal(id, 0);
		RC(db_user_by_name(db, "bob", &u), after ? DB_OK : DB_GONE);
		db_close(cut);
		env_proxy_stop(pid);
	}
	group_new(db, 1, "one");
	for (int after = 0; after < 2; after++) {
		char url[600];
		pid_t pid = env_proxy_start(after ? PROXY_CUT_AFTER : PROXY_CUT_BEFORE, url,
					    sizeof url);
		struct db_post p = { .group = 1, .sender = 1, .body = "x", .len = 1 };
		struct db *cut;

		mid_make(p.mid, (unsigned)after);
		assert_int_equal(db_open(url, NULL, &cut, NULL, 0), DB_OK);
		assert_int_equal(db_post_add(cut, &p, 1), DB_OK);	/* asked again by its key */
		assert_int_equal(p.rc, DB_OK);
		assert_int_equal(p.number, after + 1);
		assert_int_equal(p.fresh, !after);
		db_close(cut);
		env_proxy_stop(pid);
	}
	numbers_are(db, 1, "1:x 2:x ");
}

/* A COMMIT that reaches the server late: nothing of it appears behind what was written since. */
static void test_my_late_commit(void **state)
{
	struct db_options opt = { .io_ms = 2000 };
	struct db *db = *state, *cut;
	struct text t = { .len = 0 };
	struct db_offline m[2];
	struct user_row u;
	char url[600];
	bool more;
	int32_t id = 0;
	pid_t pid;

	if (!env_server_mine())
		skip();
	user_new(db, "ann");
	pid = env_proxy_start(PROXY_HOLD, url, sizeof url);
	assert_int_equal(db_open(url, &opt, &cut, NULL, 0), DB_OK);
	assert_int_equal(db_user_add(cut, "bob", "h", &id), DB_UNSURE);
	offline_fill(&m[0], 1, 1, "new");
	assert_int_equal(db_offline_add(cut, m, 1, 0), DB_OK);
	assert_false(env_proxy_release());
	RC(db_user_by_name(db, "bob", &u), DB_GONE);
	assert_int_equal(db_user_add(cut, "bob", "h", &id), DB_OK);
	db_close(cut);
	env_proxy_stop(pid);

	/* A keyed write is done again at once, though the old link has its rows locked. */
	pid = env_proxy_start(PROXY_HOLD, url, sizeof url);
	assert_int_equal(db_open(url, &opt, &cut, NULL, 0), DB_OK);
	offline_fill(&m[0], 1, 2, "old");
	offline_fill(&m[1], 1, 3, "er");
	assert_int_equal(db_offline_add(cut, m, 2, 0), DB_OK);
	assert_false(env_proxy_release());
	offline_fill(&m[0], 1, 4, "newer");
	assert_int_equal(db_offline_add(cut, m, 1, 0), DB_OK);
	OK(db_offline_load(db, 1, 0, 9, 999, message_cb, &t, &more));
	assert_string_equal(t.buf, "new<9 old<9 er<9 newer<9 ");
	db_close(cut);
	env_proxy_stop(pid);
}

static int thread_fn(struct db *db, void *arg)
{
	static const struct db_query q = DB_SAME("SELECT CONNECTION_ID()");
	struct db_stmt *st;
	int rc = db_use(db, &q, &st);

	if (rc == DB_OK)
		rc = db_step_one(st);
	if (rc == DB_OK)
		*(int64_t *)arg = db_int(st, 0);
	return rc;
}

/* The server that the lost link belonged to is gone, and its thread's number is somebody's again. */
static void test_my_late_restart(void **state)
{
	struct db *db = *state, *cut, *others[20];
	int64_t was, first = 0, threads[20];
	char url[600];
	int32_t id = 0;
	pid_t pid;

	if (!env_server_mine())
		skip();
	env_server_kill();
	env_server_again();				/* its numbers begin again */
	pid = env_proxy_start(PROXY_HOLD, url, sizeof url);
	assert_int_equal(db_open(url, NULL, &cut, NULL, 0), DB_OK);
	OK(db_run(cut, DB_READ, thread_fn, &was));
	assert_int_equal(db_user_add(cut, "bob", "h", &id), DB_UNSURE);
	env_server_kill();
	env_server_again();
	for (int i = 0; i < 20; i++) {
		others[i] = env_open(NULL);
		OK(db_run(others[i], DB_READ, thread_fn, &threads[i]));
		first = first == 0 || threads[i] < first ? threads[i] : first;
	}
	assert_true(first <= was && was <= threads[19]);	/* one of them has its number */
	assert_int_equal(db_user_add(cut, "bob", "h", &id), DB_OK);
	for (int i = 0; i < 20; i++) {
		int64_t now = 0;

		OK(db_run(others[i], DB_READ, thread_fn, &now));
		assert_int_equal(now, threads[i]);		/* the same link still */
		db_close(others[i]);
	}
	db_close(cut);
	env_proxy_stop(pid);
}

static void test_my_refused(void **state)
{
	struct db *db = *state, *other;
	struct user_row u;
	char url[700];

	if (!env_server_mine())
		skip();
	snprintf(url, sizeof url, "%s_absent", env_url);
	assert_int_equal(db_open(url, NULL, &other, NULL, 0), DB_OK);
	RC(db_user_by_id(other, 1, &u), DB_DOWN);	/* only migrating creates it */
	db_close(other);
	snprintf(url, sizeof url, "mysql://nobody:wrong@%s", strchr(env_url, '@') + 1);
	assert_int_equal(db_open(url, NULL, &other, NULL, 0), DB_OK);
	RC(db_ping(other), DB_DOWN);
	assert_non_null(strstr(db_errmsg(other), "nobody"));
	assert_null(strstr(db_errmsg(other), "wrong"));
	db_close(other);
	env_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2");
	{
		struct text t = { .len = 0 };

		OK(db_warnings(db, warn_cb, &t));
		assert_non_null(strstr(t.buf, "innodb_flush_log_at_trx_commit"));
	}
	env_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1");
}

#define LITE(f) cmocka_unit_test_setup_teardown(f, env_fresh_sqlite, env_done)
#define MY(f) { "mysql: " #f, f, env_fresh_mysql, env_done, NULL }
#define BOTH(X) \
	X(test_migrate), X(test_migrate_together), X(test_meta), X(test_warnings), X(test_users), \
	X(test_user_lists), X(test_import), X(test_friends), X(test_groups), X(test_group_end), \
	X(test_user_del), X(test_offline_order), X(test_offline_quota), X(test_offline_load_del), \
	X(test_offline_bad_row), X(test_posts), X(test_posts_many), X(test_cursors), \
	X(test_purge), X(test_changes), X(test_writers_numbers), X(test_writers_mixed), \
	X(test_writers_import)

int main(void)
{
	const struct CMUnitTest lite[] = {
		cmocka_unit_test(test_url), cmocka_unit_test(test_password_apart),
		BOTH(LITE), LITE(test_lite_garbage), LITE(test_lite_absent), LITE(test_lite_busy),
		LITE(test_lite_kill), LITE(test_lite_options)
	};
	const struct CMUnitTest my[] = {
		BOTH(MY), MY(test_my_restart), MY(test_my_frozen), MY(test_my_frozen_write),
		MY(test_my_idle),
		MY(test_my_deadlock), MY(test_my_unsure), MY(test_my_late_commit),
		MY(test_my_late_restart), MY(test_my_refused)
	};
	int failed;

	env_init();
	failed = cmocka_run_group_tests(lite, NULL, NULL);
	failed += cmocka_run_group_tests(my, env_mysql_start, env_mysql_stop);
	env_fini();
	return failed != 0;
}
