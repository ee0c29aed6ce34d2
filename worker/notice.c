/*
 * notice.c - telling whoever serves a user that the store holds something.
 *
 * One round a user at a time: ask where, tell that host, wait for its answer. A commit during a round
 * asks for another one, because the round may have read who serves the user before that commit.
 */
#include "worker/notice.h"

#include <stdlib.h>

#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/claim.h"
#include "worker/cluster.h"
#include "worker/hosts.h"
#include "worker/link.h"
#include "worker/route.h"
#include "worker/session.h"
#include "worker/state.h"

#define BUCKETS 4096u
#define ANSWER_MS 1000
#define KEPT_MS 5000			/* between two attempts for one that is kept although Redis is there */
#define ROUNDS 3u			/* without an answer; then it is kept for later */

struct waiter { struct waiter *next; notice_fn *done; uint64_t tag, tag2; };

enum step { ASKING, TELLING, KEPT };

struct told {
	struct told *next;
	uint32_t user, token, rounds;
	enum step step;
	bool again;			/* something was committed since the round began */
	struct waiter *now, *later;	/* whom this round serves, whom the next */
	struct timer answer;
};

static struct told *users[BUCKETS];
static uint32_t nusers, nkept, last_token;
static struct timer owed;

static struct told **place(uint32_t user)
{
	struct told **p = &users[(user * 2654435761u) >> 20];

	while (*p != NULL && (*p)->user != user)
		p = &(*p)->next;
	return p;
}

/* For whoever comes after this worker. */
static void note_owed(void)
{
	atomic_store(&wk->s->owes, nusers > 0);
}

static void wait_for(struct waiter **list, notice_fn *done, uint64_t tag, uint64_t tag2)
{
	struct waiter *w;

	if (done == NULL)
		return;
	w = malloc(sizeof *w);
	ensure(w != NULL);
	*w = (struct waiter){ NULL, done, tag, tag2 };
	while (*list != NULL)
		list = &(*list)->next;
	*list = w;
}

static void run(struct waiter *list)
{
	while (list != NULL) {
		struct waiter *w = list;

		list = w->next;
		w->done(w->tag, w->tag2);
		free(w);
	}
}

static void begin(struct told *t);

static void drop(struct told *t)
{
	struct told **p = place(t->user);

	timer_stop(&t->answer);
	*p = t->next;
	nusers--;
	note_owed();
	free(t);
}

/* This round is over: its waiters go on, and those of the next get one. */
static void finish(struct told *t)
{
	struct waiter *done = t->now;
	bool again = t->again;

	timer_stop(&t->answer);
	t->now = t->later;
	t->later = NULL;
	t->again = false;
	t->rounds = 0;
	if (!again)
		drop(t);
	run(done);
	if (again)
		begin(t);
}

static void begin_kept(struct told *t)
{
	nkept--;
	t->rounds = 0;
	begin(t);
}

static void on_kept_due(struct timer *timer)
{
	struct told *t = (struct told *)((char *)timer - offsetof(struct told, answer));

	if (cluster_up())		/* otherwise notice_bus_up() begins */
		begin_kept(t);
}

/* It cannot be told now; nobody waits for it any longer. */
static void keep(struct told *t)
{
	struct waiter *now = t->now, *later = t->later;

	timer_stop(&t->answer);
	t->now = t->later = NULL;
	t->again = false;
	if (t->step != KEPT)
		nkept++;
	t->step = KEPT;
	if (nusers > NOTICE_MAX) {
		notice_owe_all();
		nkept--;
		drop(t);
	} else if (cluster_up()) {
		timer_set(&t->answer, clock_ms() + KEPT_MS, on_kept_due);
	}
	run(now);
	run(later);
}

static void no_answer(struct told *t)
{
	if (!cluster_up() || ++t->rounds >= ROUNDS)
		keep(t);
	else
		begin(t);
}

static void on_answer_due(struct timer *timer)
{
	no_answer((struct told *)((char *)timer - offsetof(struct told, answer)));
}

static void on_where(uint64_t tag, uint64_t tag2, enum where w, struct host *h)
{
	struct told *t = *place((uint32_t)tag);

	if (t == NULL || t->step != ASKING || t->token != (uint32_t)tag2)
		return;
	if (w == WHERE_NOBODY || (w == WHERE_HOST && h->self)) {
		route_notice(t->user);	/* unless they came here meanwhile */
		finish(t);
	} else if (w == WHERE_UNKNOWN) {
		no_answer(t);
	} else {
		struct link_notice n = { .slot = wk->slot, .gen = wk->gen, .user = t->user,
		    .token = t->token };

		t->step = TELLING;
		if (link_send(h, LK_NOTICE, &n, sizeof n, NULL, 0))
			timer_set(&t->answer, clock_ms() + ANSWER_MS, on_answer_due);
		else
			timer_set(&t->answer, clock_ms() + ANSWER_MS / 10, on_answer_due);
	}
}

