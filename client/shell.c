#include "client/shell.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "client/command.h"
#include "client/home.h"
#include "client/line.h"
#include "client/place.h"
#include "client/show.h"
#include "client/talk.h"
#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/json.h"

#define LEAVE_MS      2000		/* how long /quit waits for the last confirmations */
#define LOGIN_TRIES   3
#define LOGIN_WAITS   10		/* "too fast" and "temporarily unavailable" in a row */
#define LINE_MAX_IN   (128u << 10)	/* a line of a script */
#define PROMPT_NAME   24		/* columns of a name in the prompt */

struct shell {
	struct shell_options o;
	struct show *show;
	struct talk *talk;
	struct line *line;		/* NULL: a filter */
	struct talk_target to;
	int signals;
	bool quit, cancel, input_ready, input_end, output_gone;
	int signal;			/* that ended us, 0 for none */
	unsigned char keys[256];
	size_t nkeys, key_at;
	struct text in;			/* filter: unread input */
	bool skipping;			/* filter: the rest of a line that was too long */
	unsigned long line_no;
};

struct talk *shell_talk(struct shell *sh) { return sh->talk; }
struct show *shell_show(struct shell *sh) { return sh->show; }
struct talk_target *shell_to(struct shell *sh) { return &sh->to; }
bool shell_on_terminal(const struct shell *sh) { return sh->line != NULL; }
void shell_quit(struct shell *sh) { sh->quit = true; }

/* ---- the prompt ---------------------------------------------------------------------------- */

static void add_short(struct text *t, const char *clean)
{
	size_t len = strlen(clean), n = 0, width = 0;

	while (n < len) {
		int32_t cp;
		size_t step = text_next(clean + n, len - n, &cp), w = text_width(clean + n, step);

		if (width + w > PROMPT_NAME) {
			text_puts(t, "~");
			break;
		}
		text_add(t, clean + n, step);
		width += w;
		n += step;
	}
}

/* Colours stand between \1 and \1, where the line editor expects what takes no columns. */
static void add_paint(struct shell *sh, struct text *t, enum show_colour c)
{
	const char *seq = show_paint(sh->show, c);

	if (seq[0] == '\0')
		return;
	/* the editor wants a visible character behind each: two in a row become one */
	if (t->len > 0 && t->s[t->len - 1] == '\1')
		t->s[--t->len] = '\0';
	else
		text_puts(t, "\1");
	text_printf(t, "%s\1", seq);
}

static void add_mark(struct shell *sh, struct text *t)
{
	const char *last = talk_last(sh->talk);
	struct text mark = { 0 };

	if (talk_state(sh->talk) == TALK_LOST && talk_unsafe(sh->talk) > 0)
		text_printf(&mark, " [offline, %zu waiting]", talk_unsafe(sh->talk));
	else if (talk_state(sh->talk) == TALK_LOST)
		text_puts(&mark, " [offline]");
	else if (last[0] != '\0')
		text_printf(&mark, " [%s]", last);
	if (mark.len == 0)
		return;
	add_paint(sh, t, SHOW_DIM);
	text_puts(t, mark.s);
	add_paint(sh, t, SHOW_PLAIN);
	text_fini(&mark);
}

static void set_prompt(struct shell *sh)
{
	struct text t = { 0 }, name = { 0 };

	if (sh->line == NULL)
		return;
	if (talk_state(sh->talk) == TALK_OUT || talk_state(sh->talk) == TALK_LOGIN) {
		text_puts(&t, "parley");
	} else {
		text_name(&name, talk_name(sh->talk));
		add_short(&t, name.s);
		if (sh->to.id != 0 || sh->to.name[0] != '\0') {
			text_clear(&name);
			talk_label(sh->talk, &sh->to, &name);
			text_puts(&t, "->");
			add_paint(sh, &t, sh->to.group ? SHOW_GROUP : SHOW_PERSON);
			add_short(&t, name.s);
			add_paint(sh, &t, SHOW_PLAIN);
		}
		add_mark(sh, &t);
	}
	text_puts(&t, "> ");
	line_prompt(sh->line, t.s);
	text_fini(&t);
	text_fini(&name);
}

