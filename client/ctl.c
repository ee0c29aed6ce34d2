/*
 * ctl.c - parleyctl: arguments and commands.
 */
#include <errno.h>
#include <getopt.h>
#include <locale.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl_call.h"
#include "client/ctl_hosts.h"
#include "client/ctl_plan.h"
#include "client/ctl_print.h"
#include "client/ctl_user.h"
#include "client/text.h"
#include "worker/base/conf.h"
#include "worker/base/json.h"

enum ctl_exit { CTL_DONE = 0, CTL_FAILED = 1, CTL_USAGE = 2, CTL_UNREACHABLE = 3 };

#define DEFAULT_SOCKET "/var/lib/parley/parleyd.sock"
#define TOKEN_BATCH    2000		/* bytes of names in one request; it may be 3 KiB */
#define CHANGES_MAX    64

static const char *const conf_paths[] = { "/etc/parley/parleyd.conf", "/etc/parleyd.conf" };

struct ctl {
	const char *conf, *socket, *password_file;
	char *found;			/* the socket, once looked up */
	bool json, quiet, no_password;
	double timeout;			/* seconds, < 0: the command's own */
	const char *host;		/* which of the cluster is meant */
	bool local, cancel;
	struct hosts_upstream upstream;
	/* upstream and ring: hosts that were typed, and changes that are only thought of */
	struct { const char *kind, *text; } change[CHANGES_MAX];
	size_t nchanges;
};

static const char usage[] =
    "usage: parleyctl [-c CONF] [-s SOCKET] [--json] [--timeout SECONDS] COMMAND [ARGUMENT]...\n"
    "\n"
    "  status                the daemon and its workers\n"
    "  sessions              every connection\n"
    "  who                   the users who are online\n"
    "  kick USER             end a user's session\n"
    "  metrics               counters as Prometheus text\n"
    "  reload                read the configuration again; the verdict\n"
    "  scale N               run N workers; returns when they do\n"
    "  stop                  stop the daemon; returns when it is gone\n"
    "  fsck                  check the session table\n"
    "  drain [cancel]        take this host out of its cluster; cancel: back into it\n"
    "  hosts                 the hosts of the cluster\n"
    "  upstream              nginx's upstream block for them (--consistent, --name NAME,\n"
    "                        --max-fails N, --fail-timeout SECONDS)\n"
    "  ring [ADDRESS... | -] nginx's consistent hash of them: shares and points, or whose a\n"
    "                        client is (-: addresses from stdin); --add HOST:PORT[=WEIGHT],\n"
    "                        --del HOST:PORT, --down HOST:PORT: what would move\n"
    "  methods               what hosts of a cluster can ask each other\n"
    "  call HOST METHOD [JSON]  ask that, with an object of arguments\n"
    "  user add NAME         make an account (--no-password: it can log in by token only)\n"
    "  user passwd NAME      change a password; tokens made before stop working\n"
    "  user del NAME         delete an account\n"
    "  user import FILE|-    make accounts from lines NAME<tab>PASSWORD or NAME:PASSWORD\n"
    "                        (PASSWORD may be an $argon2id$ hash, or * for token login only)\n"
    "  token USER... | -     make login tokens (--quiet: only the tokens; -: users from stdin)\n"
    "  help, version\n"
    "\n"
    "  -c CONF               take the socket from this configuration\n"
    "  -s SOCKET             the daemon's admin socket (default: the `control` key of the\n"
    "                        configuration, $PARLEY_CONTROL, or " DEFAULT_SOCKET ")\n"
    "  --json                print the daemon's answer as JSON, one object a line\n"
    "  --timeout SECONDS     how long the daemon may be silent (30; 90 for scale and reload)\n"
    "  --host ID             asks that host of the cluster\n"
    "  --local               for who: this host only\n"
    "  --from HOST:PORT[=WEIGHT],...\n"
    "                        for upstream and ring: these hosts; no daemon is asked\n"
    "  --password-file FILE  for user add and passwd: the password is the file's first line\n"
    "\n"
    "USER is a name or an id. Passwords are asked for, or read from standard input where that is\n"
    "no terminal. Exit status: 0 done; 1 refused or failed; 2 usage; 3 daemon not reachable.\n";

static _Noreturn void usage_error(const char *what)
{
	fprintf(stderr, "parleyctl: %s\nparleyctl: -h lists the commands\n", what);
	exit(CTL_USAGE);
}

/* --- Where the daemon is ---------------------------------------------------------------------- */

