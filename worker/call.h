/*
 * call.h - calls between hosts: a named method, JSON in, JSON out, a deadline, an error.
 *
 * Scope   a request goes to one host, runs on its leading worker (or its lowest), and comes back in one or more pieces.
 *         An absent host is an error at once; one that does not answer is one at the deadline; nothing hangs.
 * Methods are one table (method.c): name, what it is for, handler. A handler answers at once or later,
 *         through the struct call it was given; what it has not answered by the deadline is dropped.
 *         A call to ourselves runs here, whoever leads: a handler works on any worker.
 * Owner   call.c owns what is under way, both sides. A struct call lives until call_finish(), its
 *         deadline, or the end of its caller: what keeps one over turns names it by its number.
 * Bounds  CALLS_MAX under way a worker either way, CALL_ANSWER bytes of an answer, CALL_WAIT_MAX.
 */
#ifndef PARLEY_CALL_H
#define PARLEY_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/base/json.h"

struct host;
struct item;

#define CALLS_MAX     1024u
#define CALL_ANSWER   (4u << 20)
#define CALL_WAIT_MAX 300000u		/* ms; who asks for more waits that long */
#define CALL_NAME     64u		/* bytes of a method's name */

enum call_rc {
	CALL_OK = 0,			/* codes above 0 are the method's own */
	CALL_ABSENT = -1,		/* no such host, or its life is over */
	CALL_LATE = -2,			/* no answer in time, or not all of it; or Redis does not answer */
	CALL_UNKNOWN = -3,		/* that host has no such method */
	CALL_BAD = -4,			/* it did not understand the arguments */
	CALL_BUSY = -5,			/* too many under way, here or there */
	CALL_LONG = -6			/* the answer is longer than CALL_ANSWER */
};

/* TEXT: one JSON text a line (LEN bytes; NUL behind it). Runs exactly once. */
typedef void call_done_fn(void *arg, uint64_t tag, int code, const char *text, size_t len);
/* ARGS: a JSON object as text. DONE may run at once. */
void call_host(struct host *h, const char *method, const char *args, size_t len, uint32_t wait_ms,
    call_done_fn *done, void *arg, uint64_t tag);
const char *call_text(int code);

/* A request that this worker answers. */
struct call;
typedef void call_method_fn(struct call *c, struct json *j, const struct json_val *args);
struct call_method {
	const char *name, *help;
	call_method_fn *run;
	bool lasts;			/* runs on the lowest worker: a smaller scale ends others first */
};
const struct call_method *call_method_find(const char *name, size_t len);	/* method.c */
const struct call_method *call_method_at(unsigned i);
/* A piece of the answer (a line without its newline); false: the caller is gone, stop. */
bool call_say(struct call *c, const char *text, size_t len);
/* The same for bytes that bring their newlines along, cut anywhere. */
bool call_put(struct call *c, const char *bytes, size_t len);
/* The answer is complete: C is gone. */
void call_finish(struct call *c, int code);
uint64_t call_number(const struct call *c);
struct call *call_by_number(uint64_t number);		/* NULL: finished, late, or nobody waits */
uint64_t call_until_ms(const struct call *c);		/* its deadline, monotonic */

int call_init(void);
void call_on_call(struct host *from, const struct item *it);
void call_on_reply(struct host *from, const struct item *it);
void call_host_gone(struct host *h, uint64_t epoch);

#endif
