/*
 * supervise.c - the worker slots.
 *
 * All decisions are made in sup_tick() from what is so now, not in the events that led there: a
 * slot without a process that should have one is respawned or waits, one that must not lie idle
 * is adopted, and so on. An event that is lost or comes twice therefore costs a tick.
 *
 * Races   A worker's messages carry its (slot, generation); what a predecessor said is dropped.
 *         gen is stored before state at a spawn, and state goes to DEAD before anything else at a
 *         death, so that slot_alive() never answers yes for a pair that is over.
 *         Two processes must not read one inbox: a slot that is adopted is forked again only after
 *         RELEASED, the adopter's death, or a time in which the watchdog would have killed it.
 */
#include "master/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "master/seats.h"
#include "master/spawn.h"
#include "master/twin.h"
#include "shm/segment.h"
#include "shm/slots.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/worker.h"

#define SERVED_MS         1000		/* who served that long is replaced at once */
#define DELAY_FIRST_MS    100
#define DELAY_MAX_MS      60000
#define DELAY_RESET_MS    60000
#define MIGRATE_RETRY_MS  3000
#define QUIT_MS           300
#define COMING_MS         300		/* a birth that takes longer is steered around */
#define LEAVE_MIN_MS      10000
#define REBUILD_CALM_MS   60000

static const struct conf *conf(const struct sup *s)
{
	return *s->host.conf;
}

static uint64_t hang_ms(const struct sup *s)
{
	return (uint64_t)conf(s)->hang_seconds * 1000;
}

static void set_state(unsigned i, enum slot_state state)
{
	atomic_store_explicit(&slot_at(i)->state, (uint32_t)state, memory_order_release);
}

static enum slot_state state_of(unsigned i)
{
	return (enum slot_state)atomic_load_explicit(&slot_at(i)->state, memory_order_relaxed);
}

/* Has slot I a worker that is a process already? */
static bool is_born(const struct sup *s, unsigned i)
{
	return s->slot[i].pid != 0 && s->slot[i].pid != SUP_COMING;
}

/* --- Orders ----------------------------------------------------------------------------------- */

static enum ipc_rc send_to(struct sup *s, unsigned i, struct ipc_ctl *m, const int *fds, unsigned nfds)
{
	m->from_slot = m->from_gen = UINT32_MAX;
	return ipc_ctl_send(s->slot[i].control[1], m, fds, nfds);
}

static enum ipc_rc send_order(struct sup *s, unsigned i, enum sup_order bit)
{
	struct ipc_ctl m = { .to_gen = s->slot[i].gen };

	switch (bit) {
	case SUP_RELOAD: m.type = IPC_RELOAD; break;
	case SUP_REOPEN: m.type = IPC_REOPEN; break;
	case SUP_LEAVE:  m.type = IPC_LEAVE; break;
	case SUP_QUIT:   m.type = IPC_QUIT; break;
	case SUP_STOP:
		m.type = IPC_STOP;
		/* Its clients read the word: after "moved" they come back at once. */
		m.len = (uint32_t)snprintf(m.body, sizeof m.body, "%s",
		    s->phase == SUP_STOPPING ? "shutdown" : "moved");
		break;
	}
	return send_to(s, i, &m, NULL, 0);
}

static void flush_orders(struct sup *s, unsigned i)
{
	struct sup_slot *p = &s->slot[i];

	for (unsigned bit = SUP_RELOAD; p->pending != 0 && bit <= SUP_QUIT; bit <<= 1) {
		if ((p->pending & bit) == 0)
			continue;
		enum ipc_rc rc = send_order(s, i, (enum sup_order)bit);
		if (rc == IPC_AGAIN)
			return;			/* the next tick tries again */
		if (rc != IPC_OK)
			log_error("worker %u: order could not be sent", i);
		p->pending &= ~bit;
	}
}

static void order(struct sup *s, unsigned i, enum sup_order bit)
{
	if (s->slot[i].pid == 0)
		return;
	s->slot[i].pending |= bit;
	flush_orders(s, i);
}

static void kill_slot(struct sup *s, unsigned i, int sig)
{
	if (is_born(s, i))
		(void)kill(s->slot[i].pid, sig);
}

/* --- Opening and closing ---------------------------------------------------------------------- */

static void on_up(struct watch *w, uint32_t events);

static int open_slots(struct sup *s)
{
	for (unsigned i = 0; i < s->nslots; i++) {
		struct sup_slot *p = &s->slot[i];

		if (ipc_pair(p->inbox) < 0 || ipc_pair(p->control) < 0)
			return -1;
		s->send_inbox[i] = p->inbox[1];
		s->send_control[i] = p->control[1];
	}
	return 0;
}

