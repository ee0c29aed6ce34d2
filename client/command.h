/*
 * command.h - what a person or a script can type.
 *
 * Scope   one table of commands, in the slash forms and in those of the old documents; parsing,
 *         help and completion come from it. A line that is no command is a message to the current
 *         conversation.
 */
#ifndef PARLEY_CLIENT_COMMAND_H
#define PARLEY_CLIENT_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

struct line;
struct shell;

/* Runs one line (it is changed). 0, or -1 where it failed at once (shown). */
int command_run(struct shell *sh, char *line);
/* Does it hold a password, so that no history may keep it? */
bool command_is_secret(const char *line);
/* As line_ops.complete. */
size_t command_complete(struct shell *sh, struct line *l, const char *typed, size_t len);

#endif
