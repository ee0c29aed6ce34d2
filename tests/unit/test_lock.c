/* Robust locks: what a waiter sees of a holder who works, stops or dies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/lock.h"

/* What the processes of a test share. */
static struct shared {
	pthread_mutex_t lock;
	_Atomic int ready, go;
} *sh;

static int setup(void **state)
{
	(void)state;
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return sh == MAP_FAILED || lock_init(&sh->lock) != 0;
}

static int teardown(void **state)
{
	(void)state;
	lock_on_wait(NULL);
	return munmap(sh, sizeof(*sh));
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Gives the other process the processor until FLAG is set; fails the test after ten seconds. */
static void wait_for(_Atomic int *flag)
{
	int64_t end = now_ms() + 10000;

	while (!atomic_load(flag)) {
		assert_true(now_ms() < end);
		sched_yield();
	}
}

/* A child that holds the lock and says so; it leaves it when told to, with status 0. */
static pid_t holder(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (lock_enter(&sh->lock) != LOCK_OK)
			_exit(1);
		atomic_store(&sh->ready, 1);
		while (!atomic_load(&sh->go))
			sched_yield();
		lock_leave(&sh->lock);
		_exit(0);
	}
	wait_for(&sh->ready);
	return pid;
}

static void end(pid_t pid, int status)
{
	int st;

	assert_int_equal(waitpid(pid, &st, 0), pid);
	assert_int_equal(st, status);
}

static void test_enter_and_leave(void **state)
{
	(void)state;
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(lock_enter(&sh->lock), LOCK_OK);
		assert_int_equal(pthread_mutex_trylock(&sh->lock), EDEADLK);	/* held, by us */
		lock_leave(&sh->lock);
	}
}

static int calls, last_tid, kill_after;
static pid_t holding;

static void hook(int tid)
{
	calls++;
	last_tid = tid;
	if (holding != 0 && calls == kill_after) {
		kill(holding, SIGKILL);
		end(holding, SIGKILL);
		holding = 0;
	} else if (holding == 0 && calls == kill_after) {
		atomic_store(&sh->go, 1);
	}
}

/* A waiter is called in steps and told whom it waits for, and once more when it is over. */
static void test_waiting_beats(void **state)
{
	int64_t start = now_ms();
	pid_t pid = holder();

	(void)state;
	calls = 0, kill_after = 4, holding = 0;
	lock_on_wait(hook);
	assert_int_equal(lock_enter(&sh->lock), LOCK_OK);
	assert_true(calls >= 4);
	assert_int_equal(last_tid, pid);
	assert_true(now_ms() - start >= 3 * 20);
	last_tid = -1;
	lock_leave(&sh->lock);
	assert_int_equal(last_tid, 0);
	/* Nobody waits: nobody is called. */
	calls = 0;
	assert_int_equal(lock_enter(&sh->lock), LOCK_OK);
	lock_leave(&sh->lock);
	assert_int_equal(calls, 0);
	end(pid, 0);
}

/* A holder who was stopped is found by its thread id; killed, it hands the lock on. */
static void test_stopped_holder_is_killed(void **state)
{
	(void)state;
	holding = holder();
	calls = 0, kill_after = 3, last_tid = -1;
	kill(holding, SIGSTOP);
	lock_on_wait(hook);
	assert_int_equal(lock_enter(&sh->lock), LOCK_INHERITED);
	assert_true(calls >= 3);
	assert_int_equal(lock_mended(&sh->lock), LOCK_OK);
	lock_leave(&sh->lock);
	assert_int_equal(lock_enter(&sh->lock), LOCK_OK);
	lock_leave(&sh->lock);
}

/* A repair that is killed, too, leaves the lock to be inherited again. */
static void test_death_while_mending(void **state)
{
	(void)state;
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			if (lock_enter(&sh->lock) != (i == 0 ? LOCK_OK : LOCK_INHERITED))
				_exit(1);
			kill(getpid(), SIGKILL);
		}
		end(pid, SIGKILL);
	}
	assert_int_equal(lock_enter(&sh->lock), LOCK_INHERITED);
	assert_int_equal(lock_mended(&sh->lock), LOCK_OK);
	lock_leave(&sh->lock);
	assert_int_equal(lock_enter(&sh->lock), LOCK_OK);
	lock_leave(&sh->lock);
}

/* Left without having been mended, it is lost for good, and everybody is told. */
static void test_unmended_is_broken(void **state)
{
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		(void)!lock_enter(&sh->lock);
		kill(getpid(), SIGKILL);
	}
	end(pid, SIGKILL);
	assert_int_equal(lock_enter(&sh->lock), LOCK_INHERITED);
	lock_leave(&sh->lock);
	for (int i = 0; i < 2; i++)
		assert_int_equal(lock_enter(&sh->lock), LOCK_BROKEN);
	/* mended() of what is not inherited is a failure, too, and holds nothing afterwards. */
	pthread_mutex_t other;
	assert_int_equal(lock_init(&other), 0);
	assert_int_equal(lock_enter(&other), LOCK_OK);
	assert_int_equal(lock_mended(&other), LOCK_BROKEN);
	assert_int_equal(lock_enter(&other), LOCK_OK);
	lock_leave(&other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_enter_and_leave, setup, teardown),
		cmocka_unit_test_setup_teardown(test_waiting_beats, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stopped_holder_is_killed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_death_while_mending, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unmended_is_broken, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