static bool can_have_twins(const struct sup *s)
{
	char why[200];

	if (!conf(s)->immortal)
		return false;
	if (twin_possible(why, sizeof why) == 0)
		return true;
	log_warn("immortal is not possible here, and is off: %s", why);
	return false;
}

int sup_open(struct sup *s, const struct sup_host *host, char *why, size_t cap)
{
	*s = (struct sup){ .host = *host, .nslots = (*host->conf)->max_workers,
	    .up = { -1, -1 }, .life = { -1, -1 }, .up_watch = { .fd = -1 } };
	s->slot = calloc(s->nslots, sizeof *s->slot);
	s->send_inbox = calloc(s->nslots, sizeof *s->send_inbox);
	s->send_control = calloc(s->nslots, sizeof *s->send_control);
	s->live = calloc(s->nslots, sizeof *s->live);
	if (s->slot == NULL || s->send_inbox == NULL || s->send_control == NULL || s->live == NULL) {
		snprintf(why, cap, "workers: out of memory");
		goto fail;
	}
	for (unsigned i = 0; i < s->nslots; i++)
		s->slot[i] = (struct sup_slot){ .inbox = { -1, -1 }, .control = { -1, -1 },
		    .adopter = SUP_NOBODY };
	if (open_slots(s) < 0 || ipc_pair(s->up) < 0 || pipe2(s->life, O_CLOEXEC) < 0) {
		snprintf(why, cap, "workers: cannot make %u pairs of sockets: %s", s->nslots,
		    strerror(errno));
		goto fail;
	}
	s->up_watch = (struct watch){ .fd = s->up[0], .on_event = on_up, .arg = s };
	if (reactor_add(host->reactor, &s->up_watch, EPOLLIN) < 0) {
		snprintf(why, cap, "epoll: %s", strerror(errno));
		goto fail;
	}
	s->immortal = can_have_twins(s);
	return 0;
fail:
	sup_close(s);
	return -1;
}

static void close_pair(int fds[2])
{
	for (int k = 0; k < 2; k++) {
		if (fds[k] >= 0)
			close(fds[k]);
		fds[k] = -1;
	}
}

void sup_close(struct sup *s)
{
	if (s->up_watch.fd >= 0)
		reactor_del(s->host.reactor, &s->up_watch);
	for (unsigned i = 0; s->slot != NULL && i < s->nslots; i++) {
		close_pair(s->slot[i].inbox);
		close_pair(s->slot[i].control);
	}
	close_pair(s->up);
	close_pair(s->life);
	free(s->slot);
	free(s->send_inbox);
	free(s->send_control);
	free(s->live);
	*s = (struct sup){ .up = { -1, -1 }, .life = { -1, -1 }, .up_watch = { .fd = -1 } };
}

/* --- What workers say ------------------------------------------------------------------------- */

static void begin_rebuild(struct sup *s, unsigned by, const char *text)
{
	if (s->phase != SUP_RUNNING)
		return;
	log_error("worker %u says that the segment is broken (%s): ending all workers to rebuild it",
	    by, text);
	s->phase = SUP_REBUILDING;
	if (s->migrate.pid != 0)
		(void)kill(s->migrate.pid, SIGKILL);	/* it comes again */
	for (unsigned i = 0; i < s->nslots; i++) {
		seats_dismiss(s, i, clock_now_ms());
		kill_slot(s, i, SIGKILL);
	}
}

static void on_ready(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];

	if (p->ready)
		return;
	p->ready = true;
	p->ready_ms = now_ms;
	if (!p->leaving && s->phase != SUP_STOPPING)
		set_state(i, SLOT_READY);
	log_info("worker %u (pid %d, generation %u) is ready after %llu ms", i, (int)p->pid, p->gen,
	    (unsigned long long)(now_ms - p->spawned_ms));
}

static void on_released(struct sup *s, const struct ipc_ctl *m)
{
	struct sup_slot *p = m->a < s->nslots ? &s->slot[m->a] : NULL;

	if (p != NULL && p->adopter == m->from_slot && p->adopter_gen == m->from_gen)
		p->adopter = SUP_NOBODY;
}

static void heard(struct sup *s, const struct ipc_ctl *m)
{
	unsigned i = m->from_slot;
	char text[129];

	if (i < s->nslots && s->slot[i].pid == SUP_COMING)
		seats_look(s, i, clock_now_ms());
	if (i >= s->nslots || !is_born(s, i) || s->slot[i].gen != m->from_gen)
		return;				/* a dead worker's last words */
	switch (m->type) {
	case IPC_READY:
		on_ready(s, i, clock_now_ms());
		break;
	case IPC_LEFT:
		s->slot[i].left = true;
		break;
	case IPC_RELEASED:
		on_released(s, m);
		break;
	case IPC_SWEPT:
		log_debug("worker %u: generation %u of slot %u is swept", i, m->b, m->a);
		break;
	case IPC_RELOADED:
		log_debug("worker %u runs configuration %u", i, m->a);
		break;
	case IPC_BROKEN:
		snprintf(text, sizeof text, "%.*s", (int)m->len, m->body);
		begin_rebuild(s, i, text);
		break;
	default:
		log_warn("worker %u: message %s is not for the master", i, ipc_ctl_name(m->type));
	}
}

