/*
 * bench_main.c - parley-bench: puts load on a chat server and reports one line of JSON.
 *
 * Each of --procs processes drives its share of the connections; the parent starts them at the
 * same moment, reads the server's CPU time around the measurement, and adds up.
 */
#include "tests/bench/bench.h"

#include <arpa/inet.h>
#include <getopt.h>
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

struct options opt = {
	.conns = 100, .procs = 1, .window = 1, .size = 100, .parallel = 128, .seconds = 3,
	.warmup = 0.5, .cpu = -1,
};
struct board *board;
struct tally *mine;

static const char *const modes[] = { "pairs", "login", "register", "idle", "group", "store", "drain" };

static const char usage[] =
"usage: parley-bench --to ADDRESS:PORT [--mode MODE] [OPTION]...\n"
"modes: pairs     two by two, a message answers a message (--window), or by the clock (--rate)\n"
"       login     log in, close, the next; --parallel at once\n"
"       register  make --count accounts, write \"ID TOKEN\" lines to --out\n"
"       idle      log in and stay until standard input ends\n"
"       group     --conns members of one group, one of them sends\n"
"       store     messages to --count people who are not there\n"
"       drain     they come: log in and take what waits\n"
"options: --conns N --procs N --window N --size BYTES --seconds S --warmup S --rate MESSAGES/S\n"
"         --users FILE --first N --password TEXT --parallel N --count N --out FILE --cpu N\n"
"         --ack (confirmed delivery) --raw (the server is a relay: no login)\n"
"         --watch PID[,PID...] (whose CPU time to report)\n";

static void die(const char *why)
{
	fprintf(stderr, "parley-bench: %s\n", why);
	exit(2);
}

static void take_address(const char *text)
{
	const char *colon = strrchr(text, ':');
	char host[64];

	if (colon == NULL || (size_t)(colon - text) >= sizeof host)
		die("--to wants ADDRESS:PORT");
	memcpy(host, text, (size_t)(colon - text));
	host[colon - text] = '\0';
	opt.to.sin_family = AF_INET;
	opt.to.sin_port = htons((uint16_t)atoi(colon + 1));
	if (inet_pton(AF_INET, host, &opt.to.sin_addr) != 1)
		die("--to wants a numeric IPv4 address");
}

static void take_pids(char *text)
{
	for (char *p = strtok(text, ","); p != NULL && opt.npids < 64; p = strtok(NULL, ","))
		opt.pids[opt.npids++] = (uint32_t)atoi(p);
}

static void read_users(void)
{
	FILE *f = fopen(opt.users_file, "r");
	struct user u;

	if (f == NULL)
		die("cannot open the file of users");
	while (fscanf(f, "%u %511s", &u.id, u.token) == 2) {
		if (opt.nusers % 1024 == 0)
			opt.users = realloc(opt.users, (opt.nusers + 1024) * sizeof u);
		if (opt.users == NULL)
			abort();
		opt.users[opt.nusers++] = u;
	}
	fclose(f);
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "to", 1, 0, 't' }, { "mode", 1, 0, 'm' }, { "conns", 1, 0, 'c' }, { "procs", 1, 0, 'p' },
		{ "window", 1, 0, 'w' }, { "size", 1, 0, 's' }, { "seconds", 1, 0, 'S' },
		{ "warmup", 1, 0, 'W' }, { "rate", 1, 0, 'r' }, { "users", 1, 0, 'u' },
		{ "first", 1, 0, 'f' }, { "password", 1, 0, 'P' }, { "parallel", 1, 0, 'l' },
		{ "count", 1, 0, 'n' }, { "out", 1, 0, 'o' }, { "cpu", 1, 0, 'C' }, { "ack", 0, 0, 'a' },
		{ "raw", 0, 0, 'R' }, { "watch", 1, 0, 'x' }, { "help", 0, 0, 'h' }, { 0 }
	};
	uint32_t need;

	for (int o; (o = getopt_long(argc, argv, "h", longs, NULL)) != -1;)
		switch (o) {
		case 't': take_address(optarg); break;
		case 'm':
			for (opt.mode = 0; strcmp(modes[opt.mode], optarg) != 0;)
				if (++opt.mode == sizeof modes / sizeof *modes)
					die("no such mode");
			break;
		case 'c': opt.conns = (uint32_t)atoi(optarg); break;
		case 'p': opt.procs = (uint32_t)atoi(optarg); break;
		case 'w': opt.window = (uint32_t)atoi(optarg); break;
		case 's': opt.size = (uint32_t)atoi(optarg); break;
		case 'S': opt.seconds = atof(optarg); break;
		case 'W': opt.warmup = atof(optarg); break;
		case 'r': opt.rate = atof(optarg); break;
		case 'u': opt.users_file = optarg; break;
		case 'f': opt.first = (uint32_t)atoi(optarg); break;
		case 'P': opt.password = optarg; break;
		case 'l': opt.parallel = (uint32_t)atoi(optarg); break;
		case 'n': opt.count = (uint32_t)atoi(optarg); break;
		case 'o': opt.out_file = optarg; break;
		case 'C': opt.cpu = atoi(optarg); break;
		case 'a': opt.ack = true; break;
		case 'R': opt.raw = true; break;
		case 'x': take_pids(optarg); break;
		default: fputs(usage, o == 'h' ? stdout : stderr); exit(o == 'h' ? 0 : 2);
		}
	if (opt.to.sin_family == 0 || opt.procs == 0 || opt.procs > 64 || opt.window == 0)
		die("--to ADDRESS:PORT, 1 to 64 processes and a window of at least 1, please");
	if (opt.size < 24 || opt.size > 60000)
		die("a message has 24 to 60000 bytes");
	if (opt.users_file != NULL)
		read_users();
	if (opt.mode == MODE_REGISTER) {
		opt.procs = 1;
		opt.nusers = opt.count;
		opt.users = calloc(opt.count, sizeof *opt.users);
		if (opt.parallel > opt.count)
			opt.parallel = opt.count;
		if (opt.count == 0 || opt.users == NULL || opt.out_file == NULL || opt.password == NULL)
			die("register wants --count, --out and --password");
	}
	if (opt.mode == MODE_STORE && opt.count == 0)
		die("store wants --count");
	need = opt.mode == MODE_LOGIN ? 1 : opt.mode == MODE_REGISTER ? 0 :
	    opt.first + opt.conns + (opt.mode == MODE_STORE ? opt.count : 0);
	if (!opt.raw && opt.nusers < need)
		die("more users, please (--users)");
}

