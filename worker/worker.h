/*
 * worker.h - the one door from the master into a worker process.
 *
 * Scope   the master forks, then calls worker_run() in the child, which never returns there but
 *         with an exit code. Everything a worker needs was made before the fork and is named here.
 * Before  the child has dropped privileges, set PR_SET_PDEATHSIG (after dropping), its process
 *         title and comm (`parleyd-w3`), unblocked nothing: signals stay blocked, worker_run()
 *         opens a signalfd of its own where it wants one. Orders come over the control socket.
 * Exit    an interface with the master (enum worker_exit).
 */
#ifndef PARLEY_WORKER_H
#define PARLEY_WORKER_H

#include <stdint.h>

#include "worker/base/conf.h"

enum worker_exit {
	WORKER_DONE = 0,		/* told to stop or leave, and did */
	WORKER_CONFIG = 2,		/* cannot work with this configuration: do not respawn */
	WORKER_BROKEN = 3,		/* segment broken: rebuild it and restart all */
	WORKER_ORPHAN = 4,		/* the master is gone */
	WORKER_FAILED = 5		/* anything else: respawn with back-off */
};

struct worker_boot {
	uint32_t slot, gen;
	const struct conf *conf;	/* the worker makes it its own */
	const int *listeners;		/* conf->nlisten descriptors of this slot, listening */
	int inbox, control;		/* read ends of this slot */
	const int *peer_inbox;		/* [max_workers] send ends, own slot's included */
	const int *peer_control;	/* [max_workers] send ends */
	int up;				/* send end towards the master */
	int life;			/* read end of a pipe: end-of-file when the master is gone */
	unsigned char token_key[32];	/* local secret from state_dir, for a store without one */
	char host_id[65];
	/* Of a table that outlives its workers: what belongs to the slot, sorted. NULL: a table of its own. */
	const int *keep;
	unsigned nkeep;
};

int worker_run(const struct worker_boot *boot);

/*
 * Closes what dead workers left open in the slot's table. worker_run() begins with it; a twin calls
 * it while there is no worker (master/twin.h). What their sessions held is sweep's, as ever.
 */
void worker_tidy(const struct worker_boot *boot);

/*
 * Run by the master in a short-lived child before the first worker: sees that no other host of the
 * cluster has our id, opens the store, creates or migrates the schema, prints warnings to the log. 0, or
 * a worker_exit code with the reason logged.
 */
int worker_migrate(const struct conf *conf, const char *host_id);

#endif
