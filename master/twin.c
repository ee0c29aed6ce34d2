/*
 * twin.c - the life of a twin, and of a newborn until it is a worker.
 */
#include "master/twin.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "master/title.h"
#include "shm/fault.h"
#include "shm/lock.h"
#include "shm/segment.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"

#define LOOK_S       5		/* between two looks at whether the master lives */
#define REHEARSAL_MS 5000

#define WORD(ticket, pid) ((uint64_t)(ticket) << 32 | (uint32_t)(pid))

/* --- Cloning ---------------------------------------------------------------------------------- */

/* Where glibc and the kernel keep what fork() sets anew. The addresses hold in every descendant. */
static struct { int *tid; void *robust; size_t robust_len; } thread;

static int thread_find(void)
{
	if (prctl(PR_GET_TID_ADDRESS, &thread.tid) < 0 || thread.tid == NULL ||
	    syscall(SYS_get_robust_list, 0, &thread.robust, &thread.robust_len) < 0 ||
	    thread.robust == NULL)
		return -1;
	return *thread.tid == (int)syscall(SYS_gettid) ? 0 : -1;
}

/* fork(), but that the descriptors stay shared and the parent is the caller's. pid, 0 or -errno. */
static pid_t clone_sharing(void)
{
	const unsigned long flags = CLONE_FILES | CLONE_PARENT | SIGCHLD;
#ifdef __s390__
	long pid = syscall(SYS_clone, 0, flags, 0, 0, 0);
#else
	long pid = syscall(SYS_clone, flags, 0, 0, 0, 0);
#endif

	if (pid == 0) {
		*thread.tid = (int)syscall(SYS_gettid);
		(void)syscall(SYS_set_tid_address, thread.tid);
		(void)syscall(SYS_set_robust_list, thread.robust, thread.robust_len);
	}
	return pid < 0 ? -errno : (pid_t)pid;
}

/* --- The words -------------------------------------------------------------------------------- */

bool twin_seat_open(struct slot *sh, enum slot_seat seat, uint32_t old, uint32_t ticket,
    pid_t *pid_r)
{
	uint64_t word = WORD(old, 0);

	if (old == 0) {
		atomic_store(&sh->seat[seat], WORD(ticket, 0));
		return true;
	}
	if (atomic_compare_exchange_strong(&sh->seat[seat], &word, WORD(ticket, 0)))
		return true;
	*pid_r = (pid_t)(word & INT32_MAX);
	return false;
}

bool twin_seat_close(struct slot *sh, enum slot_seat seat, uint32_t old, pid_t *pid_r)
{
	return twin_seat_open(sh, seat, old, 0, pid_r);
}

pid_t twin_seated(const struct slot *sh, enum slot_seat seat, uint32_t ticket)
{
	uint64_t word = atomic_load(&sh->seat[seat]);

	return word >> 32 == ticket ? (pid_t)(word & INT32_MAX) : 0;
}

static bool sit_down(struct slot *sh, enum slot_seat seat, uint32_t ticket)
{
	uint64_t word = WORD(ticket, 0);
	bool mine;

	FAULT("twin.sit.1");
	mine = atomic_compare_exchange_strong(&sh->seat[seat], &word, WORD(ticket, getpid()));
	FAULT("twin.sit.2");
	return mine;
}

