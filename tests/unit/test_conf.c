/*
 * The configuration: values, errors with file and line, overrides, reload, dump.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/base/conf.h"

/* What was told, one line each: "FILE:LINE: TEXT\n". */
static char told[16384];

static void tell(void *arg, const char *file, int line, const char *text)
{
	size_t n = strlen(told);

	assert_ptr_equal(arg, told);
	snprintf(told + n, sizeof told - n, "%s:%d: %s\n", file != NULL ? file : "-o", line, text);
}

static int read_text(struct conf *c, const char *text)
{
	told[0] = '\0';
	return conf_read_text(c, "f", text, strlen(text), tell, told);
}

static int finish(struct conf *c)
{
	told[0] = '\0';
	return conf_finish(c, tell, told);
}

/* Reads TEXT into a fresh C and finishes it; all must be well. */
static void good(struct conf *c, const char *text)
{
	conf_init(c);
	if (read_text(c, text) != 0 || finish(c) != 0)
		fail_msg("%s", told);
}

/* One error, in LINE, that says WHY (and names its key). */
static void bad_line(const char *text, int line, const char *why)
{
	struct conf c;
	char start[16];

	conf_init(&c);
	assert_int_equal(read_text(&c, text), 1);
	snprintf(start, sizeof start, "f:%d: ", line);
	if (strncmp(told, start, strlen(start)) != 0 || strstr(told, why) == NULL)
		fail_msg("%s: expected %s%s", told, start, why);
	conf_free(&c);
}

static void defaults(void **state)
{
	struct conf c;

	(void)state;
	good(&c, "");
	assert_int_equal(c.nlisten, 1);
	assert_string_equal(c.listen[0].host, "127.0.0.1");
	assert_int_equal(c.listen[0].port, 6000);
	assert_int_equal(c.listen[0].dialect, CONF_PLAIN);
	assert_string_equal(c.store, "sqlite:/var/lib/parley/parley.db");
	assert_string_equal(c.control, "/var/lib/parley/parleyd.sock");
	assert_string_equal(c.pid_file, "");
	assert_string_equal(c.redis, "");
	assert_string_equal(c.log, "stderr");
	assert_int_equal(c.log_level, 1);
	assert_in_range(c.workers, 1, 64);
	assert_int_equal(c.max_workers, 64);
	assert_false(c.immortal);
	assert_int_equal(c.hang_seconds, 10);
	assert_int_equal(c.stop_seconds, 5);
	assert_int_equal(c.max_sessions, 1000000);
	assert_int_equal(c.max_connections, 1000000);
	assert_int_equal(c.max_connections_address, 0);
	assert_int_equal(c.max_frame, 65536);
	assert_true(c.memory_limit == 256u << 20);
	assert_int_equal(c.output_limit, 1 << 20);
	assert_int_equal(c.backlog, 4096);
	assert_false(c.replace);
	assert_true(c.registration);
	assert_int_equal(c.rate_messages, 1000);
	assert_int_equal(c.rate_logins, 30);
	assert_int_equal(c.offline_max, 10000);
	assert_int_equal(c.friends_max, 1000);
	assert_int_equal(c.groups_max, 500);
	assert_int_equal(c.group_members_max, 10000);
	assert_int_equal(c.group_keep_days, 30);
	assert_int_equal(c.password_min, 1);
	assert_int_equal(c.login_ms, 30000);
	assert_int_equal(c.idle_ms, 0);
	assert_int_equal(c.ping_ms, 30000);
	assert_int_equal(c.keepalive_seconds, 20);
	assert_int_equal(c.user_timeout_seconds, 40);
	assert_int_equal(c.presence_delay_ms, 2000);
	assert_int_equal(c.confirm_ms, 5000);
	assert_int_equal(c.classic_gap_ms, 30);
	assert_int_equal(c.token_days, 7);
	assert_int_equal(c.hash_memory, 19456);
	assert_int_equal(c.hash_passes, 2);
	assert_in_range(c.hash_threads, 1, 512);
	assert_int_equal(c.pool_init, 4);
	assert_int_equal(c.pool_max, 32);
	assert_int_equal(c.pool_idle_seconds, 60);
	assert_int_equal(c.pool_wait_ms, 5000);
	assert_int_equal(c.store_timeout_seconds, 5);
	assert_true(c.sqlite_full);
	assert_string_equal(c.redis_password_file, "");
	assert_string_equal(c.cluster, "parley");
	assert_string_equal(c.advertise, "");
	assert_int_equal(c.weight, 1);
	assert_int_equal(c.heartbeat_ms, 2000);
	assert_int_equal(c.host_timeout_ms, 8000);
	assert_int_equal(c.redis_timeout_ms, 2000);
	assert_int_equal(c.drain_seconds, 30);
	conf_free(&c);
}

