/*
 * A line is built on the caller's stack and leaves in one write(2), so lines of threads and of
 * processes that share the file never mix (O_APPEND), and no lock can be held by who dies.
 *
 * Reopening puts the new file under the old descriptor's number with dup3(), which is atomic:
 * a thread that writes at that moment writes to one file or the other.
 */
#include "worker/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096
#define FILE_MODE 0640

static const struct { const char *word; int syslog; } severity[] = {
	[LOG_L_DEBUG] = { "debug", LOG_DEBUG }, [LOG_L_INFO] = { "info", LOG_INFO },
	[LOG_L_WARN] = { "warn", LOG_WARNING }, [LOG_L_ERROR] = { "error", LOG_ERR },
	[LOG_L_FATAL] = { "fatal", LOG_CRIT }
};

_Atomic int log_threshold = LOG_L_INFO;

static int out_fd = STDERR_FILENO;	/* -1: syslog */
static char *out_path;			/* NULL: not a file */
static char ident[32] = "";

static int open_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, FILE_MODE);

	return fd >= 0 ? fd : -errno;
}

static void close_target(void)
{
	if (out_fd < 0)
		closelog();
	else if (out_path != NULL)
		close(out_fd);
	free(out_path);
	out_path = NULL;
	out_fd = STDERR_FILENO;
}

int log_open(const char *target, enum log_level level)
{
	char *path;
	int fd;

	log_set_level(level);
	if (strcmp(target, "stderr") == 0) {
		close_target();
		return 0;
	}
	if (strcmp(target, "syslog") == 0) {
		close_target();
		openlog("parleyd", LOG_PID | LOG_NDELAY, LOG_DAEMON);
		out_fd = -1;
		return 0;
	}
	path = strdup(target);
	if (path == NULL)
		return -ENOMEM;
	fd = open_file(path);
	if (fd < 0) {
		free(path);
		return fd;
	}
	close_target();
	out_path = path;
	out_fd = fd;
	return 0;
}

int log_reopen(void)
{
	int fd, rc = 0;

	if (out_path == NULL)
		return 0;
	fd = open_file(out_path);
	if (fd < 0)
		return fd;
	if (dup3(fd, out_fd, O_CLOEXEC) < 0)
		rc = -errno;
	close(fd);
	return rc;
}

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&log_threshold, (int)level, memory_order_relaxed);
}

int log_chown(unsigned uid, unsigned gid)
{
	if (out_path == NULL)
		return 0;
	return fchown(out_fd, uid, gid) == 0 ? 0 : -errno;
}

void log_ident(const char *text)
{
	snprintf(ident, sizeof ident, "%s", text);
}

void log_rest(void)
{
	if (out_fd >= 0)
		return;
	closelog();
	openlog("parleyd", LOG_PID, LOG_DAEMON);
}

int log_fd(void)
{
	return out_fd;
}

/* Is the byte at P a control character: C0, DEL, or either byte of a C1 in UTF-8? */
static int is_control(const char *text, const char *p)
{
	unsigned char c = (unsigned char)*p;

	if (c < 0x20 || c == 0x7f)
		return 1;
	if (c == 0xc2)
		return (unsigned char)p[1] >= 0x80 && (unsigned char)p[1] < 0xa0;
	return c >= 0x80 && c < 0xa0 && p > text && (unsigned char)p[-1] == 0xc2;
}

/* Copies TEXT with control characters as \xHH; what does not fit before END is left out. */
static char *put_escaped(char *out, const char *end, const char *text)
{
	static const char hex[] = "0123456789ABCDEF";

	for (const char *p = text; *p != '\0'; p++) {
		unsigned char c = (unsigned char)*p;

		if (!is_control(text, p)) {
			if (out == end)
				break;
			*out++ = (char)c;
			continue;
		}
		if (end - out < 4)
			break;
		*out++ = '\\';
		*out++ = 'x';
		*out++ = hex[c >> 4];
		*out++ = hex[c & 15];
	}
	return out;
}

static size_t put_head(char *line, size_t cap, enum log_level level)
{
	struct timespec now;
	struct tm tm;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	n = strftime(line, cap, "%Y-%m-%dT%H:%M:%S", &tm);
	n += (size_t)snprintf(line + n, cap - n, ".%03ldZ parleyd[%d] %s%s%s: ",
	    now.tv_nsec / 1000000, (int)getpid(), ident, ident[0] != '\0' ? " " : "",
	    severity[level].word);
	return n;
}

static void write_text(enum log_level level, const char *text)
{
	char line[LINE_MAX_BYTES], *p = line, *end = line + sizeof line - 1;
	ssize_t n;

	if (out_fd < 0) {
		*put_escaped(p, end, text) = '\0';
		syslog(severity[level].syslog, "%s%s%s: %s", ident, ident[0] != '\0' ? " " : "",
		    severity[level].word, line);
		return;
	}
	p = put_escaped(line + put_head(line, sizeof line, level), end, text);
	*p++ = '\n';
	do
		n = write(out_fd, line, (size_t)(p - line));
	while (n < 0 && errno == EINTR);
}

void log_write(enum log_level level, const char *fmt, ...)
{
	char text[LINE_MAX_BYTES];
	int kept = errno;
	va_list ap;

	if ((int)level < atomic_load_explicit(&log_threshold, memory_order_relaxed))
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	write_text(level, text);
	errno = kept;
}

void log_panic(const char *file, int line, const char *what)
{
	log_write(LOG_L_FATAL, "panic: %s:%d: %s does not hold", file, line, what);
	abort();
}
