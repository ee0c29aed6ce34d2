/*
 * seats.h - who sits on a slot's descriptors: its worker and two twins, and who is made by whom.
 *
 * Scope   the master's side of twin.h, one struct a slot, only where `immortal` is on. One twin at
 *         a time is the maker: every order goes to it. It stays the maker until it has died and was
 *         waited for, so two never work in one table at the same moment. One that does not do as
 *         ordered is killed, and the other one is asked.
 *
 *           a twin is missing      the maker makes another; at once, or after back-off if it died young
 *           the worker is missing  the maker makes it when the supervisor wants one; as long as it does
 *                                  not, what the dead one had open is closed (tidied)
 *           both twins             the worker goes on, and is to be replaced (SEATS_BARE)
 *           all three              a first twin is forked by the master, on a table of its own
 *
 * Decides like the supervisor: in seats_tend(), from what is so now. A worker that was ordered and
 *         has not sat down yet has the pid SUP_COMING in its sup_slot.
 * Units   ms are monotonic. Errors are logged. Locks none.
 */
#ifndef PARLEY_MASTER_SEATS_H
#define PARLEY_MASTER_SEATS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/slots.h"

struct sup;

struct seats {
	pid_t twin[SLOT_TWINS];		/* 0: none */
	uint64_t born_ms[SLOT_TWINS];
	unsigned maker;
	uint32_t order[SLOT_SEATS];	/* tickets that are out, 0: none */
	uint64_t ordered_ms[SLOT_SEATS], issued_ms[SLOT_SEATS];	/* of this maker first, and last */
	bool again[SLOT_SEATS];		/* somebody died who may have been for this seat */
	uint32_t tidy;			/* the same for tidying */
	uint64_t tidy_ms;
	bool tidied;			/* since the last worker */
	bool weedy;			/* somebody may have been born who will never sit down */
	bool dismissed;			/* the twins are being killed: nobody is made here */
	bool young;			/* the last twin died young, so it may again ... */
	int status;			/* ... of this */
	uint32_t delay_ms;		/* back-off for a twin in force */
	uint64_t due_ms, bare_ms;
};

enum seats_verdict {
	SEATS_FINE,
	SEATS_STILLBORN,		/* the worker that was on its way will not come: seats.status */
	SEATS_BARE			/* the worker has no twins, and there is nobody to make them */
};

/* Looks after slot I; phases RUNNING and STOPPING only. */
enum seats_verdict seats_tend(struct sup *s, unsigned i, uint64_t now_ms);
/* Has somebody sat down? Notes it; p->pid is a pid then. */
void seats_look(struct sup *s, unsigned i, uint64_t now_ms);
/*
 * A child has died. True: it was a twin. Before anything else it notes who had sat down unseen, so
 * that a worker that has died is found under its pid.
 */
bool seats_reap(struct sup *s, pid_t pid, int status, uint64_t now_ms);
/* The worker of slot I was waited for. */
void seats_worker_gone(struct sup *s, unsigned i);
/* Takes every order of slot I back and kills its twins. A worker on its way is here, or is not coming. */
void seats_dismiss(struct sup *s, unsigned i, uint64_t now_ms);
/* Has slot I a twin? */
bool seats_taken(const struct sup *s, unsigned i);
/* Is something ordered and not done? */
bool seats_waiting(const struct sup *s, unsigned i);

#endif