static void every_key_is_documented(void **state)
{
	size_t n = 0;

	(void)state;
	for (const struct conf_key *k; (k = conf_key_at(n)) != NULL; n++) {
		assert_true(strlen(k->name) > 0 && strlen(k->help) > 10);
		assert_int_equal(k->help[strlen(k->help) - 1], '.');
		assert_non_null(k->dflt);
		assert_non_null(k->unit);
	}
	assert_int_equal(n, 61);
}

static void lines_and_quotes(void **state)
{
	struct conf c;

	(void)state;
	good(&c, "\xef\xbb\xbf# a comment\r\n"
	    "  workers=3 # three\r\n"
	    "\r\n"
	    "state_dir = \"/a # b/\"# quoted\n"
	    "\tlog\t=\t/var/log/x\t\n"
	    "host_id = h-1 \n"
	    "store = \"sqlite:/q\\\"\\\\\"\n"
	    "pid_file = \"\"\n"
	    "user =\n"
	    "backlog = 7");
	assert_int_equal(c.workers, 3);
	assert_string_equal(c.state_dir, "/a # b/");
	assert_string_equal(c.control, "/a # b/parleyd.sock");
	assert_string_equal(c.log, "/var/log/x");
	assert_string_equal(c.host_id, "h-1");
	assert_string_equal(c.store, "sqlite:/q\"\\");
	assert_string_equal(c.pid_file, "");
	assert_int_equal(c.backlog, 7);
	conf_free(&c);
}

static void sizes_and_times(void **state)
{
	struct conf c;

	(void)state;
	good(&c, "max_frame = 4K\nmemory_limit = 2g\noutput_limit = 2M\nhash_memory = 19m\n"
	    "login_seconds = 0.5\nidle_seconds = 2m\nping_seconds = 1500ms\nconfirm_timeout = 0.05\n"
	    "hang_seconds = 1m\nstop_seconds = 2000ms\ntoken_days = 48h\npresence_delay_ms = 1.5s\n"
	    "classic_gap_ms = 0\ngroup_keep_days = 1\npool_wait_ms = 250 ms\n");
	assert_int_equal(c.max_frame, 4096);
	assert_true(c.memory_limit == UINT64_C(2) << 30);
	assert_int_equal(c.output_limit, 2 << 20);
	assert_int_equal(c.hash_memory, 19 * 1024);
	assert_int_equal(c.login_ms, 500);
	assert_int_equal(c.idle_ms, 120000);
	assert_int_equal(c.ping_ms, 1500);
	assert_int_equal(c.confirm_ms, 50);
	assert_int_equal(c.hang_seconds, 60);
	assert_int_equal(c.stop_seconds, 2);
	assert_int_equal(c.token_days, 2);
	assert_int_equal(c.presence_delay_ms, 1500);
	assert_int_equal(c.classic_gap_ms, 0);
	assert_int_equal(c.group_keep_days, 1);
	assert_int_equal(c.pool_wait_ms, 250);
	conf_free(&c);
}

