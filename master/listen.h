/*
 * listen.h - the listening sockets: bound once at start, never closed while the daemon runs.
 *
 * Scope   for each configured TCP address one SO_REUSEPORT socket a slot, all bound before the
 *         first fork; listen(2) is called on a slot's sockets when it first gets a worker,
 *         because a bound socket that does not listen gets no connections. A unix path has one
 *         socket that all slots share.
 * Steering while a listening slot has no worker that takes new clients, a classic BPF program
 *         on each group spreads connections over the others at random; otherwise the kernel's
 *         own hash does. The program names members by the order of their listen(2) calls, which
 *         holds as long as no member is ever closed or shut down.
 * Owner   the master. A child keeps its own slot's row (listeners_keep_only).
 * Errors  0 or -1 with a sentence in WHY; only configured addresses fail, so that is what is told.
 * Source  socket(7), SO_ATTACH_REUSEPORT_CBPF; the kernel's reuseport_add_sock() appends.
 */
#ifndef PARLEY_MASTER_LISTEN_H
#define PARLEY_MASTER_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "worker/base/conf.h"

/*
 * A unix socket's file, remembered to be removed only while it is still ours. Its inode is kept
 * open (O_PATH), because the number of a removed file goes to the next one. path NULL: none.
 */
struct listen_file { char *path; int inode; };

struct listeners {
	unsigned nlisten, nslots;
	int backlog;
	int *fd;			/* [nslots * nlisten]; a unix socket stands in every row */
	bool is_unix[CONF_LISTEN_MAX];
	struct listen_file file[CONF_LISTEN_MAX];
	unsigned norder;
	unsigned *order;		/* slots in the order of their listen() */
	bool *listening;		/* [nslots] */
	bool *live;			/* [nslots] what the program in force names */
	bool steered;			/* a program is attached */
};

/* Binds everything. Addresses that another process listens on are an error. */
int listeners_open(struct listeners *ls, const struct conf *conf, char *why, size_t cap);
/* Ends it all; removes the unix sockets' files. */
void listeners_close(struct listeners *ls);

/* Makes a slot's sockets listen; harmless when they do. */
int listeners_start(struct listeners *ls, unsigned slot, char *why, size_t cap);
bool listeners_started(const struct listeners *ls, unsigned slot);
/* New connections go to slots with LIVE[slot] only; to all that listen when none is. 0 or -errno. */
int listeners_steer(struct listeners *ls, const bool *live);
/* nlisten descriptors. */
const int *listeners_of(const struct listeners *ls, unsigned slot);
/* In a child: closes all but SLOT's. nslots or more: closes all. */
void listeners_keep_only(struct listeners *ls, unsigned slot);

/*
 * Binds and listens on a unix path. A file left behind by a dead server is replaced; one that
 * answers is an error. The descriptor is non-blocking, CLOEXEC. -1 with WHY.
 */
int listen_unix(const char *path, mode_t mode, int backlog, struct listen_file *file_r,
    char *why, size_t cap);
/* Removes the file if it is still the one that was made, and forgets it. */
void listen_unlink(struct listen_file *file);

#endif
