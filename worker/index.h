/*
 * index.h - a number (a group, a watched user) -> the sessions of this worker that it concerns.
 *
 * Scope   a hash of small vectors in the heap: a cache that is rebuilt from the sessions' lists.
 * Owner   the index; a vector's pointer is valid until the next change of that key. Order is not kept.
 * Errors  index_add: -1 out of memory.
 */
#ifndef PARLEY_INDEX_H
#define PARLEY_INDEX_H

#include <stdbool.h>
#include <stdint.h>

struct index_entry { uint32_t rec, gen; uint32_t flag; };
struct index_vec { uint32_t key, len, cap, users; struct index_entry *v; struct index_vec *next; uint64_t mark; };
struct index { struct index_vec **bucket; uint32_t nbuckets, nkeys; };

int index_add(struct index *ix, uint32_t key, uint32_t rec, uint32_t gen, uint32_t flag);
void index_del(struct index *ix, uint32_t key, uint32_t rec, uint32_t gen);
struct index_vec *index_find(const struct index *ix, uint32_t key);
/* The entry of one session under a key, NULL: none. */
struct index_entry *index_entry(const struct index *ix, uint32_t key, uint32_t rec, uint32_t gen);

#endif
