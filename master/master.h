/*
 * master.h - the master process: start, signals, reload, end.
 *
 * Scope   ties the parts together in one event loop: state folder, segment, listeners, worker
 *         slots, admin socket. Single-threaded; never waits for a worker; takes no shared lock.
 * Exit    the codes of parleyd are an interface (enum master_exit).
 */
#ifndef PARLEY_MASTER_MASTER_H
#define PARLEY_MASTER_MASTER_H

#include <stdbool.h>

#include "worker/base/conf.h"

enum master_exit {
	MASTER_DONE = 0,	/* stopped as it was told to */
	MASTER_FAILED = 1,	/* could not start or go on: another one runs, address in use, ... */
	MASTER_CONFIG = 2	/* the configuration is wrong */
};

struct master_args {
	struct conf *conf;		/* finished; the master takes it */
	const char *conf_path;		/* NULL: there is no file */
	char **overrides;		/* -o, for reloads */
	unsigned noverrides;
	bool detach;			/* -d */
};

/* Reads file and overrides into C, which is initialised here. The number of errors told. */
int master_read_conf(struct conf *c, const char *path, char **overrides, unsigned noverrides,
    conf_error_fn *tell, void *arg);
/* Runs the daemon to its end. The exit code. */
int master_run(const struct master_args *args);

#endif
