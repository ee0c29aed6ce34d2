/* bench_opt.c - what was asked for: options, and the file of users. */
#include "tests/bench/bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct options opt = {
	.conns = 100, .procs = 1, .window = 1, .size = 100, .parallel = 128, .seconds = 10,
	.warmup = 0.5, .senders = 1, .driver = &driver_parley, .prefix = "bench",
};

const char *const mode_names[MODES] = {
	"pairs", "group", "login", "register", "idle", "store", "drain", "presence",
};

static const struct driver *const drivers[] = {
	&driver_parley, &driver_relay, &driver_mqtt, &driver_resp, &driver_irc, &driver_xmpp,
};

static const char usage[] =
"usage: parley-bench [OPTION]... MODE --to ADDRESS:PORT\n"
"\n"
"Puts load on a chat server and reports what it did. MODE is one of\n"
"\n"
"  pairs      clients two by two: a message answers a message (--window under way a pair),\n"
"             or messages leave by the clock (--rate)\n"
"  group      all clients in one group, --senders of them send\n"
"  login      log in, close, the next one; --parallel at once\n"
"  register   make --count accounts; their ids and tokens go to --out\n"
"  idle       log in and stay: for --seconds if given, or until standard input ends\n"
"  store      messages to --count people who are not there\n"
"  drain      they come: log in and take what waits\n"
"  presence   --count friends of every client come and go\n"
"\n"
"where\n"
"  --to ADDRESS:PORT     the server; several times, or 127.0.0.1-20:6000 for a range: the\n"
"                        connections go round. [ADDRESS]:PORT for IPv6\n"
"  --from ADDRESS[-LAST] source addresses, used in turn (loopback: chosen, so that ports last)\n"
"  --protocol NAME       parley; relay, mqtt, redis, irc or xmpp to compare (pairs, idle; group)\n"
"  --qos 0|1             of mqtt\n"
"who\n"
"  --users FILE          accounts, a line each: ID TOKEN, or what `parleyctl token` prints\n"
"  --first N             begin with the Nth of them (0)\n"
"  --password TEXT       log in by this password instead of tokens\n"
"  --ack                 confirmed delivery\n"
"  --confirm N           then RECEIVED after N messages (the window, 32 at most), or 50 ms\n"
"how much\n"
"  --conns N             connections (100)\n"
"  --procs N             processes that drive them (1)\n"
"  --cpu N[,N...]        CPUs that these run on\n"
"  --window N            messages under way (1)\n"
"  --rate N              messages a second instead; times count from when each was due\n"
"  --connect-rate N      connections a second (as fast as it goes)\n"
"  --parallel N          logins under way in each process (128)\n"
"  --size BYTES          of a message's text (100)\n"
"  --senders N           of group (1)\n"
"  --group ID            of group: an existing one that all are members of\n"
"  --count N             of register, store, presence\n"
"  --think NS            time that a client is busy with each message it gets (0)\n"
"how long\n"
"  --seconds S           of the measurement (10)\n"
"  --warmup S            before it (0.5)\n"
"  --messages N          end after N messages of pairs\n"
"report\n"
"  --json                one object a line instead of text\n"
"  --interval S          a line every S seconds as well\n"
"  --watch PID[,PID...]  the server's processes: report their CPU time and memory, with that\n"
"                        of the processes below them\n"
"  --out FILE            of register: where the accounts go\n"
"  --prefix TEXT         of register: accounts are named TEXT1, TEXT2, ... (bench)\n";

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *format, ...)
{
	va_list ap;

	fputs("parley-bench: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputs("\nparley-bench: --help lists the options\n", stderr);
	exit(2);
}

/* --- numbers --- */

static double take_real(const char *name, const char *text, double min, double max)
{
	char *end;
	double v = strtod(text, &end);

	if (end == text || *end != '\0' || !(v >= min && v <= max))
		die("--%s wants a number from %g to %g, not \"%s\"", name, min, max, text);
	return v;
}

static uint32_t take_number(const char *name, const char *text, uint32_t min, uint32_t max)
{
	char *end;
	unsigned long long v = strtoull(text, &end, 10);

	if (end == text || *end != '\0' || *text == '-' || v < min || v > max)
		die("--%s wants a whole number from %u to %u, not \"%s\"", name, min, max, text);
	return (uint32_t)v;
}

static uint32_t take_list(const char *name, char *text, uint32_t *list, uint32_t cap)
{
	uint32_t n = 0;

	for (char *p = strtok(text, ","); p != NULL; p = strtok(NULL, ",")) {
		if (n == cap)
			die("--%s takes %u at most", name, cap);
		list[n++] = take_number(name, p, 0, INT32_MAX);
	}
	return n;
}

/* --- addresses --- */

static void add_address(const struct sockaddr *sa, size_t len)
{
	if (opt.nto == MAX_ADDRS)
		die("--to: %u addresses at most", MAX_ADDRS);
	memcpy(&opt.to[opt.nto++], sa, len);
}

/* "A.B.C.D-N:PORT": all with a last byte of D to N. False: it is no range. */
static bool take_range(const char *host, const char *port)
{
	const char *dash = strrchr(host, '-');
	struct sockaddr_in sin = { .sin_family = AF_INET };
	char first[64];
	uint32_t a, last;

	if (dash == NULL || (size_t)(dash - host) >= sizeof first)
		return false;
	memcpy(first, host, (size_t)(dash - host));
	first[dash - host] = '\0';
	if (inet_pton(AF_INET, first, &sin.sin_addr) != 1)
		return false;
	a = ntohl(sin.sin_addr.s_addr);
	last = take_number("to", dash + 1, a & 255, 255);
	sin.sin_port = htons((uint16_t)take_number("to", port, 1, 65535));
	for (uint32_t i = a & 255; i <= last; i++, a++) {
		sin.sin_addr.s_addr = htonl(a);
		add_address((struct sockaddr *)&sin, sizeof sin);
	}
	return true;
}

static void take_to(const char *text)
{
	const char *colon = strrchr(text, ':');
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *res;
	char host[256];
	size_t n;
	int rc;

	if (colon == NULL || (size_t)(colon - text) >= sizeof host)
		die("--to wants ADDRESS:PORT, not \"%s\"", text);
	n = (size_t)(colon - text);
	if (n > 2 && text[0] == '[' && text[n - 1] == ']') {
		text++;
		n -= 2;
	}
	memcpy(host, text, n);
	host[n] = '\0';
	if (take_range(host, colon + 1))
		return;
	rc = getaddrinfo(host, colon + 1, &hints, &res);
	if (rc != 0)
		die("--to %s: %s", host, gai_strerror(rc));
	add_address(res->ai_addr, res->ai_addrlen);
	freeaddrinfo(res);
}

static void take_from(char *text)
{
	char *dash = strchr(text, '-');
	struct in_addr first, last;

	if (dash != NULL)
		*dash = '\0';
	if (inet_pton(AF_INET, text, &first) != 1 ||
	    inet_pton(AF_INET, dash != NULL ? dash + 1 : text, &last) != 1 ||
	    ntohl(last.s_addr) < ntohl(first.s_addr))
		die("--from wants IPv4 addresses, FIRST or FIRST-LAST");
	opt.from = ntohl(first.s_addr);
	opt.nfrom = ntohl(last.s_addr) - opt.from + 1;
}

/* --- accounts --- */

/* One line: the first word is the id, the last the token; a name may stand between. */
static void add_user(const char *at, const char *end, uint32_t line)
{
	struct user u = { 0 };
	const char *p = at, *last;

	for (; p < end && *p >= '0' && *p <= '9' && u.id < UINT32_MAX / 16; p++)
		u.id = u.id * 10 + (uint32_t)(*p - '0');
	if (u.id == 0 || (p < end && *p != ' ' && *p != '\t'))
		die("%s:%u: a line is ID TOKEN, or ID<tab>NAME<tab>TOKEN", opt.users_file, line);
	for (last = end; last > p && last[-1] != ' ' && last[-1] != '\t';)
		last--;
	if (last > p) {
		u.token = last;
		u.len = (uint32_t)(end - last);
	}
	if (u.len >= MAX_TOKEN)
		die("%s:%u: the token is too long", opt.users_file, line);
	if (opt.nusers % 65536 == 0) {
		opt.users = realloc(opt.users, (opt.nusers + 65536) * sizeof u);
		if (opt.users == NULL)
			abort();
	}
	opt.users[opt.nusers++] = u;
}

/* The file stays mapped: its tokens are used where they stand, by all processes. */
static void read_users(void)
{
	int fd = open(opt.users_file, O_RDONLY | O_CLOEXEC);
	const char *p, *end, *nl;
	struct stat st;
	uint32_t line = 0;

	if (fd < 0 || fstat(fd, &st) != 0)
		die("--users %s: %s", opt.users_file, strerror(errno));
	if (st.st_size == 0)
		die("--users %s: it is empty", opt.users_file);
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		die("--users %s: %s", opt.users_file, strerror(errno));
	close(fd);
	for (end = p + st.st_size; p < end; p = nl + 1) {
		nl = memchr(p, '\n', (size_t)(end - p));
		if (nl == NULL)
			nl = end;
		line++;
		if (nl > p && *p != '#')
			add_user(p, nl, line);
	}
}

/* --- all together --- */

static void take_mode(const char *text)
{
	for (opt.mode = 0; opt.mode < MODES; opt.mode++)
		if (strcmp(mode_names[opt.mode], text) == 0)
			return;
	die("there is no mode \"%s\"", text);
}

static void take_protocol(const char *text)
{
	for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++)
		if (strcmp(drivers[i]->name, text) == 0) {
			opt.driver = drivers[i];
			return;
		}
	die("there is no protocol \"%s\"", text);
}

