/* far.c - chained buckets that double, and the few rules of which news are the newer. */
#include "worker/far.h"

#include <stdlib.h>

struct far {
	struct far *next;
	uint32_t user, holds;
	uint64_t host;			/* where they are */
	uint64_t login_ms;		/* since when, 0: not told */
	uint64_t left;			/* the host that said last that they went */
	uint64_t said;			/* number of the last event */
};

static struct far **bucket;
static uint32_t nbuckets, nentries;
static uint64_t events = 1;

static struct far **place(uint32_t user)
{
	struct far **p = &bucket[(user * 2654435761u) >> 7 & (nbuckets - 1)];

	while (*p != NULL && (*p)->user != user)
		p = &(*p)->next;
	return p;
}

static struct far *find(uint32_t user)
{
	return nbuckets > 0 ? *place(user) : NULL;
}

static bool grow(void)
{
	uint32_t n = nbuckets, bigger = n == 0 ? 64 : n * 2;
	struct far **old = bucket, **v = calloc(bigger, sizeof(struct far *));

	if (v == NULL)
		return false;
	bucket = v;
	nbuckets = bigger;
	for (uint32_t b = 0; b < n; b++)
		for (struct far *e = old[b], *next; e != NULL; e = next) {
			struct far **p = place(e->user);

			next = e->next;
			e->next = NULL;
			*p = e;
		}
	free(old);
	return true;
}

static struct far *get(uint32_t user)
{
	struct far *e = find(user);

	if (e != NULL)
		return e;
	if ((nentries >= nbuckets && !grow() && nbuckets == 0) || (e = calloc(1, sizeof *e)) == NULL)
		return NULL;
	e->user = user;
	*place(user) = e;
	nentries++;
	return e;
}

static void drop(struct far *e)
{
	*place(e->user) = e->next;
	nentries--;
	free(e);
}

bool far_online(uint32_t user)
{
	const struct far *e = find(user);

	return e != NULL && e->host != 0;
}

bool far_asked(uint32_t user)
{
	const struct far *e = find(user);

	return e != NULL && e->holds > 0;
}

bool far_known(uint32_t user)
{
	return find(user) != NULL;
}

uint32_t far_count(void)
{
	return nentries;
}

/* ---- events ---- */

/* Of two hosts that both say "online", the later login counts, whichever came first. */
bool far_came(uint32_t user, uint64_t host, uint64_t login_ms, bool watched)
{
	struct far *e = watched ? get(user) : find(user);
	bool was;

	if (e == NULL || (e->host != 0 && e->host != host && e->login_ms > login_ms))
		return false;
	was = e->host != 0;
	e->host = host;
	e->login_ms = login_ms;
	e->said = ++events;
	return !was;
}

/* Only the host where they were last can say that they went. */
bool far_left(uint32_t user, uint64_t host)
{
	struct far *e = find(user);

	if (e == NULL || (e->host != 0 && e->host != host))
		return false;
	bool was = e->host != 0;
	e->host = 0;
	e->left = host;
	e->said = ++events;
	if (e->holds == 0)
		drop(e);
	return was;
}

void far_forget(uint32_t user)
{
	struct far *e = find(user);

	if (e == NULL)
		return;
	e->host = e->left = 0;
	e->said = ++events;
	if (e->holds == 0)
		drop(e);
}

/* ---- questions ---- */

uint64_t far_now(void)
{
	return events;
}

bool far_hold(uint32_t user)
{
	struct far *e = get(user);

	if (e == NULL)
		return false;
	e->holds++;
	return true;
}

bool far_answer(uint32_t user, uint64_t host, uint64_t since, bool sure)
{
	struct far *e = find(user);
	bool was, newer;

	if (e == NULL)
		return false;
	was = e->host != 0;
	newer = e->said > since;
	if (host == 0) {
		if (newer || !was || !sure)
			return false;
		e->host = 0;
		return true;
	}
	if (newer && (was || e->left == host || e->left == 0))
		return false;
	if (e->host != host)
		e->login_ms = 0;
	e->host = host;
	return !was;
}

void far_release(uint32_t user, bool keep)
{
	struct far *e = find(user);

	if (e == NULL || (e->holds > 0 && --e->holds > 0))
		return;
	if (e->host == 0 || !keep)
		drop(e);
}