static void on_up(struct watch *w, uint32_t events)
{
	struct sup *s = w->arg;
	static struct ipc_ctl m;
	int fds[IPC_CTL_FDS];
	unsigned nfds;

	(void)events;
	for (int turn = 0; turn < 256; turn++) {	/* level-triggered: the rest wakes us again */
		enum ipc_rc rc = ipc_ctl_recv(w->fd, &m, fds, &nfds);

		if (rc == IPC_BAD) {
			log_warn("a message to the master was nonsense");
			continue;
		}
		if (rc != IPC_OK)
			return;
		while (nfds > 0)
			close(fds[--nfds]);
		heard(s, &m);
	}
}

/* --- Birth ------------------------------------------------------------------------------------ */

static void postpone(struct sup_slot *p, uint64_t now_ms)
{
	p->delay_ms = p->delay_ms == 0 ? DELAY_FIRST_MS : p->delay_ms * 2;
	if (p->delay_ms > DELAY_MAX_MS)
		p->delay_ms = DELAY_MAX_MS;
	p->respawn_ms = now_ms + p->delay_ms;
}

static void spawn(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	struct slot *sh = slot_at(i);
	char why[256];
	pid_t pid;

	if (listeners_start(s->host.listeners, i, why, sizeof why) < 0) {
		log_error("worker %u: %s", i, why);
		postpone(p, now_ms);
		return;
	}
	p->ready = p->leaving = p->left = p->crowded = p->releasing = false;
	p->bare_told = false;
	p->adopter = SUP_NOBODY;
	p->pending = 0;
	p->waits_tid = 0;
	p->spawned_ms = now_ms;
	p->gen++;
	atomic_store(&sh->gen, p->gen);
	atomic_store(&sh->heartbeat_ms, now_ms);
	atomic_store(&sh->waits_tid, 0);
	atomic_store(&sh->spawned_ms, now_ms);
	set_state(i, s->phase == SUP_STOPPING ? SLOT_STOPPING : SLOT_STARTING);
	if (s->immortal) {
		p->pid = SUP_COMING;
		return;
	}
	pid = spawn_worker(s, i);
	if (pid < 0) {
		set_state(i, SLOT_DEAD);
		postpone(p, now_ms);
		log_error("worker %u: cannot fork: %s; again in %u ms", i, strerror((int)-pid),
		    p->delay_ms);
		return;
	}
	p->pid = pid;
	atomic_store(&sh->pid, (int32_t)pid);
}

/* Tells the adopter of a slot to let go. True when nobody serves it any more. */
static bool released(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	struct ipc_ctl m = { .type = IPC_RELEASE, .to_gen = p->adopter_gen, .a = i };

	if (p->adopter == SUP_NOBODY)
		return true;
	if (!p->releasing) {
		if (send_to(s, p->adopter, &m, NULL, 0) == IPC_AGAIN)
			return false;
		p->releasing = true;
		p->release_by_ms = now_ms + 2 * hang_ms(s);
	}
	if (now_ms < p->release_by_ms)
		return false;
	log_warn("worker %u does not let go of slot %u", p->adopter, i);
	p->adopter = SUP_NOBODY;
	return true;
}

static bool wants_spawn(const struct sup *s, unsigned i, uint64_t now_ms)
{
	const struct sup_slot *p = &s->slot[i];

	return p->wanted && p->pid == 0 && !p->barred && !p->seats.dismissed && now_ms >= p->respawn_ms;
}

static void tend_births(struct sup *s, uint64_t now_ms)
{
	for (unsigned i = 0; i < s->nslots; i++)
		if (wants_spawn(s, i, now_ms) && released(s, i, now_ms))
			spawn(s, i, now_ms);
}

/* --- Adoption --------------------------------------------------------------------------------- */

/* The ready worker with the fewest connections, SUP_NOBODY. */
static uint32_t idlest(const struct sup *s)
{
	uint32_t best = SUP_NOBODY, least = UINT32_MAX;

	for (unsigned i = 0; i < s->nslots; i++) {
		const struct sup_slot *p = &s->slot[i];
		uint32_t load;

		if (p->pid == 0 || !p->ready || p->leaving)
			continue;
		load = atomic_load_explicit(&slot_at(i)->connections, memory_order_relaxed);
		if (best == SUP_NOBODY || load < least) {
			best = i;
			least = load;
		}
	}
	return best;
}

