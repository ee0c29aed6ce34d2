/*
 * The supervisor with workers that do as they are told: deaths, back-off, hangs, adoption, scaling,
 * a broken segment, the end. The workers are real processes; what they do is written on a page
 * that all share.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "master/supervise.h"
#include "shm/segment.h"
#include "shm/slots.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/worker.h"

#define SLOTS 4

enum act { SERVE, EXIT_EARLY, NEVER_READY, MUTE, STUBBORN };

/* What the test and the workers share: orders one way, observations the other. */
static struct page {
	_Atomic int act[SLOTS];
	_Atomic int code[SLOTS];		/* for EXIT_EARLY */
	_Atomic int die_now[SLOTS];		/* exit with code - 1 */
	_Atomic int mute[SLOTS];		/* do not beat */
	_Atomic int waits_for[SLOTS];		/* say that this thread is waited for */
	_Atomic int migrate_code, migrations;
	_Atomic int adopts[SLOTS], adopted_gen[SLOTS], adopted_by[SLOTS];
	_Atomic int releases[SLOTS], held[SLOTS];	/* held: adopted and not released; bit a worker */
	_Atomic int reloads[SLOTS], reopens[SLOTS], stops[SLOTS], leaves[SLOTS], inboxes[SLOTS];
	_Atomic int two_readers;		/* a slot was forked while somebody had it */
	_Atomic int tidies[SLOTS], tidied_alive;	/* a live worker's descriptors were closed */
	_Atomic int stray[SLOTS];		/* a descriptor that the last worker left open, + 1 */
	_Atomic int kept[SLOTS];		/* the next one found it */
	char stop_reason[16];
	char comm[SLOTS][16];
} *page;

static struct conf conf, *confp = &conf;
static struct segment segment;
static struct listeners listeners;
static struct reactor reactor;
static struct who who;
static struct sup sup;
static unsigned char key[32];
static int rebuilds, rebuild_rc;
static char why[300];

/* 0 and less would be a whole group of processes, ours. */
static int signal_to(pid_t pid, int number)
{
	assert_true(pid > 0);
	return kill(pid, number);
}

/* --- The worker ------------------------------------------------------------------------------- */

int worker_migrate(const struct conf *c, const char *id)
{
	(void)id;
	assert_ptr_equal(c, &conf);
	page->migrations++;
	return page->migrate_code;
}

/* A twin does that for a worker that is dead, and for nobody else. */
void worker_tidy(const struct worker_boot *b)
{
	pid_t pid = atomic_load(&slot_at(b->slot)->pid);

	page->tidies[b->slot]++;
	if (pid != 0 && signal_to(pid, 0) == 0)
		page->tidied_alive = 1;
	if (page->stray[b->slot] > 0)
		close(page->stray[b->slot] - 1);
	page->stray[b->slot] = 0;
}

static void say(const struct worker_boot *b, uint32_t type, uint32_t a)
{
	struct ipc_ctl m = { .type = type, .from_slot = b->slot, .from_gen = b->gen, .a = a };

	(void)ipc_ctl_send(b->up, &m, NULL, 0);
}

