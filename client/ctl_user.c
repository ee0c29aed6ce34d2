/*
 * ctl_user.c - passwords and lists of users.
 */
#include "client/ctl_user.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "worker/base/json.h"
#include "worker/proto.h"

#define LINES_A_TURN 200

void user_wipe(struct text *t)
{
	if (t->s != NULL)
		explicit_bzero(t->s, t->cap);
	text_fini(t);
}

/* The first line of F, without its end. */
static bool first_line(FILE *f, struct text *out)
{
	char buf[PROTO_PASSWORD_MAX + 3];
	size_t len;

	if (fgets(buf, sizeof buf, f) == NULL)
		return false;
	len = strcspn(buf, "\r\n");
	text_add(out, buf, len);
	explicit_bzero(buf, sizeof buf);
	return len > 0;
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
	interrupted = sig;
}

/* Asks on the terminal without echo. ^C leaves it as it was, too. */
static bool ask(const char *question, struct text *out)
{
	struct sigaction act = { .sa_handler = on_interrupt }, old_int, old_term;
	struct pollfd p = { .events = POLLIN };
	struct termios old, quiet;
	sigset_t block, before;
	FILE *tty = fopen("/dev/tty", "re");
	bool ok;

	if (tty == NULL || tcgetattr(fileno(tty), &old) < 0) {
		fprintf(stderr, "parleyctl: there is no terminal to ask for the password\n");
		if (tty != NULL)
			fclose(tty);
		return false;
	}
	quiet = old;
	quiet.c_lflag &= ~(tcflag_t)ECHO;
	interrupted = 0;
	sigemptyset(&block);
	sigaddset(&block, SIGINT);
	sigaddset(&block, SIGTERM);
	sigprocmask(SIG_BLOCK, &block, &before);	/* they come while ppoll() waits, and only then */
	sigaction(SIGINT, &act, &old_int);
	sigaction(SIGTERM, &act, &old_term);
	(void)tcsetattr(fileno(tty), TCSAFLUSH, &quiet);
	fputs(question, stderr);
	p.fd = fileno(tty);
	ok = ppoll(&p, 1, NULL, &before) == 1 && first_line(tty, out);
	(void)tcsetattr(fileno(tty), TCSAFLUSH, &old);
	fputc('\n', stderr);
	sigaction(SIGINT, &old_int, NULL);
	sigaction(SIGTERM, &old_term, NULL);
	sigprocmask(SIG_SETMASK, &before, NULL);
	fclose(tty);
	if (interrupted != 0)
		raise(interrupted);
	if (!ok)
		fprintf(stderr, "parleyctl: no password\n");
	return ok;
}

static bool ask_twice(struct text *out)
{
	struct text again = { 0 };
	bool ok = ask("Password: ", out) && ask("Once more: ", &again);

	if (ok && strcmp(out->s, again.s) != 0) {
		fprintf(stderr, "parleyctl: the two are not the same\n");
		ok = false;
	}
	user_wipe(&again);
	return ok;
}

bool user_password(const char *file, struct text *out)
{
	FILE *f = stdin;
	bool ok;

	if (file == NULL && isatty(STDIN_FILENO))
		return ask_twice(out);
	if (file != NULL && (f = fopen(file, "re")) == NULL) {
		fprintf(stderr, "parleyctl: %s: %s\n", file, strerror(errno));
		return false;
	}
	ok = first_line(f, out);
	if (!ok)
		fprintf(stderr, "parleyctl: no password on the first line of %s\n",
		    file != NULL ? file : "standard input");
	if (f != stdin)
		fclose(f);
	return ok;
}

bool user_import_open(struct user_import *u, const char *path)
{
	*u = (struct user_import){ .f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re") };
	if (u->f == NULL)
		fprintf(stderr, "parleyctl: %s: %s\n", path, strerror(errno));
	return u->f != NULL;
}

void user_import_close(struct user_import *u)
{
	if (u->f != NULL && u->f != stdin)
		fclose(u->f);
	if (u->buf != NULL)
		explicit_bzero(u->buf, u->cap);
	free(u->buf);
	*u = (struct user_import){ 0 };
}

static void complain(struct user_import *u, const char *what)
{
	fprintf(stderr, "parleyctl: line %u: %s\n", u->line, what);
	u->failed = true;
}

/* One line of the file as a line of the request. */
static void add_user(struct user_import *u, char *line, size_t len, struct text *out)
{
	size_t cap = 6 * len + 128;
	char *sep = memchr(line, '\t', len), *buf;
	const char *secret;
	struct json_out w;

	if (sep == NULL)
		sep = memchr(line, ':', len);
	if (sep == NULL || sep == line || sep + 1 == line + len) {
		complain(u, "expected NAME<tab>PASSWORD or NAME:PASSWORD");
		return;
	}
	if (!json_utf8_valid(line, len)) {
		complain(u, "not UTF-8");
		return;
	}
	*sep = '\0';
	secret = sep + 1;
	buf = text_alloc(cap);
	json_out_init(&w, buf, cap);
	json_open(&w, '{');
	json_kv_int(&w, "line", u->line);
	json_kv_str(&w, "name", line);
	if (strcmp(secret, "*") == 0)
		json_kv_bool(&w, "no_password", true);
	else if (strncmp(secret, "$argon2id$", 10) == 0)
		json_kv_str(&w, "hash", secret);
	else
		json_kv_str(&w, "password", secret);
	json_close(&w, '}');
	text_add(out, buf, w.len);
	text_add(out, "\n", 1);
	explicit_bzero(buf, cap);
	free(buf);
	u->sent++;
}

bool user_import_more(void *arg, struct text *out)
{
	struct user_import *u = arg;

	for (unsigned n = 0; n < LINES_A_TURN && !u->ended; n++) {
		ssize_t len = getline(&u->buf, &u->cap, u->f);

		if (len < 0) {
			if (ferror(u->f) != 0)
				complain(u, strerror(errno));
			text_puts(out, "{\"end\":true}\n");
			u->ended = true;
			break;
		}
		u->line++;
		while (len > 0 && (u->buf[len - 1] == '\n' || u->buf[len - 1] == '\r'))
			u->buf[--len] = '\0';
		if (len > 0 && u->buf[0] != '#')
			add_user(u, u->buf, (size_t)len, out);
	}
	return !u->ended;
}