static const struct { const char *text; int line; const char *why; } wrong[] = {
	{ "\nworkers 3\n", 2, "KEY = VALUE" }, { "= 3", 1, "KEY = VALUE" },
	{ "workesr = 3", 1, "workesr: unknown key; did you mean workers?" },
	{ "idle = 3", 1, "idle: unknown key" }, { "listne = x", 1, "did you mean listen?" },
	{ "completely_else = 3", 1, "unknown key" },
	{ "workers = 1\n#\nworkers = 1", 3, "workers: given twice" },
	{ "workers = 0", 1, "workers: must be from 1 to 512" },
	{ "workers = 513", 1, "from 1 to 512" }, { "workers = -1", 1, "a whole number" },
	{ "workers = 2.5", 1, "a whole number" }, { "workers = 3x", 1, "(or auto), not \"3x\"" },
	{ "workers =", 1, "a whole number" }, { "max_sessions = 1k", 1, "a whole number" },
	{ "max_sessions = 99999999999999999999", 1, "from 16 to 16777216" },
	{ "max_frame = 2m", 1, "from 1024 to 1048576 bytes" }, { "max_frame = 64kb", 1, "a size" },
	{ "memory_limit = 1m", 1, "from 4194304 to 68719476736 bytes" },
	{ "hang_seconds = 0.5", 1, "hang_seconds: must be from 1 to 3600 s" },
	{ "hang_seconds = 1.5", 1, "a whole number of seconds" },
	{ "hang_seconds = 0", 1, "from 1 to 3600 s" },
	{ "stop_seconds = 0", 1, "stop_seconds: must be from 1 to 3600 s" },
	{ "token_days = 1h", 1, "from 1 to 3650 d" }, { "token_days = 25h", 1, "number of days" },
	{ "login_seconds = 1w", 1, "a time" }, { "login_seconds = .5", 1, "a time" },
	{ "login_seconds = 0.0001", 1, "a whole number of ms" },
	{ "confirm_timeout = 0", 1, "from 0.01 to 3600 s" },
	{ "log_level = loud", 1, "debug, info, warn or error is needed, not \"loud\"" },
	{ "duplicate_login = no", 1, "reject or replace" }, { "registration = 1", 1, "off or on" },
	{ "sqlite_synchronous = off", 1, "normal or full" },
	{ "log = stdout", 1, "stderr, syslog or a path" }, { "host_id = a/b", 1, "host_id: only" },
	{ "state_dir = \"\"", 1, "a path is missing" }, { "user = a b", 1, "not the name" },
	{ "log = \"/x", 1, "quotes do not match" }, { "log = \"/x\" y", 1, "quotes do not match" },
	{ "workers = 3\x01", 1, "control character" },
	{ "store = /x", 1, "sqlite:PATH" }, { "store = sqlite:", 1, "a path is missing" },
	{ "store = sqlite::memory:", 1, "all workers share it" },
	{ "store = mysql://h/db", 1, "a user is missing" },
	{ "store = mysql://u@h", 1, "a database name is missing" },
	{ "store = mysql://u@h:0/db", 1, "the port" }, { "store = mysql://u@::1/db", 1, "brackets" },
	{ "redis = redis://pw@h", 1, "behind a colon" }, { "redis = redis://:pw@", 1, "host" },
	{ "redis = h", 1, "a port is missing" }, { "redis = redis://h/x", 1, "is a number" },
	{ "redis = sentinel://a:1,b:2", 1, "name is missing" },
	{ "redis = sentinel://a:1,:2/m", 1, "host" }, { "redis = rediss://h", 1, "TLS" },
	{ "cluster = \"\"", 1, "1 to 32" }, { "cluster = a:b", 1, "letters" },
	{ "advertise = h", 1, "a port is missing" }, { "advertise = a b:1", 1, "HOST:PORT" },
	{ "weight = 0", 1, "from 1 to 1000" }, { "heartbeat_ms = 49", 1, "from 50" },
	{ "listen = foo:1", 1, "a numeric address" }, { "listen = 127.0.0.1", 1, "ADDRESS:PORT" },
	{ "listen = 127.0.0.1:0", 1, "the port" }, { "listen = 127.0.0.1:65536", 1, "the port" },
	{ "listen = 127.0.0.1:6x", 1, "the port" }, { "listen = ::1:6000", 1, "brackets" },
	{ "listen = [::g]:1", 1, "not an IPv6 address" }, { "listen = [127.0.0.1]:1", 1, "IPv6" },
	{ "listen = :6000", 1, "ADDRESS:PORT" }, { "listen = 1.2.3:1", 1, "a numeric address" },
	{ "listen = *:1 dialect=old", 1, "dialect=plain, dialect=classic and proxy" },
	{ "listen = *:1 proxy=2", 1, "and proxy, not" }, { "listen = \"/x", 1, "quotes" },
	{ "listen = ./a\"b", 1, "quotes" },
	{ "listen = unix:", 1, "a path is missing" }
};

