/*
 * chunk.h - session memory: a region of chunks for each slot, allocated by its worker only.
 *
 * Scope   input, output, messages, lists: all that a session owns beyond its record. Powers of
 *         two from 128 bytes; a span of 64 KiB holds chunks of one size; larger chunks are runs of
 *         whole spans. No lock, no malloc; free chunks are found again by a scan after any death,
 *         because each chunk's header says what it is.
 * Refs    a chunk is named by its offset in the region / 128; CHUNK_NONE is none. All processes
 *         see all regions: (slot, ref) can be read by others, written by the slot's worker only
 *         (except the one word in struct msg that is claimed by compare-and-swap).
 * Memory  spans are reserved from the kernel as they are first used; of the wholly free ones those
 *         are given back that region_tidy() finds unused since its last call, but for a few.
 *         NULL / CHUNK_NONE means the region is used up.
 * Owner   kind, sess and gen say for whom. chunk_free() of a live reference is the caller's duty.
 */
#ifndef PARLEY_SHM_CHUNK_H
#define PARLEY_SHM_CHUNK_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "shm/segment.h"

#define CHUNK_NONE UINT32_MAX
#define CHUNK_SPAN 65536u
#define CHUNK_MIN  128u
#define CHUNK_RUN  255u		/* cls of a run of whole spans: the region's table says how many */

enum chunk_kind {
	CHUNK_FREE = 0, CHUNK_IN, CHUNK_OUT, CHUNK_MSG, CHUNK_LISTS, CHUNK_NAME, CHUNK_NKINDS
};

struct chunk {			/* 32 bytes in front of the data */
	_Atomic uint8_t kind;	/* last store of an allocation, first store of a release */
	uint8_t cls;		/* size is CHUNK_MIN << cls, header included; or CHUNK_RUN */
	uint16_t aux;
	uint32_t sess, gen;	/* record index and generation */
	uint32_t next;		/* chain; CHUNK_NONE */
	uint64_t base;		/* stream offset of data[0], where it holds bytes of a stream */
	uint64_t aux64;
	unsigned char data[];
};

_Static_assert(sizeof(struct chunk) == 32, "data follows the header, aligned to 32");

/* Bytes of a region with USABLE bytes for chunks: whole spans and its table. 0 when too many. */
uint64_t region_bytes(uint64_t usable);

/* The references that name chunks in a region of BYTES: [*first_r, *end_r). */
void region_refs(uint64_t bytes, uint32_t *first_r, uint32_t *end_r);

struct region;			/* private: the worker's view of its own region */

/*
 * The allocator of SLOT's region in this process. FRESH forgets all (first worker of a slot); else
 * what the headers say is in use stays so, and the rest is free. NULL: out of memory.
 */
struct region *region_open(uint32_t slot, int fresh);
void region_close(struct region *r);
/* Gives memory back that was not needed since the last call. To be called every second or so. */
void region_tidy(struct region *r);

/* A chunk with room for at least LEN data bytes; its data is not cleared. */
uint32_t chunk_alloc(struct region *r, size_t len, enum chunk_kind kind, uint32_t sess,
    uint32_t gen);
void chunk_free(struct region *r, uint32_t ref);
size_t chunk_room(const struct chunk *c);	/* data bytes */
uint64_t region_used(const struct region *r);	/* bytes in allocated chunks */
uint64_t region_size(const struct region *r);

/* Any slot's chunk by reference; asserts bounds. */
static inline struct chunk *chunk_at(uint32_t slot, uint32_t ref)
{
	assert(slot < shm->max_workers && ref - shm->chunk_first < shm->chunk_end - shm->chunk_first);
	return (struct chunk *)(void *)(shm->regions + slot * shm->region_bytes +
	    (uint64_t)ref * CHUNK_MIN);
}
/*
 * Calls FN for each chunk in use in SLOT's region (own or not), by what the headers say; bounds
 * and classes are checked, nonsense is skipped. Stops when FN returns non-zero and returns that.
 * FN may free the chunk that it is given, and no other.
 */
int chunk_scan(uint32_t slot, int (*fn)(void *arg, uint32_t ref, struct chunk *c), void *arg);
/* For sweeps of another slot's region while it has no worker: marks free, no lists touched. */
void chunk_mark_free(uint32_t slot, uint32_t ref);

#endif
