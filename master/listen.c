/*
 * listen.c - the listening sockets.
 *
 * A second daemon on the same port would silently share it, SO_REUSEPORT being what it is. So
 * each address is first bound without that option: with SO_REUSEADDR alone the kernel lets
 * connections of the past be and refuses only where somebody listens now.
 */
#include "master/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct address { struct sockaddr_storage sa; socklen_t len; };

static int resolve(const struct conf_listen *at, struct address *out, char *why, size_t cap)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
	    .ai_socktype = SOCK_STREAM }, *list;
	char port[8];
	int rc;

	snprintf(port, sizeof port, "%u", (unsigned)at->port);
	rc = getaddrinfo(at->host, port, &hints, &list);
	if (rc != 0) {
		snprintf(why, cap, "listen %s: %s", at->text, gai_strerror(rc));
		return -1;
	}
	memcpy(&out->sa, list->ai_addr, list->ai_addrlen);
	out->len = list->ai_addrlen;
	freeaddrinfo(list);
	return 0;
}

static int set_on(int fd, int level, int option)
{
	int on = 1;

	return setsockopt(fd, level, option, &on, sizeof on);
}

static int tcp_socket(const struct address *a)
{
	int fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if (set_on(fd, SOL_SOCKET, SO_REUSEADDR) < 0 ||
	    (a->sa.ss_family == AF_INET6 && set_on(fd, IPPROTO_IPV6, IPV6_V6ONLY) < 0)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Does another process listen there? */
static int probe(const struct conf_listen *at, const struct address *a, char *why, size_t cap)
{
	int fd = tcp_socket(a), rc;

	if (fd < 0) {
		snprintf(why, cap, "listen %s: %s", at->text, strerror(errno));
		return -1;
	}
	rc = bind(fd, (const struct sockaddr *)&a->sa, a->len);
	if (rc < 0 && errno == EADDRINUSE)
		snprintf(why, cap, "listen %s: another process listens there", at->text);
	else if (rc < 0)
		snprintf(why, cap, "listen %s: %s", at->text, strerror(errno));
	close(fd);
	return rc;
}

/* Accepted sockets inherit SO_OOBINLINE and TCP_NODELAY. */
static int bind_one(const struct conf_listen *at, const struct address *a, char *why, size_t cap)
{
	int fd = tcp_socket(a);

	if (fd < 0 || set_on(fd, SOL_SOCKET, SO_REUSEPORT) < 0 ||
	    set_on(fd, SOL_SOCKET, SO_OOBINLINE) < 0 || set_on(fd, IPPROTO_TCP, TCP_NODELAY) < 0 ||
	    bind(fd, (const struct sockaddr *)&a->sa, a->len) < 0) {
		snprintf(why, cap, "listen %s: %s", at->text, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

static int unix_address(const char *path, struct sockaddr_un *sun)
{
	*sun = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof sun->sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(sun->sun_path, path, strlen(path) + 1);
	return 0;
}

/* Makes room at PATH for a new socket: nothing there, or what a dead server left. */
static int clear_path(const char *path, const struct sockaddr_un *sun, char *why, size_t cap)
{
	struct stat st;
	int fd, rc;

	if (lstat(path, &st) < 0)
		return 0;			/* bind() tells what is wrong, if anything is */
	if (!S_ISSOCK(st.st_mode)) {
		snprintf(why, cap, "%s: is there and no socket", path);
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		snprintf(why, cap, "%s: %s", path, strerror(errno));
		return -1;
	}
	rc = connect(fd, (const struct sockaddr *)sun, sizeof *sun);
	if (rc == 0 || errno == EAGAIN) {	/* EAGAIN: alive, its backlog is full */
		snprintf(why, cap, "%s: another process serves it", path);
		rc = -1;
	} else if (errno == ECONNREFUSED) {
		rc = unlink(path) == 0 || errno == ENOENT ? 0 : -1;
		if (rc < 0)
			snprintf(why, cap, "%s: cannot remove the old socket: %s", path, strerror(errno));
	} else if (errno == ENOENT) {
		rc = 0;
	} else {
		snprintf(why, cap, "%s: %s", path, strerror(errno));
	}
	close(fd);
	return rc;
}

int listen_unix(const char *path, mode_t mode, int backlog, struct listen_file *file_r,
    char *why, size_t cap)
{
	struct sockaddr_un sun;
	mode_t old;
	int fd = -1, inode = -1, rc;

	if (unix_address(path, &sun) < 0) {
		snprintf(why, cap, "%s: %s", path, strerror(errno));
		return -1;
	}
	if (clear_path(path, &sun, why, cap) < 0)
		return -1;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		goto fail;
	old = umask(0777 & ~mode);		/* never wider than wanted, not even for a moment */
	rc = bind(fd, (struct sockaddr *)&sun, sizeof sun);
	umask(old);
	if (rc < 0 || (inode = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC)) < 0 ||
	    listen(fd, backlog) < 0)
		goto fail;
	file_r->path = strdup(path);
	if (file_r->path == NULL) {
		unlink(path);
		goto fail;
	}
	file_r->inode = inode;
	return fd;
fail:
	snprintf(why, cap, "%s: %s", path, strerror(errno));
	if (inode >= 0)
		close(inode);
	if (fd >= 0)
		close(fd);
	return -1;
}

void listen_unlink(struct listen_file *file)
{
	struct stat ours, there;

	if (file->path == NULL)
		return;
	if (fstat(file->inode, &ours) == 0 && lstat(file->path, &there) == 0 &&
	    there.st_dev == ours.st_dev && there.st_ino == ours.st_ino)
		(void)unlink(file->path);
	close(file->inode);
	free(file->path);
	file->path = NULL;
}

static int *fd_at(const struct listeners *ls, unsigned slot, unsigned i)
{
	return &ls->fd[(size_t)slot * ls->nlisten + i];
}

static int open_one(struct listeners *ls, unsigned i, const struct conf_listen *at,
    char *why, size_t cap)
{
	struct address a;
	int fd;

	if (at->path != NULL) {
		fd = listen_unix(at->path, 0666, ls->backlog, &ls->file[i], why, cap);
		ls->is_unix[i] = true;
		for (unsigned s = 0; s < ls->nslots; s++)
			*fd_at(ls, s, i) = fd;
		return fd < 0 ? -1 : 0;
	}
	if (resolve(at, &a, why, cap) < 0)
		return -1;
	for (unsigned s = 0; s < ls->nslots; s++) {
		fd = bind_one(at, &a, why, cap);
		if (fd < 0)
			return -1;
		*fd_at(ls, s, i) = fd;
	}
	return 0;
}

static int probe_all(const struct conf *conf, char *why, size_t cap)
{
	for (unsigned i = 0; i < conf->nlisten; i++) {
		struct address a;

		if (conf->listen[i].path == NULL &&
		    (resolve(&conf->listen[i], &a, why, cap) < 0 ||
		    probe(&conf->listen[i], &a, why, cap) < 0))
			return -1;
	}
	return 0;
}

int listeners_open(struct listeners *ls, const struct conf *conf, char *why, size_t cap)
{
	size_t all = (size_t)conf->max_workers * conf->nlisten;

	*ls = (struct listeners){ .nlisten = conf->nlisten, .nslots = conf->max_workers,
	    .backlog = (int)conf->backlog };
	ls->fd = calloc(all, sizeof *ls->fd);
	ls->order = calloc(ls->nslots, sizeof *ls->order);
	ls->listening = calloc(ls->nslots, sizeof *ls->listening);
	ls->live = calloc(ls->nslots, sizeof *ls->live);
	if (ls->fd == NULL || ls->order == NULL || ls->listening == NULL || ls->live == NULL) {
		snprintf(why, cap, "listen: out of memory");
		ls->nlisten = 0;
		listeners_close(ls);
		return -1;
	}
	for (size_t i = 0; i < all; i++)
		ls->fd[i] = -1;
	if (probe_all(conf, why, cap) < 0)
		goto fail;
	for (unsigned i = 0; i < ls->nlisten; i++)
		if (open_one(ls, i, &conf->listen[i], why, cap) < 0)
			goto fail;
	return 0;
fail:
	listeners_close(ls);
	return -1;
}

/* Closes the sockets of rows other than KEEP; a unix socket is in all of them. */
void listeners_keep_only(struct listeners *ls, unsigned keep)
{
	for (unsigned i = 0; i < ls->nlisten; i++)
		for (unsigned s = 0; s < ls->nslots; s++) {
			int *fd = fd_at(ls, s, i);

			if (s == keep || (ls->is_unix[i] && keep < ls->nslots))
				continue;
			if (*fd >= 0 && (!ls->is_unix[i] || s == 0))
				close(*fd);
			*fd = -1;
		}
}

void listeners_close(struct listeners *ls)
{
	if (ls->fd != NULL)
		listeners_keep_only(ls, UINT32_MAX);
	for (unsigned i = 0; i < ls->nlisten; i++)
		listen_unlink(&ls->file[i]);
	free(ls->fd);
	free(ls->order);
	free(ls->listening);
	free(ls->live);
	*ls = (struct listeners){ 0 };
}

int listeners_start(struct listeners *ls, unsigned slot, char *why, size_t cap)
{
	if (ls->listening[slot])
		return 0;
	for (unsigned i = 0; i < ls->nlisten; i++)
		if (!ls->is_unix[i] && listen(*fd_at(ls, slot, i), ls->backlog) < 0) {
			snprintf(why, cap, "listen: %s", strerror(errno));
			return -1;
		}
	ls->listening[slot] = true;
	ls->order[ls->norder++] = slot;
	return 0;
}

bool listeners_started(const struct listeners *ls, unsigned slot)
{
	return ls->listening[slot];
}

const int *listeners_of(const struct listeners *ls, unsigned slot)
{
	return fd_at(ls, slot, 0);
}

/* pick = random % n; answers the place, in the order of listen(), of the pick-th live slot. */
static struct sock_filter *program(const struct listeners *ls, const bool *live, unsigned n,
    unsigned short *len_r)
{
	struct sock_filter *code = calloc(3 + 2 * (size_t)n, sizeof *code);
	unsigned short len = 0;

	if (code == NULL)
		return NULL;
	code[len++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
	    (uint32_t)(SKF_AD_OFF + SKF_AD_RANDOM));
	code[len++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, n);
	for (unsigned place = 0, k = 0; place < ls->norder; place++)
		if (live[ls->order[place]]) {
			code[len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, k++, 0, 1);
			code[len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, place);
		}
	code[len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
	*len_r = len;
	return code;
}

/* Attaches PROG to each TCP group, or detaches what is there (NULL). */
static int apply(struct listeners *ls, struct sock_fprog *prog)
{
	int rc = 0, none = 0;

	for (unsigned i = 0; i < ls->nlisten; i++) {
		int fd = *fd_at(ls, ls->order[0], i), r;

		if (ls->is_unix[i])
			continue;
		r = prog != NULL ?
		    setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, prog, sizeof *prog) :
		    setsockopt(fd, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &none, sizeof none);
		if (r < 0 && !(prog == NULL && errno == ENOENT))
			rc = -errno;
	}
	return rc;
}

int listeners_steer(struct listeners *ls, const bool *live)
{
	struct sock_fprog prog = { 0 };
	unsigned n = 0;
	bool want;
	int rc;

	for (unsigned place = 0; place < ls->norder; place++)
		n += live[ls->order[place]];
	want = n > 0 && n < ls->norder;
	if (!want && !ls->steered)
		return 0;
	/* A slot that begins to listen moves no place, so the same live set needs no new program. */
	if (want && ls->steered && memcmp(live, ls->live, ls->nslots * sizeof *live) == 0)
		return 0;
	if (want) {
		prog.filter = program(ls, live, n, &prog.len);
		if (prog.filter == NULL)
			return -ENOMEM;
	}
	rc = apply(ls, want ? &prog : NULL);
	free(prog.filter);
	ls->steered = want;
	memcpy(ls->live, live, ls->nslots * sizeof *live);
	return rc;
}