static int on_adopt(const struct worker_boot *b, const struct ipc_ctl *m, int *fds, unsigned n)
{
	int type;
	socklen_t len = sizeof type;

	/* inbox, control, then one descriptor a listener */
	if (n != 2 + b->conf->nlisten || getsockopt(fds[0], SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
	    type != SOCK_SEQPACKET || getsockopt(fds[2], SOL_SOCKET, SO_ACCEPTCONN, &type, &len) < 0 || !type)
		return 77;
	page->adopts[m->a]++;
	page->adopted_gen[m->a] = (int)m->b;
	page->adopted_by[m->a] = (int)b->slot;
	page->held[m->a] |= 1 << b->slot;
	while (n > 0)
		close(fds[--n]);
	return 0;
}

/* -1: go on; else the exit code. */
static int on_order(const struct worker_boot *b, const struct ipc_ctl *m, int *fds, unsigned n)
{
	if (m->to_gen != 0 && m->to_gen != b->gen) {
		while (n > 0)
			close(fds[--n]);
		return -1;
	}
	switch (m->type) {
	case IPC_ADOPT:
		return on_adopt(b, m, fds, n) != 0 ? 77 : -1;
	case IPC_RELEASE:
		page->releases[m->a]++;
		page->held[m->a] &= ~(1 << b->slot);
		say(b, IPC_RELEASED, m->a);
		return -1;
	case IPC_RELOAD: page->reloads[b->slot]++; return -1;
	case IPC_REOPEN: page->reopens[b->slot]++; return -1;
	case IPC_STOP:
		page->stops[b->slot]++;
		snprintf(page->stop_reason, sizeof page->stop_reason, "%.*s", (int)m->len, m->body);
		return page->act[b->slot] == STUBBORN ? -1 : WORKER_DONE;
	case IPC_LEAVE:
		page->leaves[b->slot]++;
		say(b, IPC_LEFT, 0);
		return WORKER_DONE;
	case IPC_QUIT:
		return page->act[b->slot] == STUBBORN ? -1 : WORKER_DONE;
	default:
		return 78;
	}
}

static int serve(const struct worker_boot *b)
{
	struct slot *s = slot_at(b->slot);
	static struct ipc_ctl m;
	int fds[IPC_CTL_FDS], rc;
	unsigned n;

	for (;;) {
		struct pollfd p[2] = { { .fd = b->control, .events = POLLIN },
		    { .fd = b->life, .events = POLLIN } };

		(void)poll(p, 2, 5);
		if (p[1].revents != 0)
			return WORKER_ORPHAN;
		if (!page->mute[b->slot])
			atomic_store(&s->heartbeat_ms, clock_now_ms());
		atomic_store(&s->waits_tid, page->waits_for[b->slot]);
		if (page->die_now[b->slot] != 0) {
			int code = page->die_now[b->slot] - 1;

			page->die_now[b->slot] = 0;
			return code;
		}
		while (ipc_ctl_recv(b->control, &m, fds, &n) == IPC_OK)
			if ((rc = on_order(b, &m, fds, n)) >= 0)
				return rc;
	}
}

int worker_run(const struct worker_boot *b)
{
	FILE *f = fopen("/proc/self/comm", "r");

	if (f != NULL && fgets(page->comm[b->slot], sizeof page->comm[0], f) != NULL)
		page->comm[b->slot][strcspn(page->comm[b->slot], "\n")] = '\0';
	if (f != NULL)
		fclose(f);
	if (page->held[b->slot] != 0)
		page->two_readers = 1;
	if (page->stray[b->slot] > 0)
		page->kept[b->slot] = fcntl(page->stray[b->slot] - 1, F_GETFD) >= 0 ? 1 : -1;
	page->stray[b->slot] = 1 + open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (page->act[b->slot] == EXIT_EARLY)
		return page->code[b->slot];
	if (page->act[b->slot] != NEVER_READY)
		say(b, IPC_READY, 0);
	return serve(b);
}

/* --- The master's side ------------------------------------------------------------------------ */

static void child(void *arg)
{
	(void)arg;
}

static int make_segment(void)
{
	struct segment_shape shape = { .max_workers = SLOTS, .max_sessions = 64, .region_bytes = 4 << 20 };

	return segment_open(&segment, &shape, 1 + (uint64_t)rebuilds);
}

static int rebuild(void *arg)
{
	(void)arg;
	rebuilds++;
	if (rebuild_rc != 0)
		return rebuild_rc;
	segment_close(&segment);
	return make_segment();
}

static void complain(void *arg, const char *file, int line, const char *text)
{
	(void)arg, (void)file, (void)line;
	fprintf(stderr, "%s\n", text);
}

static int setup(void **state)
{
	const char *keys[] = { "listen=127.0.0.1:0", "max_workers=4", "workers=2",
	    "hang_seconds=1", "stop_seconds=1", *state != NULL ? "immortal=on" : "immortal=off" };
	struct sup_host host = { .conf = &confp, .listeners = &listeners, .reactor = &reactor,
	    .who = &who, .token_key = key, .host_id = "test", .child = child, .rebuild = rebuild };

	log_set_level(LOG_L_FATAL);		/* the deaths here are ordered */
	rebuilds = rebuild_rc = 0;
	page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	conf_init(&conf);
	for (size_t i = 1; i < sizeof keys / sizeof *keys; i++)
		if (conf_override(&conf, keys[i], complain, NULL) != 0)
			return -1;
	if (conf_finish(&conf, complain, NULL) != 0)
		return -1;
	conf.listen[0].port = 0;		/* any free one: nobody connects here */
	return page == MAP_FAILED || make_segment() != 0 || reactor_init(&reactor) != 0 ||
	    who_find(&who, &conf, why, sizeof why) != 0 ||
	    listeners_open(&listeners, &conf, why, sizeof why) != 0 ||
	    sup_open(&sup, &host, why, sizeof why) != 0;
}

static void end_child(pid_t pid)
{
	if (pid > 0 && pid != SUP_COMING) {
		signal_to(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

static void kill_children(void)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		seats_dismiss(&sup, i, clock_now_ms());
		end_child(sup.slot[i].pid);
		for (unsigned k = 0; k < SLOT_TWINS; k++)
			end_child(sup.slot[i].seats.twin[k]);
	}
	end_child(sup.migrate.pid);
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(page->two_readers, 0);
	assert_int_equal(page->tidied_alive, 0);
	kill_children();
	/* One that was too many ends by itself; nobody else is left. */
	for (int i = 0; i < 300 && waitpid(-1, NULL, WNOHANG) >= 0; i++)
		(void)poll(NULL, 0, 10);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	sup_close(&sup);
	listeners_close(&listeners);
	reactor_fini(&reactor);
	segment_close(&segment);
	conf_free(&conf);
	return munmap(page, sizeof *page);
}

static void turn(void)
{
	pid_t pid;
	int status, ms;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		sup_reap(&sup, pid, status, clock_now_ms());
	ms = sup_tick(&sup, clock_now_ms());
	assert_true(ms <= 500 && (ms >= 1 || sup.phase == SUP_DONE));
	assert_int_equal(reactor_turn(&reactor, ms < 5 ? ms : 5), 0);
}

#define UNTIL(cond, ms) do { \
	uint64_t end_ = clock_now_ms() + (ms); \
	while (!(cond)) { \
		if (clock_now_ms() >= end_) \
			fail_msg("not within %d ms: %s", (int)(ms), #cond); \
		turn(); \
	} \
} while (0)

#define DURING(cond, ms) do { \
	uint64_t end_ = clock_now_ms() + (ms); \
	while (clock_now_ms() < end_) { \
		turn(); \
		assert_true(cond); \
	} \
} while (0)

static bool is(unsigned i, enum slot_state st)
{
	return atomic_load(&slot_at(i)->state) == st;
}

static bool ready(unsigned i, uint32_t gen)
{
	return is(i, SLOT_READY) && sup.slot[i].gen == gen;
}

static void start(unsigned n)
{
	sup_start(&sup, n);
	UNTIL(sup_settled(&sup), 5000);
}

static void serve_a_second(void)
{
	DURING(true, 1050);
}

/* --- Tests ------------------------------------------------------------------------------------ */

static void test_start(void **state)
{
	(void)state;
	sup_start(&sup, 3);
	assert_int_equal(sup.phase, SUP_MIGRATING);
	assert_false(sup.started);
	UNTIL(sup.started, 5000);
	assert_true(sup_settled(&sup));
	assert_int_equal(page->migrations, 1);
	assert_int_equal(sup_ready(&sup), 3);
	assert_int_equal(sup_lowest(&sup), 0);
	for (unsigned i = 0; i < 3; i++) {
		char comm[16];

		snprintf(comm, sizeof comm, "parleyd-w%u", i);
		assert_string_equal(page->comm[i], comm);
		assert_true(slot_alive(i, 1));
		assert_int_equal(atomic_load(&slot_at(i)->pid), sup.slot[i].pid);
		assert_int_equal(atomic_load(&slot_at(i)->restarts), 0);
	}
	assert_true(is(3, SLOT_EMPTY));
	assert_false(listeners_started(&listeners, 3));
}

static void test_served_and_died_is_replaced_at_once(void **state)
{
	uint64_t then;

	(void)state;
	start(2);
	serve_a_second();
	signal_to(sup.slot[1].pid, SIGKILL);
	then = clock_now_ms();
	UNTIL(ready(1, 2), 2000);
	assert_true(clock_now_ms() - then < 100 * 5);	/* sanitizers are slow; back-off would add to it */
	assert_int_equal(sup.slot[1].delay_ms, 0);
	assert_int_equal(page->adopts[1], 0);
	assert_int_equal(atomic_load(&slot_at(1)->restarts), 1);
	assert_int_equal(atomic_load(&slot_at(0)->restarts), 0);
	assert_false(slot_alive(1, 1));
	assert_true(slot_alive(1, 2));
}

static void test_early_deaths_back_off_and_a_sibling_serves(void **state)
{
	(void)state;
	start(2);
	for (uint32_t round = 1; round <= 4; round++) {
		uint64_t due, least = 100u << (round - 1);

		signal_to(sup.slot[1].pid, SIGKILL);
		UNTIL(sup.slot[1].pid == 0, 2000);
		due = sup.slot[1].respawn_ms;
		assert_true(is(1, SLOT_DEAD));
		UNTIL(page->held[1] == 1, least);
		assert_int_equal(page->adopts[1], round);
		assert_int_equal(page->adopted_gen[1], round);
		assert_true(listeners.steered);
		UNTIL(ready(1, round + 1), least + 3000);
		assert_true(sup.slot[1].spawned_ms >= due);
		assert_int_equal(sup.slot[1].delay_ms, least);
		assert_int_equal(page->releases[1], round);
		UNTIL(!listeners.steered, 1000);
	}
	assert_true(ready(0, 1));
}

static void test_long_life_forgets_early_deaths(void **state)
{
	(void)state;
	start(1);
	sup.slot[0].delay_ms = 60000;
	sup.slot[0].spawned_ms -= 60000;		/* it lived a minute, and was just found ready */
	signal_to(sup.slot[0].pid, SIGKILL);
	UNTIL(sup.slot[0].pid == 0, 2000);
	assert_int_equal(sup.slot[0].delay_ms, 100);
	UNTIL(ready(0, 2), 3000);
}

static void test_adopters_death_finds_another(void **state)
{
	unsigned by;

	(void)state;
	start(3);
	page->act[2] = EXIT_EARLY;
	page->code[2] = WORKER_FAILED;
	sup.slot[2].delay_ms = 10000;
	signal_to(sup.slot[2].pid, SIGKILL);
	UNTIL(page->adopts[2] == 1, 2000);
	by = (unsigned)page->adopted_by[2];
	assert_true(by < 2);
	page->held[2] = 0;			/* it cannot wipe its bit any more */
	signal_to(sup.slot[by].pid, SIGKILL);
	UNTIL(page->adopts[2] == 2, 2000);
	UNTIL(ready(by, 2), 3000);
	page->held[2] = 0;
}

static void test_configuration_refused_at_start(void **state)
{
	(void)state;
	page->act[1] = EXIT_EARLY;
	page->code[1] = WORKER_CONFIG;
	sup_start(&sup, 2);
	UNTIL(sup.phase == SUP_DONE, 5000);
	assert_int_equal(sup.exit_code, WORKER_CONFIG);
	assert_non_null(strstr(sup.failure, "worker 1"));
}

static void test_configuration_refused_later(void **state)
{
	(void)state;
	start(2);
	page->die_now[1] = WORKER_CONFIG + 1;
	UNTIL(sup.slot[1].pid == 0, 2000);
	DURING(sup.slot[1].pid == 0, 500);		/* not of itself ... */
	assert_int_equal(page->held[1], 1);
	sup_reloaded(&sup);				/* ... but for another configuration */
	UNTIL(ready(1, 2), 2000);
	UNTIL(page->reloads[0] == 1, 2000);
	assert_int_equal(sup.phase, SUP_RUNNING);
}

static void test_hang(void **state)
{
	pid_t old;
	uint64_t then;

	(void)state;
	start(2);
	old = sup.slot[1].pid;
	signal_to(old, SIGSTOP);
	then = clock_now_ms();
	UNTIL(sup.slot[1].pid != old, 5000);
	assert_true(clock_now_ms() - then >= 950);
	UNTIL(ready(1, 2), 3000);
	assert_true(ready(0, 1));
}

static void test_never_ready(void **state)
{
	uint64_t then = clock_now_ms();

	(void)state;
	page->act[0] = NEVER_READY;
	sup_start(&sup, 1);
	UNTIL(sup.slot[0].gen == 1, 2000);
	DURING(sup.slot[0].gen == 1, 1500);		/* it beats, and has twice the time */
	UNTIL(sup.slot[0].gen == 2, 5000);
	assert_true(clock_now_ms() - then >= 2000);
}

/* Who waits for a lock is spared; who holds it is not, even if it beats. */
static void test_lock_holder_is_killed_not_the_waiter(void **state)
{
	pid_t holder;

	(void)state;
	start(2);
	holder = sup.slot[1].pid;
	page->waits_for[0] = holder;
	UNTIL(sup.slot[1].pid != holder, 5000);
	page->waits_for[0] = 0;
	UNTIL(ready(1, 2), 3000);
	assert_true(ready(0, 1));
}

static void test_mute_waiter_gets_twice_the_time(void **state)
{
	(void)state;
	start(2);
	page->waits_for[0] = 1;				/* init: not one of ours */
	UNTIL(atomic_load(&slot_at(0)->waits_tid) == 1, 2000);
	page->mute[0] = 1;
	DURING(ready(0, 1), 1500);
	UNTIL(sup.slot[0].gen == 2, 5000);
	page->mute[0] = page->waits_for[0] = 0;
	UNTIL(ready(0, 2), 3000);
}

static void test_our_own_pause_is_no_hang(void **state)
{
	(void)state;
	start(1);
	/* As after a SIGSTOP of the master, or a paused machine: all hearts look old at once. */
	page->mute[0] = 1;
	DURING(ready(0, 1), 500);
	atomic_store(&slot_at(0)->heartbeat_ms, clock_now_ms() - 5000);
	sup.last_tick_ms -= 5000;
	(void)sup_tick(&sup, clock_now_ms());
	page->mute[0] = 0;
	DURING(ready(0, 1), 500);
}

static void test_broken_segment_is_rebuilt(void **state)
{
	(void)state;
	start(3);
	atomic_store(&slot_at(0)->n.accepted, 5);
	page->die_now[1] = WORKER_BROKEN + 1;
	UNTIL(rebuilds == 1, 3000);
	UNTIL(sup_settled(&sup), 5000);
	for (unsigned i = 0; i < 3; i++)
		assert_true(ready(i, 2));		/* generations go on */
	assert_int_equal(atomic_load(&slot_at(0)->n.accepted), 0);
	page->die_now[2] = WORKER_BROKEN + 1;		/* soon again: not at once */
	UNTIL(rebuilds == 2, 3000);
	DURING(sup.slot[0].pid == 0, 500);
	UNTIL(sup_settled(&sup), 5000);
}

static void test_segment_that_cannot_be_rebuilt_ends_it(void **state)
{
	(void)state;
	start(2);
	rebuild_rc = -1;
	page->die_now[0] = WORKER_BROKEN + 1;
	UNTIL(sup.phase == SUP_DONE, 5000);
	assert_int_equal(sup.exit_code, 1);
}

static void test_scale(void **state)
{
	(void)state;
	start(1);
	assert_int_equal(sup_scale(&sup, 0, why, sizeof why), -1);
	assert_int_equal(sup_scale(&sup, SLOTS + 1, why, sizeof why), -1);
	assert_non_null(strstr(why, "4"));
	assert_int_equal(sup_scale(&sup, 3, why, sizeof why), 0);
	assert_false(sup_settled(&sup));
	UNTIL(sup_settled(&sup), 3000);
	assert_true(ready(1, 1) && ready(2, 1));
	assert_int_equal(sup_scale(&sup, 1, why, sizeof why), 0);
	assert_true(is(1, SLOT_LEAVING) && is(2, SLOT_LEAVING));
	assert_true(listeners.steered);			/* before anybody left */
	UNTIL(sup_settled(&sup), 3000);
	assert_int_equal(page->leaves[0], 0);
	assert_int_equal(page->leaves[1], 1);
	assert_int_equal(page->leaves[2], 1);
	assert_true(is(1, SLOT_EMPTY) && is(2, SLOT_EMPTY));
	assert_int_equal(atomic_load(&slot_at(1)->restarts), 0);
	UNTIL(page->held[1] == 1 && page->held[2] == 1, 2000);
	assert_int_equal(sup_scale(&sup, 2, why, sizeof why), 0);	/* the lowest, let go of first */
	UNTIL(sup_settled(&sup), 3000);
	assert_true(ready(1, 2));
	assert_int_equal(page->releases[1], 1);
	assert_int_equal(page->held[2], 1);
	assert_true(ready(0, 1));
}

static void test_removed_while_it_backs_off(void **state)
{
	(void)state;
	start(2);
	sup.slot[1].delay_ms = 10000;
	signal_to(sup.slot[1].pid, SIGKILL);
	UNTIL(is(1, SLOT_DEAD), 2000);
	assert_int_equal(sup_scale(&sup, 1, why, sizeof why), 0);
	assert_true(is(1, SLOT_EMPTY));
	UNTIL(sup_settled(&sup), 1000);
	assert_int_equal(sup_scale(&sup, 2, why, sizeof why), 0);
	UNTIL(sup_settled(&sup), 3000);
}

static void test_a_leaver_that_stays_is_ended(void **state)
{
	pid_t pid;

	(void)state;
	start(2);
	pid = sup.slot[1].pid;
	signal_to(pid, SIGSTOP);
	assert_int_equal(sup_scale(&sup, 1, why, sizeof why), 0);
	sup.slot[1].leave_by_ms = clock_now_ms();	/* in place of ten seconds */
	UNTIL(sup.slot[1].crowded, 1000);
	UNTIL(sup_settled(&sup), 5000);			/* STOP does not help it, a kill does */
	assert_true(is(1, SLOT_EMPTY));
}

static void test_logs_are_reopened(void **state)
{
	(void)state;
	start(2);
	sup_reopen_logs(&sup);
	UNTIL(page->reopens[0] == 1 && page->reopens[1] == 1, 2000);
}

/* Orders for a worker that does not read stay pending and arrive when it does. */
static void test_full_control_socket(void **state)
{
	struct ipc_ctl m = { .type = IPC_SWEPT, .to_gen = 999 };
	pid_t pid;

	(void)state;
	start(1);
	pid = sup.slot[0].pid;
	signal_to(pid, SIGSTOP);
	while (ipc_ctl_send(sup.slot[0].control[1], &m, NULL, 0) == IPC_OK)
		;
	sup_reloaded(&sup);
	sup_reopen_logs(&sup);
	assert_int_equal(sup.slot[0].pending, SUP_RELOAD | SUP_REOPEN);
	signal_to(pid, SIGCONT);
	UNTIL(page->reloads[0] == 1 && page->reopens[0] == 1, 3000);
	assert_int_equal(sup.slot[0].pending, 0);
}

static void test_stop(void **state)
{
	(void)state;
	start(3);
	sup_stop(&sup, SUP_GRACEFUL);
	assert_true(is(0, SLOT_STOPPING));
	assert_int_equal(sup_scale(&sup, 4, why, sizeof why), -1);
	UNTIL(sup.phase == SUP_DONE, 2000);
	assert_int_equal(sup.exit_code, 0);
	assert_string_equal(page->stop_reason, "shutdown");
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(page->stops[i], 1);
}

static void test_stop_is_bounded(void **state)
{
	uint64_t then;

	(void)state;
	page->act[1] = STUBBORN;
	start(2);
	sup_stop(&sup, SUP_GRACEFUL);
	then = clock_now_ms();
	UNTIL(sup.phase == SUP_DONE, 5000);
	assert_true(clock_now_ms() - then >= 1990);	/* stop_seconds and one more */
}

static void test_stop_can_be_hurried(void **state)
{
	uint64_t then;

	(void)state;
	page->act[1] = STUBBORN;
	start(2);
	sup_stop(&sup, SUP_GRACEFUL);
	DURING(sup.phase == SUP_STOPPING, 100);
	sup_stop(&sup, SUP_AT_ONCE);
	then = clock_now_ms();
	UNTIL(sup.phase == SUP_DONE, 1500);
	assert_true(clock_now_ms() - then < 1500);
}

/* What a worker held when it died in the middle of stopping is left to one more. */
static void test_death_while_stopping_gets_a_last_chance(void **state)
{
	(void)state;
	page->act[1] = STUBBORN;
	start(2);
	sup_stop(&sup, SUP_GRACEFUL);
	UNTIL(page->stops[1] == 1, 1000);
	page->act[1] = SERVE;
	signal_to(sup.slot[1].pid, SIGKILL);
	UNTIL(sup.slot[1].gen == 2, 1000);
	UNTIL(sup.phase == SUP_DONE, 3000);
	assert_int_equal(page->stops[1], 2);
	assert_int_equal(sup.slot[1].gen, 2);
}

static void test_there_is_only_one_last_chance(void **state)
{
	(void)state;
	page->act[0] = STUBBORN;
	start(1);
	sup_stop(&sup, SUP_GRACEFUL);
	for (int deaths = 1; deaths <= 2; deaths++) {
		UNTIL(page->stops[0] == deaths, 1000);
		signal_to(sup.slot[0].pid, SIGKILL);
	}
	UNTIL(sup.phase == SUP_DONE, 1500);
	assert_int_equal(sup.slot[0].gen, 2);
}

static void test_store_down_at_start(void **state)
{
	(void)state;
	page->migrate_code = WORKER_FAILED;
	start(1);					/* it serves without a store ... */
	assert_int_equal(page->migrations, 1);
	assert_false(sup.migrate.done);
	page->migrate_code = 0;
	UNTIL(sup.migrate.done, 6000);			/* ... and tries again */
	assert_int_equal(page->migrations, 2);
	assert_true(ready(0, 1));
}

static void test_store_misconfigured_at_start(void **state)
{
	(void)state;
	page->migrate_code = WORKER_CONFIG;
	sup_start(&sup, 2);
	UNTIL(sup.phase == SUP_DONE, 3000);
	assert_int_equal(sup.exit_code, WORKER_CONFIG);
	assert_int_equal(sup.slot[0].gen, 0);		/* no worker was begun */
}

static void test_last_words_of_the_dead_are_ignored(void **state)
{
	struct ipc_ctl m = { .type = IPC_BROKEN, .from_slot = 1, .from_gen = 1 };

	(void)state;
	start(2);
	serve_a_second();
	signal_to(sup.slot[1].pid, SIGKILL);
	UNTIL(ready(1, 2), 2000);
	assert_int_equal(ipc_ctl_send(sup.up[1], &m, NULL, 0), IPC_OK);
	m.from_slot = 4000;
	assert_int_equal(ipc_ctl_send(sup.up[1], &m, NULL, 0), IPC_OK);
	m.type = IPC_READY;
	m.from_slot = 3;
	assert_int_equal(ipc_ctl_send(sup.up[1], &m, NULL, 0), IPC_OK);
	DURING(sup.phase == SUP_RUNNING && is(3, SLOT_EMPTY), 200);
	assert_int_equal(rebuilds, 0);
}

static void test_workers_end_with_the_master(void **state)
{
	pid_t pid;
	int status;
	struct pollfd p;

	(void)state;
	start(1);
	pid = sup.slot[0].pid;
	close(sup.life[1]);				/* what a death of the master does */
	sup.life[1] = -1;
	p = (struct pollfd){ .fd = -1 };
	for (int i = 0; i < 500 && waitpid(pid, &status, WNOHANG) == 0; i++)
		(void)poll(&p, 0, 10);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), WORKER_ORPHAN);
	sup.slot[0].pid = 0;
}

