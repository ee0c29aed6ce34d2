/* main.c - parley, the shell client: arguments and environment. */
#include <errno.h>
#include <getopt.h>
#include <langinfo.h>
#include <locale.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "client/place.h"
#include "client/shell.h"
#include "client/text.h"
#include "worker/base/json.h"

#define SERVERS_MAX 16
#define SECONDS_MAX (7 * 24 * 3600)

enum { OPT_REGISTER = 256, OPT_PASSWORD_FILE, OPT_JSON, OPT_WAIT, OPT_TIMEOUT, OPT_NO_COLOR,
	OPT_STATE_DIR, OPT_HELP };

struct args {
	struct shell_options o;
	struct shell_server server[SERVERS_MAX];
	const char *port, *password_file;
	char *host[SERVERS_MAX];	/* copies that server[] points into */
};

static const char usage_text[] =
"usage: parley [-h HOST[:PORT],...]... [-p PORT] [-u PATH] [OPTION]... [NAME]\n"
"  -h HOST[:PORT],...    servers; may be repeated: the next one is tried when one is gone\n"
"  -p PORT               port where -h names none (6000)\n"
"  -u PATH               unix socket of a server on this machine\n"
"  --register            make the account NAME first\n"
"  --password-file FILE  the password is the file's first line\n"
"                        (or the environment's PARLEY_PASSWORD; otherwise it is asked for)\n"
"  --json                one JSON object a line, for programs\n"
"  --wait SECONDS        without a terminal: keep printing messages after the end of input\n"
"  --timeout SECONDS     without a terminal: how long an answer may take (30)\n"
"  --no-color            no colours (also: NO_COLOR set)\n"
"  --state-dir DIR       where unconfirmed messages and the history are kept\n"
"  -V, --version         version\n"
"  --help                this text\n"
"NAME is a name or an id. On a terminal, /help lists the commands; otherwise they are read\n"
"from standard input, one a line. See parley(1).\n";

static _Noreturn void usage_error(const char *what, const char *why)
{
	fprintf(stderr, "parley: %s%s\nparley: --help lists the options\n", what, why);
	exit(SHELL_USAGE);
}

static unsigned read_seconds(const char *option, const char *text)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (*text == '\0' || *end != '\0' || errno != 0 || n < 0 || n > SECONDS_MAX)
		usage_error(option, " takes a number of seconds");
	return (unsigned)n;
}

static void check_port(const char *port)
{
	int64_t n = text_id(port);

	if (n < 1 || n > 65535)
		usage_error(port, " is no port");
}

static struct shell_server *add_server(struct args *a)
{
	if (a->o.nservers == SERVERS_MAX)
		usage_error("too many servers", "");
	return &a->server[a->o.nservers++];
}

static void add_host(struct args *a, const char *text)
{
	struct shell_server *s = add_server(a);
	char *room = a->host[s - a->server] = text_alloc(PLACE_HOST + PLACE_PORT);

	int rc = place_split(text, room, room + PLACE_HOST);

	if (rc != 0)
		usage_error(text, rc == -1 ? " is no host" : ": that is no port");
	s->host = room;
	s->port = room[PLACE_HOST] != '\0' ? room + PLACE_HOST : NULL;
}

/* One or several, with commas between. */
static void add_hosts(struct args *a, const char *text)
{
	char *copy = text_copy(text), *rest = copy, *one;

	while ((one = strsep(&rest, ",")) != NULL)
		add_host(a, one);
	free(copy);
}

