/*
 * report.h - what the master tells about itself: status, metrics, sessions.
 *
 * Scope   reads the segment without a lock and writes JSON or Prometheus text; knows no sockets.
 *         Large answers are made in pieces, so that nobody waits for them.
 * Errors  NULL: out of memory.
 */
#ifndef PARLEY_MASTER_REPORT_H
#define PARLEY_MASTER_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "master/supervise.h"
#include "worker/base/conf.h"
#include "worker/base/json.h"

struct report {
	const struct sup *sup;
	struct conf *const *conf;
	const char *host_id;
};

/* One JSON object; BRIEF leaves out the counters that no table shows. The caller frees it. */
char *report_status(const struct report *r, bool brief, size_t *len_r);
/* The I-th metric with its HELP and TYPE lines, as text; "" past the end. The caller frees it. */
char *report_metric(const struct report *r, unsigned i, size_t *len_r);
/* Appends one JSON object for record I. False: no connection there, nothing appended. */
bool report_session(uint32_t i, struct json_out *w);
/* Bytes that one session needs at most. */
#define REPORT_SESSION_MAX 1024

#endif
