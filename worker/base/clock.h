/*
 * clock.h - time for loops: a cached monotonic clock and the wall clock.
 *
 * Units   clock_ms() monotonic milliseconds since boot; clock_wall_ms() milliseconds since the
 *         epoch. Both are read from the kernel by clock_tick() only (once a loop turn).
 * Threads the cache belongs to the loop's thread; clock_now_ms() asks the kernel and is safe anywhere.
 */
#ifndef PARLEY_BASE_CLOCK_H
#define PARLEY_BASE_CLOCK_H

#include <stdint.h>

void clock_tick(void);
uint64_t clock_ms(void);
uint64_t clock_wall_ms(void);
uint64_t clock_now_ms(void);		/* uncached, monotonic */
uint64_t clock_now_wall_ms(void);	/* uncached, wall */
/* "YYYY-MM-DD HH:MM:SS" in local time of a wall time, 19 bytes and a NUL. */
void clock_text(uint64_t wall_ms, char out[20]);

#endif
