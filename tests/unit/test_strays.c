/* Descriptors that a dead worker left open: which are closed, which connections are ended. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/rec.h"
#include "shm/segment.h"
#include "worker/strays.h"
#include "worker/worker.h"

static struct segment segment;

static int setup(void **state)
{
	struct segment_shape shape = { .max_workers = 2, .max_sessions = 64, .region_bytes = 4 << 20 };

	(void)state;
	return segment_open(&segment, &shape, 1);
}

static int teardown(void **state)
{
	(void)state;
	segment_close(&segment);
	return 0;
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* The descriptors below TOP that are open now, sorted. */
static unsigned all_open(int *fds, int top)
{
	unsigned n = 0;

	for (int fd = 0; fd < top; fd++)
		if (is_open(fd))
			fds[n++] = fd;
	return n;
}

static int listener(struct sockaddr_in *at)
{
	socklen_t len = sizeof *at;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	*at = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	assert_int_equal(bind(fd, (struct sockaddr *)at, sizeof *at), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)at, &len), 0);
	return fd;
}

/* A client's end; *SERVER_R is the other one. */
static int connection(int listen_fd, const struct sockaddr_in *at, int *server_r)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(connect(fd, (const struct sockaddr *)at, sizeof *at), 0);
	*server_r = accept(listen_fd, NULL, NULL);
	assert_true(*server_r >= 0);
	return fd;
}

/* Does FD come to its end within MS? */
static bool ends(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char c;

	return poll(&p, 1, ms) == 1 && recv(fd, &c, 1, 0) <= 0;
}

static uint32_t record(uint32_t slot, int fd, enum rec_state state)
{
	uint32_t i = rec_claim(slot, 1);

	assert_int_not_equal(i, REC_NONE);
	rec_at(i)->fd = fd;
	if (state == REC_MOVING) {
		rec_set_state(i, slot, REC_OPEN);
		rec_offer(i, slot);
	} else {
		rec_set_state(i, slot, state);
	}
	return i;
}

static void test_all_but_the_kept(void **state)
{
	int keep[256], high, pair[2];
	unsigned n, made = 0;

	(void)state;
	n = all_open(keep, 256);
	high = fcntl(0, F_DUPFD, 500);
	assert_true(high >= 500);
	assert_int_equal(pipe(pair), 0);
	assert_true(eventfd(0, 0) >= 0);
	for (int i = 0; i < 300; i++)			/* more than one read of the directory */
		made += open("/dev/null", O_RDONLY) >= 0;
	assert_int_equal(strays_close(keep, n, NULL, NULL), made + 4);
	assert_false(is_open(high) || is_open(pair[0]) || is_open(pair[1]));
	for (unsigned i = 0; i < n; i++)
		assert_true(is_open(keep[i]));
	assert_int_equal(strays_close(keep, n, NULL, NULL), 0);
}

/* Not even a descriptor for /proc is to be had, or it is not mounted: all goes, unseen. */
static void test_without_proc(void **state)
{
	int keep[256], status;
	unsigned n;
	pid_t pid;

	(void)state;
	n = all_open(keep, 256);
	pid = fork();
	if (pid == 0) {
		struct rlimit none = { 0, 0 };
		int a = fcntl(0, F_DUPFD, 300), b = fcntl(0, F_DUPFD, keep[n - 1] + 1);

		setrlimit(RLIMIT_NOFILE, &none);
		(void)strays_close(keep, n, NULL, NULL);
		for (unsigned i = 0; i < n; i++)
			if (!is_open(keep[i]))
				_exit(2);
		_exit(is_open(a) || is_open(b) ? 3 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* A client is ended although somebody has a copy of its descriptor; one that was given away is not. */
static void test_clients_are_ended_and_copies_closed(void **state)
{
	int keep[256], at_fd, client[5], server[5], copy[5];
	struct worker_boot boot = { .slot = 1, .keep = keep };
	struct sockaddr_in at;

	(void)state;
	at_fd = listener(&at);
	for (int i = 0; i < 5; i++) {
		client[i] = connection(at_fd, &at, &server[i]);
		copy[i] = fcntl(server[i], F_DUPFD, 100);	/* as another process would have it */
	}
	for (unsigned k = 0, n = all_open(keep, 256); k < n; k++) {
		bool stray = false;

		for (int i = 0; i < 5; i++)
			stray |= keep[k] == server[i];
		if (!stray)
			keep[boot.nkeep++] = keep[k];
	}
	(void)record(1, server[0], REC_OPEN);
	(void)record(0, server[1], REC_OPEN);		/* a sibling's, who has the same number */
	(void)record(1, server[2], REC_MOVING);		/* offered: perhaps it was taken */
	(void)record(1, server[3], REC_CLOSING);	/* its number may be somebody else's by now */
	worker_tidy(&boot);				/* 4: nobody names it */
	for (int i = 0; i < 5; i++)
		assert_false(is_open(server[i]));
	assert_true(ends(client[0], 5000));
	for (int i = 1; i < 5; i++) {
		assert_false(ends(client[i], 20));
		close(copy[i]);
		assert_true(ends(client[i], 5000));
	}
	for (int i = 0; i < 5; i++)
		close(client[i]);
	close(copy[0]);
	close(at_fd);
}

/* The copy of a listener, of a slot served for a sibling, is closed; the listener goes on. */
static void test_a_listener_is_never_shut_down(void **state)
{
	int keep[256], at_fd, copy, server, client;
	struct worker_boot boot = { .slot = 1, .keep = keep };
	struct sockaddr_in at;

	(void)state;
	at_fd = listener(&at);
	boot.nkeep = all_open(keep, 256);
	copy = fcntl(at_fd, F_DUPFD, 100);
	(void)record(1, copy, REC_OPEN);		/* and be there a record that says so */
	worker_tidy(&boot);
	assert_false(is_open(copy));
	client = connection(at_fd, &at, &server);
	close(client);
	close(server);
	close(at_fd);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_all_but_the_kept),
		T(test_without_proc),
		T(test_clients_are_ended_and_copies_closed),
		T(test_a_listener_is_never_shut_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
