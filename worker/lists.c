/* lists.c - a chunk a list; aux says which, aux64 how many elements. */
#include "worker/lists.h"

#include <string.h>

static uint32_t find(const struct conn *c, enum list which)
{
	uint32_t ref = c->r->lists;

	while (ref != CHUNK_NONE && chunk_at(wk->slot, ref)->aux != which)
		ref = chunk_at(wk->slot, ref)->next;
	return ref;
}

void *lists_get(const struct conn *c, enum list which, uint32_t *n_r)
{
	uint32_t ref = find(c, which);

	*n_r = 0;
	if (ref == CHUNK_NONE)
		return NULL;
	*n_r = (uint32_t)chunk_at(wk->slot, ref)->aux64;
	return chunk_at(wk->slot, ref)->data;
}

void lists_free(struct conn *c, enum list which)
{
	uint32_t *p = &c->r->lists, ref;

	while ((ref = *p) != CHUNK_NONE) {
		struct chunk *ch = chunk_at(wk->slot, ref);

		if (ch->aux == which) {
			*p = ch->next;
			chunk_free(wk->region, ref);
			return;
		}
		p = &ch->next;
	}
}

int lists_reserve(struct conn *c, enum list which, size_t size, uint32_t n)
{
	uint32_t old = find(c, which), ref;
	uint64_t count = old != CHUNK_NONE ? chunk_at(wk->slot, old)->aux64 : 0;

	if (old != CHUNK_NONE && chunk_room(chunk_at(wk->slot, old)) >= n * size)
		return 0;
	ref = chunk_alloc(wk->region, n * size, CHUNK_LISTS, c->rec, c->gen);
	if (ref == CHUNK_NONE)
		return -1;
	struct chunk *ch = chunk_at(wk->slot, ref);
	ch->aux = (uint16_t)which;
	ch->aux64 = count;
	if (count > 0)
		memcpy(ch->data, chunk_at(wk->slot, old)->data, count * size);
	if (old != CHUNK_NONE)
		lists_free(c, which);
	ch->next = c->r->lists;
	c->r->lists = ref;
	return 0;
}

void *lists_add(struct conn *c, enum list which, size_t size)
{
	uint32_t n;

	(void)lists_get(c, which, &n);
	uint32_t ref = find(c, which);
	if (ref == CHUNK_NONE || chunk_room(chunk_at(wk->slot, ref)) < (n + 1) * size)
		if (lists_reserve(c, which, size, n < 2 ? 4 : n * 2) != 0)
			return NULL;
	struct chunk *ch = chunk_at(wk->slot, find(c, which));
	memset(ch->data + n * size, 0, size);
	ch->aux64 = n + 1;
	return ch->data + n * size;
}

void lists_del(struct conn *c, enum list which, size_t size, uint32_t i)
{
	uint32_t ref = find(c, which);

	if (ref == CHUNK_NONE)
		return;
	struct chunk *ch = chunk_at(wk->slot, ref);
	uint64_t n = ch->aux64;
	if (i >= n)
		return;
	if (i + 1 < n)
		memcpy(ch->data + i * size, ch->data + (n - 1) * size, size);
	ch->aux64 = n - 1;
}