static void adopt(struct sup *s, unsigned i)
{
	struct sup_slot *p = &s->slot[i];
	struct ipc_ctl m = { .type = IPC_ADOPT, .a = i, .b = p->gen };
	uint32_t by = idlest(s);
	unsigned n = s->host.listeners->nlisten;
	int fds[IPC_CTL_FDS];

	if (by == SUP_NOBODY)
		return;
	m.to_gen = s->slot[by].gen;
	fds[0] = p->inbox[0];
	fds[1] = p->control[0];
	memcpy(fds + 2, listeners_of(s->host.listeners, i), n * sizeof *fds);
	if (send_to(s, by, &m, fds, 2 + n) != IPC_OK)
		return;
	p->adopter = by;
	p->adopter_gen = s->slot[by].gen;
	p->releasing = false;
	log_info("worker %u serves slot %u meanwhile", by, i);
}

static void tend_adoptions(struct sup *s, uint64_t now_ms)
{
	for (unsigned i = 0; i < s->nslots; i++) {
		struct sup_slot *p = &s->slot[i];

		if (p->adopter != SUP_NOBODY && (s->slot[p->adopter].pid == 0 ||
		    s->slot[p->adopter].gen != p->adopter_gen))
			p->adopter = SUP_NOBODY;	/* it died with what it had adopted */
		if (p->pid == 0 && p->gen > 0 && p->adopter == SUP_NOBODY &&
		    !wants_spawn(s, i, now_ms))
			adopt(s, i);
	}
}

static void steer(struct sup *s)
{
	uint64_t now_ms = clock_now_ms();
	int rc;

	for (unsigned i = 0; i < s->nslots; i++) {
		const struct sup_slot *p = &s->slot[i];

		s->live[i] = (is_born(s, i) || (p->pid == SUP_COMING && now_ms - p->spawned_ms < COMING_MS)) &&
		    !p->leaving;
	}
	rc = listeners_steer(s->host.listeners, s->live);
	if (rc < 0)
		log_warn("new connections cannot be kept from idle listeners: %s", strerror(-rc));
}

/* --- Death ------------------------------------------------------------------------------------ */

static void obituary(const struct sup *s, unsigned i, int status, uint64_t now_ms)
{
	const struct sup_slot *p = &s->slot[i];
	const struct slot *sh = slot_at(i);
	char how[64], what[64];

	if (WIFSIGNALED(status))
		snprintf(how, sizeof how, "was ended by signal %d (%s)%s", WTERMSIG(status),
		    strsignal(WTERMSIG(status)), WCOREDUMP(status) ? ", core dumped" : "");
	else
		snprintf(how, sizeof how, "exited with code %d", WEXITSTATUS(status));
	if (s->phase == SUP_STOPPING)
		snprintf(what, sizeof what, "the daemon is stopping");
	else if (p->barred)
		snprintf(what, sizeof what, "not started again before a reload");
	else if (p->respawn_ms > now_ms)
		snprintf(what, sizeof what, "a new one in %u ms", p->delay_ms);
	else
		snprintf(what, sizeof what, "replaced at once");
	log_error("worker %u (pid %d, generation %u) %s after %llu ms%s; it had %u connections, "
	    "%u sessions, accepted %llu messages; %s", i, is_born(s, i) ? (int)p->pid : 0, p->gen, how,
	    (unsigned long long)(now_ms - p->spawned_ms), p->ready ? "" : " and was never ready",
	    atomic_load(&sh->connections), atomic_load(&sh->sessions),
	    (unsigned long long)atomic_load(&sh->n.messages_in), what);
}

/* Decides when a worker that died by itself is replaced. */
static void classify(struct sup *s, unsigned i, int status, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];

	p->barred = WIFEXITED(status) && WEXITSTATUS(status) == WORKER_CONFIG;
	if (now_ms - p->spawned_ms >= DELAY_RESET_MS)
		p->delay_ms = 0;
	p->respawn_ms = now_ms;
	if (!p->ready || now_ms - p->ready_ms < SERVED_MS)
		postpone(p, now_ms);
	atomic_fetch_add(&slot_at(i)->restarts, 1);
	obituary(s, i, status, now_ms);
	if (p->barred && !s->started && s->phase == SUP_RUNNING) {
		snprintf(s->failure, sizeof s->failure,
		    "worker %u cannot work with this configuration; the log says why", i);
		s->exit_code = WORKER_CONFIG;
		sup_stop(s, SUP_AT_ONCE);
	}
}