/* ---- one turn of the loop ------------------------------------------------------------------ */

static void suspend(struct shell *sh)
{
	sigset_t stop;

	line_suspend(sh->line);
	sigemptyset(&stop);
	sigaddset(&stop, SIGTSTP);
	signal(SIGTSTP, SIG_DFL);
	raise(SIGTSTP);
	sigprocmask(SIG_UNBLOCK, &stop, NULL);		/* stops here until somebody continues us */
	sigprocmask(SIG_BLOCK, &stop, NULL);
	line_resume(sh->line);
}

static void take_signals(struct shell *sh)
{
	struct signalfd_siginfo si;

	while (read(sh->signals, &si, sizeof si) == sizeof si) {
		switch (si.ssi_signo) {
		case SIGINT:
			if (sh->line != NULL) {
				sh->cancel = true;
				break;
			}
			/* fall through */
		case SIGTERM:
		case SIGHUP:
			sh->quit = true;
			sh->signal = (int)si.ssi_signo;
			break;
		case SIGWINCH:
			line_resize(sh->line);
			break;
		case SIGTSTP:
			suspend(sh);
			break;
		}
	}
}

static size_t unwritten(const struct shell *sh)
{
	return (size_t)(show_queued(sh->show) - show_written(sh->show));
}

/* On a terminal the line being typed steps aside for what is printed. */
static void write_out(struct shell *sh)
{
	struct pollfd p = { .fd = STDOUT_FILENO, .events = POLLOUT };

	if (sh->line != NULL)
		line_hide(sh->line);
	while (unwritten(sh) > 0 && poll(&p, 1, 0) == 1) {
		if (p.revents != POLLOUT || show_write(sh->show, STDOUT_FILENO) != 0) {
			sh->output_gone = sh->quit = true;
			return;
		}
	}
	if (sh->line != NULL && unwritten(sh) == 0)
		line_redraw(sh->line);
}

/*
 * Waits for something to happen, TIMEOUT_MS at most (-1: for ever), and deals with it. With
 * WANT_INPUT, readable standard input is noted in sh->input_ready and left for the caller.
 */
static void turn(struct shell *sh, int timeout_ms, bool want_input)
{
	struct pollfd p[3 + NET_POLL_FDS];
	int nnet, n;

	clock_tick();
	nnet = talk_poll_before(sh->talk, p, &timeout_ms);
	set_prompt(sh);
	n = nnet;
	p[n++] = (struct pollfd){ .fd = sh->signals, .events = POLLIN };
	/* nothing is typed while output waits: the editor's idea of the screen must stay true */
	p[n++] = (struct pollfd){ .fd = want_input && unwritten(sh) == 0 ? STDIN_FILENO : -1,
	    .events = POLLIN };
	p[n++] = (struct pollfd){ .fd = sh->output_gone ? -1 : STDOUT_FILENO,
	    .events = unwritten(sh) > 0 ? POLLOUT : 0 };
	if (unwritten(sh) == 0 && sh->line == NULL)
		p[n - 1].fd = -1;
	if (poll(p, (nfds_t)n, timeout_ms) < 0)
		for (int i = 0; i < n; i++)
			p[i].revents = 0;
	clock_tick();
	if (p[nnet].revents != 0)
		take_signals(sh);
	if (p[nnet + 1].revents != 0)
		sh->input_ready = true;
	if (p[nnet + 2].revents != 0)
		write_out(sh);
	talk_poll_after(sh->talk, p, nnet);
}

/* Turns until DONE says so, the person gives up, or MS have passed (0: no limit). */
static bool turn_until(struct shell *sh, bool (*done)(struct shell *sh), uint64_t ms)
{
	uint64_t end = clock_now_ms() + ms;

	while (!done(sh)) {
		uint64_t now = clock_now_ms();

		if (sh->quit || sh->cancel || (ms > 0 && now >= end))
			return false;
		turn(sh, ms > 0 ? (int)(end - now) : -1, false);
	}
	return true;
}

