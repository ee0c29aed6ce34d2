/*
 * rate.h - how often somebody may do something: token buckets, of a session and of an address.
 *
 * Scope   a bucket is one number, the time at which it would be full again, so it fits
 *         anywhere, shared memory included, and needs no refilling. The table of addresses is
 *         for the whole host, in shared memory, without locks: each cell is one word that holds
 *         a hash of the address and that time. Where the table is too full it forgets the
 *         address that would wait shortest: it errs towards allowing.
 * Units   now_ms is monotonic (clock_ms()).
 * Errors  none: the answer is 0 (taken) or the milliseconds until it would be.
 * Source  the generic cell rate algorithm (ITU-T I.371).
 */
#ifndef PARLEY_RATE_H
#define PARLEY_RATE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* All zero bytes are a full bucket. Plain: copy it with its session. */
struct rate_bucket {
	uint64_t full_ns;
};

/* Takes COST of what arrives PER_SECOND (0: no limit), at most BURST at once. */
uint32_t rate_take(struct rate_bucket *b, uint32_t per_second, uint32_t burst, uint32_t cost,
    uint64_t now_ms);

/* All zero bytes are an empty table; any number of cells, best a multiple of four. */
struct rate_addr {
	_Atomic uint64_t word;
};

/*
 * Takes one of PER_MINUTE (0: no limit; as many at once) for an address: 16 bytes, IPv4 as
 * ::ffff:a.b.c.d. IPv6 counts by its first 64 bits. Whether loopback is exempt is the caller's.
 */
uint32_t rate_addr_take(struct rate_addr *table, size_t n, const unsigned char addr[16],
    uint32_t per_minute, uint64_t now_ms);

#endif