static void errors_name_file_line_and_key(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
		bad_line(wrong[i].text, wrong[i].line, wrong[i].why);
}

static void all_errors_are_told(void **state)
{
	struct conf c;

	(void)state;
	conf_init(&c);
	assert_int_equal(read_text(&c, "x = 1\nworkers = no\n\nmax_frame = 1\nbacklog = 9\n"), 3);
	assert_non_null(strstr(told, "f:1: x"));
	assert_non_null(strstr(told, "f:2: workers"));
	assert_non_null(strstr(told, "f:4: max_frame"));
	assert_int_equal(c.backlog, 9);
	conf_free(&c);
}

static void odd_bytes(void **state)
{
	static const char nul[] = "workers = 3\nback\0log = 1\nlog_level = warn\n";
	char *text = malloc(6000);
	struct conf c;

	(void)state;
	conf_init(&c);
	told[0] = '\0';
	assert_int_equal(conf_read_text(&c, "f", nul, sizeof nul - 1, tell, told), 1);
	assert_non_null(strstr(told, "f:2: a control character (or NUL byte)"));
	assert_int_equal(c.log_level, 2);
	/* 4,096 bytes are a line, one more is not */
	memset(text, ' ', 6000);
	memcpy(text, "backlog = 5", 11);
	told[0] = '\0';
	assert_int_equal(conf_read_text(&c, "f", text, 4096, tell, told), 0);
	assert_int_equal(c.backlog, 5);
	assert_int_equal(conf_read_text(&c, "f", text, 4097, tell, told), 1);
	assert_non_null(strstr(told, "longer than 4096 bytes"));
	/* a value is shorter than a line, so that its dump is a line even if all is escaped */
	memset(text, '"', 6000);
	memcpy(text, "user=", 5);
	told[0] = '\0';
	text[5 + 1024] = '\0';
	assert_int_equal(conf_override(&c, text, tell, told), 1);
	assert_non_null(strstr(told, "quotes do not match"));
	text[5] = 'x';
	assert_int_equal(conf_override(&c, text, tell, told), 0);
	text[5 + 1024] = 'x';
	text[5 + 1025] = '\0';
	assert_int_equal(conf_override(&c, text, tell, told), 1);
	assert_non_null(strstr(told, "longer than 1024 bytes"));
	free(text);
	conf_free(&c);
}

