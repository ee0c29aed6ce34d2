/*
 * admin.h - parleyctl's requests that need a worker: accounts, tokens, who, kick, hosts, fsck.
 *
 * Scope   the master hands over the connection and the request line; the worker answers there
 *         with lines of JSON, the last one {"done":true,"code":N,"message":"..."}, and closes.
 * Hosts   any request may carry "host":"ID": it is carried out there (call.h, method "ctl"), but for
 *         what makes accounts or tokens, which is the same everywhere. Those about several:
 *
 *           hosts             {"id","address","weight","state":"up"|"draining","workers","connections",
 *                             "sessions","epoch":"DECIMAL","version","since":wall ms,"self":bool,
 *                             "seen_ms": since its entry was read} for each live host; code 1 without
 *                             a cluster, and while Redis does not answer
 *           who               all hosts, {"host",...} a line; what did not answer is {"host","warning"}.
 *                             "local":true: this one, with "limit":N only so many, then {"more":M}
 *                             if there are others, which "after":M begins with
 *           kick USER         wherever its session is
 *           drain [cancel]    {"host","draining":bool,"sessions","seconds"}
 *           methods           {"name","help"}: what hosts can be asked
 *           call HOST METHOD  with "with":{...} as arguments: the lines of the answer
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
