/*
 * sweep.h - what a dead worker left: its messages to the store, its sessions out of the hash.
 *
 * Scope   run by the successor in the same slot as its first act, or by a sibling while the slot has no
 *         worker. Reads the dead worker's records and chunks by their headers alone.
 * Order   by acceptance (msg.order), all through this worker's one write lane.
 */
#ifndef PARLEY_SWEEP_H
#define PARLEY_SWEEP_H

#include <stdbool.h>
#include <stdint.h>

/* Executes what generations other than LIVE_GEN left in SLOT. */
void sweep_start(uint32_t slot, uint32_t live_gen);
/* Is that session one of a dead worker, still being settled by this one? */
bool sweep_owns(uint32_t rec, uint32_t gen);
/* An own entry for the user of such a session: to the store, behind what is there. Takes REF. */
void sweep_store(uint32_t ref);
bool sweep_idle(void);
bool sweep_slot_idle(uint32_t slot);

#endif