/* Accounts that the mode takes from the file. */
static uint32_t users_needed(void)
{
	switch (opt.mode) {
	case MODE_REGISTER:	return 0;
	case MODE_LOGIN:	return opt.first + 1;
	case MODE_STORE:
	case MODE_PRESENCE:	return opt.first + opt.conns + opt.count;
	default:		return opt.first + opt.conns;
	}
}

static void check_register(void)
{
	if (opt.count == 0 || opt.out_file == NULL || opt.password == NULL)
		die("register wants --count, --out and --password");
	if (strpbrk(opt.password, "\"\\") != NULL || strpbrk(opt.prefix, "\"\\") != NULL ||
	    strlen(opt.password) > 128 || strlen(opt.prefix) > 40)
		die("--password and --prefix: 128 and 40 bytes at most, no quotes and no backslash");
	opt.procs = 1;
	opt.nusers = opt.count;
	opt.users = calloc(opt.count, sizeof *opt.users);
	if (opt.users == NULL)
		abort();
	if (opt.parallel > opt.count)
		opt.parallel = opt.count;
}

static void check(void)
{
	bool foreign = opt.driver != &driver_parley;

	if (opt.nto == 0)
		die("where is the server? --to ADDRESS:PORT");
	if (foreign && opt.mode != MODE_PAIRS && opt.mode != MODE_IDLE && opt.mode != MODE_GROUP)
		die("--protocol %s knows pairs, idle and group only", opt.driver->name);
	if (foreign && opt.mode == MODE_GROUP && opt.driver->group == NULL)
		die("--protocol %s has no group here", opt.driver->name);
	if (opt.conns < opt.procs || (opt.mode == MODE_PAIRS && opt.conns < 2 * opt.procs))
		die("%u connections are too few for %u processes", opt.conns, opt.procs);
	if (opt.mode == MODE_GROUP && opt.senders > opt.conns)
		die("%u senders of %u connections?", opt.senders, opt.conns);
	if ((opt.mode == MODE_STORE || opt.mode == MODE_PRESENCE) && opt.count == 0)
		die("%s wants --count", mode_names[opt.mode]);
	if (opt.users_file != NULL)
		read_users();
	if (opt.mode == MODE_REGISTER)
		check_register();
	else if (!foreign && opt.nusers < users_needed())
		die("%u users are needed, %s%s%u (--users, --first)", users_needed(),
		    opt.users_file != NULL ? opt.users_file : "", opt.users_file != NULL ? " has " :
		    "there are ", opt.nusers);
	if (!foreign && opt.mode != MODE_REGISTER && opt.password == NULL &&
	    opt.users[opt.first].token == NULL)
		die("%s has no tokens: --password?", opt.users_file);
	if (opt.confirm == 0)
		opt.confirm = opt.window < 32 ? opt.window : 32;
}

