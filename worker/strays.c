/*
 * strays.c - descriptors that a dead worker left open.
 *
 * The list is read to its end before the first is closed: what readdir(3) does with a directory that
 * changes under it is not promised.
 */
#include "worker/strays.h"

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shm/fault.h"
#include "shm/rec.h"
#include "shm/segment.h"
#include "worker/base/log.h"
#include "worker/worker.h"

struct list { int *fd; unsigned n, cap; };

static bool append(struct list *l, int fd)
{
	if (l->n == l->cap) {
		unsigned cap = l->cap == 0 ? 256 : l->cap * 2;
		int *p = realloc(l->fd, cap * sizeof *p);

		if (p == NULL)
			return false;
		l->fd = p;
		l->cap = cap;
	}
	l->fd[l->n++] = fd;
	return true;
}

/* All open descriptors. False: they cannot be known. */
static bool read_all(struct list *l)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	bool ok = d != NULL;

	while (ok && (e = readdir(d)) != NULL)
		if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d))
			ok = append(l, atoi(e->d_name));
	if (d != NULL)
		closedir(d);
	return ok;
}

static int by_number(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

static bool is_kept(const int *keep, unsigned nkeep, int fd)
{
	return bsearch(&fd, keep, nkeep, sizeof *keep, by_number) != NULL;
}

/* Everything between the kept ones, unseen. */
static void close_gaps(const int *keep, unsigned nkeep)
{
	unsigned from = 0;

	for (unsigned i = 0; i < nkeep; i++) {
		if ((unsigned)keep[i] > from)
			(void)close_range(from, (unsigned)keep[i] - 1, 0);
		from = (unsigned)keep[i] + 1;
	}
	(void)close_range(from, UINT_MAX, 0);
}

/* A connection of a stream, not a listener: those are shared with the master, and have no end. */
static bool can_end(int fd)
{
	int type = 0, listens = 0;
	socklen_t len = sizeof type;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM)
		return false;
	len = sizeof listens;
	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0 && !listens;
}

unsigned strays_close(const int *keep, unsigned nkeep, enum stray (*ask)(void *arg, int fd),
    void *arg)
{
	struct list l = { 0 };
	unsigned closed = 0;

	if (!read_all(&l)) {
		free(l.fd);
		close_gaps(keep, nkeep);
		return 0;
	}
	for (unsigned i = 0; i < l.n; i++) {
		enum stray s = is_kept(keep, nkeep, l.fd[i]) ? STRAY_KEEP :
		    ask != NULL ? ask(arg, l.fd[i]) : STRAY_CLOSE;

		if (s == STRAY_KEEP)
			continue;
		if (s == STRAY_END && can_end(l.fd[i]))
			(void)shutdown(l.fd[i], SHUT_RDWR);
		closed += close(l.fd[i]) == 0;
		FAULT("strays.close");
	}
	free(l.fd);
	return closed;
}

/* ---- a slot whose worker is dead ---- */

/*
 * Whom the records of SLOT name: its clients, whose sessions are swept. Not those that are offered to
 * a sibling: whether it took them is not known before it is too late to shut down the right one.
 */
static bool read_clients(struct list *l, uint32_t slot)
{
	bool ok = true;

	for (uint32_t i = 0; ok && i < rec_high(); i++) {
		const struct rec *r = rec_at(i);
		uint32_t gen, w = rec_owner(r, &gen);

		if (rec_word_slot(w) == (int)slot && rec_word_state(w) == REC_OPEN && r->fd >= 0)
			ok = append(l, r->fd);
	}
	if (l->n > 0)
		qsort(l->fd, l->n, sizeof *l->fd, by_number);
	return ok;
}

static enum stray fate(void *arg, int fd)
{
	const struct list *clients = arg;

	return clients->n > 0 && is_kept(clients->fd, clients->n, fd) ? STRAY_END : STRAY_CLOSE;
}

void worker_tidy(const struct worker_boot *boot)
{
	struct list clients = { 0 };
	unsigned n;

	if (!read_clients(&clients, boot->slot))
		clients.n = 0;
	n = strays_close(boot->keep, boot->nkeep, fate, &clients);
	free(clients.fd);
	if (n > 0)
		log_debug("closed %u descriptors that a dead worker had open", n);
}
