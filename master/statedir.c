/*
 * statedir.c - the lock of the running daemon, and what a host remembers.
 *
 * Who still holds the lock is asked of /proc: a process is a holder when one of its descriptors
 * is the lock file. Recorded pids would not do, because a pid may have become somebody else's by
 * the time it is killed.
 */
#include "master/statedir.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/base/clock.h"

#define LOCK_FILE "lock"

static int say(char *why, size_t cap, const char *what, int error)
{
	snprintf(why, cap, "%s: %s", what, strerror(error));
	return -error;
}

/* Gives an object of ours to the user that the daemon runs as. */
static int give(const struct statedir *sd, int fd)
{
	if (sd->uid == (uid_t)-1)
		return 0;
	return fchown(fd, sd->uid, sd->gid) == 0 ? 0 : -errno;
}

/* A directory that root made and nobody else may write is taken for the daemon's own. */
static int adopt_dir(struct statedir *sd, bool made)
{
	struct stat st;

	if (sd->uid == (uid_t)-1)
		return 0;
	if (fstat(sd->dir, &st) < 0)
		return -errno;
	if (made || (st.st_uid == 0 && (st.st_mode & 022) == 0))
		return give(sd, sd->dir);
	return 0;
}

int statedir_open(struct statedir *sd, const char *path, uid_t uid, gid_t gid,
    char *why, size_t cap)
{
	bool made = mkdir(path, 0700) == 0;
	int rc;

	*sd = (struct statedir){ .dir = -1, .lock = -1, .uid = uid, .gid = gid };
	if (!made && errno != EEXIST)
		return say(why, cap, path, errno);
	sd->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (sd->dir < 0)
		return say(why, cap, path, errno);
	rc = adopt_dir(sd, made);
	if (rc < 0) {
		statedir_close(sd);
		return say(why, cap, path, -rc);
	}
	sd->lock = openat(sd->dir, LOCK_FILE, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (sd->lock < 0) {
		rc = say(why, cap, "state_dir: " LOCK_FILE, errno);
		statedir_close(sd);
		return rc;
	}
	(void)give(sd, sd->lock);
	return 0;
}

void statedir_close(struct statedir *sd)
{
	if (sd->lock >= 0)
		close(sd->lock);
	if (sd->dir >= 0)
		close(sd->dir);
	sd->lock = sd->dir = -1;
}

/* When a process started, in clock ticks since boot; 0 where there is none or it is a zombie. */
static uint64_t start_time(pid_t pid)
{
	char path[64], text[1024], *p;
	uint64_t start = 0;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	p = strrchr(text, ')');		/* the name before it may hold anything */
	if (p == NULL || p[1] == '\0' || p[2] == 'Z' || p[2] == 'X')
		return 0;
	/* state is field 3, start time field 22 */
	for (int field = 3; field < 22 && p != NULL; field++)
		p = strchr(field == 3 ? p + 2 : p + 1, ' ');
	if (p != NULL)
		start = strtoull(p + 1, NULL, 10);
	return start;
}

enum statedir_holder statedir_lock(struct statedir *sd, struct statedir_owner *owner_r)
{
	char text[128];
	uint64_t start = 0;
	uint32_t stop = 0;
	int pid = 0;
	ssize_t n;

	*owner_r = (struct statedir_owner){ 0 };
	sd->locked = flock(sd->lock, LOCK_EX | LOCK_NB) == 0;
	if (sd->locked)
		return STATEDIR_MINE;
	if (errno != EWOULDBLOCK && errno != EINTR)
		return STATEDIR_ERROR;
	n = pread(sd->lock, text, sizeof text - 1, 0);
	text[n > 0 ? n : 0] = '\0';
	if (sscanf(text, "master %d %" SCNu64 " stop_seconds %" SCNu32, &pid, &start, &stop) != 3)
		return STATEDIR_MASTER;		/* locked a moment ago, not signed yet */
	owner_r->pid = (pid_t)pid;
	owner_r->stop_seconds = stop;
	return start_time((pid_t)pid) == start && start != 0 ? STATEDIR_MASTER : STATEDIR_ORPHANS;
}

int statedir_sign(struct statedir *sd, uint32_t stop_seconds)
{
	char text[128];
	int len = snprintf(text, sizeof text, "master %d %" PRIu64 " stop_seconds %" PRIu32 "\n",
	    (int)getpid(), start_time(getpid()), stop_seconds);

	if (pwrite(sd->lock, text, (size_t)len, 0) != len || ftruncate(sd->lock, len) < 0)
		return -errno;
	return 0;
}

void statedir_unlock(struct statedir *sd)
{
	if (sd->locked) {
		(void)ftruncate(sd->lock, 0);
		(void)flock(sd->lock, LOCK_UN);
		sd->locked = false;
	}
}

static bool holds(const char *pid, const struct stat *file)
{
	char path[300];
	struct dirent *e;
	struct stat st;
	bool found = false;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
	d = opendir(path);
	if (d == NULL)
		return false;
	while (!found && (e = readdir(d)) != NULL)
		found = isdigit((unsigned char)e->d_name[0]) && fstatat(dirfd(d), e->d_name, &st, 0) == 0 &&
		    st.st_dev == file->st_dev && st.st_ino == file->st_ino;
	closedir(d);
	return found;
}

unsigned statedir_kill_holders(struct statedir *sd)
{
	struct dirent *e;
	struct stat file;
	unsigned killed = 0;
	DIR *d;

	if (fstat(sd->lock, &file) < 0 || (d = opendir("/proc")) == NULL)
		return 0;
	while ((e = readdir(d)) != NULL) {
		pid_t pid = (pid_t)atoi(e->d_name);

		if (pid > 1 && pid != getpid() && holds(e->d_name, &file) && kill(pid, SIGKILL) == 0)
			killed++;
	}
	closedir(d);
	return killed;
}

/* Reads a small file. Its length, 0 when it is missing, or -errno. */
static ssize_t load(const struct statedir *sd, const char *name, void *buf, size_t cap)
{
	int fd = openat(sd->dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	n = read(fd, buf, cap);
	if (n < 0)
		n = -errno;
	close(fd);
	return n;
}

/* Replaces a small file as a whole. */
static int save(const struct statedir *sd, const char *name, const void *buf, size_t len)
{
	char temp[64];
	int fd, rc = 0;

	snprintf(temp, sizeof temp, "%s.new", name);
	(void)unlinkat(sd->dir, temp, 0);
	fd = openat(sd->dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	if (write(fd, buf, len) != (ssize_t)len || fsync(fd) < 0)
		rc = errno != 0 ? -errno : -EIO;
	if (rc == 0)
		rc = give(sd, fd);
	close(fd);
	if (rc == 0 && renameat(sd->dir, temp, sd->dir, name) < 0)
		rc = -errno;
	if (rc == 0)
		(void)fsync(sd->dir);
	return rc;
}

static bool host_id_ok(const char *s)
{
	size_t n = strlen(s);

	return n >= 1 && n <= 64 &&
	    strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == n;
}

int statedir_host_id(struct statedir *sd, const char *given, char out[65], char *why, size_t cap)
{
	char text[80];
	unsigned char raw[8];
	ssize_t n;
	int rc;

	if (given[0] != '\0') {
		snprintf(out, 65, "%s", given);
		return 0;
	}
	n = load(sd, "host_id", text, sizeof text - 1);
	if (n < 0)
		return say(why, cap, "state_dir: host_id", (int)-n);
	text[n] = '\0';
	text[strcspn(text, "\r\n")] = '\0';
	if (n > 0 && host_id_ok(text)) {
		snprintf(out, 65, "%.64s", text);
		return 0;
	}
	if (n > 0)
		return say(why, cap, "state_dir: host_id is damaged", EINVAL);
	if (getrandom(raw, sizeof raw, 0) != (ssize_t)sizeof raw)
		return say(why, cap, "getrandom", errno);
	for (size_t i = 0; i < sizeof raw; i++)
		snprintf(out + 2 * i, 3, "%02x", raw[i]);
	snprintf(text, sizeof text, "%.64s\n", out);
	rc = save(sd, "host_id", text, strlen(text));
	return rc == 0 ? 0 : say(why, cap, "state_dir: host_id", -rc);
}

int statedir_token_key(struct statedir *sd, unsigned char key[32], char *why, size_t cap)
{
	ssize_t n = load(sd, "token_key", key, 32);
	int rc;

	if (n == 32)
		return 0;
	if (n < 0)
		return say(why, cap, "state_dir: token_key", (int)-n);
	if (n > 0)
		return say(why, cap, "state_dir: token_key is damaged", EINVAL);
	if (getrandom(key, 32, 0) != 32)
		return say(why, cap, "getrandom", errno);
	rc = save(sd, "token_key", key, 32);
	return rc == 0 ? 0 : say(why, cap, "state_dir: token_key", -rc);
}

int statedir_epoch(struct statedir *sd, uint64_t *epoch_r, char *why, size_t cap)
{
	char text[32];
	uint64_t last, now = clock_now_wall_ms();
	ssize_t n = load(sd, "epoch", text, sizeof text - 1);
	int rc;

	if (n < 0)
		return say(why, cap, "state_dir: epoch", (int)-n);
	text[n] = '\0';
	last = strtoull(text, NULL, 10);
	*epoch_r = now > last ? now : last + 1;
	snprintf(text, sizeof text, "%" PRIu64 "\n", *epoch_r);
	rc = save(sd, "epoch", text, strlen(text));
	return rc == 0 ? 0 : say(why, cap, "state_dir: epoch", -rc);
}
