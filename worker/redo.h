/*
 * redo.h - store jobs that must succeed: kept while the store is away, submitted again.
 *
 * Scope   only what was accepted already and whose memory is bounded elsewhere (messages in the
 *         region, deletions of what was delivered, cursors). Every one of them is idempotent.
 */
#ifndef PARLEY_REDO_H
#define PARLEY_REDO_H

#include <stdint.h>

struct store_job;

/* Called from done(): takes over what the job holds and submits it again later, same done(). */
void redo_job(struct store_job *job);
/* The store is back: all of them now. */
void redo_run(void);
uint32_t redo_waiting(void);

#endif
