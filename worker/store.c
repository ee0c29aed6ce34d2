#include "worker/store.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "sql/db.h"
#include "worker/store_run.h"

enum { LANE_READ, LANE_WRITE, NLANES };
/* Who was refused: one that found the queue full, one further on, one that was accepted before. */
enum { REFUSED_FULL, REFUSED_LATER, REFUSED_MUST, NREFUSED };

enum {
	GROUP_ROWS = 500,		/* of a transaction, and */
	GROUP_BYTES = 512 << 10,	/* bytes of bodies in it */
	PROBE_FIRST_MS = 200,
	PROBE_MAX_MS = 5000,
	GROW_PAUSE_MS = 5000,		/* after a connection was refused to one more thread */
	HURRY_MS = 100,			/* for a thread between two jobs to end */
	STACK_BYTES = 1 << 20,
	NKINDS = KIND_FENCE + 1,
	MARKS = 4096,
	PAIRS = 4096
};

#define JOB_AGAIN 0x80000000u		/* flags: was handed back by a thread that could not connect */

struct lane {
	struct store_job *head, **tail;
	uint32_t njobs;
	size_t bytes;
	pthread_cond_t more;
	uint32_t nthreads, nidle, nstarting;
};

/*
 * Everything below "mtx" is under it. A thread that runs a job holds no lock; a job belongs to
 * whoever took it out of a list.
 */
struct store {
	struct store_setup setup;
	char *url, *password;		/* copies: setup points here */
	int fd;
	struct store_job *staged, **staged_tail;	/* the loop's alone, until store_flush() */
	bool told_up;			/* the loop's: what on_state said last, and */
	uint32_t told_downs;		/* up to which failure */
	atomic_bool up;
	atomic_bool hurry;		/* the time to end is over: start nothing more */
	atomic_uint wait_ms, keep_days;
	atomic_uint_fast64_t depth, commits;
	uint64_t told_refusals;		/* the loop's: of how many refusals it has been told */
	atomic_uint_fast64_t refused_at[NREFUSED][PAIRS];	/* the last one's number; set under mtx */

	pthread_mutex_t mtx;
	pthread_cond_t gone;		/* a thread has ended */
	uint32_t nalive;		/* threads that may still touch this struct */
	struct lane lane[NLANES];
	struct store_job *done, **done_tail;
	uint64_t refusals;
	uint32_t downs;			/* how often it went down */
	bool quit;			/* no new jobs; end when there is nothing left */
	bool orphan;			/* store_free() did not wait: the last thread frees */
	uint64_t grow_after_ms, probe_ms, probe_at_ms;
	char why[256];
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int lane_of(const struct store_job *job)
{
	return store_kind(job->op) == KIND_READ ? LANE_READ : LANE_WRITE;
}

static size_t job_bytes(const struct store_job *job)
{
	return sizeof *job + job->len + job->nids * sizeof *job->ids +
	       job->ncursors * sizeof *job->cursors;
}

/* ---- jobs ---- */

struct store_job *store_job_new(enum store_op op, void (*done)(struct store_job *, void *), void *arg)
{
	struct store_job *job = calloc(1, sizeof *job);

	if (job == NULL)
		abort();
	job->op = op;
	job->done = done;
	job->arg = arg;
	return job;
}

void store_job_body(struct store_job *job, const void *body, size_t len)
{
	char *copy = malloc(len + 1);

	if (copy == NULL)
		abort();
	if (len > 0)
		memcpy(copy, body, len);
	copy[len] = '\0';
	free(job->body);
	job->body = copy;
	job->len = (uint32_t)len;
}

struct store_job *store_job_take(struct store_job *job)
{
	struct store_job *mine = store_job_new(job->op, job->done, job->arg);

