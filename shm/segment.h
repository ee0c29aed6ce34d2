/*
 * segment.h - the host's shared memory: one memfd, mapped before the first fork.
 *
 * Scope   lays the parts out, maps them, and hands memory of them out to be touched. Made by the
 *         master; every worker sees it at the same address. Nothing in it is a pointer.
 *
 *           header | slots | conf text x2 | address rates | hash | record hints | records | regions
 *
 * Units   bytes; offsets from the segment's start.
 * Memory  the file is as large as the configuration allows and sparse; pages exist once touched.
 *         Before anything large is touched for the first time segment_reserve() asks the kernel
 *         for it (fallocate), because touching a page that cannot be had is SIGBUS.
 *         Core dumps leave the segment out (MADV_DONTDUMP).
 * Owner   the master's process holds the file; workers inherit the mapping and never unmap.
 * Errors  0 or -errno.
 * Source  memfd_create(2), fallocate(2); F_SEAL_SHRINK keeps a mapped page from vanishing.
 */
#ifndef PARLEY_SHM_SEGMENT_H
#define PARLEY_SHM_SEGMENT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define SEGMENT_MAGIC   UINT64_C(0x3130594c52415001)
#define SEGMENT_LAYOUT  2u		/* raised by every change that an older binary cannot read */
#define SEGMENT_CONF_MAX 65536u		/* bytes of configuration text a reload may hand on */

struct segment_shape {			/* what the configuration decides */
	uint32_t max_workers;		/* slots */
	uint32_t max_sessions;		/* records; the hash gets twice as many, a power of two */
	uint64_t region_bytes;		/* session memory a slot; rounded up to spans */
};

struct segment_head {
	uint64_t magic;
	uint32_t layout, head_bytes, slot_bytes, rec_bytes, chunk_bytes;	/* sizeof of each part */
	uint32_t max_workers, max_sessions, hash_slots, hash_shards, naddr;
	uint64_t epoch;			/* of this host: new at every start of the master */
	uint64_t bytes;			/* whole segment */
	uint64_t slots_off, conf_off, addr_off, hash_off, hint_off, rec_off, region_off;
	uint64_t region_bytes;		/* of each slot */
	int64_t started_wall_ms;
	uint64_t started_ms;		/* monotonic */
	_Atomic uint32_t rec_high;	/* records ever used: indices below it */
	_Atomic uint32_t rec_low;	/* hint: no free record below it */
	_Atomic uint32_t rec_reserved;	/* records whose memory is there */
	_Atomic uint32_t conf_version;	/* odd/even names the copy in conf text [version & 1] */
	_Atomic uint32_t conf_len[2];
	_Atomic uint32_t repairs;	/* locks inherited from the dead, mended */
	_Atomic uint32_t users_online;	/* bound users, roughly; sess_count() is exact */
	_Atomic uint64_t next_login;	/* login numbers */
	/* This host as one of several (worker/cluster.h). */
	_Atomic uint64_t lead;		/* gen << 32 | slot + 1: who reads the host's channel; 0: nobody */
	_Atomic uint64_t drain_ms;	/* monotonic: since when the host drains; 0: it does not */
	_Atomic uint32_t announced;	/* enum segment_announced */
	_Atomic uint32_t lapses;	/* times that our entry had vanished from the registry */
	_Atomic uint32_t registry;	/* raised by a worker that heard of a change: read it anew */
	_Atomic uint32_t owe_all;	/* reasons why other hosts have to look into the store; 0: they were told */
	_Atomic uint32_t hosts_alive;	/* as last read; ourselves included */
};

/* Our entry in the registry, in this life of the daemon. */
enum segment_announced { SEGMENT_UNKNOWN = 0, SEGMENT_ANNOUNCED, SEGMENT_USURPED };	/* another host has our id */

struct segment {
	struct segment_head *head;
	char *base;
	size_t bytes;
	int fd;
	/* what the head says, ready for rec_at() and chunk_at() */
	char *recs, *regions;
	uint64_t region_bytes;
	uint32_t max_workers, max_sessions;
	uint32_t chunk_first, chunk_end;	/* references that name a chunk */
};

extern struct segment *shm;		/* the one segment of this process; set by segment_open */

/* Makes, sizes, seals and maps it; every part initialised (slots, locks). EPOCH is the host's. */
int segment_open(struct segment *s, const struct segment_shape *shape, uint64_t epoch);
void segment_close(struct segment *s);
/* Total bytes that SHAPE needs, 0 when that does not fit an off_t. */
uint64_t segment_bytes(const struct segment_shape *shape);
/* Makes sure that [off, off + len) can be touched. -ENOMEM/-ENOSPC: it cannot. Not under a lock. */
int segment_reserve(uint64_t off, uint64_t len);
/* Gives whole pages of it back to the kernel; they read as zero afterwards. */
int segment_release(uint64_t off, uint64_t len);
static inline void *segment_at(uint64_t off) { return shm->base + off; }

#endif
