/* Listeners: who gets a new connection, and who may bind at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "master/listen.h"

#define SLOTS 4

static char dir[64], why[300];
static struct conf conf;
static struct listeners ls;

static int bound_socket(uint16_t port, bool share)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port),
	    .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = share;

	assert_true(fd >= 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on), 0);
	if (bind(fd, (struct sockaddr *)&sa, sizeof sa) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* A port that nobody uses: the kernel's choice, given back. */
static uint16_t free_port(void)
{
	struct sockaddr_in sa;
	socklen_t len = sizeof sa;
	int fd = bound_socket(0, false);

	assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	close(fd);
	return ntohs(sa.sin_port);
}

static void add(const char *host, uint16_t port, const char *path)
{
	struct conf_listen *l = &conf.listen[conf.nlisten++];
	static char text[CONF_LISTEN_MAX][128], addr[CONF_LISTEN_MAX][128];
	unsigned i = conf.nlisten - 1;

	snprintf(addr[i], sizeof addr[i], "%s", host != NULL ? host : path);
	snprintf(text[i], sizeof text[i], "%.100s:%u", addr[i], port);
	*l = (struct conf_listen){ .text = text[i], .host = host != NULL ? addr[i] : NULL,
	    .path = host == NULL ? addr[i] : NULL, .port = port };
}

static int setup(void **state)
{
	(void)state;
	snprintf(dir, sizeof dir, "/tmp/parley-listen-XXXXXX");
	conf = (struct conf){ .max_workers = SLOTS, .backlog = 128 };
	return mkdtemp(dir) == NULL;
}

static int teardown(void **state)
{
	(void)state;
	listeners_close(&ls);
	return rmdir(dir);		/* fails when anything was left in it */
}

static const char *in_dir(const char *name)
{
	static char path[128];

	snprintf(path, sizeof path, "%.60s/%s", dir, name);
	return path;
}

static void start(unsigned slot)
{
	if (listeners_start(&ls, slot, why, sizeof why) != 0)
		fail_msg("%s", why);
}

static void open_all(void)
{
	if (listeners_open(&ls, &conf, why, sizeof why) != 0)
		fail_msg("%s", why);
}

static int dial(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port),
	    .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&sa, sizeof sa) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Makes N connections to listener 0 and counts which slot got them. */
static void spread(uint16_t port, unsigned n, unsigned got[SLOTS])
{
	memset(got, 0, SLOTS * sizeof *got);
	for (unsigned k = 0; k < n; k++) {
		struct pollfd p[SLOTS];
		int fd = dial(port), peer;

		assert_true(fd >= 0);
		for (unsigned s = 0; s < SLOTS; s++)
			p[s] = (struct pollfd){ .fd = listeners_started(&ls, s) ?
			    listeners_of(&ls, s)[0] : -1, .events = POLLIN };
		assert_int_equal(poll(p, SLOTS, 5000), 1);
		for (unsigned s = 0; s < SLOTS; s++)
			if (p[s].revents != 0) {
				peer = accept(p[s].fd, NULL, NULL);
				assert_true(peer >= 0);
				close(peer);
				got[s]++;
			}
		close(fd);
	}
}

static void test_only_started_slots_get_connections(void **state)
{
	uint16_t port = free_port();
	unsigned got[SLOTS];

	(void)state;
	add("127.0.0.1", port, NULL);
	open_all();
	assert_int_equal(dial(port), -1);
	start(2);
	spread(port, 40, got);
	assert_int_equal(got[2], 40);
	start(0);
	start(0);				/* harmless */
	spread(port, 60, got);
	assert_true(got[0] > 0 && got[2] > 0);
	assert_int_equal(got[0] + got[2], 60);
}

static void test_steering(void **state)
{
	uint16_t port = free_port(), other = free_port();
	bool live[SLOTS] = { false, true, false, false };
	unsigned got[SLOTS];

	(void)state;
	add("127.0.0.1", port, NULL);
	add("127.0.0.1", other, NULL);
	open_all();
	start(3);				/* places by order of listen(), not by slot */
	start(1);
	start(0);
	assert_int_equal(listeners_steer(&ls, live), 0);
	spread(port, 40, got);
	assert_int_equal(got[1], 40);
	live[3] = true;
	assert_int_equal(listeners_steer(&ls, live), 0);
	spread(port, 60, got);
	assert_true(got[1] > 0 && got[3] > 0);
	assert_int_equal(got[0], 0);
	start(2);				/* a new member without a worker */
	assert_int_equal(listeners_steer(&ls, live), 0);
	spread(port, 60, got);
	assert_int_equal(got[1] + got[3], 60);
	live[0] = live[2] = true;		/* all live: the kernel's hash again */
	assert_int_equal(listeners_steer(&ls, live), 0);
	assert_false(ls.steered);
	spread(port, 200, got);
	for (unsigned s = 0; s < SLOTS; s++)
		assert_true(got[s] > 0);
	memset(live, 0, sizeof live);		/* none: connections wait, spread as ever */
	assert_int_equal(listeners_steer(&ls, live), 0);
	assert_false(ls.steered);
}

static void test_accepted_sockets_inherit(void **state)
{
	uint16_t port = free_port();
	struct pollfd p = { .events = POLLIN };
	int fd, peer, on;
	socklen_t len = sizeof on;

	(void)state;
	add("127.0.0.1", port, NULL);
	open_all();
	start(0);
	fd = dial(port);
	p.fd = listeners_of(&ls, 0)[0];
	assert_true(fcntl(p.fd, F_GETFL) & O_NONBLOCK);
	assert_int_equal(poll(&p, 1, 5000), 1);
	peer = accept(p.fd, NULL, NULL);
	assert_int_equal(getsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, &len), 0);
	assert_true(on);
	assert_int_equal(getsockopt(peer, SOL_SOCKET, SO_OOBINLINE, &on, &len), 0);
	assert_true(on);
	close(peer);
	close(fd);
}

