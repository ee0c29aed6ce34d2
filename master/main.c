/*
 * main.c - parleyd: arguments, configuration, and off into the master.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "master/master.h"
#include "master/title.h"

static const char *const conf_paths[] = { "/etc/parley/parleyd.conf", "/etc/parleyd.conf" };

struct options {
	char *conf_path;
	char **overrides;
	unsigned noverrides;
	bool test, detach;
};

static const char usage[] =
    "usage: parleyd [-c FILE] [-t] [-d] [-o KEY=VALUE]... [-V] [-h]\n"
    "\n"
    "  -c FILE       configuration (default: /etc/parley/parleyd.conf or /etc/parleyd.conf,\n"
    "                where there is one)\n"
    "  -t            test the configuration: every error with file and line, then exit\n"
    "  -d            detach; the exit status says whether the daemon came up\n"
    "  -o KEY=VALUE  override a key of the configuration; may be repeated\n"
    "  -V            print the version\n"
    "  -h            print this\n"
    "\n"
    "Signals: TERM, INT stop; QUIT ends at once; HUP reloads; USR1 reopens logs;\n"
    "TTIN, TTOU add and remove a worker.\n"
    "Exit status: 0 stopped as told; 1 could not start or go on; 2 wrong configuration or usage.\n";

static _Noreturn void die_usage(void)
{
	fputs(usage, stderr);
	exit(MASTER_CONFIG);
}

static void *must(void *p)
{
	if (p == NULL) {
		fputs("parleyd: out of memory\n", stderr);
		exit(MASTER_FAILED);
	}
	return p;
}

/* Arguments are copied: their memory becomes the process title. */
static void parse(int argc, char **argv, struct options *o)
{
	int c;

	o->overrides = must(calloc((size_t)argc, sizeof *o->overrides));
	while ((c = getopt(argc, argv, "c:tdo:Vh")) != -1)
		switch (c) {
		case 'c':
			free(o->conf_path);
			o->conf_path = must(strdup(optarg));
			break;
		case 't': o->test = true; break;
		case 'd': o->detach = true; break;
		case 'o': o->overrides[o->noverrides++] = must(strdup(optarg)); break;
		case 'V':
			puts("parleyd " PARLEY_VERSION);
			exit(MASTER_DONE);
		case 'h':
			fputs(usage, stdout);
			exit(MASTER_DONE);
		default:
			die_usage();
		}
	if (optind < argc)
		die_usage();
}

/* The file to read: as an absolute path, because -d leaves the directory and HUP reads again. */
static void find_conf(struct options *o)
{
	char *full;

	for (size_t i = 0; o->conf_path == NULL && i < sizeof conf_paths / sizeof *conf_paths; i++)
		if (access(conf_paths[i], F_OK) == 0)
			o->conf_path = must(strdup(conf_paths[i]));
	if (o->conf_path == NULL || o->conf_path[0] == '/')
		return;
	full = realpath(o->conf_path, NULL);
	if (full != NULL) {
		free(o->conf_path);
		o->conf_path = full;
	}
}

static void tell(void *arg, const char *file, int line, const char *text)
{
	(void)arg;
	if (file != NULL)
		fprintf(stderr, "%s:%d: %s\n", file, line, text);
	else
		fprintf(stderr, "-o: %s\n", text);
}

static void release(struct options *o)
{
	for (unsigned i = 0; i < o->noverrides; i++)
		free(o->overrides[i]);
	free(o->overrides);
	free(o->conf_path);
}

static int run(const struct options *o)
{
	struct conf *conf = must(calloc(1, sizeof *conf));
	int errors = master_read_conf(conf, o->conf_path, o->overrides, o->noverrides, tell, NULL);

	if (errors == 0 && !o->test)
		return master_run(&(struct master_args){ .conf = conf, .conf_path = o->conf_path,
		    .overrides = o->overrides, .noverrides = o->noverrides, .detach = o->detach });
	conf_free(conf);
	free(conf);
	if (errors != 0)
		return MASTER_CONFIG;
	puts("configuration OK");
	return MASTER_DONE;
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	int code;

	title_init(argc, argv);
	parse(argc, argv, &o);
	find_conf(&o);
	code = run(&o);
	release(&o);
	return code;
}
