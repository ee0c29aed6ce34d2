/*
 * ctl_ring.h - the circle of points on which nginx's `hash KEY consistent` looks a server up.
 *
 * Scope   says without nginx what nginx (stream and http) will do: a server has 160 points a unit
 *         of weight, a client belongs to the first point at or after the CRC-32 of its key. Servers
 *         that are down keep their points in nginx's list and are stepped over, so their clients
 *         go on to the next points and everybody else stays; here their points are left out,
 *         which is the same. Pure: no network, no output.
 * Units   key space 0 .. 2^32 - 1; shares count keys of it.
 * Owner   struct ring owns its points (ring_fini). Servers are named by index into the array that
 *         ring_build() was given; weight 0 is one that is not there.
 * Source  nginx 1.22, ngx_stream_upstream_hash_module.c (studied); Ketama (Jones, 2007); the
 *         expressions are those of Cache::Memcached::Fast.
 */
#ifndef PARLEY_CLIENT_CTL_RING_H
#define PARLEY_CLIENT_CTL_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RING_POINTS     160	/* a unit of weight */
#define RING_WEIGHT_MAX 1000
#define RING_TOTAL_MAX  16384	/* of all weights */
#define RING_NOBODY     UINT32_MAX
#define RING_KEYS       (1ull << 32)
#define RING_KEY        46	/* of an address as text, with its terminator */

struct ring_server {
	const char *name;	/* as it stands in nginx's configuration: its text is what is hashed */
	uint32_t weight;
	bool down;
};

struct ring_point { uint32_t hash, server; };

struct ring {
	struct ring_point *point;	/* by hash, no hash twice */
	size_t n;
};

/* The CRC-32 of IEEE 802.3, as zlib and nginx compute it. */
uint32_t ring_hash(const void *key, size_t len);

/* -1: a weight, or their sum, is too large. */
int ring_build(struct ring *r, const struct ring_server *s, size_t n)
    __attribute__((warn_unused_result));
void ring_fini(struct ring *r);

/* Whose is a key with that hash? RING_NOBODY where no server is up. */
uint32_t ring_find(const struct ring *r, uint32_t hash);

/*
 * Compares two circles over the same array of servers: moved_r[from * n + to] is how many keys go
 * from one to the other (those that stay are on the diagonal). Nothing where one is empty.
 */
void ring_compare(const struct ring *before, const struct ring *after, size_t n, uint64_t *moved_r);

/*
 * The key that nginx makes of a client: $remote_addr, an address in its shortest spelling, or
 * "unix:". -1: no address.
 */
int ring_key(const char *address, char key_r[RING_KEY]);

#endif
