/*
 * lists.h - the two lists of a session in the segment: its groups and its friends.
 *
 * Scope   growable arrays in chunks that hang on the record, so that they move with the session and a
 *         successor finds them. A session without friends and groups has none.
 * Units   elements; a pointer is valid until the next lists_add() on the same session.
 */
#ifndef PARLEY_LISTS_H
#define PARLEY_LISTS_H

#include <stddef.h>
#include <stdint.h>

#include "worker/state.h"

enum list { LIST_GROUPS = 1, LIST_FRIENDS = 2 };

void *lists_get(const struct conn *c, enum list which, uint32_t *n_r);
/* Makes room for N elements of SIZE bytes in all. 0, or -1 when the region is full. */
int lists_reserve(struct conn *c, enum list which, size_t size, uint32_t n);
/* A new element at the end, cleared; NULL when the region is full. */
void *lists_add(struct conn *c, enum list which, size_t size);
/* Removes element I; the last takes its place. */
void lists_del(struct conn *c, enum list which, size_t size, uint32_t i);
void lists_free(struct conn *c, enum list which);

#endif
