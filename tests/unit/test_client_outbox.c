/* client/outbox.c: what was typed survives the program, in order, until it is closed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/outbox.h"

static char dir[64], path[96];

static int set_up(void **state)
{
	(void)state;
	snprintf(dir, sizeof dir, "/tmp/parley-outbox-XXXXXX");
	if (mkdtemp(dir) == NULL)
		return -1;
	snprintf(path, sizeof path, "%s/outbox", dir);
	return 0;
}

static int tear_down(void **state)
{
	char tmp[128];

	(void)state;
	snprintf(tmp, sizeof tmp, "%s.new", path);
	unlink(tmp);
	unlink(path);
	return rmdir(dir);
}

static struct outbox_msg message(const char *cid, const char *text)
{
	return (struct outbox_msg){ .cid = (char *)(uintptr_t)cid, .at_ms = 1700000000000, .id = 7,
	    .name = (char *)(uintptr_t)"", .label = (char *)(uintptr_t)"bob",
	    .time = (char *)(uintptr_t)"now", .text = (char *)(uintptr_t)text };
}

static void add(struct outbox *o, const char *cid, const char *text)
{
	struct outbox_msg m = message(cid, text);

	assert_int_equal(outbox_add(o, &m), OUTBOX_OK);
}

static void check(struct outbox *o, const char *cids)
{
	char got[4096] = "";

	for (size_t i = 0; i < outbox_count(o); i++)
		strcat(strcat(got, i ? " " : ""), outbox_at(o, i)->cid);
	assert_string_equal(got, cids);
	assert_null(outbox_at(o, outbox_count(o)));
}

static struct outbox *reopen(struct outbox *o)
{
	outbox_free(o);
	return outbox_open(path);
}

static off_t file_size(void)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_size;
}

static void test_survives(void **state)
{
	static const char text[] = "tab\t newline\n return\r back\\slash \\n \\ 日本 \x01";
	struct outbox_msg g = message("g-1", text);
	struct outbox *o = outbox_open(path);
	struct stat st;

	(void)state;
	add(o, "a-1", "one");
	g.group = true;
	g.id = 0;
	g.name = g.label = (char *)(uintptr_t)"the\tcats";
	assert_int_equal(outbox_add(o, &g), OUTBOX_OK);
	assert_true(outbox_at(o, 0)->fresh);
	o = reopen(o);
	check(o, "a-1 g-1");
	assert_false(outbox_at(o, 0)->fresh);
	assert_int_equal(outbox_at(o, 0)->id, 7);
	assert_int_equal(outbox_at(o, 0)->at_ms, 1700000000000);
	assert_false(outbox_at(o, 0)->group);
	assert_true(outbox_at(o, 1)->group);
	assert_int_equal(outbox_at(o, 1)->id, 0);
	assert_string_equal(outbox_at(o, 1)->name, "the\tcats");
	assert_string_equal(outbox_at(o, 1)->text, text);
	assert_string_equal(outbox_at(o, 1)->time, "now");
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	outbox_free(o);
}

static void test_closed_stay_closed(void **state)
{
	struct outbox *o = outbox_open(path);

	(void)state;
	add(o, "1", "x");
	add(o, "2", "x");
	add(o, "3", "x");
	outbox_close(o, outbox_find(o, "2"));
	check(o, "1 3");
	assert_null(outbox_find(o, "2"));
	o = reopen(o);
	check(o, "1 3");
	outbox_close(o, outbox_find(o, "1"));
	o = reopen(o);
	add(o, "4", "x");
	o = reopen(o);
	check(o, "3 4");
	outbox_free(o);
}

/* However the file was cut by a crash: the messages before the cut are there, and nothing odd. */
static void test_torn_anywhere(void **state)
{
	struct outbox *o = outbox_open(path);
	char all[4096];
	size_t len, first;
	FILE *f;

	(void)state;
	add(o, "1", "first");
	first = (size_t)file_size();
	add(o, "2", "second with \t tab");
	outbox_free(o);
	f = fopen(path, "r");
	len = fread(all, 1, sizeof all, f);
	fclose(f);
	for (size_t cut = 0; cut <= len; cut++) {
		f = fopen(path, "w");
		fwrite(all, 1, cut, f);
		fclose(f);
		o = outbox_open(path);
		check(o, cut == len ? "1 2" : cut >= first ? "1" : "");
		add(o, "9", "after");
		o = reopen(o);
		check(o, cut == len ? "1 2 9" : cut >= first ? "1 9" : "9");
		outbox_free(o);
	}
}

static void test_garbage_is_skipped(void **state)
{
	FILE *f = fopen(path, "w");
	struct outbox *o;

	(void)state;
	fputs("nonsense\n\n+\n+\t\n+\ta\tb\n-\tnobody\n+\tok\t5\tu\t1\t\tbob\tT\ttext\n", f);
	fwrite("+\tnul\0\t5\tu\t1\t\tbob\tT\ttext\n", 1, 25, f);
	fclose(f);
	o = outbox_open(path);
	check(o, "ok");
	outbox_free(o);
}