static void reaped_worker(struct sup *s, unsigned i, int status, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	struct slot *sh = slot_at(i);
	bool clean = WIFEXITED(status) && WEXITSTATUS(status) == WORKER_DONE;
	bool expected = clean && (p->leaving || s->phase == SUP_STOPPING);

	set_state(i, expected ? SLOT_EMPTY : SLOT_DEAD);
	atomic_store(&sh->pid, 0);
	sh->exit_status = status;
	if (expected)
		log_info("worker %u (pid %d) has ended", i, (int)p->pid);
	else if (s->phase == SUP_REBUILDING)
		log_debug("worker %u (pid %d) has ended", i, (int)p->pid);
	else
		classify(s, i, status, now_ms);
	p->pid = 0;
	p->pending = 0;
	seats_worker_gone(s, i);
	if (p->leaving) {
		p->leaving = p->barred = false;
		p->delay_ms = 0;
		p->respawn_ms = now_ms;
		if (!p->wanted)
			set_state(i, SLOT_EMPTY);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == WORKER_BROKEN)
		begin_rebuild(s, i, "exit code 3");
}

static void reaped_migrate(struct sup *s, int status, uint64_t now_ms)
{
	s->migrate.pid = 0;
	s->migrate.tried = true;
	if (WIFEXITED(status) && WEXITSTATUS(status) == WORKER_DONE) {
		s->migrate.done = true;
		log_info("the store's schema is in place");
	} else if (WIFEXITED(status) && WEXITSTATUS(status) == WORKER_CONFIG) {
		if (s->phase == SUP_MIGRATING) {
			snprintf(s->failure, sizeof s->failure,
			    "the store or the cluster cannot be used as configured; the log says why");
			s->exit_code = WORKER_CONFIG;
			sup_stop(s, SUP_AT_ONCE);
		} else if (s->phase != SUP_STOPPING) {
			log_error("the store's schema cannot be brought up to date");
		}
		s->migrate.due_ms = now_ms + 10 * MIGRATE_RETRY_MS;
	} else if (s->phase != SUP_STOPPING) {
		log_warn("the store is not ready (%s %d); trying again in %d s",
		    WIFSIGNALED(status) ? "signal" : "exit code",
		    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
		    MIGRATE_RETRY_MS / 1000);
		s->migrate.due_ms = now_ms + MIGRATE_RETRY_MS;
	}
	if (s->phase == SUP_MIGRATING)
		s->phase = SUP_RUNNING;
}

void sup_reap(struct sup *s, pid_t pid, int status, uint64_t now_ms)
{
	if (pid == s->migrate.pid) {
		reaped_migrate(s, status, now_ms);
		return;
	}
	if (s->immortal && seats_reap(s, pid, status, now_ms))
		return;
	for (unsigned i = 0; i < s->nslots; i++)
		if (s->slot[i].pid == pid) {
			reaped_worker(s, i, status, now_ms);
			return;
		}
}

/* --- Watching --------------------------------------------------------------------------------- */

/* The slot whose process has a thread TID, SUP_NOBODY. */
static uint32_t slot_of_tid(const struct sup *s, int32_t tid)
{
	char path[64];

	for (unsigned i = 0; i < s->nslots; i++) {
		if (!is_born(s, i))
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%d", (int)s->slot[i].pid, (int)tid);
		if (s->slot[i].pid == tid || access(path, F_OK) == 0)
			return i;
	}
	return SUP_NOBODY;
}

/*
 * A worker that waits for a lock beats its heart. If it waits for the same thread for too long,
 * the holder is what hangs, be it that another thread of the holder still beats.
 */
static void watch_wait(struct sup *s, unsigned i, int32_t tid, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	uint32_t holder;

	if (tid != p->waits_tid) {
		p->waits_tid = tid;
		p->waits_since_ms = now_ms;
	}
	if (tid == 0 || now_ms - p->waits_since_ms < hang_ms(s))
		return;
	p->waits_since_ms = now_ms;
	holder = slot_of_tid(s, tid);
	if (holder == SUP_NOBODY)
		return;
	log_error("worker %u hangs with a lock that worker %u waits for: killing it", holder, i);
	kill_slot(s, holder, SIGKILL);
}

static void watch_slot(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	uint64_t beat = atomic_load_explicit(&slot_at(i)->heartbeat_ms, memory_order_relaxed);
	int32_t tid = atomic_load_explicit(&slot_at(i)->waits_tid, memory_order_relaxed);
	uint64_t age = now_ms > beat ? now_ms - beat : 0;

	watch_wait(s, i, tid, now_ms);
	if (!p->ready) {
		if (now_ms - p->spawned_ms >= 2 * hang_ms(s)) {
			log_error("worker %u is not ready after %llu ms: killing it", i,
			    (unsigned long long)(now_ms - p->spawned_ms));
			kill_slot(s, i, SIGKILL);
		}
		return;
	}
	/* Who waits is spared for the holder's sake, unless it is stopped itself. */
	if (age >= hang_ms(s) * (tid != 0 ? 2 : 1)) {
		log_error("worker %u hangs (no heartbeat for %llu ms): killing it", i,
		    (unsigned long long)age);
		kill_slot(s, i, SIGKILL);
	}
}

