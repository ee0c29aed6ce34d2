/*
 * login.h - registration and login, from the frame to the greeting.
 *
 * Scope   a login goes: account from the store -> password on the hash thread (or token, on the
 *         spot) -> bind in the session hash -> all that the greeting shows from the store -> the
 *         greeting. The connection is blocked meanwhile: what follows waits.
 * Waits   a user whose former session is still being settled (closing, its worker dead) is waited
 *         for, WAIT_MS at most, then errno 9. Only a live session is "online elsewhere".
 */
#ifndef PARLEY_LOGIN_H
#define PARLEY_LOGIN_H

#include <stddef.h>

#include "worker/state.h"

/* The connection closes, or ends: whatever login is in progress on it is forgotten. */
void login_abort(struct conn *c);
/* The session's user name. Valid until the session ends. */
const char *login_name(const struct conn *c, size_t *len_r);
/* Keeps NAME with the session: in the record, or in a chunk when it is long. */
int login_set_name(struct conn *c, const char *name, size_t len);
/* May this address try another password? 0, or the milliseconds to wait. */
uint32_t login_rate(const struct conn *c);

#endif