static bool is_written(struct shell *sh)
{
	return unwritten(sh) == 0 || sh->output_gone;
}

/* ---- input --------------------------------------------------------------------------------- */

static int next_key(void *arg)
{
	struct shell *sh = arg;

	for (;;) {
		ssize_t n;

		if (sh->cancel) {
			sh->cancel = false;
			return LINE_CANCEL;
		}
		if (sh->quit)
			return LINE_END;
		if (sh->key_at < sh->nkeys)
			return sh->keys[sh->key_at++];
		if (!sh->input_ready) {
			turn(sh, -1, true);
			continue;
		}
		sh->input_ready = false;
		n = read(STDIN_FILENO, sh->keys, sizeof sh->keys);
		if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
			return LINE_END;
		sh->key_at = 0;
		sh->nkeys = n > 0 ? (size_t)n : 0;
	}
}

static size_t complete(void *arg, const char *typed, size_t len)
{
	struct shell *sh = arg;

	return command_complete(sh, sh->line, typed, len);
}

/* The next line of a script in LINE_R; false at the end of input. */
static bool read_line(struct shell *sh, struct text *line_r)
{
	text_clear(line_r);
	for (;;) {
		char *nl = sh->in.len > 0 ? memchr(sh->in.s, '\n', sh->in.len) : NULL;
		size_t len = nl != NULL ? (size_t)(nl - sh->in.s) : sh->in.len;
		ssize_t n;

		if (nl == NULL && len > LINE_MAX_IN) {
			sh->skipping = true;
			text_clear(&sh->in);
		}
		if (nl != NULL || (sh->input_end && len > 0)) {
			text_add(line_r, sh->in.s, len);
			text_drop(&sh->in, len + (nl != NULL));
			sh->line_no++;
			return true;
		}
		if (sh->input_end || sh->quit)
			return false;
		if (!sh->input_ready) {
			turn(sh, -1, true);
			continue;
		}
		sh->input_ready = false;
		text_reserve(&sh->in, 16384);
		n = read(STDIN_FILENO, sh->in.s + sh->in.len, 16384);
		if (n > 0)
			sh->in.len += (size_t)n;
		else if (n == 0 || (errno != EINTR && errno != EAGAIN))
			sh->input_end = true;
	}
}

/* A password from the terminal behind a script, which keeps standard input for its commands. */
static bool ask_tty(const char *question, struct text *answer_r)
{
	int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
	struct termios was, quiet;
	char c;

	if (fd < 0)
		return false;
	if (tcgetattr(fd, &was) != 0 || tcgetpgrp(fd) != getpgrp()) {
		close(fd);
		return false;
	}
	quiet = was;
	quiet.c_lflag &= ~(tcflag_t)ECHO;
	tcsetattr(fd, TCSADRAIN, &quiet);
	dprintf(fd, "%s", question);
	while (read(fd, &c, 1) == 1 && c != '\n')
		text_add(answer_r, &c, 1);
	dprintf(fd, "\n");
	tcsetattr(fd, TCSADRAIN, &was);
	close(fd);
	return true;
}

static bool ask(struct shell *sh, const char *question, bool secret, struct text *answer_r)
{
	text_clear(answer_r);
	if (sh->line == NULL)
		return secret && ask_tty(question, answer_r) && answer_r->len > 0;
	turn_until(sh, is_written, 0);
	return line_ask(sh->line, question, secret, answer_r) == LINE_OK && !sh->quit;
}

static void wipe(struct text *t)
{
	if (t->s != NULL)
		sodium_memzero(t->s, t->cap);
	text_fini(t);
}

/* ---- login --------------------------------------------------------------------------------- */

