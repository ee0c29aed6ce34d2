/*
 * supervise.h - the worker slots: birth, death, back-off, adoption, scaling, the end.
 *
 * Scope   one small state machine a slot, driven by four things: what workers say (the `up`
 *         socket), deaths (sup_reap), orders from outside (scale, reload, stop), and the clock
 *         (sup_tick, which does all the deciding). It reads the slots of the segment, writes
 *         only pid, gen, state and restarts there, and takes no lock.
 *
 *           EMPTY --wanted--> STARTING --READY--> READY --unwanted--> LEAVING --exit--> EMPTY
 *                                 \                 |
 *                                  `---- death ----> DEAD --now or after back-off--> STARTING
 *
 * Adoption whenever a slot that was ever used has no process and gets none at once, the READY
 *         worker with the fewest connections is told to serve its sockets (ADOPT), and is told to
 *         let go (RELEASE, RELEASED) before a new worker is forked there.
 * Twins   where `immortal` is on, workers are made by twins that share their descriptors (seats.h):
 *         between the order and the birth a slot's pid is SUP_COMING. Everything else is the same.
 * Orders  are bits a slot: one that does not fit into a full control socket stays pending and is
 *         sent by a later tick. Nothing here ever waits.
 * Units   ms are monotonic (clock.h).
 * Errors  0, or -1 with a sentence in WHY.
 */
#ifndef PARLEY_MASTER_SUPERVISE_H
#define PARLEY_MASTER_SUPERVISE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "master/listen.h"
#include "master/reactor.h"
#include "master/seats.h"
#include "master/who.h"
#include "worker/base/conf.h"
#include "worker/ipc.h"

#define SUP_NOBODY UINT32_MAX
/* In place of a pid: ordered of a twin, and not yet born (seats.h). No process has it, so kill(2) is safe. */
#define SUP_COMING INT32_MAX

enum sup_order {		/* bits, sent lowest first */
	SUP_RELOAD = 1, SUP_REOPEN = 2, SUP_LEAVE = 4, SUP_STOP = 8, SUP_QUIT = 16
};

enum sup_phase {
	SUP_MIGRATING,		/* the first migration child has not answered yet */
	SUP_RUNNING,
	SUP_REBUILDING,		/* the segment is broken: all workers are being killed */
	SUP_STOPPING,
	SUP_DONE		/* no child is left; see exit_code */
};

enum sup_how { SUP_GRACEFUL, SUP_AT_ONCE };

struct sup_slot {
	int inbox[2], control[2];	/* read end, send end */
	pid_t pid;			/* 0: no process; SUP_COMING */
	uint32_t gen;
	bool wanted;
	bool barred;			/* exited for its configuration: not before the next reload */
	bool ready, leaving, left, retried;
	bool crowded;			/* a LEAVE took too long and became a STOP */
	uint64_t spawned_ms, ready_ms;
	uint32_t delay_ms;		/* back-off in force */
	uint64_t respawn_ms;		/* not before */
	uint32_t adopter, adopter_gen;	/* SUP_NOBODY */
	bool releasing;
	uint64_t release_by_ms, leave_by_ms;
	int32_t waits_tid;		/* lock holder it was last seen waiting for, since when */
	uint64_t waits_since_ms;
	unsigned pending;		/* enum sup_order */
	bool bare_told;			/* that it has no twins */
	struct seats seats;		/* where twins are */
};

/* What the supervisor borrows; it outlives it. */
struct sup_host {
	struct conf **conf;		/* the running configuration; a reload changes what it points to */
	struct listeners *listeners;
	struct reactor *reactor;
	const struct who *who;
	const unsigned char *token_key;	/* 32 bytes */
	const char *host_id;
	void *arg;
	void (*child)(void *arg);	/* in every child: close what is the master's alone */
	int (*rebuild)(void *arg);	/* no worker lives: make a new segment; 0 or -1 (give up) */
};

struct sup {
	struct sup_host host;
	unsigned nslots;
	struct sup_slot *slot;
	int *send_inbox, *send_control;	/* [nslots] as workers want them */
	int up[2], life[2];
	struct watch up_watch;
	enum sup_phase phase;
	bool started;			/* all wanted workers were ready once */
	bool hurried;
	bool immortal;			/* workers have twins */
	uint32_t ticket;		/* the last one given out */
	int exit_code;
	char failure[200];		/* why the start failed */
	uint64_t stop_by_ms, last_tick_ms;
	uint64_t calm_until_ms;		/* nobody counts as hanging before */
	uint64_t rebuild_ms, rebuild_delay_ms;
	unsigned wanted;
	struct { pid_t pid; bool done, tried; uint64_t due_ms; } migrate;
	bool *live;			/* [nslots] scratch for steering */
};

int sup_open(struct sup *s, const struct sup_host *host, char *why, size_t cap);
void sup_close(struct sup *s);

/* Wants N workers; the first migration runs before any of them. */
void sup_start(struct sup *s, unsigned n);
/*
 * Does what is due. Returns how many ms may pass before it is called again, at most. Once the
 * phase is SUP_DONE the segment must not be looked at: it may be gone.
 */
int sup_tick(struct sup *s, uint64_t now_ms);
/* A child has ended; harmless for a pid that is none of ours. */
void sup_reap(struct sup *s, pid_t pid, int status, uint64_t now_ms);

/* Wants N workers from now on. -1: out of bounds. */
int sup_scale(struct sup *s, unsigned n, char *why, size_t cap);
/* A new configuration is in the segment: every worker is told, barred slots get another chance. */
void sup_reloaded(struct sup *s);
void sup_reopen_logs(struct sup *s);
void sup_stop(struct sup *s, enum sup_how how);

/* All wanted workers are READY and nobody is on the way out. */
bool sup_settled(const struct sup *s);
/* READY workers. */
unsigned sup_ready(const struct sup *s);
/* Every ready worker runs this version of the configuration. */
bool sup_runs_conf(const struct sup *s, uint32_t version);
/* The READY slot with the lowest number, SUP_NOBODY. */
uint32_t sup_lowest(const struct sup *s);
/* Hands a parleyctl connection and its request to a worker. FD stays the caller's. */
enum ipc_rc sup_send_admin(struct sup *s, uint32_t slot, const char *line, size_t len, int fd);

#endif