/* --- Twins ------------------------------------------------------------------------------------ */

static bool twins(unsigned i)
{
	return sup.slot[i].seats.twin[0] != 0 && sup.slot[i].seats.twin[1] != 0;
}

static pid_t twin(unsigned i, unsigned k)
{
	return sup.slot[i].seats.twin[k];
}

static void start_with_twins(unsigned n)
{
	if (!sup.immortal)
		skip();				/* not under this sanitizer */
	start(n);
	for (unsigned i = 0; i < n; i++)
		UNTIL(twins(i), 3000);
}

/* The same table: what it left open is still there in the next one. */
static void test_descriptors_outlive_a_worker(void **state)
{
	(void)state;
	start_with_twins(2);
	serve_a_second();
	for (uint32_t gen = 2; gen < 7; gen++) {
		sup.slot[1].ready_ms = 0;		/* it has served long enough */
		signal_to(sup.slot[1].pid, SIGKILL);
		UNTIL(ready(1, gen), 2000);
		assert_int_equal(page->kept[1], 1);
	}
	assert_int_equal(page->tidies[1], 0);		/* that is the newborn's */
	assert_int_equal(atomic_load(&slot_at(1)->twin_deaths), 0);
}

static void test_tidied_while_it_backs_off(void **state)
{
	(void)state;
	start_with_twins(2);
	sup.slot[1].delay_ms = 300;
	signal_to(sup.slot[1].pid, SIGKILL);
	UNTIL(page->tidies[1] == 1, 2000);
	assert_true(sup.slot[1].pid == 0);
	UNTIL(ready(1, 2), 3000);
	assert_int_equal(page->tidies[1], 1);
}

