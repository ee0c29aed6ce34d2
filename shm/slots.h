/*
 * slots.h - one page a worker: who it is, whether it lives, what it counts. Lock-free.
 *
 * Scope   written by the slot's worker, except pid, gen, state, restarts and what belongs to the
 *         twins (master/twin.h), which the master writes; read by everybody. It is the only part of
 *         the segment that the master reads to supervise.
 * Identity of a worker is (slot, gen), never its pid. gen 0 means never used; it grows by one
 *         at each spawn. slot_alive() is the question to ask before anything is sent or honoured.
 * Units   ms are monotonic.
 */
#ifndef PARLEY_SHM_SLOTS_H
#define PARLEY_SHM_SLOTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum slot_state {
	SLOT_EMPTY = 0,		/* no worker wanted here */
	SLOT_STARTING,		/* forked, not ready */
	SLOT_READY,		/* serving */
	SLOT_LEAVING,		/* being removed: moves its clients away, accepts none */
	SLOT_STOPPING,		/* the daemon stops */
	SLOT_DEAD		/* died; back-off or about to be replaced */
};

/* Who sits on a slot's descriptors; see master/twin.h. */
enum slot_seat { SEAT_WORKER, SEAT_TWIN, SEAT_TWIN2, SLOT_SEATS };
#define SLOT_TWINS 2u

/* Counters of a slot, monotonic since the daemon started (they outlive their worker). */
#define SLOT_COUNTERS(X) \
	X(accepted,        "client connections accepted") \
	X(refused,         "connections refused at a limit") \
	X(closed,          "client connections closed") \
	X(logins,          "successful logins") \
	X(login_failures,  "refused logins") \
	X(registrations,   "accounts made by REG_MSG") \
	X(frames_in,       "frames received") \
	X(bytes_in,        "bytes received") \
	X(bytes_out,       "bytes sent") \
	X(reads,           "recv calls on client sockets") \
	X(writes,          "send calls on client sockets") \
	X(turns,           "loop turns") \
	X(messages_in,     "chat messages accepted") \
	X(messages_out,    "chat messages written to clients") \
	X(messages_local,  "chat messages handed over within the worker") \
	X(messages_peer,   "chat messages sent to another worker") \
	X(messages_far,    "chat messages sent to another host") \
	X(messages_stored, "chat messages committed for later") \
	X(messages_drained,"stored messages delivered") \
	X(group_in,        "group messages committed") \
	X(confirmed,       "chat messages confirmed by their receivers") \
	X(errors_out,      "requests answered with an error") \
	X(bad_frames,      "connections ended for what was no frame") \
	X(slow_closed,     "connections ended for reading too slowly") \
	X(packets_out,     "packets sent to other workers' inboxes") \
	X(packets_in,      "packets read from the inbox") \
	X(inbox_full,      "times that another worker's inbox was full") \
	X(moves_out,       "clients moved to another worker") \
	X(moves_in,        "clients taken over from another worker") \
	X(swept_sessions,  "sessions of a dead predecessor ended") \
	X(swept_messages,  "messages of a dead predecessor stored") \
	X(store_jobs,      "store jobs finished") \
	X(store_failures,  "store jobs that failed for want of the store") \
	X(commits,         "store transactions committed") \
	X(hashes,          "password hashes computed") \
	X(link_packets_out,"packets sent to other hosts") \
	X(link_packets_in, "packets read from other hosts") \
	X(link_items_out,  "items sent to other hosts") \
	X(link_items_in,   "items read from other hosts") \
	X(link_lost,       "items for other hosts that Redis did not carry") \
	X(link_misses,     "times that items of other hosts may have been lost") \
	X(link_bad,        "packets of other hosts that were dropped: malformed, or of a former life") \
	X(bus_commands,    "commands sent to Redis") \
	X(bus_connects,    "connections made to Redis")

struct slot {
	_Atomic int32_t pid;		/* 0: none */
	_Atomic uint32_t gen;
	_Atomic uint32_t state;		/* enum slot_state */
	_Atomic uint32_t restarts;	/* deaths survived */
	_Atomic uint64_t heartbeat_ms;	/* stored by the worker each turn, at least every second */
	_Atomic int32_t waits_tid;	/* thread id that holds the lock that it waits for; 0 none */
	_Atomic uint32_t connections;	/* now */
	_Atomic uint32_t sessions;	/* logged in, now */
	_Atomic uint32_t swept;		/* gen of the predecessor whose leavings are done with */
	_Atomic uint32_t inflight;	/* record index + 1 being served, 0 none */
	_Atomic uint32_t hash_busy;	/* its hash thread is computing */
	_Atomic uint32_t store_up;	/* 1 reachable, 0 not */
	_Atomic uint32_t conf_version;	/* the configuration it runs */
	_Atomic uint64_t region_used;	/* bytes of session memory in use */
	_Atomic uint64_t queue_depth;	/* store jobs waiting */
	_Atomic uint64_t order;		/* next number for messages accepted here; survives deaths */
	_Atomic uint64_t spawned_ms;
	_Atomic uint32_t bus_up;	/* 1: connected to Redis */
	_Atomic uint32_t bus_left;	/* gen that will say nothing more to other hosts */
	_Atomic uint32_t owes;		/* 1: other hosts do not know yet of something it stored; survives deaths */
	char bus_error[96];		/* why it is not, as text; may be read half written */
	_Atomic uint64_t seat[SLOT_SEATS];	/* ticket << 32 | pid of who took it, 0: not yet */
	_Atomic uint32_t call[SLOT_TWINS];	/* a futex each twin sleeps on: raised with each order */
	_Atomic uint32_t tidy, tidied;	/* tickets: descriptors of the dead to be closed; closed */
	_Atomic uint32_t twin_pid[SLOT_TWINS];	/* 0: none; for status */
	_Atomic uint32_t twin_deaths;
	int32_t exit_status;		/* of the last death, master only */
#define X(name, help) _Atomic uint64_t name;
	struct { SLOT_COUNTERS(X) } n;
#undef X
} __attribute__((aligned(4096)));

struct slot *slot_at(uint32_t i);		/* i < shm->head->max_workers */
/* Is (i, gen) the present worker of its slot, and not dead? */
bool slot_alive(uint32_t i, uint32_t gen);
/* Adds to a counter of the own slot: single writer, no locked instruction. */
#define SLOT_ADD(s, name, k) \
	atomic_store_explicit(&(s)->n.name, \
	    atomic_load_explicit(&(s)->n.name, memory_order_relaxed) + (k), memory_order_relaxed)

struct slot_counter { const char *name, *help; uint64_t (*get)(const struct slot *); };
/* The counters by name, for status and metrics; NULL past the end. */
const struct slot_counter *slot_counter_at(unsigned i);

#endif