static bool is_connected(struct shell *sh)
{
	enum net_state s = net_state(talk_net(sh->talk));

	return s == NET_UP || s == NET_OFF;
}

static bool has_login_answer(struct shell *sh)
{
	return !talk_login_answer(sh->talk)->pending;
}

static bool has_register_answer(struct shell *sh)
{
	return !talk_register_answer(sh->talk)->pending;
}

static bool never(struct shell *sh)
{
	(void)sh;
	return false;
}

static int say_connect(struct shell *sh, const char *why)
{
	struct text t = { 0 };

	text_clean(&t, TEXT_SHOWN, why, strlen(why));
	show_error(sh->show, 0, NULL, 0, "cannot connect: %s", t.s);
	text_fini(&t);
	return SHELL_CONNECT;
}

static int do_register(struct shell *sh, const char *name, const char *password)
{
	const struct talk_answer *a = talk_register_answer(sh->talk);
	struct text label = { 0 };

	talk_register(sh->talk, name, password);
	if (!turn_until(sh, has_register_answer, 0))
		return SHELL_LOGIN;
	if (a->err == 0)
		return SHELL_OK;
	if (a->err == -1)
		return say_connect(sh, a->errmsg);
	text_name(&label, name);
	show_error(sh->show, a->err, a->errmsg, a->retry_ms, "cannot register %s", label.s);
	text_fini(&label);
	return SHELL_LOGIN;
}

/* Logs in, waiting where the server asks for it. The answer stays in talk_login_answer(). */
static int do_login(struct shell *sh, const char *name, const char *password)
{
	const struct talk_answer *a = talk_login_answer(sh->talk);

	for (int waits = 0;; waits++) {
		uint64_t pause;

		talk_login(sh->talk, name, password);
		if (!turn_until(sh, has_login_answer, 0))
			return SHELL_LOGIN;
		if (a->err == 0)
			return SHELL_OK;
		if (a->err == -1)
			return say_connect(sh, a->errmsg);
		if ((a->err != E_RATE && a->err != E_AGAIN) || waits == LOGIN_WAITS)
			break;
		pause = a->retry_ms < 100 ? 1000 : a->retry_ms > 60000 ? 60000 : a->retry_ms;
		show_error(sh->show, a->err, a->errmsg, pause, "cannot log in yet");
		if (!turn_until(sh, never, pause) && (sh->quit || sh->cancel))
			return SHELL_LOGIN;
	}
	if (a->err != E_REFUSED || sh->line == NULL)
		show_error(sh->show, a->err, a->errmsg, a->retry_ms, "cannot log in");
	return SHELL_LOGIN;
}

/* "No such account or wrong password": would the person like to have one? */
static int offer_register(struct shell *sh, const char *name, const char *password, bool typed)
{
	struct text question = { 0 }, reply = { 0 };
	int rc = SHELL_LOGIN;
	bool yes;

	text_puts(&question, "No such account or wrong password. Register ");
	text_name(&question, name);
	text_puts(&question, "? [y/N] ");
	yes = text_id(name) == 0 && ask(sh, question.s, false, &reply) && reply.len > 0 &&
	    (reply.s[0] == 'y' || reply.s[0] == 'Y');
	if (text_id(name) != 0)
		show_error(sh->show, 0, NULL, 0, "no such account or wrong password");
	if (yes && typed && (!ask(sh, "Password again: ", true, &reply) ||
	    strcmp(reply.s, password) != 0)) {
		show_error(sh->show, 0, NULL, 0, "the passwords differ: nothing was registered");
		yes = false;
	}
	if (yes) {
		rc = do_register(sh, name, password);
		if (rc == SHELL_OK)
			rc = do_login(sh, name, password);
	}
	wipe(&reply);
	text_fini(&question);
	return rc;
}

