#include "worker/base/clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static uint64_t cached_ms, cached_wall_ms;

static uint64_t read_ms(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void clock_tick(void)
{
	cached_ms = read_ms(CLOCK_MONOTONIC);
	cached_wall_ms = read_ms(CLOCK_REALTIME);
}

uint64_t clock_ms(void)
{
	return cached_ms;
}

uint64_t clock_wall_ms(void)
{
	return cached_wall_ms;
}

uint64_t clock_now_ms(void)
{
	return read_ms(CLOCK_MONOTONIC);
}

uint64_t clock_now_wall_ms(void)
{
	return read_ms(CLOCK_REALTIME);
}

/* Every chat message without a time of its own asks for this, localtime_r() costs a lock and a
 * microsecond: the text of the last second is kept, one a thread. */
void clock_text(uint64_t wall_ms, char out[20])
{
	static _Thread_local char text[20];
	static _Thread_local time_t text_of = -1;
	time_t t = (time_t)(wall_ms / 1000);
	struct tm tm;

	if (t != text_of) {
		if (localtime_r(&t, &tm) == NULL ||
		    strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm) != sizeof text - 1)
			memcpy(text, "1970-01-01 00:00:00", sizeof text);
		text_of = t;
	}
	memcpy(out, text, sizeof text);
}
