/*
 * ctl_hosts.h - the hosts of a cluster, as the registry or the command line names them.
 *
 * Scope   a list in order of id (that of the command line as typed), changes to it that are only
 *         thought of (--add, --del, --down), and two of its outputs: the table of `parleyctl
 *         hosts` and nginx's upstream block. ctl_plan.h has what comes of it on the circle.
 * Trust   ids, addresses and versions come from Redis. An address that could be anything else
 *         than an address in nginx's configuration is left out with a warning.
 * Units   milliseconds as the daemon gives them: since is wall clock, seen_ms an age.
 * Owner   struct hosts owns its strings (hosts_fini).
 * Errors  sentences on standard error.
 */
#ifndef PARLEY_CLIENT_CTL_HOSTS_H
#define PARLEY_CLIENT_CTL_HOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/text.h"
#include "worker/base/json.h"

#define HOSTS_MAX     256
#define HOSTS_ADDRESS 300

struct host {
	char id[128], version[64], epoch[32];
	char address[HOSTS_ADDRESS];		/* "" where it advertises none */
	char state[32];
	uint32_t weight, was_weight;		/* 0: not there (after the changes, before them) */
	bool down, was_down;			/* draining */
	bool self;
	int64_t workers, connections, sessions, since, seen_ms;
};

struct hosts {
	struct host *h;
	size_t n;
	bool planned;				/* there were changes */
	bool over;				/* there were more than HOSTS_MAX */
};

struct hosts_upstream {
	const char *name;			/* of the block */
	bool consistent;
	unsigned max_fails, fail_timeout_s;
};

void hosts_fini(struct hosts *hs);

/* A line of the daemon's answer to `hosts`. */
void hosts_take(struct hosts *hs, struct json *j, const struct json_val *o);
/* When all have come: sorts, and leaves out with a warning what nginx cannot reach. */
void hosts_sort(struct hosts *hs);
void hosts_reachable(struct hosts *hs);

/* HOST:PORT[=WEIGHT], with commas between several. -1: told. */
int hosts_from(struct hosts *hs, const char *text);
/* A change that is only thought of; KIND is "add" (or another weight), "del" or "down". */
int hosts_change(struct hosts *hs, const char *kind, const char *text);

void hosts_table(const struct hosts *hs);
/* -1: there is no host to name. */
int hosts_upstream(const struct hosts *hs, const struct hosts_upstream *u);

#endif