static void listeners(void **state)
{
	struct conf c;
	char text[1024] = "", more[64];

	(void)state;
	good(&c, "listen = *:7000\nlisten = [0:0::1]:7001 dialect=classic\n"
	    "listen = ./s.sock dialect=plain\nlisten = \"unix:/tmp/a b\" dialect=classic # x\n"
	    "listen = localhost:7002\nlisten = *:7003 proxy\n"
	    "listen = *:7004 proxy dialect=classic\nlisten = \"./p.sock\" dialect=plain  proxy\n");
	assert_int_equal(c.nlisten, 8);
	for (int i = 0; i < 8; i++)
		assert_int_equal(c.listen[i].proxy, i >= 5);
	assert_int_equal(c.listen[5].dialect, CONF_PLAIN);
	assert_int_equal(c.listen[6].dialect, CONF_CLASSIC);
	assert_string_equal(c.listen[0].host, "0.0.0.0");
	assert_string_equal(c.listen[0].text, "*:7000");
	assert_string_equal(c.listen[1].host, "::1");
	assert_int_equal(c.listen[1].port, 7001);
	assert_int_equal(c.listen[1].dialect, CONF_CLASSIC);
	assert_string_equal(c.listen[1].text, "[0:0::1]:7001");
	assert_string_equal(c.listen[2].path, "./s.sock");
	assert_null(c.listen[2].host);
	assert_int_equal(c.listen[2].dialect, CONF_PLAIN);
	assert_string_equal(c.listen[3].path, "/tmp/a b");
	assert_int_equal(c.listen[3].dialect, CONF_CLASSIC);
	assert_string_equal(c.listen[4].host, "127.0.0.1");
	conf_free(&c);

	for (int i = 0; i <= CONF_LISTEN_MAX; i++) {
		snprintf(more, sizeof more, "listen = *:%d\n", 7000 + i);
		strcat(text, more);
	}
	bad_line(text, CONF_LISTEN_MAX + 1, "at most 16");
}

static void overrides(void **state)
{
	struct conf c;

	(void)state;
	conf_init(&c);
	assert_int_equal(read_text(&c, "workers = 2\nlisten = *:1\nlisten = *:2\n"), 0);
	assert_int_equal(conf_override(&c, "workers=4", tell, told), 0);
	assert_int_equal(conf_override(&c, " workers = 5 ", tell, told), 0);
	assert_int_equal(conf_override(&c, "listen=*:3", tell, told), 0);
	assert_int_equal(conf_override(&c, "listen=*:4 dialect=classic", tell, told), 0);
	assert_int_equal(conf_override(&c, "store=mysql://u:p#w@h/db", tell, told), 0);
	assert_int_equal(finish(&c), 0);
	assert_int_equal(c.workers, 5);
	assert_int_equal(c.nlisten, 2);
	assert_int_equal(c.listen[0].port, 3);
	assert_int_equal(c.listen[1].port, 4);
	assert_string_equal(c.store, "mysql://u:p#w@h/db");
	assert_int_equal(conf_override(&c, "wrokers=4", tell, told), 1);
	assert_int_equal(conf_override(&c, "workers", tell, told), 1);
	assert_int_equal(conf_override(&c, "workers=x", tell, told), 1);
	assert_string_equal(told, "-o:0: wrokers: unknown key; did you mean workers?\n"
	    "-o:0: KEY = VALUE is needed\n"
	    "-o:0: workers: a whole number is needed (or auto), not \"x\"\n");
	conf_free(&c);
}

static void bad_together(const char *text, const char *why)
{
	struct conf c;

	conf_init(&c);
	assert_int_equal(read_text(&c, text), 0);
	assert_int_equal(finish(&c), 1);
	if (strstr(told, why) == NULL)
		fail_msg("%s: expected %s", told, why);
	conf_free(&c);
}

static void combinations(void **state)
{
	struct conf c;
	char text[200];

	(void)state;
	bad_together("heartbeat_ms = 5000\n", "host_timeout_ms: 8000 is less than twice heartbeat_ms");
	bad_together("workers = 5\nmax_workers = 4\n", "workers: 5 is more than max_workers, 4");
	bad_together("pool_init = 5\npool_max = 4\n", "pool_init: 5 is more than pool_max, 4");
	bad_together("max_sessions = 100\nmax_connections = 101\n", "max_connections: 101");
	bad_together("max_frame = 1m\noutput_limit = 2m\n", "output_limit: 2097152 is less");
	bad_together("listen = 127.0.0.1:1\nlisten = localhost:1\n", "localhost:1 is given twice");
	bad_together("listen = /x\nlisten = unix:/x\n", "unix:/x is given twice");
	snprintf(text, sizeof text, "state_dir = /%0100d\n", 0);
	bad_together(text, "control: the path is too long");
	bad_together("state_dir = :memory:\n", "store: the path of a file is needed");
	/* what depends on others follows them */
	good(&c, "max_frame = 1m\nmax_sessions = 100\nmax_workers = 1\nstate_dir = /s//\n");
	assert_int_equal(c.output_limit, 4 << 20);
	assert_int_equal(c.max_connections, 100);
	assert_int_equal(c.workers, 1);
	assert_string_equal(c.store, "sqlite:/s/parley.db");
	assert_string_equal(c.control, "/s/parleyd.sock");
	conf_free(&c);
}