/* CPU time of a process, all its threads, in seconds. */
static double cpu_of(uint32_t pid)
{
	char path[64], text[1024], *p;
	unsigned long user = 0, sys = 0;
	FILE *f;
	size_t n;

	snprintf(path, sizeof path, "/proc/%u/stat", pid);
	f = fopen(path, "r");
	if (f == NULL)
		return 0;
	n = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[n] = '\0';
	p = strrchr(text, ')');
	if (p == NULL || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
	    &user, &sys) != 2)
		return 0;
	return (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
}

static double cpu_all(void)
{
	double sum = 0;

	for (uint32_t i = 0; i < opt.npids; i++)
		sum += cpu_of(opt.pids[i]);
	return sum;
}

static void pin(void)
{
	cpu_set_t set;

	if (opt.cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET((unsigned)opt.cpu, &set);
	sched_setaffinity(0, sizeof set, &set);
}

static void sleep_until(int64_t ns)
{
	int64_t left = ns - now_ns();

	if (left > 0)
		usleep((useconds_t)(left / 1000));
}

static void report(double cpu)
{
	static struct tally sum;
	double secs;

	for (uint32_t p = 0; p < opt.procs; p++) {
		const struct tally *t = &board->tally[p];

		sum.sent += t->sent;
		sum.received += t->received;
		sum.acked += t->acked;
		sum.refused += t->refused;
		sum.bytes_in += t->bytes_in;
		sum.logins += t->logins;
		if (t->measured_ns > sum.measured_ns)
			sum.measured_ns = t->measured_ns;
		hist_merge(&sum.hist, &t->hist);
	}
	secs = (double)sum.measured_ns / 1e9;
	printf("{\"mode\":\"%s\",\"conns\":%u,\"procs\":%u,\"window\":%u,\"size\":%u,\"offered\":%.0f,"
	    "\"seconds\":%.3f,\"sent\":%llu,\"received\":%llu,\"acked\":%llu,\"refused\":%llu,"
	    "\"logins\":%llu,\"per_second\":%.1f,\"acked_per_second\":%.1f,\"logins_per_second\":%.1f,"
	    "\"server_cpu_us\":%.3f,\"server_cpu_share\":%.3f,\"mean_us\":%.1f,\"p50_us\":%.1f,"
	    "\"p90_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f}\n",
	    modes[opt.mode], opt.conns, opt.procs, opt.window, opt.size, opt.rate, secs,
	    (unsigned long long)sum.sent, (unsigned long long)sum.received,
	    (unsigned long long)sum.acked, (unsigned long long)sum.refused,
	    (unsigned long long)sum.logins, secs > 0 ? (double)sum.received / secs : 0,
	    secs > 0 ? (double)sum.acked / secs : 0, secs > 0 ? (double)sum.logins / secs : 0,
	    sum.received > 0 ? cpu * 1e6 / (double)sum.received : 0, secs > 0 ? cpu / secs : 0,
	    sum.hist.count > 0 ? (double)sum.hist.sum / (double)sum.hist.count / 1e3 : 0,
	    (double)hist_quantile(&sum.hist, 0.5) / 1e3, (double)hist_quantile(&sum.hist, 0.9) / 1e3,
	    (double)hist_quantile(&sum.hist, 0.99) / 1e3, (double)hist_quantile(&sum.hist, 0.999) / 1e3,
	    (double)sum.hist.max / 1e3);
}

int main(int argc, char **argv)
{
	struct rlimit rl;
	double cpu = 0;
	int bad = 0;

	parse(argc, argv);
	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	board = mmap(NULL, sizeof *board + opt.procs * sizeof(struct tally), PROT_READ | PROT_WRITE,
	    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (board == MAP_FAILED)
		die("no memory");
	for (uint32_t p = 0; p < opt.procs; p++)
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pin();
			mine = &board->tally[p];
			_exit(load_run(p) == 0 ? 0 : 1);
		}
	while (atomic_load(&board->ready) < opt.procs && atomic_load(&board->failed) == 0)
		usleep(2000);
	if (atomic_load(&board->failed) != 0)
		return 1;
	int64_t start = now_ns() + 20000000;

	atomic_store(&board->start_ns, (unsigned long long)start);
	if (opt.mode == MODE_IDLE) {
		puts("ready");
		fflush(stdout);
		while (getchar() != EOF)
			;
		atomic_store(&board->stop, true);
	} else if (opt.mode == MODE_PAIRS || opt.mode == MODE_GROUP || opt.mode == MODE_STORE) {
		sleep_until(start + (int64_t)(opt.warmup * 1e9));
		cpu = -cpu_all();
		sleep_until(start + (int64_t)((opt.warmup + opt.seconds) * 1e9));
		cpu += cpu_all();
	}
	for (int st; wait(&st) > 0;)
		if (st != 0)
			bad = 1;
	if (opt.mode != MODE_IDLE)
		report(cpu);
	return bad;
}
