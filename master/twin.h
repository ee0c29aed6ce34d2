/*
 * twin.h - sleeping processes that hold a worker's descriptors open over its death.
 *
 * Scope   a slot is a worker and two twins on ONE table of descriptors (clone with CLONE_FILES), all
 *         three children of the master (CLONE_PARENT), who waits for each. The first twin is forked
 *         by the master as workers otherwise are; it makes the second, and every worker. So while
 *         any of the three lives, no descriptor closes because one died. All three at once: the
 *         table is gone, and the slot begins again from nothing.
 *         Here is what runs in twins and newborns, and the words that they share with the master.
 *         Who is to be made when is decided in seats.c.
 *
 * Orders  are words in the slot's page of the segment, not packets. A word says what is wanted, so
 *         it may be read, repeated or found by somebody else any number of times; nothing is queued
 *         that a successor could mistake for news; and an answer is a word, too, so it is not lost.
 *
 *           seat[x]   ticket << 32 | pid. The master opens a seat with a new ticket and pid 0. The
 *                     last bit of the ticket names the twin that shall make who sits there. Whoever
 *                     is born takes the seat by a compare-and-swap of its own pid for the 0, before
 *                     it does anything else; if that fails it is one too many, and exits with 0.
 *           tidy      ticket: close what a dead worker had open; the twin stores it to `tidied`.
 *           call[k]   the futex that twin k sleeps on, raised by the master after each order.
 *
 *         At every instant at which somebody may be killed:
 *           the twin, before it cloned      the seat stays empty; the master has waited for the
 *                                           twin, opens the seat with a new ticket for the other
 *           after it cloned                 the child has the old ticket: it takes the seat before
 *                                           the master changed it, and is found there, or never
 *           the child, before it sat down   the seat stays empty; a stranger's death makes the
 *                                           master open it again with another ticket
 *           the child, sitting              its pid is in the word: its death is a worker's death
 *           the master                      everybody has PR_SET_PDEATHSIG (SIGKILL for twins, for
 *                                           nothing is lost with them) and looks at its parent after
 *           the twin is stopped, starves    its time is up: it is killed, the other one is asked
 *           the child is stopped unseated   the same; and children that are known nowhere are killed
 *                                           as soon as nothing is ordered in their slot
 *         A pid in a word is believed only if it is a child of the master (waitid(2)).
 *
 * Clone   is raw: glibc has no fork() that shares the table. What its fork() does besides is made
 *         good: the thread id that glibc remembers (robust mutexes record it as their owner), the
 *         address that the kernel clears at the end, the robust list. So a worker is one process
 *         with its loop on the main thread, whoever made it. The cloner must be small and have one
 *         thread, or locks of threads that are not there would stay locked: twins are, a worker is
 *         not, and therefore never clones. Handlers of pthread_atfork() do not run. A worker both of
 *         whose twins have died hands its clients to siblings (LEAVE) and is started anew, with
 *         twins; where there is no sibling it serves on without.
 *
 * What a worker that is born of a twin may rely on (boot->keep != NULL)
 *   1. Its predecessor is dead and waited for: no system call of it is still under way, so what the
 *      kernel counts of a connection stands still, but for what the network does. There is one
 *      worker at most in a table at any time.
 *   2. Descriptors have the numbers that they had. The table holds boot->keep (all that was open
 *      when the table was made: listeners, inbox, control, peers, up, life, the segment, the log,
 *      the lock, stdio) and whatever dead workers left: clients, epoll, eventfds, links to store and
 *      Redis, what siblings sent (moves, slots served for others). Several may have died since
 *      anybody tidied.
 *   3. Nobody opens or closes in the table but the worker. Twins sleep; they open nothing for good (a
 *      line to syslog, a look at /proc), and they tidy only while no worker is there.
 *   4. Record locks (fcntl) belong to the table: those of a dead worker hold until one descriptor of
 *      the file is closed. SQLite's are such locks. Close strays before a store is opened.
 *   5. The segment is as the dead left it: slot.inflight, counters, records, chunks. The master has
 *      raised slot.gen before; records of earlier generations of the slot are the predecessors'.
 *   6. Its memory is the first twin's: as it was when the slot was first forked, heap nearly empty,
 *      no library begun, one thread. Configuration and log level are those of now: read from the
 *      segment. The log was opened again. State of a random generator that the master had would be
 *      the same in every worker: seed after birth.
 *   7. It has 2 * hang_seconds until READY, as every worker. A crash before that costs a back-off
 *      during which the slot has no worker: then a twin calls worker_tidy() and a sibling sweeps.
 *      Both are what adoption has to change, together with worker_tidy() at the top of worker_run().
 *   8. Not promised: all three at once. exec and unshare(CLONE_FILES) end the sharing; fork() in a
 *      worker copies the table, and the copy keeps connections open that the worker closes.
 *   For a session that goes on elsewhere (a move) the descriptor left here is a copy of a living
 *   connection: close() it, never shutdown().
 *
 * Memory  a twin has 12 KiB of its own and 0.2 MiB of proportional share (Pss).
 * Locks   none. Errors  0 or -1 with a sentence in WHY.
 * Source  clone(2), futex(2), set_tid_address(2), get_robust_list(2), PR_GET_TID_ADDRESS in prctl(2).
 */
#ifndef PARLEY_MASTER_TWIN_H
#define PARLEY_MASTER_TWIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/slots.h"
#include "worker/worker.h"

/* What the first twin of a slot hands down to all that are born in it. Made by the master's fork. */
struct twin {
	struct worker_boot boot;	/* keep is filled in by twin_run() */
	pid_t master;
	uint32_t conf_version;		/* of boot.conf */
	unsigned k;			/* which twin */
};

/*
 * Tries everything once with children that end at once: the shared table, the parent, the thread id
 * in a robust mutex, its passing on. -1: no twins here.
 */
int twin_possible(char *why, size_t cap);
/* In a fork of the master that has dropped its rights and closed what is not the slot's. */
_Noreturn void twin_run(struct twin *t);

/* For the master. TICKET is not 0; its last bit says which twin. */
#define TICKET_TWIN(ticket) ((ticket) & 1u)
/*
 * Opens a seat for TICKET in place of OLD (0: no order is out). False: somebody has sat down with
 * OLD, *PID_R, and the seat stays his.
 */
bool twin_seat_open(struct slot *sh, enum slot_seat seat, uint32_t old, uint32_t ticket,
    pid_t *pid_r);
/* Takes the order back; the rest as above. */
bool twin_seat_close(struct slot *sh, enum slot_seat seat, uint32_t old, pid_t *pid_r);
/* Who sits there by TICKET, 0: nobody yet. */
pid_t twin_seated(const struct slot *sh, enum slot_seat seat, uint32_t ticket);
/* Wakes twin K, which looks at all that is ordered. */
void twin_wake(struct slot *sh, unsigned k);
/* What ps shows. */
void twin_names(unsigned slot, char ident[32], char title[48], char comm[16]);

#endif