static void test_file_does_not_grow_for_ever(void **state)
{
	struct outbox *o = outbox_open(path);
	char cid[32];

	(void)state;
	add(o, "stays", "x");
	for (int i = 0; i < 20000; i++) {
		snprintf(cid, sizeof cid, "c-%d", i);
		add(o, cid, "some text that is not kept");
		outbox_close(o, outbox_find(o, cid));
	}
	assert_true(file_size() < 1 << 20);
	o = reopen(o);
	check(o, "stays");
	outbox_close(o, outbox_find(o, "stays"));
	for (int i = 0; i < 200; i++) {
		snprintf(cid, sizeof cid, "d-%d", i);
		add(o, cid, "x");
		outbox_close(o, outbox_find(o, cid));
	}
	assert_true(file_size() < 1 << 13);
	outbox_free(o);
}

static void test_bounds(void **state)
{
	struct outbox *o = outbox_open(NULL);
	struct outbox_msg m;
	char cid[32], *big = malloc(60001);

	(void)state;
	for (int i = 0; i < OUTBOX_MAX; i++) {
		snprintf(cid, sizeof cid, "c-%d", i);
		add(o, cid, "x");
	}
	m = message("one more", "x");
	assert_int_equal(outbox_add(o, &m), OUTBOX_EFULL);
	assert_int_equal(outbox_count(o), OUTBOX_MAX);
	outbox_free(o);

	memset(big, 'x', 60000);
	big[60000] = '\0';
	o = outbox_open(NULL);
	for (int i = 0;; i++) {
		snprintf(cid, sizeof cid, "c-%d", i);
		m = message(cid, big);
		if (outbox_add(o, &m) == OUTBOX_EFULL)
			break;
		assert_true(i < (int)(OUTBOX_MAX_BYTES / 60000) + 1);
	}
	outbox_close(o, outbox_at(o, 0));
	assert_int_equal(outbox_add(o, &m), OUTBOX_OK);
	outbox_free(o);
	free(big);
}

static void test_lanes(void **state)
{
	struct outbox_msg a = message("1", ""), b = message("2", "");

	(void)state;
	assert_true(outbox_same_lane(&a, &b));
	b.id = 8;
	assert_false(outbox_same_lane(&a, &b));
	b.id = 7;
	b.group = true;
	assert_false(outbox_same_lane(&a, &b));
	a.id = b.id = 0;
	a.group = false;
	b.group = false;
	a.name = (char *)(uintptr_t)"Bob";
	b.name = (char *)(uintptr_t)"bob";
	assert_true(outbox_same_lane(&a, &b));
	b.name = (char *)(uintptr_t)"rob";
	assert_false(outbox_same_lane(&a, &b));
}

static void test_unwritable(void **state)
{
	struct outbox *o = outbox_open("/proc/nowhere/outbox");
	struct outbox_msg m = message("1", "x");

	(void)state;
	assert_non_null(outbox_why(o));
	assert_null(outbox_why(o));
	assert_int_equal(outbox_add(o, &m), OUTBOX_EFILE);
	assert_non_null(outbox_why(o));
	check(o, "1");
	outbox_close(o, outbox_at(o, 0));
	check(o, "");
	outbox_free(o);
}

/* Killed at any moment: each message that outbox_add() returned for is there. */
static void test_killed(void **state)
{
	(void)state;
	for (int round = 0; round < 20; round++) {
		int told[2], last = -1, n;
		struct outbox *o;
		pid_t pid;

		unlink(path);
		assert_int_equal(pipe(told), 0);
		pid = fork();
		if (pid == 0) {
			char cid[16];

			o = outbox_open(path);
			for (int i = 0;; i++) {
				struct outbox_msg m;

				snprintf(cid, sizeof cid, "%d", i);
				m = message(cid, "text");
				if (outbox_add(o, &m) != OUTBOX_OK ||
				    write(told[1], &i, sizeof i) != sizeof i)
					_exit(1);
			}
		}
		close(told[1]);
		while (last < round * 3 && read(told[0], &n, sizeof n) == sizeof n)
			last = n;
		kill(pid, SIGKILL);
		while (read(told[0], &n, sizeof n) == sizeof n)
			last = n;
		waitpid(pid, NULL, 0);
		close(told[0]);
		assert_true(last >= round * 3);
		o = outbox_open(path);
		assert_true(outbox_count(o) > (size_t)last && outbox_count(o) <= (size_t)last + 2);
		for (int i = 0; i <= last; i++)
			assert_int_equal(atoi(outbox_at(o, (size_t)i)->cid), i);
		outbox_free(o);
	}
}

#define EACH(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		EACH(test_survives), EACH(test_closed_stay_closed), EACH(test_torn_anywhere),
		EACH(test_garbage_is_skipped), EACH(test_file_does_not_grow_for_ever),
		cmocka_unit_test(test_bounds), cmocka_unit_test(test_lanes),
		cmocka_unit_test(test_unwritable), EACH(test_killed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