static void tend_watchdog(struct sup *s, uint64_t now_ms)
{
	uint64_t gap = now_ms - s->last_tick_ms;

	s->last_tick_ms = now_ms;
	/* Stopped ourselves, or the whole machine was: let the workers catch up first. */
	if (gap > hang_ms(s) / 2)
		s->calm_until_ms = now_ms + hang_ms(s);
	if (now_ms < s->calm_until_ms)
		return;
	for (unsigned i = 0; i < s->nslots; i++)
		if (is_born(s, i))
			watch_slot(s, i, now_ms);
}

static void begin_leaving(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	uint64_t leave_ms = (uint64_t)conf(s)->stop_seconds * 4 * 1000;

	p->leaving = true;
	p->leave_by_ms = now_ms + (leave_ms > LEAVE_MIN_MS ? leave_ms : LEAVE_MIN_MS);
	set_state(i, SLOT_LEAVING);
	steer(s);			/* before it hears of it, so that nobody new comes */
	order(s, i, SUP_LEAVE);
	log_info("worker %u is asked to leave", i);
}

static void tend_leavers(struct sup *s, uint64_t now_ms)
{
	for (unsigned i = 0; i < s->nslots; i++) {
		struct sup_slot *p = &s->slot[i];

		if (p->pid == 0 || !p->leaving || now_ms < p->leave_by_ms)
			continue;
		if (!p->crowded) {
			log_warn("worker %u could not move all its clients in time: ending them", i);
			p->crowded = true;
			p->leave_by_ms = now_ms + ((uint64_t)conf(s)->stop_seconds + 1) * 1000;
			order(s, i, SUP_STOP);
		} else {
			log_error("worker %u does not leave: killing it", i);
			p->leave_by_ms = now_ms + 1000;
			kill_slot(s, i, SIGKILL);
		}
	}
}

/* --- The phases ------------------------------------------------------------------------------- */

static bool children_left(const struct sup *s)
{
	for (unsigned i = 0; i < s->nslots; i++)
		if (s->slot[i].pid != 0 || seats_taken(s, i))
			return true;
	return s->migrate.pid != 0;
}

static void tend_migration(struct sup *s, uint64_t now_ms)
{
	pid_t pid;

	if (s->migrate.done || s->migrate.pid != 0 || now_ms < s->migrate.due_ms)
		return;
	pid = spawn_migrate(s);
	if (pid < 0) {
		log_error("cannot fork: %s", strerror((int)-pid));
		s->migrate.due_ms = now_ms + MIGRATE_RETRY_MS;
		return;
	}
	s->migrate.pid = pid;
}

/* Generations go on in the new segment: what a worker of the old one still says is stale there. */
static void rebuild(struct sup *s, uint64_t now_ms)
{
	if (s->host.rebuild(s->host.arg) < 0) {
		/* There is no shared memory to look at any more: nothing but the end is left. */
		snprintf(s->failure, sizeof s->failure, "the segment could not be made again");
		s->exit_code = 1;
		s->phase = SUP_DONE;
		return;
	}
	s->rebuild_delay_ms = now_ms - s->rebuild_ms > REBUILD_CALM_MS || s->rebuild_ms == 0 ? 0 :
	    s->rebuild_delay_ms == 0 ? 1000 : s->rebuild_delay_ms * 2;
	if (s->rebuild_delay_ms > DELAY_MAX_MS)
		s->rebuild_delay_ms = DELAY_MAX_MS;
	s->rebuild_ms = now_ms;
	for (unsigned i = 0; i < s->nslots; i++) {
		struct sup_slot *p = &s->slot[i];

		atomic_store(&slot_at(i)->gen, p->gen);
		p->leaving = p->barred = false;
		p->adopter = SUP_NOBODY;
		p->respawn_ms = now_ms + s->rebuild_delay_ms;
	}
	s->phase = SUP_RUNNING;
	log_info("the segment is new; starting %u workers in %llu ms", s->wanted,
	    (unsigned long long)s->rebuild_delay_ms);
}

/* A worker that died while it stored what it held leaves the rest to one more. */
static void last_chance(struct sup *s, uint64_t now_ms)
{
	for (unsigned i = 0; i < s->nslots; i++) {
		struct sup_slot *p = &s->slot[i];
		bool served = p->adopter != SUP_NOBODY && s->slot[p->adopter].pid != 0 &&
		    s->slot[p->adopter].gen == p->adopter_gen;

		if (p->pid != 0 || p->gen == 0 || p->retried || served || p->seats.dismissed ||
		    state_of(i) != SLOT_DEAD)
			continue;
		p->retried = true;
		spawn(s, i, now_ms);
		order(s, i, SUP_STOP);
	}
}