static void tell(void *arg, const char *file, int line, const char *text)
{
	if (*(bool *)arg)
		fprintf(stderr, "parleyctl: %s:%d: %s\n", file != NULL ? file : "-", line, text);
}

/* The `control` key of a configuration; NULL with the errors told, if they are asked for. */
static char *control_of(const char *path, bool aloud)
{
	struct conf conf;
	char *out = NULL;

	conf_init(&conf);
	if (conf_read(&conf, path, tell, &aloud) == 0 && conf_finish(&conf, tell, &aloud) == 0)
		out = text_copy(conf.control);
	conf_free(&conf);
	return out;
}

static const char *find_socket(struct ctl *c)
{
	const char *env = getenv("PARLEY_CONTROL");

	if (c->socket != NULL)
		return c->socket;
	if (c->conf != NULL) {
		c->found = control_of(c->conf, true);
		if (c->found == NULL)
			exit(CTL_USAGE);
		return c->socket = c->found;
	}
	if (env != NULL && env[0] != '\0')
		return c->socket = env;
	for (size_t i = 0; c->found == NULL && i < sizeof conf_paths / sizeof *conf_paths; i++)
		if (access(conf_paths[i], R_OK) == 0)
			c->found = control_of(conf_paths[i], false);
	return c->socket = c->found != NULL ? c->found : DEFAULT_SOCKET;
}

/* --- Requests --------------------------------------------------------------------------------- */

/* {"cmd":CMD,"args":[...] and what the caller adds before run(). */
static void begin_request(const struct ctl *c, struct json_out *w, char *buf, size_t cap,
    const char *cmd, int argc, char **argv)
{
	json_out_init(w, buf, cap);
	json_open(w, '{');
	json_kv_str(w, "cmd", cmd);
	if (c->host != NULL)
		json_kv_str(w, "host", c->host);
	if (c->local)
		json_kv_bool(w, "local", true);
	json_key(w, "args");
	json_open(w, '[');
	for (int i = 0; i < argc; i++)
		json_put_text(w, argv[i], strlen(argv[i]));
	json_close(w, ']');
}

struct answer { struct print print; struct user_import *import; };

static void on_line(void *arg, const char *line, size_t len, bool done)
{
	struct answer *a = arg;

	print_line(&a->print, line, len, done);
}

static bool on_more(void *arg, struct text *out)
{
	struct answer *a = arg;

	return user_import_more(a->import, out);
}

static int run(struct ctl *c, struct json_out *w, enum print_as as, double seconds,
    struct user_import *import)
{
	struct answer a = { .import = import };
	struct call call = { .path = find_socket(c), .arg = &a, .line = on_line,
	    .more = import != NULL ? on_more : NULL,
	    .timeout_ms = (int)((c->timeout >= 0 ? c->timeout : seconds) * 1000) };
	int code = 1, rc = CTL_FAILED;

	json_close(w, '}');
	if (w->over)
		usage_error("the arguments are too long");
	print_init(&a.print, as, c->json);
	a.print.quiet = as != PRINT_PLAIN && as != PRINT_MESSAGE;
	switch (call_run(&call, w->buf, w->len, &code)) {
	case CALL_OK:
		print_end(&a.print, code);
		rc = code == 0 ? CTL_DONE : CTL_FAILED;
		break;
	case CALL_UNREACHABLE:
		fprintf(stderr, "parleyctl: %s\n", call_why());
		rc = CTL_UNREACHABLE;
		break;
	case CALL_BROKEN:
		fprintf(stderr, "parleyctl: %s\n", call_why());
		break;
	}
	print_fini(&a.print);
	return rc;
}

static int simple(struct ctl *c, const char *cmd, enum print_as as, double seconds, int argc, char **argv)
{
	char buf[3000];
	struct json_out w;

	begin_request(c, &w, buf, sizeof buf, cmd, argc, argv);
	return run(c, &w, as, seconds, NULL);
}

/* --- Commands --------------------------------------------------------------------------------- */

static int cmd_status(struct ctl *c, int argc, char **argv)
{
	static char brief[] = "brief";	/* what the table shows, however many workers there are */
	char *args[] = { brief };

	(void)argv;
	if (argc > 0)
		usage_error("status takes no arguments");
	return simple(c, "status", PRINT_STATUS, 30, c->json ? 0 : 1, args);
}

static int cmd_sessions(struct ctl *c, int argc, char **argv)
{
	return simple(c, "sessions", PRINT_SESSIONS, 30, argc, argv);
}

