/* index.c - chained buckets that double when there are more keys than buckets. */
#include "worker/index.h"

#include <stdlib.h>
#include <string.h>

static uint32_t bucket_of(const struct index *ix, uint32_t key)
{
	return (key * 2654435761u) >> 7 & (ix->nbuckets - 1);
}

struct index_vec *index_find(const struct index *ix, uint32_t key)
{
	if (ix->nbuckets == 0)
		return NULL;
	struct index_vec *e = ix->bucket[bucket_of(ix, key)];
	while (e != NULL && e->key != key)
		e = e->next;
	return e;
}

static int grow(struct index *ix)
{
	struct index bigger = { .nbuckets = ix->nbuckets == 0 ? 64 : ix->nbuckets * 2,
	    .nkeys = ix->nkeys };

	bigger.bucket = calloc(bigger.nbuckets, sizeof *bigger.bucket);
	if (bigger.bucket == NULL)
		return -1;
	for (uint32_t b = 0; b < ix->nbuckets; b++)
		for (struct index_vec *e = ix->bucket[b], *next; e != NULL; e = next) {
			struct index_vec **p = &bigger.bucket[bucket_of(&bigger, e->key)];

			next = e->next;
			e->next = *p;
			*p = e;
		}
	free(ix->bucket);
	*ix = bigger;
	return 0;
}

int index_add(struct index *ix, uint32_t key, uint32_t rec, uint32_t gen, uint32_t flag)
{
	struct index_vec *e = index_find(ix, key);

	if (e == NULL) {
		if (ix->nkeys >= ix->nbuckets && grow(ix) != 0)
			return -1;
		if ((e = calloc(1, sizeof *e)) == NULL)
			return -1;
		e->key = key;
		e->next = ix->bucket[bucket_of(ix, key)];
		ix->bucket[bucket_of(ix, key)] = e;
		ix->nkeys++;
	}
	if (e->len == e->cap) {
		uint32_t cap = e->cap == 0 ? 4 : e->cap * 2;
		struct index_entry *v = realloc(e->v, cap * sizeof *v);

		if (v == NULL)
			return -1;
		e->v = v;
		e->cap = cap;
	}
	e->v[e->len++] = (struct index_entry){ rec, gen, flag };
	return 0;
}

static void drop(struct index *ix, struct index_vec *e)
{
	struct index_vec **p = &ix->bucket[bucket_of(ix, e->key)];

	while (*p != e)
		p = &(*p)->next;
	*p = e->next;
	ix->nkeys--;
	free(e->v);
	free(e);
}

struct index_entry *index_entry(const struct index *ix, uint32_t key, uint32_t rec, uint32_t gen)
{
	struct index_vec *e = index_find(ix, key);

	for (uint32_t i = 0; e != NULL && i < e->len; i++)
		if (e->v[i].rec == rec && e->v[i].gen == gen)
			return &e->v[i];
	return NULL;
}

void index_del(struct index *ix, uint32_t key, uint32_t rec, uint32_t gen)
{
	struct index_vec *e = index_find(ix, key);
	struct index_entry *x = index_entry(ix, key, rec, gen);

	if (x == NULL)
		return;
	*x = e->v[--e->len];
	if (e->len == 0)
		drop(ix, e);
}
