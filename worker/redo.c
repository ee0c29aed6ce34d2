/* redo.c - a list in order of first submission, tried again twice a second and when the store is back. */
#include "worker/redo.h"

#include <stdlib.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/loop.h"
#include "worker/state.h"
#include "worker/store.h"

#define AGAIN_MS 500

static struct store_job *head;		/* sorted by upto: the number of the first submission */
static struct store_job *busy, **busy_tail = &busy;
static uint32_t waiting, messages;	/* all that are kept; messages among them */
static uint64_t next_number = 1;
static struct timer again;

static void on_again(struct timer *t)
{
	(void)t;
	redo_run();
}

static bool is_message(const struct store_job *j)
{
	return j->op == STORE_OFFLINE_ADD || j->op == STORE_GROUP_MSG;
}

/* `upto` is no argument of a message's job: it carries its number through all attempts. */
static void keep(struct store_job *n)
{
	struct store_job **p = &head;

	/* Nearly always the newest: still, an older one may come back later than a newer. */
	while (*p != NULL && (!is_message(n) || !is_message(*p) || (*p)->upto <= n->upto))
		p = &(*p)->next;
	n->next = *p;
	*p = n;
	waiting++;
	messages += is_message(n);
	if (!timer_is_set(&again))
		timer_set(&again, clock_ms() + AGAIN_MS, on_again);
}

bool redo_useful(int rc)
{
	return rc == STORE_DOWN || rc == STORE_BUSY || rc == STORE_UNSURE;
}

void redo_job(struct store_job *job)
{
	struct store_job *n = store_job_new(job->op, job->done, job->arg);

	*n = *job;
	n->rc = 0;
	n->deadline_ms = 0;
	/* What it brought is the new one's now; what came back with it is freed with the old. */
	job->body = NULL;
	job->ids = NULL;
	job->cursors = NULL;
	job->rows = NULL;
	n->people = NULL;
	n->groups = NULL;
	n->msgs = NULL;
	n->npeople = n->ngroups = n->nmsgs = 0;
	keep(n);
}

void redo_submit(struct store_job *job)
{
	job->upto = next_number++;
	if (messages == 0) {
		store_submit(wk->store, job);
	} else if (job->flags & STORE_MUST) {
		keep(job);
	} else {
		job->next = NULL;
		*busy_tail = job;
		busy_tail = &job->next;
		loop_again();
	}
}

void redo_run(void)
{
	struct store_job *j = head, *next;

	head = NULL;
	waiting = messages = 0;
	timer_stop(&again);
	for (; j != NULL; j = next) {
		next = j->next;
		j->next = NULL;
		store_submit(wk->store, j);
	}
}

void redo_turn_end(void)
{
	struct store_job *j = busy, *next;

	busy = NULL;
	busy_tail = &busy;
	for (; j != NULL; j = next) {
		next = j->next;
		j->rc = STORE_BUSY;
		if (j->done != NULL)
			j->done(j, j->arg);
		store_job_free(j);
	}
}

uint32_t redo_waiting(void)
{
	return waiting;
}