static void secrets_are_not_repeated(void **state)
{
	static const char *const texts[] = {
		"store = mysql://u:sesame@h/\n", "store = sesame\n", "store = \"mysql://u:sesame\n",
		"redis = redis://u:sesame@h:x\n", "redis = redis://sesame@h\n",
		"store mysql://u:sesame@h/db\n", "store = mysql://u:sesame@h/db\nstore = sesame\n"
	};
	struct conf c;

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		conf_init(&c);
		assert_int_equal(read_text(&c, texts[i]), 1);
		assert_null(strstr(told, "sesame"));
		conf_free(&c);
	}
}

static void urls_that_are_fine(void **state)
{
	static const char *const rows[] = {
		"store = mysql://u@h/db", "store = mysql://u:p@/db", "store = mysql://u:a@b/c@h:1/db",
		"store = mysql://u:p@[::1]:3306/db", "store = mysql://u:p@h/db?socket=/run/m.sock",
		"store = sqlite:./x.db", "redis = 127.0.0.1:6379", "redis = [::1]:6379",
		"redis = redis://h", "redis = redis://:p@h:1/0", "redis = redis://u:p@[::1]/3",
		"redis = sentinel://a:1,b:2/main", "redis = sentinel://:p@a,b/main", "redis = /run/r.sock",
		"redis = unix:/run/r.sock", "redis = \"\""
	};
	struct conf c;

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		good(&c, rows[i]);
		conf_free(&c);
	}
}

static void reload(void **state)
{
	static const char base[] = "state_dir = /s\nworkers = 2\nlisten = *:1\nlisten = *:2\n";
	struct conf a, b;

	(void)state;
	good(&a, base);
	good(&b, "state_dir = /s\nworkers = 3\nlisten = *:1\nlisten = *:2 dialect=plain\n"
	    "rate_messages = 1\nlogin_seconds = 1\nlog_level = debug\nduplicate_login = replace\n");
	told[0] = '\0';
	assert_int_equal(conf_diff(&a, &b, tell, told), 0);
	conf_free(&b);
	good(&b, "state_dir = /t\nworkers = 2\nlisten = *:1\nlisten = *:2 dialect=classic\n"
	    "max_frame = 4k\nsqlite_synchronous = normal\nmemory_limit = 8m\nhash_memory = 8\n");
	told[0] = '\0';
	assert_int_equal(conf_diff(&a, &b, tell, told), 7);
	for (const char *const *k = (const char *const[]){ "listen:", "store:", "control:",
	    "state_dir:", "max_frame:", "memory_limit:", "sqlite_synchronous:", NULL }; *k; k++)
		assert_non_null(strstr(told, *k));
	conf_free(&b);
	good(&b, "state_dir = /s\nworkers = 2\nlisten = *:1\nlisten = *:2 proxy\n");
	told[0] = '\0';
	assert_int_equal(conf_diff(&a, &b, tell, told), 1);
	assert_non_null(strstr(told, "listen:"));
	conf_free(&a);
	conf_free(&b);
}

static void which_keys_can_be_reloaded(void **state)
{
	static const char fixed[] = " listen store store_password_file redis redis_password_file cluster "
	    "control pid_file "
	    "state_dir host_id user group max_workers immortal max_sessions memory_limit max_frame log "
	    "hash_threads pool_init pool_max pool_idle_seconds pool_wait_ms sqlite_synchronous ";
	const struct conf_key *k;
	char name[64];

	(void)state;
	for (size_t i = 0; (k = conf_key_at(i)) != NULL; i++) {
		snprintf(name, sizeof name, " %s ", k->name);
		assert_int_equal(k->reloadable, strstr(fixed, name) == NULL);
	}
}

