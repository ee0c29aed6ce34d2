/*
 * log.h - log lines: one write a line, to stderr, a file or syslog.
 *
 * Scope   every process of the daemon; the client does not use it. A line is
 *         "2026-01-31T10:11:12.345Z parleyd[123] worker 3 warn: text" (syslog adds its own).
 *         Control characters in the text are written as \xHH, so that nobody can forge a line.
 * Severity debug; info; warn (odd, went on); error (something asked for did not happen);
 *         fatal (cannot serve: the caller exits with a code); panic (our bug: aborts).
 * Owner   process-wide state, set up by the master and inherited by fork.
 * Errors  a line that cannot be written is dropped; logging never blocks a loop for
 *         longer than a write(2) to a local file and never fails its caller. errno is kept.
 * Threads safe to call from any thread.
 */
#ifndef PARLEY_BASE_LOG_H
#define PARLEY_BASE_LOG_H

#include <stddef.h>

enum log_level { LOG_L_DEBUG, LOG_L_INFO, LOG_L_WARN, LOG_L_ERROR, LOG_L_FATAL };

/* TARGET: "stderr", "syslog" or a file's path (made 0640, appended to). 0 or -errno. */
int log_open(const char *target, enum log_level level);
/* The same file again under its name (after rotation). Keeps the old one when that fails. */
int log_reopen(void);
void log_set_level(enum log_level level);
/* Gives an open log file to the user that the daemon runs as, so that reopening works. */
int log_chown(unsigned uid, unsigned gid);
/* What the lines of this process are tagged with: "master", "worker 3". Copied. */
void log_ident(const char *ident);
/*
 * Gives the connection to syslog back; the next line opens another. For processes that share their
 * descriptors: what one process remembers as its own may be anybody's after another one's death.
 */
void log_rest(void);
/* The descriptor in use (kept open by children), -1 for syslog. */
int log_fd(void);

extern _Atomic int log_threshold;	/* enum log_level; read by the macros only */

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void log_panic(const char *file, int line, const char *what);

#define log_debug(...) do { if (log_threshold <= LOG_L_DEBUG) log_write(LOG_L_DEBUG, __VA_ARGS__); } while (0)
#define log_info(...)  log_write(LOG_L_INFO, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_L_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_L_ERROR, __VA_ARGS__)
#define log_fatal(...) log_write(LOG_L_FATAL, __VA_ARGS__)

/* An invariant of ours, checked in production as well; never for input. */
#define ensure(cond) ((cond) ? (void)0 : log_panic(__FILE__, __LINE__, #cond))

#endif