enum {
	O_TO = 256, O_FROM, O_PROTOCOL, O_QOS, O_USERS, O_FIRST, O_PASSWORD, O_ACK, O_CONFIRM, O_CONNS,
	O_PROCS, O_CPU, O_WINDOW, O_RATE, O_CONNECT_RATE, O_PARALLEL, O_SIZE, O_SENDERS, O_GROUP,
	O_THINK, O_PREFIX, O_COUNT, O_SECONDS, O_WARMUP, O_MESSAGES, O_JSON, O_INTERVAL, O_WATCH, O_OUT, O_MODE,
};

static const struct option longs[] = {
	{ "to", 1, 0, O_TO }, { "from", 1, 0, O_FROM }, { "protocol", 1, 0, O_PROTOCOL },
	{ "qos", 1, 0, O_QOS }, { "users", 1, 0, O_USERS }, { "first", 1, 0, O_FIRST },
	{ "password", 1, 0, O_PASSWORD }, { "ack", 0, 0, O_ACK }, { "confirm", 1, 0, O_CONFIRM },
	{ "conns", 1, 0, O_CONNS }, { "procs", 1, 0, O_PROCS }, { "cpu", 1, 0, O_CPU },
	{ "window", 1, 0, O_WINDOW }, { "rate", 1, 0, O_RATE },
	{ "connect-rate", 1, 0, O_CONNECT_RATE }, { "parallel", 1, 0, O_PARALLEL },
	{ "size", 1, 0, O_SIZE }, { "senders", 1, 0, O_SENDERS }, { "group", 1, 0, O_GROUP },
	{ "think", 1, 0, O_THINK }, { "prefix", 1, 0, O_PREFIX }, { "count", 1, 0, O_COUNT }, { "seconds", 1, 0, O_SECONDS }, { "warmup", 1, 0, O_WARMUP },
	{ "messages", 1, 0, O_MESSAGES }, { "json", 0, 0, O_JSON }, { "interval", 1, 0, O_INTERVAL },
	{ "watch", 1, 0, O_WATCH }, { "out", 1, 0, O_OUT }, { "mode", 1, 0, O_MODE },
	{ "help", 0, 0, 'h' }, { "version", 0, 0, 'V' }, { 0 }
};

