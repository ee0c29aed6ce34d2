/*
 * spawn.h - the child's side of a fork: from master to worker.
 *
 * Scope   everything that happens in a child before worker_run() and worker_migrate(): rights
 *         are dropped first, then the child ties itself to the master's life, says what it is,
 *         and closes what belongs to others.
 */
#ifndef PARLEY_MASTER_SPAWN_H
#define PARLEY_MASTER_SPAWN_H

#include <sys/types.h>

#include "master/supervise.h"

/* Forks the worker of SLOT. The slot's generation and state are in place. pid or -errno. */
pid_t spawn_worker(struct sup *s, unsigned slot);
/* Forks the first twin of SLOT, number 0; the second and the worker are its to make. pid or -errno. */
pid_t spawn_twin(struct sup *s, unsigned slot);
/* Forks the child that makes or migrates the schema. pid or -errno. */
pid_t spawn_migrate(struct sup *s);

#endif
