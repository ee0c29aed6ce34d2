/* Control messages: one table binds sender and receiver; whatever arrives, no descriptor leaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/ipc.h"

#define HEAD offsetof(struct ipc_ctl, body)

static int pair[2];

static int setup(void **state)
{
	(void)state;
	return ipc_pair(pair);
}

static int teardown(void **state)
{
	(void)state;
	close(pair[0]);
	close(pair[1]);
	return 0;
}

static unsigned open_files(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");

	assert_non_null(d);
	while (readdir(d) != NULL)
		n++;
	closedir(d);
	return n;
}

static enum ipc_rc take(struct ipc_ctl *m, int *fds, unsigned *nfds)
{
	*nfds = 99;
	return ipc_ctl_recv(pair[1], m, fds, nfds);
}

static void test_pair(void **state)
{
	int type;
	socklen_t len = sizeof type;

	(void)state;
	for (int i = 0; i < 2; i++) {
		assert_true(fcntl(pair[i], F_GETFL) & O_NONBLOCK);
		assert_true(fcntl(pair[i], F_GETFD) & FD_CLOEXEC);
		assert_int_equal(getsockopt(pair[i], SOL_SOCKET, SO_TYPE, &type, &len), 0);
		assert_int_equal(type, SOCK_SEQPACKET);
	}
}

static void test_fields_and_body_arrive(void **state)
{
	struct ipc_ctl m = { .type = IPC_STOP, .len = 8, .from_slot = 7, .from_gen = 8, .to_gen = 9,
	    .a = 1, .b = 2, .c = 3, .body = "shutdown" }, got = { 0 };
	int fds[IPC_CTL_FDS];
	unsigned n;

	(void)state;
	assert_int_equal(ipc_ctl_send(pair[0], &m, NULL, 0), IPC_OK);
	assert_int_equal(take(&got, fds, &n), IPC_OK);
	assert_int_equal(n, 0);
	assert_memory_equal(&got, &m, HEAD + m.len);
	assert_int_equal(take(&got, fds, &n), IPC_AGAIN);
}

static void test_descriptors_arrive_in_order(void **state)
{
	struct ipc_ctl m = { .type = IPC_ADOPT, .a = 3, .b = 4 }, got;
	int fds[IPC_CTL_FDS], mine[IPC_CTL_FDS], ends[2];
	unsigned n, before;
	char c;

	(void)state;
	assert_int_equal(pipe(ends), 0);
	for (unsigned i = 0; i < IPC_CTL_FDS; i++)
		mine[i] = ends[i == 1 ? 0 : 1];
	before = open_files();
	assert_int_equal(ipc_ctl_send(pair[0], &m, mine, IPC_CTL_FDS), IPC_OK);
	assert_int_equal(take(&got, fds, &n), IPC_OK);
	assert_int_equal(n, IPC_CTL_FDS);
	assert_int_equal(open_files(), before + IPC_CTL_FDS);
	assert_true(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
	assert_int_equal(write(fds[2], "x", 1), 1);
	assert_int_equal(read(fds[1], &c, 1), 1);
	while (n > 0)
		close(fds[--n]);
	close(ends[0]);
	close(ends[1]);
}

/* The sender is held to the table: nothing of this leaves. */
static void test_sender_is_checked(void **state)
{
	static const struct { uint32_t type, len; unsigned nfds; } bad[] = {
		{ IPC_NONE, 0, 0 }, { IPC_NTYPES, 0, 0 }, { 0xffffffff, 0, 0 },
		{ IPC_STOP, 65, 0 },			/* body too long */
		{ IPC_LEAVE, 1, 0 },			/* no body allowed */
		{ IPC_ADMIN, 1, 1 },			/* body too short */
		{ IPC_ADMIN, IPC_CTL_BODY + 1, 1 },
		{ IPC_ADMIN, 10, 0 },			/* no descriptor */
		{ IPC_READY, 0, 1 },			/* one too many */
		{ IPC_MOVE, 10, 2 },
	};
	struct ipc_ctl m = { 0 };
	int fds[IPC_CTL_FDS] = { pair[0], pair[0] };
	unsigned n;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		m.type = bad[i].type;
		m.len = bad[i].len;
		assert_int_equal(ipc_ctl_send(pair[0], &m, fds, bad[i].nfds), IPC_BAD);
		assert_int_equal(take(&m, fds, &n), IPC_AGAIN);
	}
}

