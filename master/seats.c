/*
 * seats.c - who sits on a slot's descriptors, and who is made by whom.
 */
#include "master/seats.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "master/spawn.h"
#include "master/supervise.h"
#include "master/twin.h"
#include "worker/base/log.h"
#include "worker/worker.h"

#define YOUNG_MS       1000
#define DELAY_FIRST_MS 100
#define DELAY_MAX_MS   60000
#define AGAIN_MS       50
#define TERM_MS        1000
#define LAST_MIN_MS    3000
#define BARE_MS        200		/* the worker may be about to be found dead as well */

static struct seats *seats_of(struct sup *s, unsigned i)
{
	return &s->slot[i].seats;
}

bool seats_taken(const struct sup *s, unsigned i)
{
	return s->slot[i].seats.twin[0] != 0 || s->slot[i].seats.twin[1] != 0;
}

bool seats_waiting(const struct sup *s, unsigned i)
{
	const struct seats *q = &s->slot[i].seats;

	return q->order[SEAT_WORKER] != 0 || q->order[SEAT_TWIN] != 0 || q->order[SEAT_TWIN2] != 0 ||
	    q->tidy != 0;
}

static uint32_t next_ticket(struct sup *s, unsigned maker)
{
	s->ticket = s->ticket >= INT32_MAX ? 1 : s->ticket + 1;
	return s->ticket << 1 | maker;
}

static void set_twin(struct sup *s, unsigned i, unsigned k, pid_t pid)
{
	seats_of(s, i)->twin[k] = pid;
	atomic_store(&slot_at(i)->twin_pid[k], (uint32_t)pid);
}

/* --- Sitting down ----------------------------------------------------------------------------- */

static void seat_worker(struct sup *s, unsigned i, pid_t pid, uint64_t now_ms)
{
	struct slot *sh = slot_at(i);
	uint64_t beat = atomic_load(&sh->heartbeat_ms);

	s->slot[i].pid = pid;
	s->slot[i].seats.tidied = false;
	/* Its life begins now, not when it was ordered. It may have given a sign of that already. */
	s->slot[i].spawned_ms = now_ms;
	atomic_store(&sh->spawned_ms, now_ms);
	if (beat < now_ms)
		(void)atomic_compare_exchange_strong(&sh->heartbeat_ms, &beat, now_ms);
	atomic_store(&sh->pid, (int32_t)pid);
}

static void seat_twin(struct sup *s, unsigned i, unsigned k, pid_t pid, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);

	set_twin(s, i, k, pid);
	q->born_ms[k] = now_ms;
	q->bare_ms = 0;
	log_debug("worker %u has a twin (pid %d)", i, (int)pid);
}

static void seated(struct sup *s, unsigned i, enum slot_seat seat, pid_t pid, uint64_t now_ms)
{
	seats_of(s, i)->order[seat] = 0;
	if (seat == SEAT_WORKER)
		seat_worker(s, i, pid, now_ms);
	else
		seat_twin(s, i, seat - SEAT_TWIN, pid, now_ms);
}

/* A child of ours, alive or to be waited for? The word lies where workers write. */
static bool is_child(pid_t pid)
{
	siginfo_t si;

	return pid > 1 && waitid(P_PID, (id_t)pid, &si, WEXITED | WNOHANG | WNOWAIT) == 0;
}

static bool is_known(const struct sup *s, pid_t pid)
{
	for (unsigned i = 0; i < s->nslots; i++)
		if (s->slot[i].pid == pid || s->slot[i].seats.twin[0] == pid ||
		    s->slot[i].seats.twin[1] == pid)
			return true;
	return pid == s->migrate.pid;
}

/* Who sits down is a child that sits nowhere else. */
static bool believable(const struct sup *s, pid_t pid)
{
	return !is_known(s, pid) && is_child(pid);
}

static void somebody(struct sup *s, unsigned i, enum slot_seat seat, pid_t pid, uint64_t now_ms)
{
	if (believable(s, pid)) {
		seated(s, i, seat, pid, now_ms);
		return;
	}
	log_error("slot %u: process %d says that it sits there, and is no child", i, (int)pid);
	seats_of(s, i)->order[seat] = 0;
}

void seats_look(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);

	for (enum slot_seat x = SEAT_WORKER; x < SLOT_SEATS; x++) {
		pid_t pid = q->order[x] != 0 ? twin_seated(slot_at(i), x, q->order[x]) : 0;

		if (pid != 0)
			somebody(s, i, x, pid, now_ms);
	}
}

/* --- Orders ----------------------------------------------------------------------------------- */

static void drop_tidy(struct sup *s, unsigned i)
{
	seats_of(s, i)->tidy = 0;
	atomic_store(&slot_at(i)->tidy, 0);
}

/* Takes an order back that its twin cannot do any more, or that nobody wants. */
static void take_back(struct sup *s, unsigned i, enum slot_seat seat, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);
	pid_t pid;

	if (q->order[seat] == 0)
		return;
	if (twin_seat_close(slot_at(i), seat, q->order[seat], &pid))
		q->order[seat] = 0;
	else
		somebody(s, i, seat, pid, now_ms);
}

