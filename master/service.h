/*
 * service.h - how the daemon gets along with what started it: detaching, pid file, sd_notify.
 *
 * Detach  service_detach() forks twice; the caller's process stays behind in it, waits for the
 *         verdict of service_up() or service_failed(), and exits with it. The daemon leads no
 *         session, so no terminal becomes its own; its stdio is /dev/null from then on.
 * Pid file written when the daemon is up, under a lock held to its end. One that another living
 *         process has locked is an error; one that was left behind is replaced.
 * Source  daemon(7), sd_notify(3): one datagram to $NOTIFY_SOCKET, '@' for the abstract names.
 */
#ifndef PARLEY_MASTER_SERVICE_H
#define PARLEY_MASTER_SERVICE_H

#include <stddef.h>

struct service {
	int pipe;			/* to the process that waits; -1 when nobody does */
	int pid_fd;			/* -1: no pid file */
	char *pid_path;
};

#define SERVICE_INIT { .pipe = -1, .pid_fd = -1 }

/* Returns in the daemon only. 0 or -errno (then nothing was forked). */
int service_detach(struct service *s);
/* Is somebody waiting for the verdict? */
int service_awaited(const struct service *s);
/* "It is up": the waiting process exits with 0. */
void service_up(struct service *s);
/* "It failed": the waiting process prints TEXT and exits with CODE. */
void service_failed(struct service *s, int code, const char *text);

/* PATH "": none. 0, or -1 with WHY. */
int service_pid_write(struct service *s, const char *path, char *why, size_t cap);
void service_pid_remove(struct service *s);

/* Sends STATE ("READY=1\nSTATUS=...") to the service manager, if there is one. */
void service_notify(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* In a child: forgets all that is the master's. */
void service_child(struct service *s);

#endif