static int cmd_who(struct ctl *c, int argc, char **argv)
{
	return simple(c, "who", PRINT_WHO, 30, argc, argv);
}

static int cmd_metrics(struct ctl *c, int argc, char **argv)
{
	return simple(c, "metrics", PRINT_METRICS, 30, argc, argv);
}

static int cmd_kick(struct ctl *c, int argc, char **argv)
{
	return simple(c, "kick", PRINT_PLAIN, 30, argc, argv);
}

static int cmd_reload(struct ctl *c, int argc, char **argv)
{
	return simple(c, "reload", PRINT_PLAIN, 90, argc, argv);
}

static int cmd_scale(struct ctl *c, int argc, char **argv)
{
	return simple(c, "scale", PRINT_PLAIN, 90, argc, argv);
}

static int cmd_stop(struct ctl *c, int argc, char **argv)
{
	if (argc > 0 && strcmp(argv[0], "now") != 0)
		usage_error("stop takes no argument but `now`");
	return simple(c, "stop", PRINT_PLAIN, 0, argc, argv);
}

static int cmd_fsck(struct ctl *c, int argc, char **argv)
{
	return simple(c, "fsck", PRINT_PLAIN, 300, argc, argv);
}

static int cmd_drain(struct ctl *c, int argc, char **argv)
{
	static char cancel[] = "cancel";
	char *args[] = { cancel };

	if (argc > 0 && strcmp(argv[0], "cancel") != 0)
		usage_error("drain takes no argument but `cancel`");
	c->cancel = c->cancel || argc > 0;
	return simple(c, "drain", PRINT_MESSAGE, 30, c->cancel ? 1 : 0, args);
}

static int cmd_methods(struct ctl *c, int argc, char **argv)
{
	return simple(c, "methods", PRINT_PLAIN, 30, argc, argv);
}

static int cmd_call(struct ctl *c, int argc, char **argv)
{
	struct json *j = json_new(JSON_UNTRUSTED);
	char buf[3000];
	struct json_out w;
	bool ok = argc < 3 || (j != NULL && json_parse(j, argv[2], strlen(argv[2])) == JSON_OK &&
	    json_root(j).type == JSON_OBJECT);

	json_free(j);
	if (!ok)
		usage_error("call: the arguments are one JSON object");
	for (char *p = argc == 3 ? argv[2] : NULL; p != NULL && *p != '\0'; p++)
		if (*p == '\n' || *p == '\r')	/* between values: a request is one line */
			*p = ' ';
	begin_request(c, &w, buf, sizeof buf, "call", 2, argv);
	if (argc == 3)
		json_kv_raw(&w, "with", argv[2], strlen(argv[2]));
	return run(c, &w, PRINT_PLAIN, 35, NULL);
}

static int cmd_user_secret(struct ctl *c, int argc, char **argv)
{
	char buf[3000];
	struct text password = { 0 };
	struct json_out w;
	int rc;

	begin_request(c, &w, buf, sizeof buf, "user", argc, argv);
	if (c->no_password) {
		json_kv_bool(&w, "no_password", true);
	} else {
		if (!user_password(c->password_file, &password)) {
			user_wipe(&password);
			return CTL_FAILED;
		}
		json_kv_text(&w, "password", password.s, password.len);
		user_wipe(&password);
	}
	rc = run(c, &w, PRINT_USER, 60, NULL);
	explicit_bzero(buf, sizeof buf);
	return rc;
}

static int cmd_user_import(struct ctl *c, int argc, char **argv)
{
	static char dash[] = "-";
	char buf[256];
	struct user_import import;
	struct json_out w;
	int rc;

	if (!user_import_open(&import, argc > 1 ? argv[1] : dash))
		return CTL_FAILED;
	begin_request(c, &w, buf, sizeof buf, "user", 1, argv);
	rc = run(c, &w, PRINT_PLAIN, 300, &import);
	if (rc == CTL_DONE && import.failed)
		rc = CTL_FAILED;
	user_import_close(&import);
	return rc;
}

static int cmd_user(struct ctl *c, int argc, char **argv)
{
	const char *what = argv[0];

	if (strcmp(what, "import") == 0)
		return cmd_user_import(c, argc, argv);
	if (argc != 2)
		usage_error("user add, passwd and del take one NAME");
	if (argv[1][0] == '\0')
		usage_error("a name has at least one character");
	if (strcmp(what, "add") == 0 || strcmp(what, "passwd") == 0)
		return cmd_user_secret(c, argc, argv);
	if (strcmp(what, "del") == 0)
		return simple(c, "user", PRINT_PLAIN, 60, argc, argv);
	usage_error("user takes add, passwd, del or import");
}

