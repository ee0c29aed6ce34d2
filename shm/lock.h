/*
 * lock.h - robust process-shared mutexes, waited for in steps.
 *
 * Scope   the only locks in the segment. A holder that dies hands the lock on with the news
 *         (LOCK_INHERITED): the next one repairs what it protects, then calls lock_mended().
 * Rules   under a lock: no malloc, no system call, no log, no callback, no second lock, no
 *         early return. The master never takes one.
 * Waiting in steps of 20 ms (pthread_mutex_clocklock, CLOCK_MONOTONIC); before each step the
 *         hook set by lock_on_wait() runs (a worker beats its heart there and publishes whom it
 *         waits for, so that the watchdog kills a stopped holder and not those who wait).
 * Errors  LOCK_BROKEN: not held and never again usable (ENOTRECOVERABLE): the caller exits with
 *         the code that makes the master rebuild the segment.
 * Source  pthread_mutexattr_setrobust(3), pthread_mutex_consistent(3); 29 ns uncontended.
 */
#ifndef PARLEY_SHM_LOCK_H
#define PARLEY_SHM_LOCK_H

#include <pthread.h>

enum lock_rc { LOCK_OK = 0, LOCK_INHERITED = 1, LOCK_BROKEN = -1 };

int lock_init(pthread_mutex_t *m);		/* 0 or an errno; once, before any fork */
enum lock_rc lock_enter(pthread_mutex_t *m) __attribute__((warn_unused_result));
enum lock_rc lock_mended(pthread_mutex_t *m);	/* after the repair, while held */
void lock_leave(pthread_mutex_t *m);
/*
 * TID is the present holder's thread id as glibc keeps it, 0 when it just left. A wait that is over
 * ends with one more call with 0, made once the lock was left again.
 */
void lock_on_wait(void (*hook)(int tid));

#endif