static void test_a_twin_is_made_again(void **state)
{
	(void)state;
	start_with_twins(1);
	serve_a_second();
	for (unsigned k = 0; k < SLOT_TWINS; k++) {
		pid_t old = twin(0, k);

		signal_to(old, SIGKILL);
		UNTIL(twin(0, k) != 0 && twin(0, k) != old, 2000);
	}
	assert_true(ready(0, 1));
	assert_int_equal(atomic_load(&slot_at(0)->twin_deaths), 2);
	assert_int_equal(atomic_load(&slot_at(0)->twin_pid[0]), (uint32_t)twin(0, 0));
	signal_to(sup.slot[0].pid, SIGKILL);
	UNTIL(ready(0, 2), 2000);
	assert_int_equal(page->kept[0], 1);
}

static void test_twins_that_die_young_back_off(void **state)
{
	(void)state;
	start_with_twins(1);
	for (unsigned round = 0; round < 3; round++) {
		signal_to(twin(0, 1), SIGKILL);
		UNTIL(twin(0, 1) == 0, 1000);
		assert_int_equal(sup.slot[0].seats.delay_ms, 100u << round);
		DURING(twin(0, 1) == 0, (int)(80u << round));
		UNTIL(twins(0), 2000);
	}
}

static void test_worker_and_twin_at_once(void **state)
{
	(void)state;
	start_with_twins(2);
	for (unsigned k = 0; k < SLOT_TWINS; k++) {
		sup.slot[1].ready_ms = 0;
		signal_to(twin(1, k), SIGKILL);
		signal_to(sup.slot[1].pid, SIGKILL);
		UNTIL(ready(1, 2 + k), 3000);
		assert_int_equal(page->kept[1], 1);
		UNTIL(twins(1), 3000);
	}
}

