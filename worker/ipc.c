/*
 * ipc.c - control messages and their descriptors.
 *
 * One table says for each type how long its body may be and how many descriptors travel with it;
 * both directions are checked against it, so a wrong sender is found in its own process.
 */
#include "worker/ipc.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IPC_CTL_HEAD offsetof(struct ipc_ctl, body)
#define IPC_SNDBUF   (8 << 20)

static const struct {
	const char *name;
	uint32_t min, max;
	unsigned fmin, fmax;
} spec[IPC_NTYPES] = {
#define X(name, min, max, fmin, fmax, help) [IPC_##name] = { #name, min, max, fmin, fmax },
	IPC_CTL_TYPES(X)
#undef X
};

static bool spec_ok(const struct ipc_ctl *m, unsigned nfds)
{
	return m->type > IPC_NONE && m->type < IPC_NTYPES && m->len >= spec[m->type].min &&
	    m->len <= spec[m->type].max && nfds >= spec[m->type].fmin && nfds <= spec[m->type].fmax;
}

const char *ipc_ctl_name(uint32_t type)
{
	return type > IPC_NONE && type < IPC_NTYPES ? spec[type].name : "unknown";
}

int ipc_pair(int fds[2])
{
	int want = IPC_SNDBUF;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0)
		return -errno;
	/* The limit of a pair is the sender's buffer. FORCE needs a privilege; the plain option is
	 * cut at net.core.wmem_max, which still leaves room for three full packets. */
	for (int i = 0; i < 2; i++)
		if (setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &want, sizeof want) < 0)
			(void)setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &want, sizeof want);
	return 0;
}

enum ipc_rc ipc_ctl_send(int sock, const struct ipc_ctl *m, const int *fds, unsigned nfds)
{
	union { char buf[CMSG_SPACE(sizeof(int) * IPC_CTL_FDS)]; struct cmsghdr align; } ctl;
	struct iovec iov = { (void *)m, IPC_CTL_HEAD + m->len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (!spec_ok(m, nfds))
		return IPC_BAD;
	if (nfds > 0) {
		memset(&ctl, 0, sizeof ctl);
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	while (sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		if (errno != EINTR)
			return errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS ?
			    IPC_AGAIN : IPC_EIO;
	return IPC_OK;
}

/* Gathers every descriptor that came, so that none leaks whatever the message was. */
static unsigned take_fds(struct msghdr *mh, int *fds)
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c != NULL; c = CMSG_NXTHDR(mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t k = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < k; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (n < IPC_CTL_FDS)
				fds[n++] = fd;
			else
				close(fd);
		}
	}
	return n;
}

enum ipc_rc ipc_ctl_recv(int sock, struct ipc_ctl *m, int *fds, unsigned *nfds_r)
{
	union { char buf[CMSG_SPACE(sizeof(int) * IPC_CTL_FDS)]; struct cmsghdr align; } ctl;
	struct iovec iov = { m, sizeof *m };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.buf,
	    .msg_controllen = sizeof ctl.buf };
	ssize_t n;

	while ((n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)) < 0)
		if (errno != EINTR)
			return errno == EAGAIN ? IPC_AGAIN : IPC_EIO;
	unsigned nfds = take_fds(&mh, fds);
	if ((size_t)n < IPC_CTL_HEAD || (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
	    m->len != (size_t)n - IPC_CTL_HEAD || !spec_ok(m, nfds)) {
		while (nfds > 0)
			close(fds[--nfds]);
		return IPC_BAD;
	}
	*nfds_r = nfds;
	return IPC_OK;
}
