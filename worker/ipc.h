/*
 * ipc.h - what the processes of one host say to each other.
 *
 * Scope   two SOCK_SEQPACKET pairs a slot, made by the master before it forks, and one pair up:
 *
 *           inbox    bulk: messages between workers, many items coalesced in a packet of at most
 *                    64 KiB. Read by the slot's worker only; the send end is shared by everybody.
 *           control  small: orders of the master, clients that move (with their descriptor).
 *           up       worker -> master; the send end is shared by all workers.
 *
 *         The master keeps both ends of all of them, so there is no end-of-file at a worker's
 *         death and what it had not read is read by its successor. Liveness comes from slots.h.
 * Rules   a packet is exactly one struct ipc_ctl (control, up) or a struct ipc_head and items
 *         (inbox). The table below binds sender and receiver: length limits and descriptors or
 *         not. Whatever does not fit is dropped with its descriptors closed, and counted.
 * Owner   ipc_ctl_send: descriptors stay the caller's. ipc_ctl_recv: received ones become it.
 * Errors  enum ipc_rc. IPC_AGAIN is back-pressure, not an error.
 */
#ifndef PARLEY_IPC_H
#define PARLEY_IPC_H

#include <stddef.h>
#include <stdint.h>

enum ipc_rc { IPC_OK = 0, IPC_AGAIN = -1, IPC_BAD = -2, IPC_EIO = -3 };

#define IPC_CTL_BODY 3072		/* bytes of text or state in a control message */
#define IPC_CTL_FDS  20			/* listeners, inbox and control of an adopted slot */
#define IPC_PACKET   65536		/* largest inbox packet */

/*        name       body min, max     fds min, max   from -> to: meaning */
#define IPC_CTL_TYPES(X) \
	X(STOP,      0, 64,             0, 0,  "master -> worker: end your sessions (body: reason), flush, exit 0 within stop_seconds") \
	X(QUIT,      0, 0,              0, 0,  "master -> worker: exit at once") \
	X(LEAVE,     0, 0,              0, 0,  "master -> worker: move your clients to siblings, then LEFT and exit 0") \
	X(RELOAD,    0, 0,              0, 0,  "master -> worker: the segment holds a new configuration text") \
	X(REOPEN,    0, 0,              0, 0,  "master -> worker: reopen the log") \
	X(ADOPT,     0, 0,              1, IPC_CTL_FDS, "master -> worker: slot `a` has no worker: serve its inbox (first fd), control (second) and listeners (rest), sweep what generation `b` left") \
	X(RELEASE,   0, 0,              0, 0,  "master -> worker: stop serving slot `a`, answer RELEASED") \
	X(ADMIN,     2, IPC_CTL_BODY,   1, 1,  "master -> worker: a parleyctl connection and the request line it sent; answer there and close") \
	X(MOVE,      0, IPC_CTL_BODY,   1, 1,  "worker -> worker: take over record `a` generation `b`; the descriptor comes along") \
	X(TAKEN,     0, 0,              0, 0,  "worker -> worker: record `a` generation `b` is mine now") \
	X(KEEP,      0, 0,              0, 0,  "worker -> worker: no, keep record `a` generation `b`") \
	X(READY,     0, 0,              0, 0,  "worker -> master: serving") \
	X(LEFT,      0, 0,              0, 0,  "worker -> master: empty, about to exit") \
	X(RELEASED,  0, 0,              0, 0,  "worker -> master: no longer serving slot `a`") \
	X(SWEPT,     0, 0,              0, 0,  "worker -> master: generation `b` of slot `a` left nothing more") \
	X(RELOADED,  0, 0,              0, 0,  "worker -> master: runs configuration version `a`") \
	X(BROKEN,    0, 128,            0, 0,  "worker -> master: the segment is broken (body: why); rebuild")

enum ipc_ctl_type {
	IPC_NONE = 0,
#define X(name, min, max, fmin, fmax, help) IPC_##name,
	IPC_CTL_TYPES(X)
#undef X
	IPC_NTYPES
};

struct ipc_ctl {
	uint32_t type, len;		/* len: body bytes */
	uint32_t from_slot, from_gen;	/* UINT32_MAX from the master */
	uint32_t to_gen;		/* generation addressed, 0: whoever reads it */
	uint32_t a, b, c;
	char body[IPC_CTL_BODY];
};

/* A pair of connected SEQPACKET sockets, non-blocking, CLOEXEC, buffers raised as far as permitted. */
int ipc_pair(int fds[2]);
enum ipc_rc ipc_ctl_send(int sock, const struct ipc_ctl *m, const int *fds, unsigned nfds);
/* FDS has room for IPC_CTL_FDS. IPC_BAD: it was nonsense, nothing leaked; go on reading. */
enum ipc_rc ipc_ctl_recv(int sock, struct ipc_ctl *m, int *fds, unsigned *nfds_r);
const char *ipc_ctl_name(uint32_t type);

/* Head of an inbox packet; items follow, each padded to 8 bytes (worker/peer.h). */
struct ipc_head {
	uint32_t magic, bytes;		/* of the whole packet */
	uint32_t from_slot, from_gen;
	uint32_t to_slot, to_gen;	/* generation that the sender believed in */
	uint32_t items, pad;
};
#define IPC_MAGIC 0x70726c79u

#endif