static void test_all_three_at_once(void **state)
{
	(void)state;
	start_with_twins(2);
	serve_a_second();
	signal_to(twin(1, 0), SIGKILL);
	signal_to(sup.slot[1].pid, SIGKILL);
	signal_to(twin(1, 1), SIGKILL);
	UNTIL(ready(1, 2), 3000);
	assert_int_equal(page->kept[1], -1);		/* another table */
	UNTIL(twins(1), 3000);
	assert_true(ready(0, 1));
}

/* Its clients go to siblings, and it comes back with twins. */
static void test_both_twins_of_a_live_worker(void **state)
{
	(void)state;
	start_with_twins(2);
	signal_to(twin(1, 0), SIGKILL);
	signal_to(twin(1, 1), SIGKILL);
	UNTIL(page->leaves[1] == 1, 3000);
	UNTIL(ready(1, 2) && twins(1), 3000);
	assert_int_equal(atomic_load(&slot_at(1)->restarts), 0);
	assert_true(ready(0, 1));
	assert_true(sup_settled(&sup));
}

static void test_both_twins_of_the_only_worker(void **state)
{
	(void)state;
	start_with_twins(1);
	signal_to(twin(0, 0), SIGKILL);
	signal_to(twin(0, 1), SIGKILL);
	UNTIL(sup.slot[0].bare_told, 2000);
	DURING(ready(0, 1), 300);			/* nobody could take its clients */
	signal_to(sup.slot[0].pid, SIGKILL);
	UNTIL(ready(0, 2) && twins(0), 3000);
}

