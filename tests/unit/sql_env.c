#include "tests/unit/sql_env.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sql/engine.h"

char env_url[512], env_dir[128];

static char server_base[400];		/* mysql://...@host/ without a database */
static char server_socket[160];
static pid_t server_pid;
static unsigned databases;
static char database[64];

void env_init(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(env_dir, sizeof env_dir, "%s/parley-sql-XXXXXX", tmp != NULL ? tmp : "/tmp");
	if (mkdtemp(env_dir) == NULL || db_global_init() != DB_OK) {
		perror(env_dir);
		exit(1);
	}
	signal(SIGPIPE, SIG_IGN);
}

static int run(char *const argv[], int out)
{
	pid_t pid = fork();
	int st;

	if (pid == 0) {
		dup2(out, 1);
		dup2(out, 2);
		execvp(argv[0], argv);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &st, 0) == pid && WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}

void env_fini(void)
{
	char *argv[] = { (char[]){ "rm" }, (char[]){ "-rf" }, env_dir, NULL };

	if (run(argv, 2) != 0)
		perror("rm");
}

static void nap(void)
{
	struct timespec ts = { 0, 20 * 1000000 };

	nanosleep(&ts, NULL);
}

/* ---- the server ---- */

static int log_open(void)
{
	char path[200];

	snprintf(path, sizeof path, "%s/server.log", env_dir);
	return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void server_spawn(void)
{
	char data[200], sock[200], pidf[200], bin[] = "mariadbd", tmp[200];
	char *argv[] = { bin, (char[]){ "--no-defaults" }, data, sock, pidf, tmp,
		(char[]){ "--skip-networking" }, (char[]){ "--user=root" },
		(char[]){ "--innodb-buffer-pool-size=64M" }, (char[]){ "--innodb-log-file-size=16M" },
		(char[]){ "--performance-schema=OFF" }, NULL };
	int out = log_open();

	snprintf(data, sizeof data, "--datadir=%s/data", env_dir);
	snprintf(sock, sizeof sock, "--socket=%s", server_socket);
	snprintf(pidf, sizeof pidf, "--pid-file=%s/pid", env_dir);
	snprintf(tmp, sizeof tmp, "--tmpdir=%s", env_dir);
	server_pid = fork();
	if (server_pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(out, 1);
		dup2(out, 2);
		setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
		execvp(argv[0], argv);
		_exit(127);
	}
	close(out);
}

static bool server_wait(void)
{
	char url[600];
	struct db *db;
	bool up = false;

	snprintf(url, sizeof url, "%smysql", server_base);
	assert_int_equal(db_open(url, NULL, &db, NULL, 0), DB_OK);
	for (int i = 0; i < 50 * 60 && !up; i++) {
		up = db_ping(db) == DB_OK;
		if (!up)
			nap();
		if (!up && server_pid > 0 && waitpid(server_pid, NULL, WNOHANG) == server_pid)
			break;
	}
	if (!up)
		fprintf(stderr, "the server does not come up: %s\n", db_errmsg(db));
	db_close(db);
	return up;
}

int env_mysql_start(void **state)
{
	const char *given = getenv("PARLEY_TEST_MYSQL");
	char data[200], *base = server_base, *argv[] = { (char[]){ "mariadb-install-db" },
		(char[]){ "--no-defaults" }, data, (char[]){ "--user=root" },
		(char[]){ "--auth-root-authentication-method=normal" },
		(char[]){ "--skip-test-db" },
		(char[]){ "--force" },		/* a machine may not know its own name */
		NULL };
	int out;

	(void)state;
	if (given != NULL) {
		char *slash;

		snprintf(server_base, sizeof server_base, "%s", given);
		slash = strrchr(server_base, '/');
		if (slash != NULL)
			slash[1] = '\0';
		return server_wait() ? 0 : -1;
	}
	out = log_open();
	snprintf(data, sizeof data, "--datadir=%s/data", env_dir);
	if (run(argv, out) != 0) {
		fprintf(stderr, "mariadb-install-db failed, see %s/server.log\n", env_dir);
		return -1;
	}
	close(out);
	snprintf(server_socket, sizeof server_socket, "%s/sock", env_dir);
	base += sprintf(base, "mysql://root@");
	for (const char *p = server_socket; *p != '\0'; p++)
		base += sprintf(base, *p == '/' ? "%%2F" : "%c", *p);
	sprintf(base, "/");
	server_spawn();
	return server_wait() ? 0 : -1;
}

bool env_server_mine(void)
{
	return server_pid > 0;
}

pid_t env_server_pid(void)
{
	return server_pid;
}

void env_server_kill(void)
{
	kill(server_pid, SIGKILL);
	waitpid(server_pid, NULL, 0);
}

void env_server_again(void)
{
	server_spawn();
	assert_true(server_wait());
}

int env_mysql_stop(void **state)
{
	(void)state;
	if (server_pid > 0)
		env_server_kill();
	server_pid = 0;
	return 0;
}

static int sql_fn(struct db *db, void *arg)
{
	return db->eng->exec(db, arg);
}

void env_sql(const char *sql)
{
	struct db *db;
	char url[600];

	snprintf(url, sizeof url, "%smysql", server_base);
	assert_int_equal(db_open(url, NULL, &db, NULL, 0), DB_OK);
	assert_int_equal(db_run(db, DB_READ, sql_fn, (void *)(uintptr_t)sql), DB_OK);
	db_close(db);
}

/* ---- a database for each test ---- */

struct db *env_open(const struct db_options *opt)
{
	struct db *db = NULL;
	char why[200] = "";

	if (db_open(env_url, opt, &db, why, sizeof why) != DB_OK)
		fail_msg("%s: %s", env_url, why);
	return db;
}

static int fresh(void **state)
{
	struct db *db = env_open(NULL);
	int rc = db_migrate(db);

	if (rc != DB_OK)
		fprintf(stderr, "migrate: %s: %s\n", db_rc_name(rc), db_errmsg(db));
	*state = db;
	return rc;
}

int env_fresh_sqlite(void **state)
{
	snprintf(env_url, sizeof env_url, "sqlite:%s/%u.db", env_dir, ++databases);
	return fresh(state);
}

int env_fresh_mysql(void **state)
{
	snprintf(database, sizeof database, "parley_test_%d_%u", (int)getpid(), ++databases);
	snprintf(env_url, sizeof env_url, "%s%s", server_base, database);
	return fresh(state);
}

int env_done(void **state)
{
	char sql[128];

	db_close(*state);
	if (database[0] != '\0') {
		snprintf(sql, sizeof sql, "DROP DATABASE `%s`", database);
		env_sql(sql);
		database[0] = '\0';
	}
	return 0;
}

void env_fork(int count, int (*fn)(int me))
{
	pid_t pids[16];

	assert_true(count <= (int)ARRAY_LEN(pids));
	for (int i = 0; i < count; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (pids[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			setenv("CMOCKA_TEST_ABORT", "1", 1);	/* no jump back into the suite */
			_exit(fn(i));
		}
	}
	for (int i = 0; i < count; i++) {
		int st = -1;

		assert_int_equal(waitpid(pids[i], &st, 0), pids[i]);
		assert_int_equal(st, 0);
	}
}

/* ---- the proxy ---- */

static int unix_socket(const char *path, bool listening)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%.100s", path);
	if (fd >= 0 && (listening ? bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 8) != 0
				  : connect(fd, (struct sockaddr *)&a, sizeof a) != 0)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static bool pass_on(int to, const char *p, ssize_t n)
{
	while (n > 0) {
		ssize_t w = write(to, p, (size_t)n);

		if (w < 0)
			return false;
		p += w;
		n -= w;
	}
	return true;
}

static int control[2];			/* the test's end and the proxy's */
static struct { int server; char buf[65536]; ssize_t len; } held;

/* The server gets the COMMIT that was held, late; the test goes on when it has dealt with it. */
static void held_release(void)
{
	char byte, answer[1024];

	if (read(control[1], &byte, 1) != 1)
		_exit(0);			/* the test is over */
	if (held.len > 0 && pass_on(held.server, held.buf, held.len) &&
	    read(held.server, answer, sizeof answer) > 0)
		byte = '!';			/* it lived to answer */
	if (write(control[1], &byte, 1) != 1)
		_exit(1);
}

/* Serves one link. True: it was cut. */
static bool relay(int client, int server, bool armed, enum env_proxy how)
{
	char buf[sizeof held.buf];

	for (;;) {
		struct pollfd p[3] = { { client, POLLIN, 0 }, { server, POLLIN, 0 },
			{ control[1], POLLIN, 0 } };
		bool from_client;
		ssize_t n;

		if (poll(p, 3, -1) < 0)
			return false;
		if (p[2].revents != 0)
			held_release();
		from_client = p[0].revents != 0;
		if (!from_client && p[1].revents == 0)
			continue;
		n = read(from_client ? client : server, buf, sizeof buf);
		if (n <= 0)
			return false;
		if (from_client && armed && memmem(buf, (size_t)n, "\3COMMIT", 7) != NULL) {
			if (how == PROXY_CUT_AFTER) {	/* it is done, and the answer goes nowhere */
				pass_on(server, buf, n);
				n = read(server, buf, sizeof buf);
			} else if (how == PROXY_HOLD) {
				held.server = dup(server);
				held.len = n;
				memcpy(held.buf, buf, (size_t)n);
			}
			return true;
		}
		if (!pass_on(from_client ? server : client, buf, n))
			return false;
	}
}

static void proxy(int listener, enum env_proxy how)
{
	bool armed = true;

	for (;;) {
		int client = accept(listener, NULL, NULL), server = unix_socket(server_socket, false);

		if (client < 0 || server < 0)
			_exit(1);
		if (relay(client, server, armed, how))
			armed = false;
		close(client);
		close(server);
	}
}

pid_t env_proxy_start(enum env_proxy how, char *url_r, size_t size)
{
	char path[160];
	int listener, at;
	pid_t pid;

	snprintf(path, sizeof path, "%s/proxy", env_dir);
	unlink(path);
	listener = unix_socket(path, true);
	assert_true(listener >= 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control), 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(control[0]);
		proxy(listener, how);
	}
	close(listener);
	close(control[1]);
	at = snprintf(url_r, size, "mysql://root@localhost/%s?socket=%s", database, path);
	assert_true(at > 0 && (size_t)at < size);
	return pid;
}

bool env_proxy_release(void)
{
	char byte = '.';

	assert_int_equal(write(control[0], &byte, 1), 1);
	assert_int_equal(read(control[0], &byte, 1), 1);
	return byte == '!';
}

void env_proxy_stop(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(control[0]);
}
