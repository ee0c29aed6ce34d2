/*
 * who.h - whom the daemon's children run as.
 *
 * Scope   looked up once at start, because name services may block and must not be asked by a
 *         child of a running daemon.
 * Errors  0, or -1 with a sentence in WHY.
 */
#ifndef PARLEY_MASTER_WHO_H
#define PARLEY_MASTER_WHO_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "worker/base/conf.h"

#define WHO_GROUPS 256

struct who {
	bool drop;			/* started as root, and a user is configured */
	uid_t uid;			/* (uid_t)-1 unless drop: fit for chown(2) */
	gid_t gid;
	int ngroups;
	gid_t groups[WHO_GROUPS];
};

int who_find(struct who *w, const struct conf *conf, char *why, size_t cap);
/* In a child: becomes W for good. 0 or -errno. */
int who_become(const struct who *w);

#endif