static void take(int o, const char *name, char *arg)
{
	switch (o) {
	case O_TO:		take_to(arg); break;
	case O_FROM:		take_from(arg); break;
	case O_PROTOCOL:	take_protocol(arg); break;
	case O_MODE:		take_mode(arg); break;
	case O_QOS:		opt.qos = take_number(name, arg, 0, 1); break;
	case O_USERS:		opt.users_file = arg; break;
	case O_FIRST:		opt.first = take_number(name, arg, 0, 1u << 30); break;
	case O_PASSWORD:	opt.password = arg; break;
	case O_ACK:		opt.ack = true; break;
	case O_CONFIRM:		opt.confirm = take_number(name, arg, 1, 64); break;
	case O_CONNS:		opt.conns = take_number(name, arg, 1, 1u << 24); break;
	case O_PROCS:		opt.procs = take_number(name, arg, 1, MAX_PROCS); break;
	case O_CPU:		opt.ncpus = take_list(name, arg, opt.cpus, 64); break;
	case O_WINDOW:		opt.window = take_number(name, arg, 1, 100000); break;
	case O_RATE:		opt.rate = take_real(name, arg, 0.001, 1e9); break;
	case O_CONNECT_RATE:	opt.connect_rate = take_real(name, arg, 0.001, 1e9); break;
	case O_PARALLEL:	opt.parallel = take_number(name, arg, 1, 100000); break;
	case O_SIZE:		opt.size = take_number(name, arg, TEXT_HEAD, 60000); break;
	case O_SENDERS:		opt.senders = take_number(name, arg, 1, 1u << 24); break;
	case O_GROUP:		opt.group = take_number(name, arg, 1, INT32_MAX); break;
	case O_THINK:		opt.think = take_number(name, arg, 0, 1000000000); break;
	case O_PREFIX:		opt.prefix = arg; break;
	case O_COUNT:		opt.count = take_number(name, arg, 1, 1u << 24); break;
	case O_SECONDS:		opt.seconds = take_real(name, arg, 0.01, 1e7); break;
	case O_WARMUP:		opt.warmup = take_real(name, arg, 0, 1e6); break;
	case O_MESSAGES:	opt.messages = take_number(name, arg, 1, UINT32_MAX); break;
	case O_JSON:		opt.json = true; break;
	case O_INTERVAL:	opt.interval = take_real(name, arg, 0.01, 1e6); break;
	case O_WATCH:		opt.nwatch = take_list(name, arg, opt.watch, 64); break;
	case O_OUT:		opt.out_file = arg; break;
	case 'V':		puts("parley-bench " PARLEY_VERSION); exit(0);
	case 'h':		fputs(usage, stdout); exit(0);
	default:		fputs("parley-bench: --help lists the options\n", stderr); exit(2);
	}
}

void options_parse(int argc, char **argv)
{
	bool timed = false, named = false;
	int at = 0;

	for (int o; (o = getopt_long(argc, argv, "hV", longs, &at)) != -1;) {
		take(o, o >= 256 ? longs[at].name : "", optarg);
		timed = timed || o == O_SECONDS;
		named = named || o == O_MODE;
	}
	if (optind < argc && !named) {
		take_mode(argv[optind++]);
		named = true;
	}
	if (optind < argc)
		die("what is \"%s\"?", argv[optind]);
	if (!named)
		die("which mode?");
	if (opt.mode == MODE_IDLE)
		opt.warmup = 0;
	if (opt.mode == MODE_IDLE && !timed)
		opt.seconds = 0;			/* until standard input ends */
	check();
}