/* On shared memory, so without FUTEX_PRIVATE_FLAG. */
void twin_wake(struct slot *sh, unsigned k)
{
	atomic_fetch_add(&sh->call[k], 1);
	(void)syscall(SYS_futex, &sh->call[k], FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void sleep_until_called(struct slot *sh, unsigned k, uint32_t heard)
{
	static const struct timespec look = { .tv_sec = LOOK_S };

	(void)syscall(SYS_futex, &sh->call[k], FUTEX_WAIT, heard, &look, NULL, 0);
}

/* --- Newborns --------------------------------------------------------------------------------- */

void twin_names(unsigned slot, char ident[32], char title[48], char comm[16])
{
	snprintf(ident, 32, "twin %u", slot);
	snprintf(title, 48, "parleyd: twin of worker %u", slot);
	snprintf(comm, 16, "parleyd-t%u", slot);
}

static void tie_to_master(const struct twin *t, int signal)
{
	(void)prctl(PR_SET_PDEATHSIG, signal);
	if (getppid() != t->master)
		_exit(WORKER_ORPHAN);
}

static void complain(void *arg, const char *file, int line, const char *text)
{
	(void)arg;
	log_error("configuration handed over: %s:%d: %s", file, line, text);
}

/* The text that is in force, copied while it was. NULL: no memory. */
static char *conf_text(uint32_t *version_r, uint32_t *len_r)
{
	char *text = malloc(SEGMENT_CONF_MAX);

	if (text == NULL)
		return NULL;
	do {			/* a reload writes the other one of two, so one alone does no harm */
		*version_r = atomic_load(&shm->head->conf_version);
		*len_r = atomic_load(&shm->head->conf_len[*version_r & 1]);
		if (*len_r > SEGMENT_CONF_MAX)
			*len_r = 0;
		memcpy(text, segment_at(shm->head->conf_off + (*version_r & 1) * (uint64_t)SEGMENT_CONF_MAX),
		    *len_r);
	} while (*version_r != atomic_load(&shm->head->conf_version));
	return text;
}

/* The twin remembers the configuration of its own birth; there may have been reloads. */
static void take_conf(struct twin *t)
{
	static struct conf now;
	uint32_t version, len;
	char *text;

	if (atomic_load(&shm->head->conf_version) == t->conf_version ||
	    (text = conf_text(&version, &len)) == NULL)
		return;
	conf_init(&now);
	if (conf_read_text(&now, "reload", text, len, complain, NULL) == 0 &&
	    conf_finish(&now, complain, NULL) == 0) {
		t->boot.conf = &now;
		t->conf_version = version;
	} else {
		conf_free(&now);
	}
	free(text);
}

static _Noreturn void become_worker(struct twin *t, uint32_t ticket)
{
	struct slot *sh = slot_at(t->boot.slot);
	char title[48], comm[16];
	int rc;

	snprintf(title, sizeof title, "parleyd: worker %u", t->boot.slot);
	snprintf(comm, sizeof comm, "parleyd-w%u", t->boot.slot);
	log_ident(title + strlen("parleyd: "));
	tie_to_master(t, SIGTERM);
	if (!sit_down(sh, SEAT_WORKER, ticket))
		_exit(0);
	t->boot.gen = atomic_load(&sh->gen);
	clock_tick();
	title_set(title, comm);
	take_conf(t);
	log_set_level((enum log_level)t->boot.conf->log_level);
	rc = log_reopen();
	if (rc < 0)
		log_warn("the log cannot be opened again: %s", strerror(-rc));
	_exit(worker_run(&t->boot));
}

static void become_twin(struct twin *t, enum slot_seat seat, uint32_t ticket)
{
	tie_to_master(t, SIGKILL);
	if (!sit_down(slot_at(t->boot.slot), seat, ticket))
		_exit(0);
	t->k = seat - SEAT_TWIN;
}

/* --- The twin --------------------------------------------------------------------------------- */

/* Makes who is ordered for one seat, once a ticket. Returns in the new twin, too. */
static void tend_seat(struct twin *t, enum slot_seat seat, uint32_t *tried)
{
	uint64_t word = atomic_load(&slot_at(t->boot.slot)->seat[seat]);
	uint32_t ticket = (uint32_t)(word >> 32);
	pid_t pid;

	if ((uint32_t)word != 0 || ticket == 0 || ticket == *tried || TICKET_TWIN(ticket) != t->k)
		return;
	*tried = ticket;
	FAULT("twin.clone.1");
	pid = clone_sharing();
	if (pid == 0 && seat == SEAT_WORKER)
		become_worker(t, ticket);
	if (pid == 0) {
		become_twin(t, seat, ticket);
		return;
	}
	FAULT("twin.clone.2");
	if (pid < 0) {
		log_error("cannot clone: %s", strerror(-pid));
		log_rest();
	}
}

/* Only while nobody sits, or may sit down, in the worker's seat: it would lose its descriptors. */
static void tend_tidy(struct twin *t)
{
	struct slot *sh = slot_at(t->boot.slot);
	uint32_t ticket = atomic_load(&sh->tidy);

	if (ticket == 0 || ticket == atomic_load(&sh->tidied) || TICKET_TWIN(ticket) != t->k ||
	    atomic_load(&sh->seat[SEAT_WORKER]) != 0)
		return;
	FAULT("twin.tidy.1");
	worker_tidy(&t->boot);
	log_rest();
	FAULT("twin.tidy.2");
	atomic_store(&sh->tidied, ticket);
}

static int by_number(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

/* All that is open now is the slot's, and stays. */
static int remember_descriptors(struct worker_boot *b)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	unsigned n = 0, cap = 64;
	int *keep = malloc(cap * sizeof *keep), *more;

	while (d != NULL && keep != NULL && (e = readdir(d)) != NULL) {
		if (e->d_name[0] == '.' || atoi(e->d_name) == dirfd(d))
			continue;
		if (n == cap) {
			more = realloc(keep, (cap *= 2) * sizeof *keep);
			if (more == NULL)
				free(keep);
			if ((keep = more) == NULL)
				break;
		}
		keep[n++] = atoi(e->d_name);
	}
	if (d != NULL)
		closedir(d);
	if (n == 0 || keep == NULL)
		return -1;
	qsort(keep, n, sizeof *keep, by_number);
	b->keep = keep;
	b->nkeep = n;
	return 0;
}

_Noreturn void twin_run(struct twin *t)
{
	struct slot *sh = slot_at(t->boot.slot);
	uint32_t tried[SLOT_SEATS] = { 0 };

#ifdef PARLEY_FAULTS
	fault_slot((int)t->boot.slot);
#endif
	log_rest();
	if (thread_find() < 0 || remember_descriptors(&t->boot) < 0) {
		log_error("a twin cannot work here: %s", strerror(errno));
		_exit(WORKER_FAILED);
	}
	tie_to_master(t, SIGKILL);
	for (;;) {
		unsigned k = t->k;
		uint32_t heard = atomic_load(&sh->call[k]);

		tend_tidy(t);
		for (enum slot_seat x = SEAT_WORKER; x < SLOT_SEATS; x++)
			tend_seat(t, x, &tried[x]);
		if (getppid() != t->master)
			_exit(WORKER_ORPHAN);
		if (t->k == k)		/* else this is the child, which has a call of its own */
			sleep_until_called(sh, k, heard);
	}
}

/* --- The rehearsal ---------------------------------------------------------------------------- */

struct stage {
	pthread_mutex_t lock;
	_Atomic int pid, fd;		/* of the clone: itself, a descriptor that it opened */
	_Atomic int owner_right;
	_Atomic int ready;
};

/* Waits for *WHAT, not for ever. */
static bool wait_for(_Atomic int *what)
{
	static const struct timespec ms = { .tv_nsec = 1000000 };

	for (int i = 0; i < REHEARSAL_MS && !atomic_load(what); i++)
		(void)nanosleep(&ms, NULL);
	return atomic_load(what) != 0;
}

/* The clone: opens a descriptor, takes the lock, and waits to be killed with it. */
static _Noreturn void rehearse_clone(struct stage *st)
{
	static const struct timespec long_enough = { .tv_sec = REHEARSAL_MS / 1000 };

	st->pid = getpid();
	st->fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	st->owner_right = pthread_mutex_lock(&st->lock) == 0 &&
	    st->lock.__data.__owner == (int)syscall(SYS_gettid);
	st->ready = 1;
	(void)nanosleep(&long_enough, NULL);
	_exit(1);
}

enum { REHEARSED = 0, NO_ADDRESS, NO_CLONE, NO_SHARING };

static _Noreturn void rehearse_twin(struct stage *st)
{
	pid_t pid;

	if (thread_find() < 0)
		_exit(NO_ADDRESS);
	pid = clone_sharing();
	if (pid == 0)
		rehearse_clone(st);
	if (pid < 0)
		_exit(NO_CLONE);
	_exit(wait_for(&st->ready) && fcntl(st->fd, F_GETFD) >= 0 ? REHEARSED : NO_SHARING);
}

/* What is wrong, or NULL. */
static const char *rehearse(struct stage *st)
{
	static const char *const words[] = { [NO_ADDRESS] = "the kernel does not tell PR_GET_TID_ADDRESS",
	    [NO_CLONE] = "clone with CLONE_FILES and CLONE_PARENT is refused",
	    [NO_SHARING] = "descriptors are not shared after clone with CLONE_FILES" };
	int status, code;
	pid_t pid = fork();

	if (pid == 0)
		rehearse_twin(st);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return "a child cannot be made";
	if (st->pid != 0) {
		(void)kill(st->pid, SIGKILL);
		if (waitpid(st->pid, NULL, 0) != st->pid)
			return "CLONE_PARENT does not make a child of the parent";
	}
	if (!WIFEXITED(status))
		return "clone with CLONE_FILES is punished";
	code = WEXITSTATUS(status);
	if (code != REHEARSED)
		return code > 0 && code <= NO_SHARING ? words[code] : "a child failed";
	if (!st->owner_right)
		return "the C library does not know the thread of a clone";
	return pthread_mutex_trylock(&st->lock) == EOWNERDEAD ? NULL :
	    "a lock of a clone that died is not passed on";
}

int twin_possible(char *why, size_t cap)
{
#if defined(__SANITIZE_THREAD__)
	snprintf(why, cap, "the thread sanitizer knows fork() only");
	return -1;
#else
	struct stage *st = mmap(NULL, sizeof *st, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
	    -1, 0);
	const char *wrong;

	if (st == MAP_FAILED || lock_init(&st->lock) != 0) {
		snprintf(why, cap, "out of memory");
		return -1;
	}
	wrong = rehearse(st);
	munmap(st, sizeof *st);
	snprintf(why, cap, "%s", wrong != NULL ? wrong : "");
	return wrong == NULL ? 0 : -1;
#endif
}
