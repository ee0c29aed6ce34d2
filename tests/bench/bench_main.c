/*
 * bench_main.c - parley-bench: puts load on a chat server and reports what it did.
 *
 * Each of --procs processes drives its share of the connections; the parent starts them at the
 * same moment, reads the server's CPU time and memory around the measurement, and adds up.
 */
#include "tests/bench/bench.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

struct board *board;
struct tally *mine;

static struct outcome outcome;
static uint32_t nchildren;
static bool child_failed;

static void pin(uint32_t p)
{
	cpu_set_t set;

	if (opt.ncpus == 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(opt.cpus[p % opt.ncpus], &set);
	if (sched_setaffinity(0, sizeof set, &set) != 0)
		fprintf(stderr, "parley-bench: --cpu %u: %s\n", opt.cpus[p % opt.ncpus], strerror(errno));
}

static void start_children(void)
{
	for (uint32_t p = 0; p < opt.procs; p++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("parley-bench: fork");
			exit(1);
		}
		if (pid > 0) {
			nchildren++;
			continue;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_TIMERSLACK, 1UL);		/* the clock of --rate */
		signal(SIGINT, SIG_IGN);		/* the parent ends it */
		pin(p);
		mine = &board->tally[p];
		load_run(p);
		_exit(0);
	}
}

/* Takes notice of children that ended; with WAIT until all have. */
static void reap(bool wait)
{
	int st;

	while (nchildren > 0 && waitpid(-1, &st, wait ? 0 : WNOHANG) > 0) {
		nchildren--;
		if (st != 0)
			child_failed = true;
	}
}

static void give_up(void)
{
	exit(1);			/* the children end with their parent */
}

/* Sleeps until then, with a line now and again; leaves early when nobody works any more. */
static void watch_until(int64_t ns)
{
	static int64_t next, last;
	int64_t period = (int64_t)(opt.interval * 1e9);

	for (int64_t now; (now = now_ns()) < ns && nchildren > 0;) {
		int64_t left = ns - now;

		if (period > 0 && next == 0)
			next = (last = now) + period;
		if (period > 0 && now >= next) {
			report_interval((double)(now - begin_ns) / 1e9, (double)(now - last) / 1e9);
			last = now;
			next += period;
		}
		if (period > 0 && next - now < left)
			left = next - now;
		if (left > 20000000)
			left = 20000000;
		usleep(left > 0 ? (useconds_t)(left / 1000) : 1);
		reap(false);
		if (child_failed)
			give_up();
	}
}

/* Idle sessions stay for --seconds, or until standard input ends. */
static void hold(void)
{
	char line[100];

	outcome.memory_after = proc_memory();
	outcome.cpu_seconds += proc_cpu();
	outcome.load_seconds += proc_cpu_load();
	report_ready(&outcome);
	if (opt.seconds > 0)
		watch_until(now_ns() + (int64_t)(opt.seconds * 1e9));
	else
		while (read(0, line, sizeof line) > 0)
			;
	proc_find();
	outcome.memory_after = proc_memory();
	atomic_store(&board->stop, true);
}

static void measure(void)
{
	int64_t start = now_ns() + 20000000;

	begin_ns = start + (int64_t)(opt.warmup * 1e9);
	atomic_store(&board->start_ns, (unsigned long long)start);
	if (opt.mode == MODE_IDLE) {
		hold();
		return;
	}
	watch_until(begin_ns);
	outcome.cpu_seconds = -proc_cpu();
	outcome.load_seconds = -proc_cpu_load();
	if (opt.messages > 0 || opt.mode == MODE_DRAIN || opt.mode == MODE_REGISTER)
		watch_until(INT64_MAX);
	else
		watch_until(begin_ns + (int64_t)(opt.seconds * 1e9));
	outcome.cpu_seconds += proc_cpu();
	outcome.load_seconds += proc_cpu_load();
}

int main(int argc, char **argv)
{
	struct rlimit rl;

	options_parse(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
		if ((opt.conns + opt.procs - 1) / opt.procs + 16 > rl.rlim_max) {
			fprintf(stderr, "parley-bench: %u connections need %llu processes (--procs): each may "
			    "have %llu files open\n", opt.conns, (unsigned long long)(opt.conns /
			    (rl.rlim_max - 16) + 1), (unsigned long long)rl.rlim_max);
			return 2;
		}
	}
	board = mmap(NULL, sizeof *board + opt.procs * sizeof(struct tally), PROT_READ | PROT_WRITE,
	    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (board == MAP_FAILED) {
		perror("parley-bench");
		return 1;
	}
	proc_find();
	outcome.memory_before = proc_memory();
	outcome.cpu_seconds = -proc_cpu();	/* of the logins, if that is all */
	start_children();
	while (atomic_load(&board->ready) < opt.procs) {
		usleep(2000);
		reap(false);
		if (child_failed || nchildren < opt.procs)
			give_up();
	}
	measure();
	reap(true);
	report_end(&outcome);
	return child_failed;
}