/* One that is stopped is killed, and the other one does it. */
static void test_stopped_twins(void **state)
{
	(void)state;
	start_with_twins(1);
	serve_a_second();
	signal_to(twin(0, 0), SIGSTOP);
	signal_to(twin(0, 1), SIGSTOP);
	signal_to(sup.slot[0].pid, SIGKILL);
	UNTIL(ready(0, 2), 10000);			/* in the end by the master */
	assert_true(clock_now_ms() - sup.slot[0].spawned_ms < 1000);	/* not since the order */
	DURING(ready(0, 2), 200);
	UNTIL(twins(0), 3000);
	signal_to(twin(0, sup.slot[0].seats.maker), SIGSTOP);
	sup.slot[0].ready_ms = 0;
	signal_to(sup.slot[0].pid, SIGKILL);
	UNTIL(ready(0, 3), 10000);
	assert_int_equal(page->kept[0], 1);
}

/* A word that a worker has written over names no stranger. */
static void test_a_pid_that_is_no_child(void **state)
{
	(void)state;
	start_with_twins(1);
	signal_to(twin(0, 0), SIGSTOP);
	serve_a_second();
	signal_to(sup.slot[0].pid, SIGKILL);
	UNTIL(sup.slot[0].seats.order[SEAT_WORKER] != 0, 1000);
	atomic_fetch_or(&slot_at(0)->seat[SEAT_WORKER], (uint64_t)getppid());
	DURING(sup.slot[0].pid != getppid(), 50);
	signal_to(twin(0, 0), SIGCONT);
	UNTIL(ready(0, 2), 3000);
}

