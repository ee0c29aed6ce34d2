/*
 * lock.c - robust mutexes, waited for in steps that let the waiter show that it lives.
 *
 * An uncontended enter reads no clock: its deadline has passed already. It is no trylock, because
 * glibc's (2.36) keeps a lock that is not recoverable while it says so, which is then never heard
 * by anybody else. When a wait is over the hook runs once more with 0, but after the lock was left,
 * because nothing foreign runs under a lock.
 */
#include "shm/lock.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#define STEP_NS (20 * 1000000L)

#ifdef __SANITIZE_THREAD__	/* which knows pthread_mutex_timedlock() only */
#define CLOCK CLOCK_REALTIME
#define lock_until(m, until) pthread_mutex_timedlock(m, until)
#else
#define CLOCK CLOCK_MONOTONIC
#define lock_until(m, until) pthread_mutex_clocklock(m, CLOCK, until)
#endif

static void (*on_wait)(int tid);
static _Thread_local bool waited;

void lock_on_wait(void (*hook)(int tid))
{
	on_wait = hook;
}

int lock_init(pthread_mutex_t *m)
{
	pthread_mutexattr_t a;
	int rc = pthread_mutexattr_init(&a);

	if (rc != 0)
		return rc;
	rc = pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ERRORCHECK);
	if (rc == 0)
		rc = pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	if (rc == 0)
		rc = pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	if (rc == 0)
		rc = pthread_mutex_init(m, &a);
	pthread_mutexattr_destroy(&a);
	return rc;
}

static int holder(const pthread_mutex_t *m)
{
	return __atomic_load_n(&m->__data.__owner, __ATOMIC_RELAXED);
}

/* One step of waiting: what locking says after at most STEP_NS. */
static int step(pthread_mutex_t *m)
{
	struct timespec until;

	clock_gettime(CLOCK, &until);
	until.tv_nsec += STEP_NS;
	if (until.tv_nsec >= 1000000000L) {
		until.tv_nsec -= 1000000000L;
		until.tv_sec++;
	}
	return lock_until(m, &until);
}

enum lock_rc lock_enter(pthread_mutex_t *m)
{
	static const struct timespec past = { .tv_sec = 0 };
	int rc = lock_until(m, &past);

	while (rc == ETIMEDOUT) {
		if (on_wait != NULL) {
			waited = true;
			on_wait(holder(m));
		}
		rc = step(m);
	}
	assert(rc != EDEADLK);		/* taken twice by one thread: a bug of ours */
	if (rc == 0)
		return LOCK_OK;
	return rc == EOWNERDEAD ? LOCK_INHERITED : LOCK_BROKEN;
}

enum lock_rc lock_mended(pthread_mutex_t *m)
{
	if (pthread_mutex_consistent(m) == 0)
		return LOCK_OK;
	pthread_mutex_unlock(m);
	return LOCK_BROKEN;
}

void lock_leave(pthread_mutex_t *m)
{
	int rc = pthread_mutex_unlock(m);

	assert(rc == 0);
	(void)rc;
	if (waited) {
		waited = false;
		if (on_wait != NULL)
			on_wait(0);
	}
}