static void begin(struct told *t)
{
	t->step = ASKING;
	t->token = ++last_token;
	claim_where(t->user, on_where, t->user, t->token);
}

void notice_send(uint32_t user, notice_fn *done, uint64_t tag, uint64_t tag2)
{
	struct told **p = place(user), *t = *p;

	if (!cluster_on() || (t == NULL && sess_online(user))) {
		route_notice(user);
		if (done != NULL)
			done(tag, tag2);
		return;
	}
	if (t != NULL && t->step == KEPT) {
		route_notice(user);
		if (done != NULL)
			done(tag, tag2);
		return;
	}
	if (t != NULL) {
		t->again = true;
		wait_for(&t->later, done, tag, tag2);
		return;
	}
	t = calloc(1, sizeof *t);
	ensure(t != NULL);
	*t = (struct told){ .next = *p, .user = user };
	*p = t;
	nusers++;
	note_owed();
	wait_for(&t->now, done, tag, tag2);
	if (cluster_up())
		begin(t);
	else
		keep(t);
}

bool notice_pending(uint32_t user)
{
	return cluster_on() && (atomic_load(&shm->head->owe_all) != 0 || *place(user) != NULL);
}

bool notice_idle(void)
{
	return nusers == nkept;
}

static void each(bool (*pick)(const struct told *), void (*fn)(struct told *))
{
	uint32_t *all = malloc((nusers + 1) * sizeof *all), n = 0;

	ensure(all != NULL);
	for (unsigned b = 0; b < BUCKETS; b++)
		for (struct told *t = users[b]; t != NULL; t = t->next)
			if (pick(t))
				all[n++] = t->user;
	for (uint32_t i = 0; i < n; i++) {
		struct told *t = *place(all[i]);

		if (t != NULL && pick(t))
			fn(t);
	}
	free(all);
}

static bool is_kept(const struct told *t)
{
	return t->step == KEPT;
}

static bool is_telling(const struct told *t)
{
	return t->step == TELLING;
}

static void on_owed(struct timer *t)
{
	(void)t;
	notice_pay();
}

void notice_pay(void)
{
	struct link_notice n = { .slot = wk->slot, .gen = wk->gen, .user = 0 };
	uint32_t reasons = atomic_load(&shm->head->owe_all);

	if (reasons == 0 || !cluster_up())
		return;
	if (hosts_known() && link_send_all(LK_NOTICE, &n, sizeof n, NULL, 0))
		(void)atomic_compare_exchange_strong(&shm->head->owe_all, &reasons, 0);
	if (atomic_load(&shm->head->owe_all) != 0)
		timer_set(&owed, clock_ms() + ANSWER_MS / 2, on_owed);
}

void notice_owe_all(void)
{
	atomic_fetch_add(&shm->head->owe_all, 1);
	if (!timer_is_set(&owed))
		timer_set(&owed, clock_ms() + ANSWER_MS / 2, on_owed);
}

void notice_take_over(struct slot *s)
{
	if (atomic_load(&s->owes) == 0)
		return;
	notice_owe_all();		/* first: this worker may die, too */
	atomic_store(&s->owes, 0);
}

void notice_bus_up(void)
{
	notice_pay();
	each(is_kept, begin_kept);
}

void notice_bus_down(void)
{
	each(is_telling, keep);		/* those that are asking hear of it by their answer */
}

void notice_on_notice(struct host *from, const struct item *it)
{
	const struct link_notice *n = (const struct link_notice *)it;
	struct link_noticed a = { .slot = n->slot, .gen = n->gen, .user = n->user,
	    .token = n->token };

	if (n->user == 0) {
		cluster_missed();
		return;
	}
	route_notice(n->user);		/* nobody here: their next login, wherever, reads the store */
	(void)link_send(from, LK_NOTICED, &a, sizeof a, NULL, 0);
}

void notice_on_noticed(struct host *from, const struct item *it)
{
	const struct link_noticed *n = (const struct link_noticed *)it;
	struct told *t = *place(n->user);

	(void)from;
	if (t != NULL && t->step == TELLING && t->token == n->token && n->slot == wk->slot &&
	    n->gen == wk->gen)
		finish(t);
}