/* Tokens for many users: as many requests as their names need. */
static int token_stream(struct ctl *c, enum print_as as)
{
	char *line = NULL, buf[3000];
	size_t cap = 0;
	struct json_out w;
	int worst = CTL_DONE;
	ssize_t len = 0;

	while (len >= 0 && worst != CTL_UNREACHABLE) {
		size_t bytes = 0;
		int rc;

		begin_request(c, &w, buf, sizeof buf, "token", 0, NULL);
		w.len--;			/* back into the list */
		w.comma = false;
		while (bytes < TOKEN_BATCH && (len = getline(&line, &cap, stdin)) >= 0) {
			line[strcspn(line, "\r\n")] = '\0';
			if (line[0] == '\0')
				continue;
			json_put_text(&w, line, strlen(line));
			bytes += strlen(line) + 3;
		}
		json_close(&w, ']');
		if (bytes == 0)
			break;
		rc = run(c, &w, as, 60, NULL);
		if (rc > worst)
			worst = rc;
	}
	free(line);
	return worst;
}

static int cmd_token(struct ctl *c, int argc, char **argv)
{
	enum print_as as = c->quiet ? PRINT_TOKEN_ONLY : PRINT_TOKEN;

	if (argc == 1 && strcmp(argv[0], "-") == 0)
		return token_stream(c, as);
	return simple(c, "token", as, 60, argc, argv);
}

/* --- The cluster and nginx -------------------------------------------------------------------- */

struct registry {
	struct hosts *hosts;
	struct json *json;
	char message[1000];
};

static void say_warning(const struct json_val *v)
{
	char raw[400];
	struct text t = { 0 };

	if (json_text(v, raw, sizeof raw, NULL) != JSON_OK)
		return;
	text_clean(&t, TEXT_SHOWN, raw, strlen(raw));
	fprintf(stderr, "parleyctl: %s\n", t.len > 0 ? t.s : "");
	text_fini(&t);
}

static void on_host(void *arg, const char *line, size_t len, bool done)
{
	struct registry *r = arg;
	struct json_val root, v;

	if (json_parse(r->json, line, len) != JSON_OK)
		return;
	root = json_root(r->json);
	if (!done && json_get(r->json, &root, "warning", &v))
		say_warning(&v);
	else if (!done)
		hosts_take(r->hosts, r->json, &root);
	else if (json_get(r->json, &root, "message", &v))
		(void)json_text(&v, r->message, sizeof r->message, NULL);
}

static int ask_hosts(struct ctl *c, struct hosts *hs)
{
	struct registry r = { .hosts = hs, .json = json_new(JSON_UNTRUSTED) };
	struct call call = { .path = find_socket(c), .arg = &r, .line = on_host,
	    .timeout_ms = (int)((c->timeout >= 0 ? c->timeout : 30) * 1000) };
	struct text why = { 0 };
	struct json_out w;
	enum call_rc rc;
	char buf[512];
	int code = 1;

	if (r.json == NULL)
		return CTL_FAILED;
	begin_request(c, &w, buf, sizeof buf, "hosts", 0, NULL);
	json_close(&w, '}');
	if (w.over)
		usage_error("the arguments are too long");
	rc = call_run(&call, w.buf, w.len, &code);
	json_free(r.json);
	text_clean(&why, TEXT_SHOWN, r.message, strlen(r.message));
	if (rc != CALL_OK || code != 0)
		fprintf(stderr, "parleyctl: %s\n", rc != CALL_OK ? call_why() :
		    why.len > 0 ? why.s : "refused");
	text_fini(&why);
	hosts_sort(hs);
	return rc == CALL_UNREACHABLE ? CTL_UNREACHABLE : rc == CALL_OK && code == 0 ? CTL_DONE :
	    CTL_FAILED;
}

/* The hosts for nginx: typed, or those of the cluster; and what is to be done to them. */
static int find_hosts(struct ctl *c, struct hosts *hs)
{
	bool typed = false;

	for (size_t i = 0; i < c->nchanges; i++)
		if (strcmp(c->change[i].kind, "from") == 0) {
			typed = true;
			if (hosts_from(hs, c->change[i].text) != 0)
				return CTL_USAGE;
		}
	if (!typed) {
		int rc = ask_hosts(c, hs);

		if (rc != CTL_DONE)
			return rc;
		hosts_reachable(hs);
	}
	for (size_t i = 0; i < c->nchanges; i++)
		if (strcmp(c->change[i].kind, "from") != 0 &&
		    hosts_change(hs, c->change[i].kind, c->change[i].text) != 0)
			return CTL_USAGE;
	return CTL_DONE;
}

