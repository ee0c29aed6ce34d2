/*
 * outbox.h - messages that the server has not yet promised to deliver.
 *
 * Scope   keeps every chat message from the moment it was typed until the server's last word on
 *         it, in the order typed, in memory and in an append-only file, so that a killed client
 *         sends it after its next start. It knows neither the wire nor the clock.
 * Units   times are wall clock milliseconds since the epoch.
 * Owner   the outbox owns its messages; a pointer to one is valid until it is closed.
 * Errors  enum outbox_err. A file that fails later is told by outbox_why(), once; the messages
 *         stay in memory.
 * Format  a line a record, fields between tabs, with \t \n \r \\ escaped:
 *         "+ cid at_ms u|g id name label time text" when typed, "- cid" when closed. A last line
 *         without its newline was cut by a crash and is ignored.
 */
#ifndef PARLEY_CLIENT_OUTBOX_H
#define PARLEY_CLIENT_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTBOX_MAX       10000			/* messages */
#define OUTBOX_MAX_BYTES (64u << 20)
#define OUTBOX_LIFE_MS   ((uint64_t)7 * 24 * 3600 * 1000)

enum outbox_err { OUTBOX_OK = 0, OUTBOX_EFULL = -1, OUTBOX_EFILE = -2 };

struct outbox_msg {
	char *cid;
	uint64_t at_ms;
	bool group;
	int64_t id;			/* recipient; 0: known by name only */
	char *name;			/* recipient's name where id is 0, else "" */
	char *label;			/* the recipient's name as known when typed, or the id */
	char *time, *text;
	uint64_t sent_on;		/* connection last sent on, 0: none (not in the file) */
	bool fresh;			/* typed in this run (not in the file) */
};

struct outbox;

/* PATH may be NULL: memory only. */
struct outbox *outbox_open(const char *path);
void outbox_free(struct outbox *o);

/*
 * Takes a copy of all of M but its marks. OUTBOX_OK: it is on disk (fdatasync). OUTBOX_EFILE: it
 * is in memory only. OUTBOX_EFULL: it was not taken.
 */
int outbox_add(struct outbox *o, const struct outbox_msg *m) __attribute__((warn_unused_result));
size_t outbox_count(const struct outbox *o);
/* The I-th open message in the order typed; NULL past the end. */
struct outbox_msg *outbox_at(struct outbox *o, size_t i);
struct outbox_msg *outbox_find(struct outbox *o, const char *cid);
/* The server's last word was spoken: forgets it. */
void outbox_close(struct outbox *o, struct outbox_msg *m);
/* Do the two go the same way, so that their order matters? */
bool outbox_same_lane(const struct outbox_msg *a, const struct outbox_msg *b);
const char *outbox_why(struct outbox *o);

#endif
