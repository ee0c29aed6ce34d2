/*
 * admin_part.h - what admin.c and admin_hosts.c share: one request of parleyctl under way.
 *
 * Scope   private to the two. What is waited for (jobs, hashes, calls to other hosts) is counted in
 *         `pending` and names the request by its number: one that ended meanwhile is not found.
 */
#ifndef PARLEY_ADMIN_PART_H
#define PARLEY_ADMIN_PART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/base/json.h"
#include "worker/loop.h"
#include "worker/store.h"
#include "worker/timer.h"

#define ADMIN_OUT_LOW 65536u		/* unsent bytes above which no more lines are made */
#define ADMIN_BATCH   500u		/* accounts in one import job */

struct admin;
struct host;

/* Was a session of USER on another host told to end? WHY where that is not known. */
enum elsewhere { ELSEWHERE_ENDED, ELSEWHERE_NOBODY, ELSEWHERE_UNKNOWN };
typedef void elsewhere_fn(struct admin *a, uint32_t user, enum elsewhere e, const char *why);

struct admin_page { struct host *h; uint32_t after; bool asked; };	/* of the sessions of a host */

struct admin {
	struct watch w;			/* first: the loop hands it back */
	uint64_t number;
	bool used, done, said, importing, input_end;
	bool who, who_across, unsure;	/* unsure: a host that was asked has not answered */
	bool ctl;			/* it came from another host: not forwarded again */
	uint32_t pending;
	char *in, *out;
	size_t in_len, out_len, out_pos, out_cap;
	uint32_t who_next, who_left, imported, failed, shown;
	unsigned next_host;
	struct admin_page page[4];
	elsewhere_fn *then;
	struct host *asked;		/* whom the request was forwarded to */
	bool stopping;			/* a request after which no answer is one, too */
	int code;
	char message[512];
	struct store_row rows[ADMIN_BATCH];
	uint32_t lines[ADMIN_BATCH], nrows;
	uint32_t hashing;
	struct timer quiet;
};

struct admin *admin_find(uint64_t number);
/* A line of the answer: admin_line() opens an object in memory of the worker, admin_say() closes
 * and queues it. */
void admin_line(struct json_out *w);
void admin_say(struct admin *a, struct json_out *w);
/* Lines as they are, each with its newline. */
void admin_raw(struct admin *a, const char *text, size_t len);
/* The last line. The first word counts. */
void admin_finish(struct admin *a, int code, const char *message);

/* admin_hosts.c */
void admin_hosts(struct admin *a);
void admin_drain(struct admin *a, const char *arg);
/* Sends the request to the host that it names; false: it is for this one. CMD is its name. */
bool admin_forward(struct admin *a, const char *host, const char *cmd, const char *line, size_t len);
/* What there is to call (call.h); calls it. WITH is the object of its arguments, or nothing. */
void admin_methods(struct admin *a);
void admin_call(struct admin *a, const char *host, const char *method, const struct json_val *with);
/* Goes on with the lines of other hosts; finishes the request behind the last. */
void admin_who_across(struct admin *a);
/* Ends the session of USER on another host. THEN runs once, perhaps at once. */
void admin_end_elsewhere(struct admin *a, uint32_t user, elsewhere_fn *then);
/* The account was deleted: all hosts. */
void admin_forget(uint32_t user);

#endif