static int log_in_with(struct shell *sh, const char *name, const char *given, bool registers)
{
	struct text password = { 0 }, again = { 0 };
	int rc = SHELL_LOGIN;

	for (int tries = 0; tries < LOGIN_TRIES && rc == SHELL_LOGIN && !sh->quit; tries++) {
		if (given != NULL) {
			text_clear(&password);
			text_puts(&password, given);
			tries = LOGIN_TRIES;
		} else if (!ask(sh, "Password: ", true, &password)) {
			if (sh->line == NULL) {
				show_error(sh->show, 0, NULL, 0,
				    "no password: set PARLEY_PASSWORD or use --password-file");
				rc = SHELL_USAGE;
			}
			break;
		}
		if (registers && given == NULL && (!ask(sh, "Password again: ", true, &again) ||
		    strcmp(again.s, password.s) != 0)) {
			show_error(sh->show, 0, NULL, 0, "the passwords differ");
			continue;
		}
		rc = registers ? do_register(sh, name, password.s) : SHELL_OK;
		if (rc != SHELL_OK)
			break;
		registers = false;
		rc = do_login(sh, name, password.s);
		if (rc != SHELL_LOGIN)
			break;
		if (talk_login_answer(sh->talk)->err != E_REFUSED)
			break;
		if (sh->line != NULL)
			rc = offer_register(sh, name, password.s, given == NULL);
	}
	wipe(&password);
	wipe(&again);
	return rc;
}

int shell_login(struct shell *sh, const char *name, const char *password)
{
	int rc;

	if (talk_state(sh->talk) == TALK_IN || talk_state(sh->talk) == TALK_LOST) {
		show_error(sh->show, 0, NULL, 0, "logged in already: /logout first");
		return -1;
	}
	if (name == NULL) {
		if (!talk_login_again(sh->talk)) {
			show_error(sh->show, 0, NULL, 0, "who? /login NAME");
			return -1;
		}
		if (!turn_until(sh, has_login_answer, 0))
			return -1;
		if (talk_login_answer(sh->talk)->err == 0)
			return 0;
		show_error(sh->show, talk_login_answer(sh->talk)->err == -1 ? 0 :
		    talk_login_answer(sh->talk)->err, talk_login_answer(sh->talk)->errmsg, 0,
		    "cannot log in");
		return -1;
	}
	memset(&sh->to, 0, sizeof sh->to);
	rc = log_in_with(sh, name, password != NULL || sh->line != NULL ? password : sh->o.password,
	    false);
	sh->cancel = false;
	return rc == SHELL_OK ? 0 : -1;
}

int shell_register(struct shell *sh, const char *name, const char *password)
{
	struct text typed = { 0 }, again = { 0 };
	const char *who = name != NULL ? name : sh->o.name;
	int rc = -1;

	if (who == NULL) {
		show_error(sh->show, 0, NULL, 0, "who? /register NAME");
		return -1;
	}
	if (password == NULL && sh->line == NULL)
		password = sh->o.password;
	if (password == NULL) {
		if (!ask(sh, "Password: ", true, &typed) ||
		    (sh->line != NULL && !ask(sh, "Password again: ", true, &again)))
			show_error(sh->show, 0, NULL, 0, "no password: nothing was registered");
		else if (sh->line != NULL && strcmp(typed.s, again.s) != 0)
			show_error(sh->show, 0, NULL, 0,
			    "the passwords differ: nothing was registered");
		else
			password = typed.s;
	}
	if (password != NULL && do_register(sh, who, password) == SHELL_OK)
		rc = talk_state(sh->talk) == TALK_OUT ?
		    (do_login(sh, who, password) == SHELL_OK ? 0 : -1) : 0;
	sh->cancel = false;
	wipe(&typed);
	wipe(&again);
	return rc;
}

