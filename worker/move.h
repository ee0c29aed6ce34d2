/*
 * move.h - a live client changes its worker: descriptor, record and chunks.
 *
 * Scope   the leaving worker freezes the session when nothing of it is in flight, sends MOVE with
 *         the descriptor; the taker copies the chunks out of the other's region, changes the
 *         record's owner (the commit point) and answers TAKEN; the old one frees what it had.
 *         KEEP, or no answer from a dead taker, and the session goes on where it was.
 */
#ifndef PARLEY_MOVE_H
#define PARLEY_MOVE_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/ipc.h"
#include "worker/state.h"

struct item;

/* Starts to move every client away; called again as long as there are any. */
void move_all(void);
/* An item for a session that is on its way: after it, or back to it. */
void move_defer(struct conn *c, const struct item *it);
void move_on_move(const struct ipc_ctl *m, int fd);
void move_on_taken(const struct ipc_ctl *m);
void move_on_keep(const struct ipc_ctl *m);
uint32_t move_count(void);
/* Takers that died: their sessions are ours again. */
void move_check(void);

#endif