static void test_twins_end_with_their_slot(void **state)
{
	pid_t a, b;

	(void)state;
	start_with_twins(2);
	a = twin(1, 0);
	b = twin(1, 1);
	assert_int_equal(sup_scale(&sup, 1, why, sizeof why), 0);
	UNTIL(sup_settled(&sup), 3000);
	assert_true(signal_to(a, 0) < 0 && signal_to(b, 0) < 0);
	assert_int_equal(atomic_load(&slot_at(1)->twin_deaths), 0);
	assert_int_equal(sup_scale(&sup, 2, why, sizeof why), 0);
	UNTIL(sup_settled(&sup) && twins(1), 3000);
}

/* The second is made a moment later than the worker; whatever the moment, nothing is left behind. */
static void test_ended_at_any_moment(void **state)
{
	(void)state;
	start(1);
	for (unsigned n = 0; n < 20; n++) {
		assert_int_equal(sup_scale(&sup, 3, why, sizeof why), 0);
		for (unsigned k = 0; k < n % 7; k++)
			turn();
		assert_int_equal(sup_scale(&sup, 1, why, sizeof why), 0);
		UNTIL(sup_settled(&sup), 5000);
	}
	assert_int_equal(sup_scale(&sup, 4, why, sizeof why), 0);
	turn();
	sup_stop(&sup, SUP_AT_ONCE);
	UNTIL(sup.phase == SUP_DONE, 3000);
}