/* Sends raw bytes with NFDS descriptors, past the sender's checks. */
static void send_raw(const void *bytes, size_t len, unsigned nfds)
{
	union { char buf[CMSG_SPACE(sizeof(int) * 64)]; struct cmsghdr align; } ctl;
	struct iovec iov = { (void *)(uintptr_t)bytes, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds > 0) {
		memset(&ctl, 0, sizeof ctl);
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		ctl.align.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		ctl.align.cmsg_level = SOL_SOCKET;
		ctl.align.cmsg_type = SCM_RIGHTS;
		for (unsigned i = 0; i < nfds; i++)
			memcpy(CMSG_DATA(&ctl.align) + i * sizeof(int), &pair[0], sizeof(int));
	}
	assert_int_equal(sendmsg(pair[0], &mh, 0), len);
}

static void test_nonsense_leaks_nothing(void **state)
{
	static char big[sizeof(struct ipc_ctl) + 1];
	struct ipc_ctl m = { .type = IPC_MOVE, .len = 4 }, got;
	int fds[IPC_CTL_FDS];
	unsigned n, before = open_files();

	(void)state;
	send_raw("x", 1, 3);				/* shorter than a head */
	send_raw(&m, HEAD + 5, 1);			/* length and packet disagree */
	send_raw(&m, HEAD + 4, 0);			/* the descriptor is missing */
	send_raw(&m, HEAD + 4, 2);
	send_raw(&m, HEAD + 4, 64);			/* more than there is room for */
	memcpy(big, &m, HEAD);
	send_raw(big, sizeof big, 1);			/* longer than any message */
	m.type = IPC_NTYPES;
	send_raw(&m, HEAD + 4, 1);			/* of no known type */
	for (int i = 0; i < 7; i++)
		assert_int_equal(take(&got, fds, &n), IPC_BAD);
	assert_int_equal(take(&got, fds, &n), IPC_AGAIN);
	assert_int_equal(open_files(), before);
}

static void test_full_is_back_pressure_and_loses_nothing(void **state)
{
	struct ipc_ctl m = { .type = IPC_READY }, got;
	int fds[IPC_CTL_FDS];
	unsigned n, sent = 0;
	enum ipc_rc rc;

	(void)state;
	for (;;) {
		m.a = sent;
		rc = ipc_ctl_send(pair[0], &m, NULL, 0);
		if (rc != IPC_OK)
			break;
		sent++;
		assert_true(sent < 1000000);
	}
	assert_int_equal(rc, IPC_AGAIN);
	assert_true(sent > 50);
	for (unsigned i = 0; i < sent; i++) {
		assert_int_equal(take(&got, fds, &n), IPC_OK);
		assert_int_equal(got.a, i);
	}
	assert_int_equal(take(&got, fds, &n), IPC_AGAIN);
	assert_int_equal(ipc_ctl_send(pair[0], &m, NULL, 0), IPC_OK);
}

static void test_names(void **state)
{
	(void)state;
	assert_string_equal(ipc_ctl_name(IPC_ADOPT), "ADOPT");
	assert_string_equal(ipc_ctl_name(IPC_NONE), "unknown");
	assert_string_equal(ipc_ctl_name(IPC_NTYPES), "unknown");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pair, setup, teardown),
		cmocka_unit_test_setup_teardown(test_fields_and_body_arrive, setup, teardown),
		cmocka_unit_test_setup_teardown(test_descriptors_arrive_in_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sender_is_checked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nonsense_leaks_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full_is_back_pressure_and_loses_nothing, setup, teardown),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
