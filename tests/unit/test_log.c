/*
 * Log lines: their form, what is escaped, what threads do to them, and reopening.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"

static char dir[] = "/tmp/parley-log-XXXXXX", path[64], moved[64];

static int setup(void **state)
{
	(void)state;
	if (mkdtemp(dir) == NULL)
		return -1;
	snprintf(path, sizeof path, "%s/log", dir);
	snprintf(moved, sizeof moved, "%s/log.1", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	log_open("stderr", LOG_L_INFO);
	unlink(path);
	unlink(moved);
	return rmdir(dir);
}

static int fresh(void **state)
{
	(void)state;
	unlink(path);
	unlink(moved);
	log_ident("");
	return log_open(path, LOG_L_INFO);
}

/* The whole file; static memory. */
static const char *content(const char *name)
{
	static char text[1 << 20];
	FILE *f = fopen(name, "r");
	size_t n;

	assert_non_null(f);
	n = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[n] = '\0';
	return text;
}

static void assert_matches(const char *text, const char *pattern)
{
	regex_t re;

	assert_int_equal(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
	if (regexec(&re, text, 0, NULL, 0) != 0)
		fail_msg("\"%s\" does not match %s", text, pattern);
	regfree(&re);
}

#define STAMP "^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z parleyd\\[[0-9]+\\] "

static void form_of_a_line(void **state)
{
	struct stat st;

	(void)state;
	errno = EXDEV;
	log_warn("disk %s at %d%%", "full", 99);
	assert_int_equal(errno, EXDEV);
	assert_matches(content(path), STAMP "warn: disk full at 99%\n$");
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777 & ~0640, 0);
	fresh(NULL);
	log_ident("worker 3");
	log_error("x");
	assert_matches(content(path), STAMP "worker 3 error: x\n$");
}

static void levels(void **state)
{
	(void)state;
	log_debug("one");
	log_info("two");
	log_set_level(LOG_L_ERROR);
	log_warn("three");
	log_error("four");
	log_set_level(LOG_L_DEBUG);
	log_debug("five");
	log_fatal("six");
	assert_matches(content(path),
	    "info: two\n[^\n]*error: four\n[^\n]*debug: five\n[^\n]*fatal: six\n$");
	assert_null(strstr(content(path), "one"));
	assert_null(strstr(content(path), "three"));
}

static void nobody_forges_a_line(void **state)
{
	(void)state;
	log_info("%s", "a\nb\r\t\x1b[2J\x7f\xc2\x9b \xc3\xa9 \xe2\x82\xac\x01");
	assert_matches(content(path),
	    "info: a\\\\x0Ab\\\\x0D\\\\x09\\\\x1B\\[2J"
	    "\\\\x7F\\\\xC2\\\\x9B \xc3\xa9 \xe2\x82\xac\\\\x01\n$");
}

static void long_lines_are_cut(void **state)
{
	char *text = malloc(10000);

	(void)state;
	memset(text, 'x', 9999);
	text[9999] = '\0';
	log_info("%s", text);
	assert_in_range(strlen(content(path)), 4000, 4096);
	assert_int_equal(content(path)[strlen(content(path)) - 1], '\n');
	fresh(NULL);
	memset(text, '\n', 9999);
	log_info("%s", text);
	assert_in_range(strlen(content(path)), 4000, 4096);
	assert_matches(content(path), "\\\\x0A\n$");
	free(text);
}

static void *chatter(void *arg)
{
	for (int i = 0; i < 500; i++)
		log_info("%s", (const char *)arg);
	return NULL;
}

static void lines_of_threads_do_not_mix(void **state)
{
	char text[2][301];
	pthread_t t[2];
	unsigned lines = 0;
	const char *p;

	(void)state;
	for (int i = 0; i < 2; i++) {
		memset(text[i], 'a' + i, 300);
		text[i][300] = '\0';
		assert_int_equal(pthread_create(&t[i], NULL, chatter, text[i]), 0);
	}
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	for (p = content(path); *p != '\0'; p = strchr(p, '\n') + 1, lines++) {
		const char *body = strstr(p, "info: ");

		assert_non_null(body);
		assert_true(strspn(body + 6, "a") == 300 || strspn(body + 6, "b") == 300);
		assert_int_equal(body[306], '\n');
	}
	assert_int_equal(lines, 1000);
}

static void reopening(void **state)
{
	int fd = log_fd();

	(void)state;
	log_info("old");
	assert_int_equal(rename(path, moved), 0);
	log_info("still old");
	assert_int_equal(log_reopen(), 0);
	log_info("new");
	assert_int_equal(log_fd(), fd);		/* children hold the number */
	assert_matches(content(moved), "old\n[^\n]*still old\n$");
	assert_matches(content(path), STAMP "info: new\n$");
	/* the old file stays where the new one cannot be made */
	assert_int_equal(rename(path, moved), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(log_reopen(), -EISDIR);
	log_info("kept");
	assert_matches(content(moved), "info: kept\n$");
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(log_open("/no/such/dir/log", LOG_L_INFO), -ENOENT);
	log_info("kept too");
	assert_matches(content(moved), "info: kept too\n$");
}

static void a_panic_says_where(void **state)
{
	int status;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		ensure(2 + 2 == 4);
		ensure(2 + 2 == 5);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	assert_matches(content(path),
	    "fatal: panic: .*test_log\\.c:[0-9]+: 2 \\+ 2 == 5 does not hold\n$");
}

static void clock_agrees_with_the_kernel(void **state)
{
	uint64_t before = clock_now_ms(), wall = clock_now_wall_ms();
	char text[20];

	(void)state;
	clock_tick();
	assert_in_range(clock_ms(), before, clock_now_ms());
	assert_in_range(clock_wall_ms(), wall, clock_now_wall_ms());
	assert_true(wall > UINT64_C(1700000000000));
	setenv("TZ", "UTC", 1);
	clock_text(UINT64_C(1769854272345), text);
	assert_string_equal(text, "2026-01-31 10:11:12");
	clock_text(UINT64_C(1769854273000), text);
	assert_string_equal(text, "2026-01-31 10:11:13");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(form_of_a_line, fresh),
		cmocka_unit_test_setup(levels, fresh),
		cmocka_unit_test_setup(nobody_forges_a_line, fresh),
		cmocka_unit_test_setup(long_lines_are_cut, fresh),
		cmocka_unit_test_setup(lines_of_threads_do_not_mix, fresh),
		cmocka_unit_test_setup(reopening, fresh),
		cmocka_unit_test_setup(a_panic_says_where, fresh),
		cmocka_unit_test(clock_agrees_with_the_kernel)
	};

	return cmocka_run_group_tests_name("log", tests, setup, teardown);
}
