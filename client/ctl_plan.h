/*
 * ctl_plan.h - `parleyctl ring`: the circle of a cluster's hosts, and what a change would move.
 *
 * Scope   reports for people and, as JSON, for programs; see ctl_ring.h for the circle itself.
 *         All compare the hosts as they are with the hosts after the changes (ctl_hosts.h).
 * Owner   struct plan keeps two circles over the hosts that it was opened with, which it borrows.
 */
#ifndef PARLEY_CLIENT_CTL_PLAN_H
#define PARLEY_CLIENT_CTL_PLAN_H

#include <stdbool.h>

#include "client/ctl_hosts.h"
#include "client/ctl_ring.h"

struct plan {
	const struct hosts *hosts;
	struct ring before, after;
	uint64_t *moved;		/* hosts->n squared: keys, from * n + to */
	bool json;
};

/* -1: told (no hosts, too many points). */
int plan_open(struct plan *p, const struct hosts *hs, bool json);
void plan_close(struct plan *p);

/* Each host with its share of the keys. */
void plan_hosts(const struct plan *p);
/* What goes from whom to whom. */
void plan_moves(const struct plan *p);
/* Every point, in order. */
void plan_points(const struct plan *p);
/* Whose is that client? -1: no address, or nobody's (told). */
int plan_client(const struct plan *p, const char *address);

#endif
