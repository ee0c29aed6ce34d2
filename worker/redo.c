/* redo.c - a list, tried again every half second and at once when the store comes back. */
#include "worker/redo.h"

#include <stdlib.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/state.h"
#include "worker/store.h"

#define AGAIN_MS 500

static struct store_job *head, **tail = &head;
static uint32_t waiting;
static struct timer again;

static void on_again(struct timer *t)
{
	(void)t;
	redo_run();
}

void redo_job(struct store_job *job)
{
	struct store_job *n = store_job_new(job->op, job->done, job->arg);
	struct store_job fresh = *n;

	*n = *job;
	n->next = fresh.next;
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
	*tail = n;
	tail = &n->next;
	n->next = NULL;
	waiting++;
	if (!timer_is_set(&again))
		timer_set(&again, clock_ms() + AGAIN_MS, on_again);
}

void redo_run(void)
{
	struct store_job *j = head, *next;

	head = NULL;
	tail = &head;
	waiting = 0;
	for (; j != NULL; j = next) {
		next = j->next;
		j->next = NULL;
		store_submit(wk->store, j);
	}
}

uint32_t redo_waiting(void)
{
	return waiting;
}