static int cmd_hosts(struct ctl *c, int argc, char **argv)
{
	struct hosts hs = { 0 };
	int rc;

	if (c->json)
		return simple(c, "hosts", PRINT_HOSTS, 30, argc, argv);
	rc = ask_hosts(c, &hs);
	if (rc == CTL_DONE)
		hosts_table(&hs);
	hosts_fini(&hs);
	return rc;
}

static int cmd_upstream(struct ctl *c, int argc, char **argv)
{
	struct hosts hs = { 0 };
	int rc = find_hosts(c, &hs);

	(void)argc;
	(void)argv;
	if (c->upstream.name == NULL)		/* as in the nginx.conf that we ship */
		c->upstream.name = c->upstream.consistent ? "parley_by_address" : "parley";
	if (rc == CTL_DONE && hosts_upstream(&hs, &c->upstream) != 0)
		rc = CTL_FAILED;
	hosts_fini(&hs);
	return rc;
}

static int plan_stream(const struct plan *p)
{
	char *line = NULL;
	size_t cap = 0;
	int rc = CTL_DONE;

	while (getline(&line, &cap, stdin) >= 0) {
		line[strcspn(line, "\r\n")] = '\0';
		if (line[0] != '\0' && plan_client(p, line) != 0)
			rc = CTL_FAILED;
	}
	free(line);
	return rc;
}

static int cmd_ring(struct ctl *c, int argc, char **argv)
{
	struct hosts hs = { 0 };
	struct plan p;
	int rc = find_hosts(c, &hs);

	if (rc == CTL_DONE && plan_open(&p, &hs, c->json) != 0)
		rc = CTL_FAILED;
	if (rc != CTL_DONE) {
		hosts_fini(&hs);
		return rc;
	}
	for (int i = 0; i < argc; i++)
		if (strcmp(argv[i], "-") == 0 ? plan_stream(&p) != CTL_DONE : plan_client(&p, argv[i]) != 0)
			rc = CTL_FAILED;
	if (argc == 0) {
		plan_hosts(&p);
		if (hs.planned)
			plan_moves(&p);
		else
			plan_points(&p);
	}
	plan_close(&p);
	hosts_fini(&hs);
	return rc;
}

static int cmd_help(struct ctl *c, int argc, char **argv)
{
	(void)c;
	(void)argc;
	(void)argv;
	fputs(usage, stdout);
	return CTL_DONE;
}

static int cmd_version(struct ctl *c, int argc, char **argv)
{
	(void)c;
	(void)argc;
	(void)argv;
	puts("parleyctl " PARLEY_VERSION);
	return CTL_DONE;
}

static const struct { const char *name; int min, max; int (*run)(struct ctl *, int, char **); }
commands[] = {
	{ "status", 0, 0, cmd_status }, { "sessions", 0, 0, cmd_sessions }, { "who", 0, 0, cmd_who },
	{ "kick", 1, 1, cmd_kick }, { "metrics", 0, 0, cmd_metrics }, { "reload", 0, 0, cmd_reload },
	{ "scale", 1, 1, cmd_scale }, { "stop", 0, 1, cmd_stop }, { "fsck", 0, 0, cmd_fsck },
	{ "drain", 0, 1, cmd_drain }, { "hosts", 0, 0, cmd_hosts }, { "upstream", 0, 0, cmd_upstream },
	{ "ring", 0, 100000, cmd_ring }, { "methods", 0, 0, cmd_methods }, { "call", 2, 3, cmd_call },
	{ "user", 1, 2, cmd_user }, { "token", 1, 1000, cmd_token }, { "help", 0, 0, cmd_help },
	{ "version", 0, 0, cmd_version }
};

static int dispatch(struct ctl *c, int argc, char **argv)
{
	char text[128];

	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
		if (strcmp(commands[i].name, argv[0]) != 0)
			continue;
		if (argc - 1 < commands[i].min || argc - 1 > commands[i].max) {
			snprintf(text, sizeof text, "%s: wrong number of arguments", commands[i].name);
			usage_error(text);
		}
		return commands[i].run(c, argc - 1, argv + 1);
	}
	snprintf(text, sizeof text, "there is no command %.40s", argv[0]);
	usage_error(text);
}

