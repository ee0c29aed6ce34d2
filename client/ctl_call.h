/*
 * ctl_call.h - one request to the daemon over its admin socket.
 *
 * Scope   a connection a request. The request is a line of JSON, data lines may follow it; the
 *         answer is lines of JSON, the last of which says {"done":true,"code":N,"message":"..."}.
 *         Sending and receiving go on at the same time, so that neither side waits for the other.
 * Units   timeout_ms: without a byte in either direction; 0 waits for ever.
 * Owner   lines and the reply's texts are valid until the callback returns.
 * Errors  enum call_rc; what went wrong is in call_why().
 */
#ifndef PARLEY_CLIENT_CTL_CALL_H
#define PARLEY_CLIENT_CTL_CALL_H

#include <stdbool.h>
#include <stddef.h>

struct text;

enum call_rc {
	CALL_OK = 0,		/* there is a last line; its code is in code_r */
	CALL_UNREACHABLE = -1,	/* nobody listens there, or we may not */
	CALL_BROKEN = -2	/* the answer ended early, took too long, or is no JSON */
};

struct call {
	const char *path;
	int timeout_ms;
	void *arg;
	/* A line of the answer, the last one included (last: DONE is true). */
	void (*line)(void *arg, const char *json, size_t len, bool done);
	/* Appends more to be sent; false at the end. NULL: nothing follows the request. */
	bool (*more)(void *arg, struct text *out);
};

/* REQUEST is the first line, without its newline. */
enum call_rc call_run(const struct call *c, const char *request, size_t len, int *code_r);
const char *call_why(void);

#endif