static void take_all_back(struct sup *s, unsigned i, uint64_t now_ms)
{
	for (enum slot_seat x = SEAT_WORKER; x < SLOT_SEATS; x++)
		take_back(s, i, x, now_ms);
	drop_tidy(s, i);
}

/* Sees to it that the maker has an order for SEAT, and another one if that came to nothing. */
static void want(struct sup *s, unsigned i, enum slot_seat seat, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);
	uint32_t ticket = q->order[seat];
	bool same = ticket != 0 && TICKET_TWIN(ticket) == q->maker;
	pid_t pid;

	if (same && (!q->again[seat] || now_ms - q->issued_ms[seat] < AGAIN_MS))
		return;
	if (seat == SEAT_WORKER)
		drop_tidy(s, i);		/* a newborn does that itself */
	ticket = next_ticket(s, q->maker);
	if (!twin_seat_open(slot_at(i), seat, q->order[seat], ticket, &pid)) {
		somebody(s, i, seat, pid, now_ms);
		return;
	}
	q->order[seat] = ticket;
	q->again[seat] = false;
	q->issued_ms[seat] = now_ms;
	if (!same)
		q->ordered_ms[seat] = now_ms;
	twin_wake(slot_at(i), q->maker);
}

/* Nobody comes soon: what the dead worker had open is closed by the maker. */
static void want_tidied(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);

	if (q->tidy != 0 && atomic_load(&slot_at(i)->tidied) == q->tidy) {
		q->tidied = true;
		drop_tidy(s, i);
		return;
	}
	if (q->tidy != 0)
		return;
	q->tidy = next_ticket(s, q->maker);
	q->tidy_ms = now_ms;
	atomic_store(&slot_at(i)->tidy, q->tidy);
	twin_wake(slot_at(i), q->maker);
}

/* --- Those who never sat down ----------------------------------------------------------------- */

/* A newborn bears its twin's short name until it has sat down. */
static bool is_newborn(pid_t pid, unsigned slot)
{
	char path[64], is[32] = "", ident[32], title[48], comm[16];
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
	twin_names(slot, ident, title, comm);
	f = fopen(path, "re");
	if (f == NULL)
		return false;
	if (fgets(is, sizeof is, f) != NULL)
		is[strcspn(is, "\n")] = '\0';
	fclose(f);
	return strcmp(is, comm) == 0;
}

/*
 * One that was stopped before it sat down, and whose order went to somebody else, would stay for ever,
 * and keep the table open. While nobody is ordered in the slot, whoever is not known there is one.
 */
static void weed(struct sup *s, unsigned i)
{
	FILE *f = fopen("/proc/thread-self/children", "re");
	int pid;

	seats_of(s, i)->weedy = false;
	while (f != NULL && fscanf(f, "%d", &pid) == 1)
		if (!is_known(s, pid) && is_newborn(pid, i)) {
			log_warn("slot %u: killing process %d, which was born too late", i, pid);
			(void)kill(pid, SIGKILL);
		}
	if (f != NULL)
		fclose(f);
}

/* --- The table -------------------------------------------------------------------------------- */

/* A table of its own for the slot, with the first twin on it, who makes the rest. */
static enum seats_verdict from_nothing(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);
	pid_t pid;

	if (q->young) {			/* one that was just made so could not live */
		q->young = false;
		return SEATS_STILLBORN;
	}
	if (q->weedy)
		weed(s, i);
	pid = spawn_twin(s, i);
	if (pid < 0) {
		log_error("worker %u: cannot fork: %s", i, strerror((int)-pid));
		q->status = W_EXITCODE(WORKER_FAILED, 0);
		return SEATS_STILLBORN;
	}
	q->maker = 0;
	q->delay_ms = 0;
	q->due_ms = now_ms;
	seat_twin(s, i, 0, pid, now_ms);
	return SEATS_FINE;
}

static enum seats_verdict tend_bare(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);

	take_all_back(s, i, now_ms);
	if (seats_taken(s, i))
		return SEATS_FINE;		/* somebody had sat down after all */
	if (s->slot[i].pid == SUP_COMING)
		return from_nothing(s, i, now_ms);
	if (s->slot[i].pid == 0)
		return SEATS_FINE;
	if (q->bare_ms == 0)
		q->bare_ms = now_ms;
	return now_ms - q->bare_ms >= BARE_MS ? SEATS_BARE : SEATS_FINE;
}