/* What happens before the first command: connection, name, password. */
static int begin(struct shell *sh)
{
	struct text name = { 0 };
	int rc;

	net_start(talk_net(sh->talk), false);
	if (!turn_until(sh, is_connected, 0))
		return SHELL_CONNECT;		/* interrupted */
	if (net_state(talk_net(sh->talk)) != NET_UP)
		return say_connect(sh, net_why(talk_net(sh->talk)));
	if (sh->o.name != NULL) {
		text_puts(&name, sh->o.name);
	} else if (sh->line == NULL) {
		return SHELL_OK;		/* a script may log in by itself */
	} else if (!ask(sh, "Name: ", false, &name) || name.len == 0) {
		text_fini(&name);
		return SHELL_LOGIN;
	}
	rc = log_in_with(sh, name.s, sh->o.password, sh->o.registers);
	sh->cancel = false;
	text_fini(&name);
	return rc;
}

/* ---- the two ways to run ------------------------------------------------------------------- */

static bool is_safe(struct shell *sh)
{
	return talk_unsafe(sh->talk) == 0 || talk_state(sh->talk) != TALK_IN;
}

static bool is_out(struct shell *sh)
{
	return talk_state(sh->talk) != TALK_IN;
}

/* The last confirmations, in both directions, then the goodbye. */
static void leave(struct shell *sh)
{
	bool quit = sh->quit;

	sh->quit = sh->cancel = false;
	turn_until(sh, is_written, LEAVE_MS);
	turn(sh, 0, false);			/* confirms what was just written */
	if (sh->signal == 0 && sh->line != NULL)	/* a script has waited already */
		turn_until(sh, is_safe, LEAVE_MS);
	if (sh->line != NULL && talk_unsafe(sh->talk) > 0)
		show_note(sh->show, "%zu message%s not confirmed yet: sent when you log in again",
		    talk_unsafe(sh->talk), talk_unsafe(sh->talk) == 1 ? " is" : "s are");
	talk_leave(sh->talk);
	turn_until(sh, is_out, LEAVE_MS / 2);
	turn_until(sh, is_written, LEAVE_MS);
	sh->quit = quit;
}

static int run_terminal(struct shell *sh)
{
	int rc = begin(sh);

	if (rc != SHELL_OK) {
		turn_until(sh, is_written, LEAVE_MS);
		return rc;
	}
	show_note(sh->show, "/help lists the commands, /quit leaves");
	while (!sh->quit) {
		const char *typed;
		enum line_rc lrc;
		char *copy;

		turn_until(sh, is_written, 0);
		set_prompt(sh);			/* the right one from the start */
		lrc = line_read(sh->line, &typed);
		if (lrc == LINE_EOF || (lrc == LINE_CANCELLED && typed[0] == '\0'))
			break;
		if (lrc == LINE_CANCELLED || typed[strspn(typed, " \t")] == '\0')
			continue;
		copy = text_copy(typed);
		if (!command_is_secret(copy))
			line_remember(sh->line, copy);
		command_run(sh, copy);
		sodium_memzero(copy, strlen(copy));
		free(copy);
	}
	leave(sh);
	return SHELL_OK;
}

static bool is_not_lost(struct shell *sh)
{
	return talk_state(sh->talk) != TALK_LOST;
}

static bool is_answered(struct shell *sh)
{
	return talk_asking(sh->talk) == 0;
}

/* One command of a script, and its answer. False where it failed. */
static bool run_script_line(struct shell *sh, char *line, size_t *abandoned)
{
	uint64_t end = clock_now_ms() + sh->o.timeout_s * 1000ull;
	unsigned failures = talk_failures(sh->talk);

	turn_until(sh, is_not_lost, sh->o.timeout_s * 1000ull);
	if (command_run(sh, line) != 0)
		return false;
	while (!is_answered(sh) || talk_unsafe_fresh(sh->talk) > *abandoned) {
		uint64_t now = clock_now_ms();

		if (sh->quit || talk_ended(sh->talk))
			break;
		if (now >= end) {
			show_error(sh->show, 0, NULL, 0,
			    "not confirmed within %u s: kept and sent again later",
			    sh->o.timeout_s);
			*abandoned = talk_unsafe_fresh(sh->talk);
			return false;
		}
		turn(sh, (int)(end - now), false);
	}
	return talk_failures(sh->talk) == failures;
}

