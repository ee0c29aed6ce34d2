/*
 * home.h - the state folder: where an account's outbox, seen messages and history live.
 *
 * Scope   <root>/<server>/<account>/ with root from --state-dir, else $XDG_STATE_HOME/parley, else
 *         ~/.local/state/parley. Folders are 0700, files 0600. One process at a time owns an
 *         account's folder (a lock on its file "lock"); a second one gets no paths.
 * Owner   struct home holds its strings and the lock (home_free lets go of it).
 * Errors  NULL, with a sentence in why_r (of the caller, WHY bytes).
 */
#ifndef PARLEY_CLIENT_HOME_H
#define PARLEY_CLIENT_HOME_H

#include <stdbool.h>
#include <stddef.h>

#define HOME_WHY 256

struct home;

/* ROOT may be NULL. SERVER and ACCOUNT may hold any byte; what a path cannot bear is escaped. */
struct home *home_open(const char *root, const char *server, const char *account,
    char why_r[HOME_WHY]);
void home_free(struct home *h);
/* The path of a file in the folder; the caller frees it. */
char *home_path(const struct home *h, const char *file);

#endif