	*mine = *job;
	mine->next = NULL;
	job->rows = NULL;
	job->people = NULL;
	job->msgs = NULL;
	job->groups = NULL;
	job->body = NULL;
	job->ids = NULL;
	job->cursors = NULL;
	return mine;
}

void store_job_free(struct store_job *job)
{
	for (uint32_t i = 0; job->rows != NULL && i < job->nrows; i++) {
		free(job->rows[i].name);
		free(job->rows[i].hash);
	}
	for (uint32_t i = 0; job->people != NULL && i < job->npeople; i++)
		free(job->people[i].name);
	for (uint32_t i = 0; job->msgs != NULL && i < job->nmsgs; i++)
		free(job->msgs[i].body);
	free(job->rows);
	free(job->people);
	free(job->msgs);
	free(job->groups);
	free(job->body);
	free(job->ids);
	free(job->cursors);
	explicit_bzero(job->hash, sizeof job->hash);
	free(job);
}

/* ---- lists; all but the staged one under the lock ---- */

/* Wakes the loop. Only on the empty to non-empty edge: it takes all that is there at once. */
static void loop_wake(struct store *st)
{
	uint64_t one = 1;

	while (write(st->fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

/*
 * Order over refusals. A message that comes back undone is submitted again, so nothing of the same
 * sender to the same recipient may be stored before the loop knows of it: the loop may have
 * submitted more, and the store may be back. Refusals are numbered; a message goes on only if
 * the loop had been told of the last one of its pair. Pairs share places by a hash: then one waits
 * for another's sake, which is harmless. What was accepted (STORE_MUST) waits only for its like.
 */
static uint32_t pair_place(const struct store_job *job)
{
	uint32_t to = store_kind(job->op) == KIND_ADD ? job->id : ~job->group;

	return (job->other * 2654435761u ^ to * 2246822519u) >> 16 & (PAIRS - 1);
}

static bool has_order(const struct store_job *job)
{
	return store_kind(job->op) == KIND_ADD || store_kind(job->op) == KIND_POST;
}

/* FROM: REFUSED_FULL for one that is about to queue; who is in the queue already was before those. */
static bool refused_before(struct store *st, const struct store_job *job, int from)
{
	uint32_t at = pair_place(job);

	if (!has_order(job))
		return false;
	for (int i = (job->flags & STORE_MUST) != 0 ? REFUSED_MUST : from; i < NREFUSED; i++)
		if (atomic_load_explicit(&st->refused_at[i][at], memory_order_relaxed) > job->knows)
			return true;
	return false;
}

static void refused_note(struct store *st, const struct store_job *job, int how)
{
	bool undone = job->rc == STORE_DOWN || job->rc == STORE_BUSY || job->rc == STORE_UNSURE;

	if ((job->flags & STORE_MUST) != 0)
		how = REFUSED_MUST;
	if (undone && has_order(job))
		atomic_store_explicit(&st->refused_at[how][pair_place(job)], ++st->refusals,
				      memory_order_relaxed);
}

static void done_list_add(struct store *st, struct store_job *job)
{
	if (st->done == NULL)
		loop_wake(st);
	job->next = NULL;
	*st->done_tail = job;
	st->done_tail = &job->next;
	atomic_fetch_sub(&st->depth, 1);
}

static void done_push(struct store *st, struct store_job *job)
{
	refused_note(st, job, REFUSED_LATER);
	done_list_add(st, job);
}

/* A job that does not even get into the queue. */
static void done_push_turned_away(struct store *st, struct store_job *job, int rc)
{
	job->rc = rc;
	refused_note(st, job, REFUSED_FULL);
	done_list_add(st, job);
}

static void done_push_rc(struct store *st, struct store_job *job, int rc)
{
	job->rc = rc;
	done_push(st, job);
}

static void lane_push(struct lane *l, struct store_job *job)
{
	job->next = NULL;
	*l->tail = job;
	l->tail = &job->next;
	l->njobs++;
	l->bytes += job_bytes(job);
}

static struct store_job *lane_pop(struct lane *l)
{
	struct store_job *job = l->head;

	if (job == NULL)
		return NULL;
	l->head = job->next;
	if (l->head == NULL)
		l->tail = &l->head;
	l->njobs--;
	l->bytes -= job_bytes(job);
	return job;
}

static void lane_push_front(struct lane *l, struct store_job *job)
{
	if (l->head == NULL)
		l->tail = &job->next;
	job->next = l->head;
	l->head = job;
	l->njobs++;
	l->bytes += job_bytes(job);
}

static void lane_fail(struct store *st, struct lane *l, int rc)
{
	struct store_job *job;

	while ((job = lane_pop(l)) != NULL)
		done_push_rc(st, job, rc);
}

static bool expired(const struct store_job *job, uint64_t now)
{
	return now >= job->deadline_ms && (job->flags & STORE_MUST) == 0;
}

/* Takes out what has waited too long: it stands in front, as all wait equally long. */
static void lane_expire(struct store *st, struct lane *l, uint64_t now)
{
	struct store_job **at = &l->head, *job;

	while ((job = *at) != NULL) {
		if ((job->flags & STORE_MUST) != 0) {
			at = &job->next;
			continue;
		}
		if (!expired(job, now))
			return;
		*at = job->next;
		if (*at == NULL)
			l->tail = at;
		l->njobs--;
		l->bytes -= job_bytes(job);
		done_push_rc(st, job, STORE_BUSY);
	}
}

/* ---- the end of it; nobody else has the store any more ---- */

static void store_fini(struct store *st)
{
	struct store_job *job;

	while ((job = st->done) != NULL) {	/* nobody is there to be told */
		st->done = job->next;
		store_job_free(job);
	}
	for (int i = 0; i < NLANES; i++)
		pthread_cond_destroy(&st->lane[i].more);
	pthread_cond_destroy(&st->gone);
	pthread_mutex_destroy(&st->mtx);
	if (st->fd >= 0)
		close(st->fd);
	if (st->password != NULL)
		explicit_bzero(st->password, strlen(st->password));
	if (st->url != NULL)
		explicit_bzero(st->url, strlen(st->url));
	free(st->password);
	free(st->url);
	free(st);
}

/* ---- up and down, under the lock ---- */

static void state_set(struct store *st, bool up, const char *why)
{
	if (atomic_load(&st->up) == up)
		return;
	atomic_store(&st->up, up);
	if (st->done == NULL)
		loop_wake(st);
	if (up)
		return;
	st->downs++;
	snprintf(st->why, sizeof st->why, "%s", why);
	st->probe_ms = PROBE_FIRST_MS;
	st->probe_at_ms = now_ms() + PROBE_FIRST_MS;
	for (int i = 0; i < NLANES; i++)
		lane_fail(st, &st->lane[i], STORE_DOWN);
	pthread_cond_signal(&st->lane[LANE_WRITE].more);	/* it does the probing */
}

static void wait_until(pthread_cond_t *c, pthread_mutex_t *m, uint64_t at_ms)
{
	struct timespec ts = { (time_t)(at_ms / 1000), (long)(at_ms % 1000) * 1000000 };

	pthread_cond_timedwait(c, m, &ts);
}

/* Returns with the lock. */
static struct runner *thread_begin(struct store *st, struct lane *l)
{
	char why[200] = "out of memory";
	struct runner *r = NULL;

	if (db_thread_init() == DB_OK)
		r = runner_new(&st->setup, why, sizeof why);
	pthread_mutex_lock(&st->mtx);
	l->nstarting--;
	if (r == NULL)
		state_set(st, false, why);
	return r;
}

/* With the lock held; the store may be gone when it returns. */
static void thread_end(struct store *st, struct lane *l, struct runner *r)
{
	bool last;

	l->nthreads--;			/* at once: nobody counts on this thread any more */
	pthread_mutex_unlock(&st->mtx);
	runner_free(r);
	db_thread_end();
	pthread_mutex_lock(&st->mtx);
	last = --st->nalive == 0 && st->orphan;
	pthread_cond_signal(&st->gone);
	pthread_mutex_unlock(&st->mtx);
	if (last)
		store_fini(st);
}

/* ---- the read lane ---- */

static uint64_t idle_ms(const struct store *st)
{
	return (uint64_t)st->setup.pool_idle_seconds * 1000;
}

/* Nothing was asked of this connection for a while. With the lock held, which is left for it. */
static void relax(struct store *st, struct runner *r)
{
	pthread_mutex_unlock(&st->mtx);
	runner_relax(r);
	pthread_mutex_lock(&st->mtx);
}

/* Waits for a job; NULL: this thread is to end. */
static struct store_job *read_next(struct store *st, struct lane *l, struct runner *r)
{
	uint64_t end = now_ms() + idle_ms(st);
	bool kept = idle_ms(st) == 0;		/* all that it has */

	while (l->head == NULL && !st->quit) {
		bool due = !kept && now_ms() >= end;

		if (due && l->nthreads > st->setup.pool_init)
			return NULL;
		if (due) {
			kept = true;
			relax(st, r);
			continue;
		}
		l->nidle++;
		if (kept)
			pthread_cond_wait(&l->more, &st->mtx);
		else
			wait_until(&l->more, &st->mtx, end);
		l->nidle--;
	}
	return lane_pop(l);
}

/*
 * The store did not answer. One thread among several may just have been one connection too many:
 * it hands its job back and ends. The last one, or a job's second failure, means that it is down.
 * True: end this thread.
 */
static bool read_down(struct store *st, struct lane *l, struct store_job *job, const char *why)
{
	if (l->nthreads > 1 && (job->flags & JOB_AGAIN) == 0 && atomic_load(&st->up)) {
		job->flags |= JOB_AGAIN;
		lane_push_front(l, job);
		pthread_cond_signal(&l->more);
		st->grow_after_ms = now_ms() + GROW_PAUSE_MS;
		return true;
	}
	state_set(st, false, why);
	done_push(st, job);
	return false;
}

static void *read_main(void *arg)
{
	struct store *st = arg;
	struct lane *l = &st->lane[LANE_READ];
	struct runner *r = thread_begin(st, l);
	struct store_job *job;

	while (r != NULL && (job = read_next(st, l, r)) != NULL) {
		if (expired(job, now_ms())) {
			done_push_rc(st, job, STORE_BUSY);
			continue;
		}
		pthread_mutex_unlock(&st->mtx);
		runner_set_keep_days(r, atomic_load(&st->keep_days));
		run_read(r, job);
		pthread_mutex_lock(&st->mtx);
		if (job->rc != STORE_DOWN)
			done_push(st, job);
		else if (read_down(st, l, job, runner_error(r)))
			break;
	}
	thread_end(st, l, r);
	return NULL;
}

/* ---- the write lane ---- */

/* What is to be committed together, by kind. The write thread's alone. */
struct batch {
	struct store *st;
	struct runner *r;
	struct store_job *jobs[NKINDS][GROUP_ROWS];
	uint32_t njobs[NKINDS], nrows[NKINDS];
	size_t bytes[NKINDS];
	uint64_t deletes[MARKS / 64];	/* users (hashed) with deletions in it */
};

/* Pushes the jobs that are through, and takes the new state of the store over. */
static void write_report(struct store *st, struct runner *r, int rc, struct store_job **jobs, uint32_t n)
{
	pthread_mutex_lock(&st->mtx);
	if (rc == STORE_DOWN || rc == STORE_UNSURE)
		state_set(st, false, runner_error(r));
	else if (runner_connected(r))
		state_set(st, true, "");
	for (uint32_t i = 0; i < n; i++)
		done_push(st, jobs[i]);
	pthread_mutex_unlock(&st->mtx);
}

/*
 * After an unsure commit: waits for the next attempt with back-off, while all others fail at once.
 * False: the deadline is over, or the worker ends.
 */
static bool write_wait(struct store *st, struct runner *r, uint64_t deadline, uint64_t *pause_ms)
{
	struct lane *l = &st->lane[LANE_WRITE];
	uint64_t end = now_ms() + *pause_ms;
	bool go_on;

	pthread_mutex_lock(&st->mtx);
	state_set(st, false, runner_error(r));
	while (now_ms() < end && end <= deadline && !st->quit)
		wait_until(&l->more, &st->mtx, end);
	go_on = end <= deadline && !st->quit;
	pthread_mutex_unlock(&st->mtx);
	*pause_ms = *pause_ms * 2 < PROBE_MAX_MS ? *pause_ms * 2 : PROBE_MAX_MS;
	return go_on;
}

/* Runs N jobs (of a grouped KIND, or one alone) until it is known what became of them. */
static void write_run(struct store *st, struct runner *r, enum store_kind kind,
		      struct store_job **jobs, uint32_t n)
{
	uint64_t deadline = now_ms() + atomic_load(&st->wait_ms), pause_ms = PROBE_FIRST_MS;
	bool alone = kind == KIND_ALONE || kind == KIND_FENCE, unsure = false;
	int rc;

	for (;;) {
		rc = alone ? run_alone(r, jobs[0], unsure) : run_group(r, kind, jobs, n);
		if (rc != STORE_UNSURE && !(unsure && (rc == STORE_DOWN || rc == STORE_BUSY)))
			break;
		unsure = true;
		if (!write_wait(st, r, deadline, &pause_ms)) {
			for (uint32_t i = 0; i < n; i++)
				jobs[i]->rc = STORE_UNSURE;
			rc = STORE_UNSURE;
			break;
		}
	}
	if (rc == STORE_OK)
		atomic_fetch_add(&st->commits, 1);
	write_report(st, r, rc, jobs, n);
}

/* True: the jobs were answered, because the store is down (only probes try then) or ends. */
static bool write_refused(struct store *st, struct store_job **jobs, uint32_t n)
{
	bool hurry = atomic_load(&st->hurry);

	if (atomic_load(&st->up) && !hurry)
		return false;
	pthread_mutex_lock(&st->mtx);
	for (uint32_t i = 0; i < n; i++)
		done_push_rc(st, jobs[i], hurry ? STORE_BUSY : STORE_DOWN);
	pthread_mutex_unlock(&st->mtx);
	return true;
}

/* Additions before deletions: who deletes by mid means a message that was added before. */
static void batch_commit(struct batch *b)
{
	for (enum store_kind k = KIND_ADD; k <= KIND_DEL_MID; k++) {
		if (b->njobs[k] > 0 && !write_refused(b->st, b->jobs[k], b->njobs[k]))
			write_run(b->st, b->r, k, b->jobs[k], b->njobs[k]);
		b->njobs[k] = b->nrows[k] = 0;
		b->bytes[k] = 0;
	}
	memset(b->deletes, 0, sizeof b->deletes);
}

/* True: JOB adds a message for somebody who has deletions before it in the batch. */
static bool batch_hazard(const struct batch *b, const struct store_job *job)
{
	uint32_t m = job->id % MARKS;

	return job->op == STORE_OFFLINE_ADD && (b->deletes[m / 64] >> m % 64 & 1) != 0;
}

static void batch_add(struct batch *b, enum store_kind k, struct store_job *job)
{
	if (batch_hazard(b, job))
		batch_commit(b);
	if (k == KIND_DEL || k == KIND_DEL_MID)
		b->deletes[job->id % MARKS / 64] |= UINT64_C(1) << job->id % MARKS % 64;
	b->jobs[k][b->njobs[k]++] = job;
	b->nrows[k] += store_rows(job);
	b->bytes[k] += job->len;
	if (b->njobs[k] == GROUP_ROWS || b->nrows[k] >= GROUP_ROWS || b->bytes[k] >= GROUP_BYTES)
		batch_commit(b);
}

/* Runs a list of jobs; the order of those that touch the same rows is kept. */
static void batch_run(struct batch *b, struct store_job *list)
{
	struct store_job *job;

	while ((job = list) != NULL) {
		enum store_kind k = store_kind(job->op);

		list = job->next;
		if (expired(job, now_ms()) || refused_before(b->st, job, REFUSED_LATER)) {
			pthread_mutex_lock(&b->st->mtx);
			done_push_rc(b->st, job, STORE_BUSY);
			pthread_mutex_unlock(&b->st->mtx);
			continue;
		}
		if (k != KIND_ALONE && k != KIND_FENCE) {
			batch_add(b, k, job);
			continue;
		}
		if (k == KIND_FENCE)
			batch_commit(b);
		if (!write_refused(b->st, &job, 1))
			write_run(b->st, b->r, k, &job, 1);
	}
	batch_commit(b);
}

/* Asks for a sign of life while the store is down. Called with the lock, which it leaves. */
static void write_probe(struct store *st, struct runner *r)
{
	int rc;

	pthread_mutex_unlock(&st->mtx);
	rc = runner_ping(r);
	pthread_mutex_lock(&st->mtx);
	if (rc == STORE_OK) {
		state_set(st, true, "");
		return;
	}
	st->probe_ms = st->probe_ms * 2 < PROBE_MAX_MS ? st->probe_ms * 2 : PROBE_MAX_MS;
	st->probe_at_ms = now_ms() + st->probe_ms;
}

/* Waits for work; NULL: end. */
static struct store_job *write_next(struct store *st, struct lane *l, struct runner *r)
{
	struct store_job *list;
	uint64_t end = now_ms() + idle_ms(st);
	bool kept = idle_ms(st) == 0;

	while (l->head == NULL && !st->quit) {
		if (atomic_load(&st->up) && !kept && now_ms() >= end) {
			kept = true;
			relax(st, r);
		} else if (atomic_load(&st->up) && !kept)
			wait_until(&l->more, &st->mtx, end);
		else if (atomic_load(&st->up))
			pthread_cond_wait(&l->more, &st->mtx);
		else if (now_ms() >= st->probe_at_ms)
			write_probe(st, r);
		else
			wait_until(&l->more, &st->mtx, st->probe_at_ms);
	}
	list = l->head;
	l->head = NULL;
	l->tail = &l->head;
	l->njobs = 0;
	l->bytes = 0;
	return list;
}

static void *write_main(void *arg)
{
	struct store *st = arg;
	struct lane *l = &st->lane[LANE_WRITE];
	struct runner *r = thread_begin(st, l);
	struct batch *b = calloc(1, sizeof *b);
	struct store_job *list;

	if (b == NULL)
		abort();
	b->st = st;
	b->r = r;
	while (r != NULL && (list = write_next(st, l, r)) != NULL) {
		pthread_mutex_unlock(&st->mtx);
		runner_set_keep_days(r, atomic_load(&st->keep_days));
		batch_run(b, list);
		pthread_mutex_lock(&st->mtx);
	}
	free(b);
	thread_end(st, l, r);
	return NULL;
}

/* ---- the loop's side ---- */

/* Detached: store_free() counts them. All signals are the loop's. */
static bool thread_spawn(struct store *st, int lane, const char *name)
{
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t t;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&t, &attr, lane == LANE_READ ? read_main : write_main, st);
	if (rc == 0) {
		pthread_setname_np(t, name);
		st->lane[lane].nthreads++;
		st->lane[lane].nstarting++;
		st->nalive++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return rc == 0;
}

static void lane_init(struct lane *l)
{
	pthread_condattr_t attr;

	l->tail = &l->head;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->more, &attr);
	pthread_condattr_destroy(&attr);
}

static struct store *store_alloc(const struct store_setup *s)
{
	struct store *st = calloc(1, sizeof *st);
	pthread_condattr_t attr;

	if (st == NULL)
		return NULL;
	pthread_mutex_init(&st->mtx, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&st->gone, &attr);
	pthread_condattr_destroy(&attr);
	for (int i = 0; i < NLANES; i++)
		lane_init(&st->lane[i]);
	st->setup = *s;
	st->url = strdup(s->url);
	st->password = s->password != NULL ? strdup(s->password) : NULL;
	st->setup.url = st->url;
	st->setup.password = st->password;
	if (st->setup.pool_init == 0)
		st->setup.pool_init = 1;
	if (st->setup.pool_max < st->setup.pool_init)
		st->setup.pool_max = st->setup.pool_init;
	st->staged_tail = &st->staged;
	st->done_tail = &st->done;
	st->told_up = true;
	atomic_init(&st->up, true);
	atomic_init(&st->wait_ms, s->pool_wait_ms);
	atomic_init(&st->keep_days, s->keep_days);
	st->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (st->url == NULL || (s->password != NULL && st->password == NULL) || st->fd < 0 ||
	    db_global_init() != DB_OK) {
		store_fini(st);
		return NULL;
	}
	return st;
}

struct store *store_new(const struct store_setup *s)
{
	struct store *st = store_alloc(s);
	bool ok;

	if (st == NULL)
		return NULL;
	pthread_mutex_lock(&st->mtx);
	ok = thread_spawn(st, LANE_WRITE, "store-write");
	for (uint32_t i = 0; ok && i < st->setup.pool_init; i++)
		ok = thread_spawn(st, LANE_READ, "store-read") || i > 0;
	pthread_mutex_unlock(&st->mtx);
	if (!ok) {
		store_free(st, 1000);
		return NULL;
	}
	return st;
}

int store_fd(const struct store *st)
{
	return st->fd;
}

bool store_up(const struct store *st)
{
	return atomic_load(&st->up);
}

uint64_t store_depth(const struct store *st)
{
	return atomic_load(&st->depth);
}

uint64_t store_commits(const struct store *st)
{
	return atomic_load(&st->commits);
}

void store_set_pool(struct store *st, uint32_t wait_ms, uint32_t keep_days)
{
	atomic_store(&st->wait_ms, wait_ms);
	atomic_store(&st->keep_days, keep_days);
}

/* Costs no lock and no system call: the turn's jobs go over together in store_flush(). */
void store_submit(struct store *st, struct store_job *job)
{
	job->flags &= ~JOB_AGAIN;
	job->knows = st->told_refusals;
	job->next = NULL;
	*st->staged_tail = job;
	st->staged_tail = &job->next;
	atomic_fetch_add(&st->depth, 1);
}

/* More readers, where jobs wait and nobody is idle. */
static void pool_grow(struct store *st, struct lane *l, uint64_t now)
{
	bool allowed = now >= st->grow_after_ms;

	while (!st->quit && (l->nthreads == 0 || (allowed && l->nthreads < st->setup.pool_max &&
						  l->njobs > l->nidle + l->nstarting)))
		if (!thread_spawn(st, LANE_READ, "store-read")) {
			st->grow_after_ms = now + GROW_PAUSE_MS;
			return;
		}
}

static void staged_take(struct store *st, uint64_t now)
{
	struct store_job *job, *list = st->staged;
	uint64_t wait = atomic_load(&st->wait_ms);
	bool up = atomic_load(&st->up);

	st->staged = NULL;
	st->staged_tail = &st->staged;
	while ((job = list) != NULL) {
		struct lane *l = &st->lane[lane_of(job)];
		bool full = l->njobs >= STORE_DEPTH || l->bytes + job_bytes(job) > STORE_BYTES;

		list = job->next;
		job->deadline_ms = now + wait;
		full = full && (job->flags & STORE_MUST) == 0;
		if (!st->quit && !up)
			done_push_turned_away(st, job, STORE_DOWN);
		else if (st->quit || full || refused_before(st, job, REFUSED_FULL))
			done_push_turned_away(st, job, STORE_BUSY);
		else
			lane_push(l, job);
	}
}

void store_flush(struct store *st)
{
	uint64_t now = now_ms();
	struct lane *rd = &st->lane[LANE_READ], *wr = &st->lane[LANE_WRITE];

	if (st->staged == NULL && atomic_load(&st->depth) == 0)
		return;
	pthread_mutex_lock(&st->mtx);
	staged_take(st, now);
	for (int i = 0; i < NLANES; i++)
		lane_expire(st, &st->lane[i], now);
	if (wr->njobs > 0)
		pthread_cond_signal(&wr->more);
	if (rd->njobs > 0) {
		for (uint32_t i = 0; i < rd->njobs && i < rd->nidle; i++)
			pthread_cond_signal(&rd->more);
		pool_grow(st, rd, now);
	}
	pthread_mutex_unlock(&st->mtx);
}

static void state_tell(struct store *st, bool up, const char *why)
{
	if (up == st->told_up)
		return;
	st->told_up = up;
	if (st->setup.on_state != NULL)
		st->setup.on_state(st->setup.arg, up, why);
}

unsigned store_complete(struct store *st)
{
	struct store_job *list, *job;
	char why[sizeof st->why];
	uint64_t ticks, refusals;
	uint32_t downs;
	unsigned n = 0;
	bool up;

	/* First the counter, then the list: what comes in between rings again. */
	if (read(st->fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN && errno != EINTR)
		abort();			/* not our eventfd any more */
	pthread_mutex_lock(&st->mtx);
	list = st->done;
	st->done = NULL;
	st->done_tail = &st->done;
	up = atomic_load(&st->up);
	downs = st->downs;
	refusals = st->refusals;
	memcpy(why, st->why, sizeof why);
	pthread_mutex_unlock(&st->mtx);
	if (downs != st->told_downs)	/* even if it is back already: jobs failed */
		state_tell(st, false, why);
	st->told_downs = downs;
	while ((job = list) != NULL) {
		list = job->next;
		job->next = NULL;
		if (job->done != NULL)
			job->done(job, job->arg);
		store_job_free(job);
		n++;
	}
	st->told_refusals = refusals;
	if (up)				/* last, so that what failed can be submitted again at once */
		state_tell(st, true, "");
	return n;
}

/* Waits for the end of all threads until END. With the lock. */
static bool threads_wait(struct store *st, uint64_t end)
{
	while (st->nalive > 0 && now_ms() < end)
		wait_until(&st->gone, &st->mtx, end);
	return st->nalive == 0;
}

void store_free(struct store *st, uint32_t ms)
{
	bool ended;

	store_flush(st);
	pthread_mutex_lock(&st->mtx);
	st->quit = true;
	lane_fail(st, &st->lane[LANE_READ], STORE_BUSY);
	for (int i = 0; i < NLANES; i++)
		pthread_cond_broadcast(&st->lane[i].more);
	ended = threads_wait(st, now_ms() + ms);
	atomic_store(&st->hurry, true);
	lane_fail(st, &st->lane[LANE_WRITE], STORE_BUSY);
	if (!ended)
		threads_wait(st, now_ms() + HURRY_MS);
	pthread_mutex_unlock(&st->mtx);
	/* done() may ask for more: it hears "busy", but not for ever */
	for (int i = 0; i < 3 && store_complete(st) > 0; i++)
		store_flush(st);
	store_flush(st);
	/*
	 * A thread that hangs in a library call cannot be ended. It keeps the store and the jobs
	 * that it runs, of which nobody is told; the process is about to exit.
	 */
	pthread_mutex_lock(&st->mtx);
	ended = st->nalive == 0;
	st->orphan = !ended;
	pthread_mutex_unlock(&st->mtx);
	if (ended)
		store_fini(st);
}