/* The maker hangs, or starves. The last one gets longer, as the table goes with it. */
static void tend_patience(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);
	uint64_t hang_ms = (uint64_t)(*s->host.conf)->hang_seconds * 1000, since = now_ms;
	uint64_t term_ms = 2 * hang_ms > LAST_MIN_MS ? 2 * hang_ms : LAST_MIN_MS;

	for (enum slot_seat x = SEAT_WORKER; x < SLOT_SEATS; x++)
		if (q->order[x] != 0 && q->ordered_ms[x] < since)
			since = q->ordered_ms[x];
	if (q->tidy != 0 && q->tidy_ms < since)
		since = q->tidy_ms;
	if (q->twin[!q->maker] != 0)		/* nothing is lost with this one */
		term_ms = hang_ms / 2 < TERM_MS ? hang_ms / 2 : TERM_MS;
	if (now_ms < s->calm_until_ms || now_ms - since < term_ms)
		return;
	log_error("the twin of worker %u (pid %d) does not do as ordered: killing it", i,
	    (int)q->twin[q->maker]);
	(void)kill(q->twin[q->maker], SIGKILL);
	for (enum slot_seat x = SEAT_WORKER; x < SLOT_SEATS; x++)
		q->ordered_ms[x] = now_ms;	/* it may take a moment to die */
	q->tidy_ms = now_ms;
}

enum seats_verdict seats_tend(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	struct seats *q = &p->seats;

	seats_look(s, i, now_ms);
	if (q->dismissed)
		return SEATS_FINE;
	if (!seats_taken(s, i))
		return tend_bare(s, i, now_ms);
	if (p->pid == 0 && !p->wanted) {
		seats_dismiss(s, i, now_ms);
		return SEATS_FINE;
	}
	if (q->twin[q->maker] == 0) {		/* it was waited for */
		q->maker = !q->maker;
		drop_tidy(s, i);
	}
	if (p->pid == SUP_COMING)
		want(s, i, SEAT_WORKER, now_ms);
	if (p->pid == 0 && !q->tidied)
		want_tidied(s, i, now_ms);
	if (q->twin[!q->maker] == 0 && s->phase == SUP_RUNNING && now_ms >= q->due_ms)
		want(s, i, SEAT_TWIN + !q->maker, now_ms);
	tend_patience(s, i, now_ms);
	if (q->weedy && !seats_waiting(s, i) && p->pid != SUP_COMING)
		weed(s, i);
	return SEATS_FINE;
}

/* --- The end ---------------------------------------------------------------------------------- */

static void twin_died(struct sup *s, unsigned i, unsigned k, int status, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);
	uint64_t age = now_ms - q->born_ms[k];

	if (!q->dismissed && s->phase == SUP_RUNNING)
		log_warn("a twin of worker %u (pid %d) ended with %s %d after %llu ms", i, (int)q->twin[k],
		    WIFSIGNALED(status) ? "signal" : "code",
		    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), (unsigned long long)age);
	if (!q->dismissed)
		atomic_fetch_add(&slot_at(i)->twin_deaths, 1);
	set_twin(s, i, k, 0);
	q->weedy = true;
	q->status = status;
	q->young = age < YOUNG_MS && s->slot[i].pid == SUP_COMING;
	q->delay_ms = age >= YOUNG_MS ? 0 : q->delay_ms == 0 ? DELAY_FIRST_MS : q->delay_ms * 2;
	if (q->delay_ms > DELAY_MAX_MS)
		q->delay_ms = DELAY_MAX_MS;
	q->due_ms = now_ms + q->delay_ms;
	if (!seats_taken(s, i))
		q->dismissed = false;
}

/*
 * A stranger has died, and not as one who found the seat taken: somebody who was ordered, and could
 * not sit down. Whose it was is not known, so all that is ordered is ordered again.
 */
static void order_again(struct sup *s)
{
	for (unsigned i = 0; i < s->nslots; i++)
		for (enum slot_seat x = SEAT_WORKER; x < SLOT_SEATS; x++)
			seats_of(s, i)->again[x] = seats_of(s, i)->order[x] != 0;
}

bool seats_reap(struct sup *s, pid_t pid, int status, uint64_t now_ms)
{
	for (unsigned i = 0; i < s->nslots; i++)
		for (enum slot_seat x = SEAT_WORKER; x < SLOT_SEATS; x++) {
			uint32_t ticket = seats_of(s, i)->order[x];

			if (ticket != 0 && twin_seated(slot_at(i), x, ticket) == pid)
				seated(s, i, x, pid, now_ms);
		}
	for (unsigned i = 0; i < s->nslots; i++)
		for (unsigned k = 0; k < SLOT_TWINS; k++)
			if (seats_of(s, i)->twin[k] == pid) {
				twin_died(s, i, k, status, now_ms);
				return true;
			}
	if (!is_known(s, pid) && !(WIFEXITED(status) && WEXITSTATUS(status) == 0))
		order_again(s);
	return false;
}

void seats_worker_gone(struct sup *s, unsigned i)
{
	/* From now on it may be tidied here: nobody sits, and nobody is on the way. */
	atomic_store(&slot_at(i)->seat[SEAT_WORKER], 0);
	seats_of(s, i)->tidied = false;
}

void seats_dismiss(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct seats *q = seats_of(s, i);

	take_all_back(s, i, now_ms);
	if (s->slot[i].pid == SUP_COMING)
		s->slot[i].pid = 0;
	for (unsigned k = 0; k < SLOT_TWINS; k++)
		if (q->twin[k] > 0)
			(void)kill(q->twin[k], SIGKILL);
	q->dismissed = seats_taken(s, i);
	q->young = false;
	if (q->weedy)
		weed(s, i);
}