static void tend_stop(struct sup *s, uint64_t now_ms)
{
	if (!s->hurried && now_ms < s->stop_by_ms)
		last_chance(s, now_ms);
	for (unsigned i = 0; i < s->nslots; i++)
		if (s->slot[i].pid == 0 || now_ms >= s->stop_by_ms)
			seats_dismiss(s, i, now_ms);
	if (!children_left(s)) {
		s->phase = SUP_DONE;
		return;
	}
	if (!s->hurried && now_ms < s->stop_by_ms)
		return;
	for (unsigned i = 0; i < s->nslots; i++)
		if (s->slot[i].pid != 0 && now_ms >= s->stop_by_ms) {
			if (!s->hurried)
				log_warn("worker %u has not ended in time: killing it", i);
			kill_slot(s, i, SIGKILL);
		}
	if (now_ms >= s->stop_by_ms)
		s->hurried = true;
}

static int next_ms(const struct sup *s, uint64_t now_ms)
{
	uint64_t next = hang_ms(s) / 4 < 500 ? hang_ms(s) / 4 : 500;

	if (s->phase == SUP_STOPPING || s->phase == SUP_REBUILDING)
		next = 20;
	for (unsigned i = 0; i < s->nslots; i++) {
		const struct sup_slot *p = &s->slot[i];
		uint64_t in = p->respawn_ms > now_ms ? p->respawn_ms - now_ms : 0;

		if (p->pending != 0 || p->releasing || p->pid == SUP_COMING || seats_waiting(s, i))
			in = 10;
		else if (p->pid != 0 || !p->wanted || p->barred || in == 0)
			continue;
		if (in < next)
			next = in;
	}
	return next < 10 ? 10 : (int)next;
}

/* A worker without twins goes, while others can take its clients, and comes back with twins. */
static void renew(struct sup *s, unsigned i, uint64_t now_ms)
{
	struct sup_slot *p = &s->slot[i];
	unsigned siblings = 0, leavers = 0;

	for (unsigned k = 0; k < s->nslots; k++) {
		siblings += k != i && is_born(s, k) && s->slot[k].ready && !s->slot[k].leaving;
		leavers += s->slot[k].leaving;
	}
	if (!p->bare_told)
		log_error("worker %u has lost both of its twins: its death would end its connections", i);
	p->bare_told = true;
	if (!p->ready || p->leaving || siblings == 0 || leavers > 0)
		return;
	log_info("worker %u makes room for one with twins", i);
	begin_leaving(s, i, now_ms);
}

static void tend_seats(struct sup *s, uint64_t now_ms)
{
	for (unsigned i = 0; s->immortal && i < s->nslots; i++)
		switch (seats_tend(s, i, now_ms)) {
		case SEATS_FINE:
			break;
		case SEATS_STILLBORN:
			reaped_worker(s, i, s->slot[i].seats.status, now_ms);
			break;
		case SEATS_BARE:
			if (s->phase == SUP_RUNNING)
				renew(s, i, now_ms);
			break;
		}
}

int sup_tick(struct sup *s, uint64_t now_ms)
{
	for (unsigned i = 0; i < s->nslots; i++)
		flush_orders(s, i);
	if (s->phase == SUP_REBUILDING && !children_left(s))
		rebuild(s, now_ms);
	if (s->phase == SUP_DONE)
		return 0;
	if (s->phase == SUP_MIGRATING || s->phase == SUP_RUNNING)
		tend_migration(s, now_ms);
	if (s->phase == SUP_RUNNING) {
		tend_watchdog(s, now_ms);
		tend_leavers(s, now_ms);
		tend_births(s, now_ms);
		tend_seats(s, now_ms);
		tend_adoptions(s, now_ms);
		steer(s);
	}
	if (s->phase == SUP_STOPPING) {
		tend_stop(s, now_ms);
		if (s->phase == SUP_STOPPING)
			tend_seats(s, now_ms);
	}
	if (!s->started && sup_settled(s))
		s->started = true;
	return next_ms(s, now_ms);
}

/* --- Orders from outside ---------------------------------------------------------------------- */

void sup_start(struct sup *s, unsigned n)
{
	s->phase = SUP_MIGRATING;
	s->wanted = n;
	s->last_tick_ms = clock_now_ms();
	for (unsigned i = 0; i < n; i++)
		s->slot[i].wanted = true;
}

/* The slot for one worker more: the lowest free one, else one that is still being left. */
static void want_one_more(struct sup *s)
{
	unsigned pick = s->nslots;

	for (unsigned i = s->nslots; i-- > 0; )
		if (!s->slot[i].wanted && (pick == s->nslots || s->slot[i].pid == 0 ||
		    s->slot[pick].pid != 0))
			pick = i;
	if (pick == s->nslots)
		return;
	s->slot[pick].wanted = true;
	s->slot[pick].respawn_ms = 0;
	s->wanted++;
}

