/*
 * redo.h - the order of messages on their way into the store, over its failures.
 *
 * Scope   messages (rows of a user, posts of a group) are submitted here. Those that must succeed
 *         and did not are kept and submitted again, in the order in which they came first; while
 *         any is kept, nothing newer passes: what must succeed queues up behind, and what may be
 *         refused comes back BUSY. Other jobs that must succeed (deletions, cursors) are repeated
 *         without order: they are idempotent and commute.
 * Bounds  only what was accepted already and whose memory is bounded elsewhere is kept.
 */
#ifndef PARLEY_REDO_H
#define PARLEY_REDO_H

#include <stdbool.h>
#include <stdint.h>

struct store_job;

/* Submits a message's job, in order. done() never runs inside the call. */
void redo_submit(struct store_job *job);
/* Is that a result after which the same job may yet succeed? (A bad one never does.) */
bool redo_useful(int rc);
/* Called from done(): takes over what the job holds and submits it again later, same done(). */
void redo_job(struct store_job *job);
/* The store is back: all of them now. */
void redo_run(void);
/* End of turn: tells those that came back BUSY without having been submitted. */
void redo_turn_end(void);
uint32_t redo_waiting(void);

#endif
