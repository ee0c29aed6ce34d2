/*
 * seen.h - the messages that were shown already: a resent one is dropped.
 *
 * Scope   remembers the `mid` of each message for 8 days, the newest SEEN_MAX of them, in memory
 *         and in a file of fixed-size records. Two steps, so that a message is never lost: the
 *         mid counts as seen in memory at once (seen_add), and goes to the file (seen_save) only
 *         when the person's side has the message, before it is confirmed to the server.
 * Owner   struct seen holds the table and the file's descriptor.
 * Errors  a file that cannot be read or written costs only the memory across restarts; seen_why()
 *         says what was wrong, once.
 */
#ifndef PARLEY_CLIENT_SEEN_H
#define PARLEY_CLIENT_SEEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEEN_MAX  131072			/* mids kept */
#define SEEN_DAYS 8

struct seen;

/* PATH may be NULL: memory only. NOW is the wall clock, ms. */
struct seen *seen_open(const char *path, uint64_t now_ms);
void seen_free(struct seen *s);
/* True when this is the first time. */
bool seen_add(struct seen *s, const char *mid, size_t len, uint64_t now_ms);
/* Writes out everything added since the last call, but for the newest LATER of them. */
void seen_save(struct seen *s, size_t later);
/* What the file refused, NULL where nothing; forgets it. */
const char *seen_why(struct seen *s);

#endif
