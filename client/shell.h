/*
 * shell.h - the program: one loop between the person (or a script), the terminal and the server.
 *
 * Scope   everything waits in one poll(): keys or lines of standard input, signals, the
 *         connection, room on standard output. On a terminal lines are edited while messages
 *         arrive; otherwise it is a filter that takes a command a line and awaits each answer.
 * Owner   shell_run() owns all that it makes.
 * Errors  the exit codes below.
 */
#ifndef PARLEY_CLIENT_SHELL_H
#define PARLEY_CLIENT_SHELL_H

#include <stdbool.h>
#include <stddef.h>

enum shell_exit {
	SHELL_OK = 0,
	SHELL_FAILED = 1,	/* a command failed, or a message was not confirmed in time */
	SHELL_USAGE = 2,
	SHELL_CONNECT = 3,	/* no server answered */
	SHELL_LOGIN = 4		/* the server refused the login or the registration */
};

struct shell_server { const char *host, *port, *path; };	/* path, or host and port */

struct shell_options {
	const struct shell_server *servers;
	size_t nservers;
	const char *name;		/* NULL: ask, or none */
	const char *password;		/* NULL: ask */
	const char *state_root;		/* NULL: the usual place */
	bool registers;			/* register NAME first */
	bool json, colours;
	unsigned wait_s;		/* filter: keep printing so long after the end of input */
	unsigned timeout_s;		/* filter: how long an answer may take */
};

struct shell;
struct show;
struct talk;
struct talk_target;

int shell_run(const struct shell_options *o);

/* For the commands (command.c). */
struct talk *shell_talk(struct shell *sh);
struct show *shell_show(struct shell *sh);
bool shell_on_terminal(const struct shell *sh);
/* The current conversation; neither id nor name: none. */
struct talk_target *shell_to(struct shell *sh);
void shell_quit(struct shell *sh);
/* Log in or register now, asking for what is NULL. 0 or -1 (shown). */
int shell_login(struct shell *sh, const char *name, const char *password);
int shell_register(struct shell *sh, const char *name, const char *password);

#endif