/* Another process must not be joined on its port, even if its socket would allow it. */
static void test_foreign_listener(void **state)
{
	uint16_t port = free_port();

	(void)state;
	add("127.0.0.1", port, NULL);
	for (int share = 0; share < 2; share++) {
		int fd = bound_socket(port, share);

		assert_true(fd >= 0);
		assert_int_equal(listen(fd, 1), 0);
		assert_int_equal(listeners_open(&ls, &conf, why, sizeof why), -1);
		assert_non_null(strstr(why, "another process"));
		assert_non_null(strstr(why, conf.listen[0].text));
		close(fd);
	}
	open_all();
}

/* Connections of the past do not keep a restarted daemon from its port. */
static void test_old_connections_do_not_matter(void **state)
{
	uint16_t port = free_port();
	unsigned got[SLOTS];
	int fd, peer;
	struct pollfd p = { .events = POLLIN };

	(void)state;
	add("127.0.0.1", port, NULL);
	open_all();
	start(0);
	fd = dial(port);
	p.fd = listeners_of(&ls, 0)[0];
	assert_int_equal(poll(&p, 1, 5000), 1);
	peer = accept(p.fd, NULL, NULL);
	close(peer);				/* closed here first: TIME_WAIT is ours */
	close(fd);
	listeners_close(&ls);
	open_all();
	start(0);
	spread(port, 3, got);
}

static void test_ipv6_and_wildcard_beside_each_other(void **state)
{
	uint16_t port = free_port();

	(void)state;
	add("0.0.0.0", port, NULL);
	add("::", port, NULL);
	if (listeners_open(&ls, &conf, why, sizeof why) != 0 && strstr(why, "family") != NULL)
		skip();				/* a kernel without IPv6 */
	assert_non_null(ls.fd);
	start(0);
	start(1);
}

static void test_bad_address_says_which(void **state)
{
	(void)state;
	add("203.0.113.9", free_port(), NULL);
	assert_int_equal(listeners_open(&ls, &conf, why, sizeof why), -1);
	assert_non_null(strstr(why, "203.0.113.9"));
	assert_null(ls.fd);
}

static void test_unix_is_shared_and_removed(void **state)
{
	const char *path = in_dir("s");
	struct stat st;

	(void)state;
	add(NULL, 0, path);
	open_all();
	assert_int_equal(listeners_of(&ls, 0)[0], listeners_of(&ls, 3)[0]);
	assert_int_equal(lstat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0666);
	start(0);
	listeners_close(&ls);
	assert_int_equal(lstat(path, &st), -1);
}

static void test_unix_mode_holds_under_any_umask(void **state)
{
	struct listen_file file;
	mode_t old = umask(0);
	struct stat st;
	int fd = listen_unix(in_dir("ctl"), 0600, 1, &file, why, sizeof why);

	(void)state;
	umask(old);
	assert_true(fd >= 0);
	assert_int_equal(lstat(in_dir("ctl"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	close(fd);
	listen_unlink(&file);
}

static void test_unix_stale_living_and_foreign(void **state)
{
	struct listen_file file, second;
	struct stat st;
	int fd, other;

	(void)state;
	fd = listen_unix(in_dir("s"), 0600, 1, &file, why, sizeof why);
	assert_true(fd >= 0);
	assert_int_equal(listen_unix(in_dir("s"), 0600, 1, &second, why, sizeof why), -1);
	assert_non_null(strstr(why, "another process"));
	close(fd);				/* dead, and its file is still there */
	other = listen_unix(in_dir("s"), 0600, 1, &second, why, sizeof why);
	assert_true(other >= 0);
	listen_unlink(&file);			/* no longer the file that it made */
	assert_int_equal(lstat(in_dir("s"), &st), 0);
	close(other);
	listen_unlink(&second);
	assert_int_equal(lstat(in_dir("s"), &st), -1);
	fd = open(in_dir("s"), O_CREAT | O_WRONLY, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(listen_unix(in_dir("s"), 0600, 1, &second, why, sizeof why), -1);
	assert_non_null(strstr(why, "no socket"));
	assert_int_equal(unlink(in_dir("s")), 0);
}

static void test_keep_only(void **state)
{
	int first, mine, shared;

	(void)state;
	add("127.0.0.1", free_port(), NULL);
	add(NULL, 0, in_dir("s"));
	open_all();
	first = listeners_of(&ls, 0)[0];
	mine = listeners_of(&ls, 2)[0];
	shared = listeners_of(&ls, 2)[1];
	listeners_keep_only(&ls, 2);
	assert_int_equal(fcntl(first, F_GETFD), -1);
	assert_true(fcntl(mine, F_GETFD) >= 0);
	assert_true(fcntl(shared, F_GETFD) >= 0);
	assert_int_equal(listeners_of(&ls, 2)[0], mine);
	listeners_keep_only(&ls, SLOTS);
	assert_int_equal(fcntl(mine, F_GETFD), -1);
	assert_int_equal(fcntl(shared, F_GETFD), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_only_started_slots_get_connections, setup, teardown),
		cmocka_unit_test_setup_teardown(test_steering, setup, teardown),
		cmocka_unit_test_setup_teardown(test_accepted_sockets_inherit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_foreign_listener, setup, teardown),
		cmocka_unit_test_setup_teardown(test_old_connections_do_not_matter, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ipv6_and_wildcard_beside_each_other, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_address_says_which, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unix_is_shared_and_removed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unix_mode_holds_under_any_umask, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unix_stale_living_and_foreign, setup, teardown),
		cmocka_unit_test_setup_teardown(test_keep_only, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
