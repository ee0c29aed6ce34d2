/*
 * addrs.h - how many connections a client address has on this host.
 *
 * Scope   a fixed table in shared memory, lock-free, used only where max_connections_address is set.
 *         IPv4 counts whole, IPv6 by its first 64 bits. Where the table is full an address is not
 *         counted: it errs towards allowing. What a dead worker had counted is taken back by the
 *         sweep, record by record (record flag REC_COUNTED).
 */
#ifndef PARLEY_ADDRS_H
#define PARLEY_ADDRS_H

#include <stdbool.h>

#include "shm/rec.h"

#define REC_COUNTED 1u			/* rec.flags: its address counts this connection */
#define REC_REFUSED 2u			/* rec.flags: a message with a cid was refused and has not come again */
#define REC_UNSURE  8u			/* rec.flags: the user may have sent from another host, and that is not told yet */
#define REC_HEADER  4u			/* rec.flags: the PROXY header is not complete; nothing counts yet */

/* May one more connect? Counts it, if LIMIT is not 0 and the address is not loopback or unix. */
bool addrs_enter(struct rec *r, unsigned limit);
void addrs_leave(struct rec *r);
/* The area's memory is asked for at its first use; false: it cannot be had. */
bool addrs_ready(void);
/* Loopback or a unix socket. */
bool addrs_local(const struct rec *r);

#endif
