/*
 * spawn.c - the child's side of a fork.
 *
 * PR_SET_PDEATHSIG is cleared by a change of credentials (prctl(2)), so it comes after them; a
 * master that died in between is noticed by the parent's pid. The signal stays blocked like
 * all others: it wakes who reads a signalfd; the pipe `life` is what every worker relies on.
 */
#include "master/spawn.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "master/title.h"
#include "master/twin.h"
#include "shm/segment.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/worker.h"

/* Name of a child: for log lines, ps, and as comm. */
struct names { char ident[32], title[48], comm[16]; };

static void become(struct sup *s, pid_t master, const struct names *n)
{
	int rc = who_become(s->host.who);

	log_ident(n->ident);
	if (rc < 0) {
		log_error("cannot drop privileges: %s", strerror(-rc));
		_exit(WORKER_CONFIG);
	}
	(void)prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != master)
		_exit(WORKER_ORPHAN);
	title_set(n->title, n->comm);
	s->host.child(s->host.arg);
	reactor_fini(s->host.reactor);
	close(s->up[0]);
	close(s->life[1]);
	clock_tick();
}

/* Closes what slots other than KEEP read from. */
static void close_read_ends(struct sup *s, unsigned keep)
{
	for (unsigned i = 0; i < s->nslots; i++)
		if (i != keep) {
			close(s->slot[i].inbox[0]);
			close(s->slot[i].control[0]);
		}
}

/* Closes what is other slots', and says what this one's worker needs. */
static struct worker_boot settle(struct sup *s, unsigned slot)
{
	struct worker_boot boot = { .slot = slot, .gen = s->slot[slot].gen,
	    .conf = *s->host.conf, .inbox = s->slot[slot].inbox[0],
	    .control = s->slot[slot].control[0], .peer_inbox = s->send_inbox,
	    .peer_control = s->send_control, .up = s->up[1], .life = s->life[0] };

	listeners_keep_only(s->host.listeners, slot);
	close_read_ends(s, slot);
	boot.listeners = listeners_of(s->host.listeners, slot);
	memcpy(boot.token_key, s->host.token_key, sizeof boot.token_key);
	snprintf(boot.host_id, sizeof boot.host_id, "%s", s->host.host_id);
	return boot;
}

pid_t spawn_worker(struct sup *s, unsigned slot)
{
	pid_t master = getpid(), pid;
	struct names n;

	snprintf(n.ident, sizeof n.ident, "worker %u", slot);
	snprintf(n.title, sizeof n.title, "parleyd: worker %u", slot);
	snprintf(n.comm, sizeof n.comm, "parleyd-w%u", slot);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		become(s, master, &n);
		struct worker_boot boot = settle(s, slot);
		_exit(worker_run(&boot));
	}
	return pid;
}

pid_t spawn_twin(struct sup *s, unsigned slot)
{
	static struct twin t;
	struct names n;
	pid_t pid;

	t = (struct twin){ .master = getpid(), .conf_version = atomic_load(&shm->head->conf_version) };
	twin_names(slot, n.ident, n.title, n.comm);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		become(s, t.master, &n);
		t.boot = settle(s, slot);
		twin_run(&t);
	}
	return pid;
}

pid_t spawn_migrate(struct sup *s)
{
	static const struct names n = { "migrate", "parleyd: migrate", "parleyd-migrate" };
	pid_t master = getpid(), pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		become(s, master, &n);
		listeners_keep_only(s->host.listeners, s->nslots);
		close_read_ends(s, s->nslots);
		/* Nothing here waits for the end of the master: let the signal do its default work. */
		sigset_t term;
		sigemptyset(&term);
		sigaddset(&term, SIGTERM);
		signal(SIGTERM, SIG_DFL);
		sigprocmask(SIG_UNBLOCK, &term, NULL);
		_exit(worker_migrate(*s->host.conf, s->host.host_id));
	}
	return pid;
}
