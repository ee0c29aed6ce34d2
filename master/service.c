/*
 * service.c - detaching, pid file, sd_notify.
 */
#include "master/service.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* The process that was started: waits for one byte (the exit status) and a sentence. */
static _Noreturn void await(int fd)
{
	unsigned char code = 1;
	char text[1024];
	ssize_t n;

	while ((n = read(fd, &code, 1)) < 0 && errno == EINTR)
		;
	if (n != 1) {
		fprintf(stderr, "parleyd: ended before it was up; see the log\n");
		_exit(1);
	}
	while ((n = read(fd, text, sizeof text)) > 0)
		fprintf(stderr, "parleyd: %.*s\n", (int)n, text);
	_exit(code);
}

int service_detach(struct service *s)
{
	int fds[2], null;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (pid < 0) {
		close(fds[0]);
		close(fds[1]);
		return -errno;
	}
	if (pid > 0) {
		close(fds[1]);
		await(fds[0]);
	}
	close(fds[0]);
	s->pipe = fds[1];
	(void)setsid();
	pid = fork();
	if (pid < 0) {
		service_failed(s, 1, "cannot fork");
		_exit(1);
	}
	if (pid > 0)
		_exit(0);
	/* All three now: whoever reads the starter's stderr must not wait for us or our children. */
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = STDIN_FILENO; null >= 0 && fd <= STDERR_FILENO; fd++)
		(void)dup2(null, fd);
	if (null > STDERR_FILENO)
		close(null);
	return 0;
}

int service_awaited(const struct service *s)
{
	return s->pipe >= 0;
}

static void verdict(struct service *s, int code, const char *text)
{
	char buf[1024];
	int len;

	if (s->pipe < 0)
		return;
	len = snprintf(buf, sizeof buf, "%c%.1000s", (char)code, text);
	(void)!write(s->pipe, buf, (size_t)len);
	close(s->pipe);
	s->pipe = -1;
}

void service_up(struct service *s)
{
	verdict(s, 0, "");
}

void service_failed(struct service *s, int code, const char *text)
{
	verdict(s, code, text);
}

int service_pid_write(struct service *s, const char *path, char *why, size_t cap)
{
	struct stat st, now;
	char text[32];
	int fd, len;

	if (path[0] == '\0')
		return 0;
	for (;;) {
		fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
		if (fd < 0)
			goto fail;
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			if (errno == EWOULDBLOCK) {
				snprintf(why, cap, "pid_file %s: another living process has it", path);
				close(fd);
				return -1;
			}
			goto fail;
		}
		/* Its owner may have removed it between our open and our lock: then try again. */
		if (fstat(fd, &st) < 0)
			goto fail;
		if (lstat(path, &now) == 0 && now.st_ino == st.st_ino && now.st_dev == st.st_dev)
			break;
		close(fd);
	}
	if (!S_ISREG(st.st_mode) || st.st_size > (off_t)sizeof text) {
		snprintf(why, cap, "pid_file %s: is there and no pid file", path);
		close(fd);
		return -1;
	}
	len = snprintf(text, sizeof text, "%d\n", (int)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)len, 0) != len)
		goto fail;
	s->pid_path = strdup(path);
	s->pid_fd = fd;
	return 0;
fail:
	snprintf(why, cap, "pid_file %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

void service_pid_remove(struct service *s)
{
	if (s->pid_fd < 0)
		return;
	if (s->pid_path != NULL)
		(void)unlink(s->pid_path);
	free(s->pid_path);
	close(s->pid_fd);
	s->pid_path = NULL;
	s->pid_fd = -1;
}

void service_notify(const char *fmt, ...)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	char text[512];
	va_list ap;
	size_t len;
	int fd, n;

	if (path == NULL || (path[0] != '/' && path[0] != '@') ||
	    (len = strlen(path)) >= sizeof sun.sun_path)
		return;
	memcpy(sun.sun_path, path, len);
	if (path[0] == '@')
		sun.sun_path[0] = '\0';
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= sizeof text)
		return;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	(void)sendto(fd, text, (size_t)n, MSG_NOSIGNAL, (struct sockaddr *)&sun,
	    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
	close(fd);
}

void service_child(struct service *s)
{
	if (s->pipe >= 0)
		close(s->pipe);
	if (s->pid_fd >= 0)
		close(s->pid_fd);
	s->pipe = s->pid_fd = -1;
}