static void test_a_reload_between_order_and_birth(void **state)
{
	(void)state;
	start_with_twins(1);
	serve_a_second();
	signal_to(twin(0, 0), SIGSTOP);
	signal_to(sup.slot[0].pid, SIGKILL);
	UNTIL(sup.slot[0].pid == SUP_COMING, 1000);
	sup_reloaded(&sup);
	signal_to(twin(0, 0), SIGCONT);
	UNTIL(page->reloads[0] == 1, 2000);
}

/* Twins do not read the pipe: the kernel tells them. */
static void test_twins_end_with_the_master(void **state)
{
	pid_t pid;
	int status;
	struct pollfd p = { .fd = -1 };

	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	pid = fork();
	if (pid == 0) {				/* a master of its own, to be killed */
		start_with_twins(1);
		page->code[0] = twin(0, 0);
		page->code[1] = twin(0, 1);
		page->code[2] = sup.slot[0].pid;
		for (;;)
			turn();
	}
	for (int i = 0; i < 500 && page->code[2] == 0; i++)
		(void)poll(&p, 0, 10);
	signal_to(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	for (int k = 0; k < 2; k++) {
		assert_int_equal(waitpid(page->code[k], &status, 0), page->code[k]);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}
	end_child(page->code[2]);
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
}

static int on = 1;

#define ONE(f, name_, state_) { name_, f, setup, teardown, state_ }
#define ALONE(f) ONE(f, #f, NULL)
#define T(f) ONE(f, #f, NULL), ONE(f, #f " with twins", &on)
#define TWINS(f) ONE(f, #f, &on)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_start),
		T(test_served_and_died_is_replaced_at_once),
		T(test_early_deaths_back_off_and_a_sibling_serves),
		T(test_long_life_forgets_early_deaths),
		T(test_adopters_death_finds_another),
		T(test_configuration_refused_at_start),
		T(test_configuration_refused_later),
		T(test_hang),
		T(test_never_ready),
		T(test_lock_holder_is_killed_not_the_waiter),
		ALONE(test_mute_waiter_gets_twice_the_time),
		ALONE(test_our_own_pause_is_no_hang),
		T(test_broken_segment_is_rebuilt),
		T(test_segment_that_cannot_be_rebuilt_ends_it),
		T(test_scale),
		T(test_removed_while_it_backs_off),
		T(test_a_leaver_that_stays_is_ended),
		ALONE(test_logs_are_reopened),
		ALONE(test_full_control_socket),
		T(test_stop),
		T(test_stop_is_bounded),
		T(test_stop_can_be_hurried),
		T(test_death_while_stopping_gets_a_last_chance),
		T(test_there_is_only_one_last_chance),
		ALONE(test_store_down_at_start),
		ALONE(test_store_misconfigured_at_start),
		ALONE(test_last_words_of_the_dead_are_ignored),
		T(test_workers_end_with_the_master),
		TWINS(test_descriptors_outlive_a_worker),
		TWINS(test_tidied_while_it_backs_off),
		TWINS(test_a_twin_is_made_again),
		TWINS(test_twins_that_die_young_back_off),
		TWINS(test_worker_and_twin_at_once),
		TWINS(test_all_three_at_once),
		TWINS(test_both_twins_of_a_live_worker),
		TWINS(test_both_twins_of_the_only_worker),
		TWINS(test_stopped_twins),
		TWINS(test_a_pid_that_is_no_child),
		TWINS(test_twins_end_with_their_slot),
		TWINS(test_ended_at_any_moment),
		TWINS(test_a_reload_between_order_and_birth),
		TWINS(test_twins_end_with_the_master),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