static bool run_script(struct shell *sh)
{
	struct text line = { 0 };
	size_t abandoned = 0;
	bool ok = true;

	while (!sh->quit && !talk_ended(sh->talk) && read_line(sh, &line)) {
		show_at_line(sh->show, sh->line_no);
		if (line.len > 0 && line.s[line.len - 1] == '\r')
			line.s[--line.len] = '\0';
		if (sh->skipping || memchr(line.s, '\0', line.len) != NULL ||
		    !json_utf8_valid(line.s, line.len)) {
			show_error(sh->show, 0, NULL, 0, sh->skipping ? "the line is too long" :
			    "the line is not UTF-8 text");
			sh->skipping = ok = false;
			continue;
		}
		if (line.s[strspn(line.s, " \t")] != '\0' &&
		    !run_script_line(sh, line.s, &abandoned))
			ok = false;
	}
	show_at_line(sh->show, 0);
	wipe(&line);
	return ok;
}

static bool is_settled(struct shell *sh)
{
	return (talk_unsafe(sh->talk) == 0 && is_answered(sh)) ||
	    talk_state(sh->talk) == TALK_OUT;
}

static bool is_ended(struct shell *sh)
{
	return talk_ended(sh->talk);
}

static int run_filter(struct shell *sh)
{
	int rc = begin(sh);
	bool ok;

	if (rc != SHELL_OK) {
		turn_until(sh, is_written, LEAVE_MS);
		return rc;
	}
	ok = run_script(sh);
	if (!sh->quit) {
		turn_until(sh, is_settled, sh->o.timeout_s * 1000ull);
		if (talk_unsafe_fresh(sh->talk) > 0 && ok) {
			show_error(sh->show, 0, NULL, 0, "%zu messages are not confirmed",
			    talk_unsafe_fresh(sh->talk));
			ok = false;
		}
		if (sh->o.wait_s > 0)
			turn_until(sh, is_ended, sh->o.wait_s * 1000ull);
	}
	leave(sh);
	if (talk_failures(sh->talk) > 0 || sh->output_gone)
		ok = false;
	return sh->signal != 0 ? 128 + sh->signal : ok ? SHELL_OK : SHELL_FAILED;
}

/* ---- life ---------------------------------------------------------------------------------- */

static void on_changed(void *arg)
{
	(void)arg;			/* the prompt is looked at each turn */
}

static void on_account(void *arg, const struct home *home)
{
	struct shell *sh = arg;
	char *path;

	if (sh->line == NULL || home == NULL)
		return;
	path = home_path(home, "history");
	line_history(sh->line, path);
	free(path);
}

static void open_signals(struct shell *sh)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	if (sh->line != NULL) {
		sigaddset(&set, SIGWINCH);
		sigaddset(&set, SIGTSTP);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	sh->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

int shell_run(const struct shell_options *o)
{
	static const struct line_ops line_ops = { next_key, complete };
	static const struct talk_ops talk_ops = { on_changed, on_account };
	bool terminal = !o->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
	struct shell sh = { .o = *o };
	int rc;

	clock_tick();
	sh.show = show_new(o->json ? SHOW_JSON : terminal ? SHOW_TERM : SHOW_TEXT, o->colours);
	sh.talk = talk_new(sh.show, o->state_root, &talk_ops, &sh);
	for (size_t i = 0; i < o->nservers; i++) {
		const struct shell_server *s = &o->servers[i];

		if (s->path != NULL)
			places_add_unix(net_places(talk_net(sh.talk)), s->path);
		else
			places_add_host(net_places(talk_net(sh.talk)), s->host, s->port);
	}
	if (terminal)
		sh.line = line_new(&line_ops, &sh);
	open_signals(&sh);
	rc = terminal ? run_terminal(&sh) : run_filter(&sh);
	line_free(sh.line);
	talk_free(sh.talk);
	show_free(sh.show);
	text_fini(&sh.in);
	close(sh.signals);
	return rc;
}
