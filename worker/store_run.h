/*
 * store_run.h - what a store thread does with a job: arguments in, sql/ called, results out.
 *
 * Scope   store.c only. Knows nothing of queues, deadlines and threads.
 * Owner   jobs stay the caller's. A runner belongs to one thread, as its connection does.
 * Errors  each function sets the rc of its jobs and returns an enum store_rc that says how the
 *         store is: STORE_DOWN and STORE_UNSURE as such, everything else is an answer.
 */
#ifndef PARLEY_STORE_RUN_H
#define PARLEY_STORE_RUN_H

#include <stdbool.h>

#include "worker/store.h"

struct runner;

enum store_kind {		/* how the write lane treats an operation */
	KIND_READ,
	KIND_ADD,		/* grouped: messages to persons */
	KIND_POST,		/* grouped: messages to groups */
	KIND_CURSORS,		/* grouped */
	KIND_DEL,		/* grouped: messages to persons, by row */
	KIND_DEL_MID,		/* grouped: by mid */
	KIND_ALONE,		/* a transaction of its own, that no grouped one can tell from later */
	KIND_FENCE		/* likewise, but the order with the grouped ones matters */
};

struct runner *runner_new(const struct store_setup *setup, char *why, size_t cap);
void runner_free(struct runner *r);
/* Asks the database for a sign of life. */
int runner_ping(struct runner *r);
bool runner_connected(const struct runner *r);
/* It has nothing to do for a while: memory that only makes it quick goes back. */
void runner_relax(struct runner *r);
const char *runner_error(const struct runner *r);
void runner_set_keep_days(struct runner *r, uint32_t days);

enum store_kind store_kind(enum store_op op);
/* Rows that a job brings to its kind's statement. */
uint32_t store_rows(const struct store_job *job);
int run_read(struct runner *r, struct store_job *job);
/* AGAIN: an earlier attempt ended unsure, so that finding it done means that we did it. */
int run_alone(struct runner *r, struct store_job *job, bool again);
/* Commits N jobs of one grouped KIND as one transaction, in order. */
int run_group(struct runner *r, enum store_kind kind, struct store_job **jobs, uint32_t n);

#endif
