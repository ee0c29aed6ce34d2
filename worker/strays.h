/*
 * strays.h - descriptors that a dead worker left open in a table that outlived it.
 *
 * Scope   closes every open descriptor of this process but a given set. Run by a fresh worker as its
 *         first act, and by a twin while the slot has no worker (worker_tidy(), worker/worker.h).
 *         Until then the dead worker's links to the store and to Redis are open, its transactions
 *         hold their locks, and so do its POSIX file locks, because those belong to the table.
 * Asking  what is neither kept nor closed at once is put to ASK. STRAY_END is for a client's
 *         connection that nobody may go on with: it is shut down, so that no copy of the descriptor
 *         elsewhere keeps it open. A descriptor that was given to a sibling must not be ended but
 *         closed: the sibling's session lives on in its own copy.
 * Threads the table must have no other user that opens or closes; sleeping twins do neither.
 * Source  close(2), close_range(2), fcntl_locking(2).
 */
#ifndef PARLEY_STRAYS_H
#define PARLEY_STRAYS_H

enum stray { STRAY_KEEP, STRAY_CLOSE, STRAY_END };

/*
 * KEEP is sorted, without doubles. ASK may be NULL: all are closed. Returns how many descriptors were
 * closed. Where /proc cannot be read, or memory is short, ASK is not asked and all are closed.
 */
unsigned strays_close(const int *keep, unsigned nkeep, enum stray (*ask)(void *arg, int fd),
    void *arg);

#endif