static void want_one_less(struct sup *s, uint64_t now_ms)
{
	unsigned i = s->nslots;
	struct sup_slot *p;

	while (i > 0 && !s->slot[i - 1].wanted)
		i--;
	if (i-- == 0)
		return;
	p = &s->slot[i];
	p->wanted = p->barred = false;
	p->delay_ms = 0;
	s->wanted--;
	if (p->pid == 0) {
		set_state(i, SLOT_EMPTY);
		return;
	}
	if (!p->leaving)		/* else it had been wanted back before it was gone */
		begin_leaving(s, i, now_ms);
}

int sup_scale(struct sup *s, unsigned n, char *why, size_t cap)
{
	if (n < 1 || n > s->nslots) {
		snprintf(why, cap, "between 1 and %u workers (max_workers) are possible", s->nslots);
		return -1;
	}
	if (s->phase != SUP_RUNNING && s->phase != SUP_MIGRATING) {
		snprintf(why, cap, "the daemon is %s",
		    s->phase == SUP_REBUILDING ? "rebuilding its segment" : "stopping");
		return -1;
	}
	if (n != s->wanted)
		log_info("changing from %u to %u workers", s->wanted, n);
	while (s->wanted < n)
		want_one_more(s);
	while (s->wanted > n)
		want_one_less(s, clock_now_ms());
	return 0;
}

void sup_reloaded(struct sup *s)
{
	for (unsigned i = 0; i < s->nslots; i++) {
		if (s->slot[i].barred) {
			s->slot[i].barred = false;
			s->slot[i].respawn_ms = 0;
		}
		order(s, i, SUP_RELOAD);
	}
	if (!s->migrate.done)
		s->migrate.due_ms = 0;
}

void sup_reopen_logs(struct sup *s)
{
	for (unsigned i = 0; i < s->nslots; i++)
		order(s, i, SUP_REOPEN);
}

void sup_stop(struct sup *s, enum sup_how how)
{
	uint64_t now_ms = clock_now_ms();
	uint64_t by_ms = now_ms + (how == SUP_GRACEFUL ?
	    ((uint64_t)conf(s)->stop_seconds + 1) * 1000 : QUIT_MS);

	if (s->phase == SUP_DONE)
		return;
	if (s->phase != SUP_STOPPING || by_ms < s->stop_by_ms)
		s->stop_by_ms = by_ms;
	s->phase = SUP_STOPPING;
	if (how == SUP_AT_ONCE)
		s->hurried = true;
	if (s->migrate.pid != 0)
		(void)kill(s->migrate.pid, SIGTERM);
	for (unsigned i = 0; i < s->nslots; i++) {
		if (s->slot[i].pid == 0)
			continue;
		set_state(i, SLOT_STOPPING);
		order(s, i, how == SUP_GRACEFUL ? SUP_STOP : SUP_QUIT);
	}
}

/* --- Questions -------------------------------------------------------------------------------- */

bool sup_settled(const struct sup *s)
{
	if (s->phase != SUP_RUNNING)
		return false;
	for (unsigned i = 0; i < s->nslots; i++) {
		const struct sup_slot *p = &s->slot[i];

		if (p->wanted ? !is_born(s, i) || !p->ready || p->leaving :
		    p->pid != 0 || seats_taken(s, i))
			return false;
	}
	return true;
}

unsigned sup_ready(const struct sup *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < s->nslots; i++)
		n += s->slot[i].pid != 0 && s->slot[i].ready && !s->slot[i].leaving;
	return n;
}

bool sup_runs_conf(const struct sup *s, uint32_t version)
{
	for (unsigned i = 0; i < s->nslots; i++)
		if (s->slot[i].pid != 0 && s->slot[i].ready &&
		    atomic_load(&slot_at(i)->conf_version) != version)
			return false;
	return true;
}

uint32_t sup_lowest(const struct sup *s)
{
	for (unsigned i = 0; i < s->nslots; i++)
		if (s->slot[i].pid != 0 && s->slot[i].ready && !s->slot[i].leaving)
			return i;
	return SUP_NOBODY;
}

enum ipc_rc sup_send_admin(struct sup *s, uint32_t slot, const char *line, size_t len, int fd)
{
	static struct ipc_ctl m;

	if (len > sizeof m.body)
		return IPC_BAD;
	/* Addressed to nobody's generation: should this worker die now, its successor answers. */
	m = (struct ipc_ctl){ .type = IPC_ADMIN, .len = (uint32_t)len };
	memcpy(m.body, line, len);
	return send_to(s, slot, &m, &fd, 1);
}