static unsigned read_number(const char *option, const char *text)
{
	int64_t n = strcmp(text, "0") == 0 ? 0 : text_id(text);
	char why[64];

	if ((n > 0 && n <= 86400) || strcmp(text, "0") == 0)
		return (unsigned)n;
	snprintf(why, sizeof why, "%s takes a number from 0 to 86400", option);
	usage_error(why);
}

/* What stands behind `upstream` in nginx's configuration, and nothing more. */
static const char *read_name(const char *text)
{
	if (text[0] == '\0' || strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	    "0123456789._-") != strlen(text))
		usage_error("--name takes letters, digits, dots, dashes and underscores");
	return text;
}

static void add_change(struct ctl *c, const char *kind, const char *text)
{
	if (c->nchanges == CHANGES_MAX)
		usage_error("too many --from, --add, --del and --down");
	c->change[c->nchanges].kind = kind;
	c->change[c->nchanges++].text = text;
}

int main(int argc, char **argv)
{
	enum { JSON = 256, TIMEOUT, PASSWORD_FILE, NO_PASSWORD, QUIET, HOST, LOCAL, CANCEL,
		CONSISTENT, NAME, MAX_FAILS, FAIL_TIMEOUT, FROM, ADD, DEL, DOWN };
	static const struct option longs[] = {
		{ "json", no_argument, NULL, JSON }, { "timeout", required_argument, NULL, TIMEOUT },
		{ "password-file", required_argument, NULL, PASSWORD_FILE },
		{ "no-password", no_argument, NULL, NO_PASSWORD }, { "quiet", no_argument, NULL, QUIET },
		{ "host", required_argument, NULL, HOST }, { "local", no_argument, NULL, LOCAL },
		{ "cancel", no_argument, NULL, CANCEL },
		{ "consistent", no_argument, NULL, CONSISTENT },
		{ "name", required_argument, NULL, NAME },
		{ "max-fails", required_argument, NULL, MAX_FAILS },
		{ "fail-timeout", required_argument, NULL, FAIL_TIMEOUT },
		{ "from", required_argument, NULL, FROM }, { "add", required_argument, NULL, ADD },
		{ "del", required_argument, NULL, DEL }, { "down", required_argument, NULL, DOWN },
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { 0 }
	};
	struct ctl c = { .timeout = -1, .upstream = { .max_fails = 2, .fail_timeout_s = 10 } };
	char *end;
	int o, rc;

	setlocale(LC_CTYPE, "");
	while ((o = getopt_long(argc, argv, "c:s:hVq", longs, NULL)) != -1)
		switch (o) {
		case 'c': c.conf = optarg; break;
		case 's': c.socket = optarg; break;
		case JSON: c.json = true; break;
		case 'q':
		case QUIET: c.quiet = true; break;
		case NO_PASSWORD: c.no_password = true; break;
		case PASSWORD_FILE: c.password_file = optarg; break;
		case TIMEOUT:
			c.timeout = strtod(optarg, &end);
			if (end == optarg || *end != '\0' || !(c.timeout >= 0 && c.timeout <= 86400))
				usage_error("--timeout takes seconds, from 0 to 86400");
			break;
		case HOST: c.host = optarg; break;
		case LOCAL: c.local = true; break;
		case CANCEL: c.cancel = true; break;		/* the same as the word behind drain */
		case CONSISTENT: c.upstream.consistent = true; break;
		case NAME: c.upstream.name = read_name(optarg); break;
		case MAX_FAILS: c.upstream.max_fails = read_number("--max-fails", optarg); break;
		case FAIL_TIMEOUT:
			c.upstream.fail_timeout_s = read_number("--fail-timeout", optarg);
			break;
		case FROM: add_change(&c, "from", optarg); break;
		case ADD: add_change(&c, "add", optarg); break;
		case DEL: add_change(&c, "del", optarg); break;
		case DOWN: add_change(&c, "down", optarg); break;
		case 'h': return cmd_help(&c, 0, NULL);
		case 'V': return cmd_version(&c, 0, NULL);
		default: usage_error("unknown option");
		}
	if (optind == argc)
		usage_error("no command");
	rc = dispatch(&c, argc - optind, argv + optind);
	free(c.found);
	if (fflush(stdout) != 0 && rc == CTL_DONE) {
		fprintf(stderr, "parleyctl: standard output: %s\n", strerror(errno));
		rc = CTL_FAILED;
	}
	return rc;
}
