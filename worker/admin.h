/*
 * admin.h - parleyctl's requests that need a worker: accounts, tokens, who, kick, fsck.
 *
 * Scope   the master hands over the connection and the request line; the worker answers there
 *         with lines of JSON, the last one {"done":true,"code":N,"message":"..."}, and closes.
 * Bounds  ADMIN_MAX connections at a time; output waits for a slow reader, input lines are
 *         bounded; a connection that says nothing for a minute is closed.
 */
#ifndef PARLEY_ADMIN_H
#define PARLEY_ADMIN_H

#include <stddef.h>

void admin_take(int fd, const char *line, size_t len);
/* End of turn: produces what the readers have room for; frees what ended. */
void admin_turn_end(void);

#endif
