/*
 * statedir.h - state_dir: the lock of the running daemon, and what a host remembers.
 *
 * Scope   lock        held from before the first bind to the end of the last process (below)
 *         host_id     the host's name, where the configuration gives none; made once
 *         token_key   32 random bytes, 0600
 *         epoch       the last epoch used
 * Lock    one flock(2) on one open file description that every child inherits, so it is free
 *         only when the last worker is gone, not when the master is. The file says who the
 *         master is (pid and start time, so that a reused pid is nobody) and how long its workers
 *         may take to end.
 * Files   are replaced as a whole (write, fsync, rename), opened without following links, and
 *         given to the user that the daemon runs as.
 * Errors  0 or -errno, with a sentence in WHY.
 */
#ifndef PARLEY_MASTER_STATEDIR_H
#define PARLEY_MASTER_STATEDIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct statedir {
	int dir, lock;			/* -1: not open */
	bool locked;
	uid_t uid;			/* owner of what is made, (uid_t)-1: ourselves */
	gid_t gid;
};

enum statedir_holder {
	STATEDIR_MINE = 0,		/* the lock is ours now */
	STATEDIR_MASTER,		/* a living master has it */
	STATEDIR_ORPHANS,		/* its master is dead; workers are still ending */
	STATEDIR_ERROR
};

struct statedir_owner { pid_t pid; uint32_t stop_seconds; };

/* Opens PATH, making it (0700) when it is missing. */
int statedir_open(struct statedir *sd, const char *path, uid_t uid, gid_t gid,
    char *why, size_t cap);
void statedir_close(struct statedir *sd);

/* Tries to take the lock. Anything but STATEDIR_MINE fills in OWNER_R as far as it is known. */
enum statedir_holder statedir_lock(struct statedir *sd, struct statedir_owner *owner_r);
/* Writes down that this process is the master. Holds the lock. */
int statedir_sign(struct statedir *sd, uint32_t stop_seconds);
/* SIGKILLs every process that has the lock file open, but this one. Returns how many. */
unsigned statedir_kill_holders(struct statedir *sd);
/* Gives the lock up, if it is ours, although children may still have it: for an orderly end only. */
void statedir_unlock(struct statedir *sd);

/* The host's id: GIVEN where that is not "", else the stored one, else a new one. */
int statedir_host_id(struct statedir *sd, const char *given, char out[65], char *why, size_t cap);
int statedir_token_key(struct statedir *sd, unsigned char key[32], char *why, size_t cap);
/* A new epoch: the wall clock in ms, or one more than the last when that is not greater. */
int statedir_epoch(struct statedir *sd, uint64_t *epoch_r, char *why, size_t cap);

#endif