static void dump_reads_back(void **state)
{
	char one[8192], two[8192], small[100];
	struct conf a, b;
	size_t len;

	(void)state;
	good(&a, "listen = \"./a b\" dialect=classic\nlisten = [::1]:5\n"
	    "listen = *:6 proxy\nlisten = *:7 dialect=classic proxy\n"
	    "store = \"mysql://u:\\\"\\\\#@h/d\"\n"
	    "login_seconds = 0.001\nconfirm_timeout = 0.123\nhash_memory = 9\nmemory_limit = 64g\n"
	    "duplicate_login = replace\nregistration = off\nlog_level = error\nworkers = auto\n"
	    "sqlite_synchronous = normal\nclassic_gap_ms = 1\nhost_id = x\n");
	len = conf_dump(&a, one, sizeof one);
	assert_int_equal(len, strlen(one));
	good(&b, one);
	assert_int_equal(conf_dump(&b, two, sizeof two), len);
	assert_string_equal(one, two);
	told[0] = '\0';
	assert_int_equal(conf_diff(&a, &b, tell, told), 0);
	assert_int_equal(b.login_ms, 1);
	assert_int_equal(b.confirm_ms, 123);
	assert_int_equal(b.listen[0].dialect, CONF_CLASSIC);
	assert_true(!b.listen[1].proxy && b.listen[2].proxy && b.listen[3].proxy);
	assert_int_equal(b.listen[3].dialect, CONF_CLASSIC);
	assert_string_equal(b.store, "mysql://u:\"\\#@h/d");
	assert_true(b.replace && !b.registration && !b.sqlite_full);
	/* too little room: what fits, terminated, and what it would take */
	assert_int_equal(conf_dump(&a, small, sizeof small), len);
	assert_int_equal(strlen(small), sizeof small - 1);
	assert_memory_equal(small, one, sizeof small - 1);
	assert_int_equal(conf_dump(&a, NULL, 0), len);
	conf_free(&a);
	conf_free(&b);
}

static void files(void **state)
{
	char path[] = "/tmp/parley-conf-XXXXXX";
	int fd = mkstemp(path);
	struct conf c;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "backlog = 77\nworkers = no\n", 26), 26);
	close(fd);
	conf_init(&c);
	told[0] = '\0';
	assert_int_equal(conf_read(&c, path, tell, told), 1);
	assert_memory_equal(told, path, strlen(path));
	assert_non_null(strstr(told, ":2: workers"));
	assert_int_equal(c.backlog, 77);
	unlink(path);
	told[0] = '\0';
	assert_int_equal(conf_read(&c, path, tell, told), 1);
	assert_non_null(strstr(told, ":0: cannot be read: No such file"));
	told[0] = '\0';
	assert_int_equal(conf_read(&c, "/tmp", tell, told), 1);
	assert_non_null(strstr(told, "Is a directory"));
	conf_free(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults),
		cmocka_unit_test(every_key_is_documented),
		cmocka_unit_test(lines_and_quotes),
		cmocka_unit_test(sizes_and_times),
		cmocka_unit_test(errors_name_file_line_and_key),
		cmocka_unit_test(all_errors_are_told),
		cmocka_unit_test(odd_bytes),
		cmocka_unit_test(listeners),
		cmocka_unit_test(overrides),
		cmocka_unit_test(combinations),
		cmocka_unit_test(secrets_are_not_repeated),
		cmocka_unit_test(urls_that_are_fine),
		cmocka_unit_test(reload),
		cmocka_unit_test(which_keys_can_be_reloaded),
		cmocka_unit_test(dump_reads_back),
		cmocka_unit_test(files)
	};

	return cmocka_run_group_tests_name("conf", tests, NULL, NULL);
}