static void read_args(struct args *a, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "register", no_argument, NULL, OPT_REGISTER },
		{ "password-file", required_argument, NULL, OPT_PASSWORD_FILE },
		{ "json", no_argument, NULL, OPT_JSON },
		{ "wait", required_argument, NULL, OPT_WAIT },
		{ "timeout", required_argument, NULL, OPT_TIMEOUT },
		{ "no-color", no_argument, NULL, OPT_NO_COLOR },
		{ "no-colour", no_argument, NULL, OPT_NO_COLOR },
		{ "state-dir", required_argument, NULL, OPT_STATE_DIR },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, OPT_HELP },
		{ "host", required_argument, NULL, 'h' },
		{ "port", required_argument, NULL, 'p' },
		{ "unix", required_argument, NULL, 'u' },
		{ 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h:p:u:V", longs, NULL)) != -1) {
		switch (c) {
		case 'h': add_hosts(a, optarg); break;
		case 'p': a->port = optarg; check_port(optarg); break;
		case 'u': add_server(a)->path = optarg; break;
		case OPT_REGISTER: a->o.registers = true; break;
		case OPT_PASSWORD_FILE: a->password_file = optarg; break;
		case OPT_JSON: a->o.json = true; break;
		case OPT_WAIT: a->o.wait_s = read_seconds("--wait", optarg); break;
		case OPT_TIMEOUT: a->o.timeout_s = read_seconds("--timeout", optarg); break;
		case OPT_NO_COLOR: a->o.colours = false; break;
		case OPT_STATE_DIR: a->o.state_root = optarg; break;
		case 'V': puts("parley " PARLEY_VERSION); exit(SHELL_OK);
		case OPT_HELP: fputs(usage_text, stdout); exit(SHELL_OK);
		case ':': usage_error(argv[optind - 1], " needs a value");
		default: usage_error(argv[optind - 1], " is no option");
		}
	}
	if (optind < argc)
		a->o.name = argv[optind++];
	if (optind < argc)
		usage_error(argv[optind], ": one NAME is enough");
}

/* The first line of the file, or the environment's; neither stays readable to others. */
static char *read_password(const char *file)
{
	const char *env = getenv("PARLEY_PASSWORD");
	char *line = NULL;
	size_t cap = 0;
	FILE *f;

	if (file == NULL) {
		char *copy = env != NULL ? text_copy(env) : NULL;

		unsetenv("PARLEY_PASSWORD");
		return copy;
	}
	f = strcmp(file, "-") == 0 ? NULL : fopen(file, "re");
	if (f == NULL) {
		fprintf(stderr, "parley: %s: %s\n", file, strcmp(file, "-") == 0 ?
		    "standard input is for commands" : strerror(errno));
		exit(SHELL_USAGE);
	}
	if (getline(&line, &cap, f) < 0)
		usage_error(file, " is empty");
	fclose(f);
	line[strcspn(line, "\r\n")] = '\0';
	return line;
}

/* Names and texts are UTF-8 whatever the locale: without one, the C library's own. */
static void set_locale(void)
{
	if (setlocale(LC_CTYPE, "") == NULL || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
		setlocale(LC_CTYPE, "C.UTF-8");
}

int main(int argc, char **argv)
{
	const char *no_color = getenv("NO_COLOR");
	struct args a = { .o = { .colours = no_color == NULL || no_color[0] == '\0',
	    .timeout_s = 30 }, .port = "6000" };
	char *password;
	int rc;

	umask(077);
	set_locale();
	read_args(&a, argc, argv);
	if (a.o.nservers == 0)
		add_server(&a)->host = "127.0.0.1";
	for (size_t i = 0; i < a.o.nservers; i++)
		if (a.server[i].path == NULL && a.server[i].port == NULL)
			a.server[i].port = a.port;
	if (a.o.name != NULL && (a.o.name[0] == '\0' ||
	    !json_utf8_valid(a.o.name, strlen(a.o.name))))
		usage_error("NAME is empty or not UTF-8", "");
	if (a.o.registers && a.o.name != NULL && text_id(a.o.name) > 0)
		usage_error(a.o.name, " is an id: --register takes a name");
	if (sodium_init() < 0) {
		fputs("parley: no source of random numbers\n", stderr);
		return SHELL_FAILED;
	}
	password = read_password(a.password_file);
	a.o.password = password;
	a.o.servers = a.server;
	if (a.o.timeout_s == 0)
		a.o.timeout_s = SECONDS_MAX;
	rc = shell_run(&a.o);
	for (size_t i = 0; i < SERVERS_MAX; i++)
		free(a.host[i]);
	if (password != NULL) {
		sodium_memzero(password, strlen(password));
		free(password);
	}
	return rc;
}
