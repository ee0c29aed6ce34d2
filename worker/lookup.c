#include "worker/lookup.h"

#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STACK   (256u << 10)
#define THREADS 4			/* at a time: a resolver that hangs is not asked ever more */

static _Atomic int threads;

struct lookup_job {
	_Atomic int users;		/* the loop and the thread; the last one frees it */
	_Atomic int state;		/* enum lookup_state */
	char host[254];
	uint16_t port;
	struct wire_addr addr[LOOKUP_MAX];
	unsigned n;
	char why[128];
};

static enum lookup_state ask(const char *host, uint16_t port, int flags, struct wire_addr *addr,
    unsigned *n_r, char *why, size_t cap)
{
	struct addrinfo hint = { .ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV };
	struct addrinfo *all;
	char service[8];
	unsigned n = 0;
	int rc;

	snprintf(service, sizeof service, "%u", port);
	rc = getaddrinfo(host, service, &hint, &all);
	if (rc != 0) {
		snprintf(why, cap, "%.80s: %s", host, gai_strerror(rc));
		return LOOKUP_FAILED;
	}
	for (struct addrinfo *a = all; a != NULL && n < LOOKUP_MAX; a = a->ai_next)
		if (a->ai_addrlen <= sizeof addr[n].in6) {
			memset(&addr[n], 0, sizeof addr[n]);
			memcpy(&addr[n].sa, a->ai_addr, a->ai_addrlen);
			addr[n++].len = a->ai_addrlen;
		}
	freeaddrinfo(all);
	*n_r = n;
	snprintf(why, cap, "%.80s: no address", host);
	return n > 0 ? LOOKUP_DONE : LOOKUP_FAILED;
}

static void leave(struct lookup_job *j)
{
	if (atomic_fetch_sub(&j->users, 1) == 1)
		free(j);
}

static void *run(void *arg)
{
	struct lookup_job *j = arg;

	atomic_store(&j->state, ask(j->host, j->port, 0, j->addr, &j->n, j->why, sizeof j->why));
	leave(j);
	atomic_fetch_sub(&threads, 1);
	return NULL;
}

static bool spawn(struct lookup_job *j)
{
	pthread_attr_t attr;
	pthread_t t;
	int rc;

	if (atomic_load(&threads) >= THREADS || pthread_attr_init(&attr) != 0)
		return false;
	(void)pthread_attr_setstacksize(&attr, STACK);
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	atomic_fetch_add(&threads, 1);
	rc = pthread_create(&t, &attr, run, j);
	if (rc != 0)
		atomic_fetch_sub(&threads, 1);
	pthread_attr_destroy(&attr);
	return rc == 0;
}

enum lookup_state lookup_now(struct lookup *l, const char *host, uint16_t port)
{
	lookup_forget(l);
	return ask(host, port, 0, l->addr, &l->n, l->why, sizeof l->why);
}

enum lookup_state lookup_start(struct lookup *l, const char *host, uint16_t port)
{
	struct lookup_job *j;

	lookup_forget(l);
	if (ask(host, port, AI_NUMERICHOST, l->addr, &l->n, l->why, sizeof l->why) == LOOKUP_DONE)
		return LOOKUP_DONE;
	j = calloc(1, sizeof *j);
	if (j == NULL || strlen(host) >= sizeof j->host) {
		free(j);
		return LOOKUP_FAILED;
	}
	memcpy(j->host, host, strlen(host) + 1);
	j->port = port;
	atomic_store(&j->users, 2);
	if (!spawn(j)) {
		snprintf(l->why, sizeof l->why, "%.80s: no thread for another look-up", host);
		free(j);
		return LOOKUP_FAILED;
	}
	l->job = j;
	return LOOKUP_PENDING;
}

enum lookup_state lookup_poll(struct lookup *l)
{
	enum lookup_state st;

	if (l->job == NULL)
		return LOOKUP_FAILED;
	st = (enum lookup_state)atomic_load(&l->job->state);
	if (st == LOOKUP_PENDING)
		return st;
	memcpy(l->addr, l->job->addr, sizeof l->addr);
	memcpy(l->why, l->job->why, sizeof l->why);
	l->n = l->job->n;
	lookup_forget(l);
	return st;
}

void lookup_forget(struct lookup *l)
{
	if (l->job != NULL)
		leave(l->job);
	l->job = NULL;
}
