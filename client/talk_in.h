/*
 * talk_in.h - what talk.c (session) and ask.c (requests) share; nobody else includes it.
 *
 * Scope   struct talk with its open requests, and the helpers of both halves. talk.c owns the
 *         connection, the login and what the server says by itself; ask.c owns t->ask.
 * Owner   an ask owns its strings (ask_drop).
 */
#ifndef PARLEY_CLIENT_TALK_IN_H
#define PARLEY_CLIENT_TALK_IN_H

#include "client/talk.h"

struct json;
struct json_out;
struct json_val;

#define ASKS_MAX  64
#define TOKEN_MAX 1024

struct member { int64_t id; char *name; bool online, creator; };

/* A request without its answer. */
struct ask {
	int64_t req;
	enum proto_msg msg;
	struct talk_target about;
	char *desc;
	uint64_t due_ms;
	bool quiet;			/* nobody waits for the answer: nothing is shown of it */
	unsigned pages;
	int64_t after;			/* the last id seen, for the next page */
	bool cleared;			/* the first page has come */
	struct member *member;		/* of /who #group, gathered over the pages */
	size_t nmembers;
};

struct talk {
	struct talk_ops ops;
	void *arg;
	struct show *show;
	struct net *net;
	struct book *book;
	struct deliver *deliver;
	struct home *home;
	char *root;
	struct json *json;
	char *scratch;			/* NET_FRAME_MAX + 1: one string of a frame */

	enum talk_state state;
	char *who, *password;		/* as the person gave them */
	bool relogin_with_password;	/* the token was refused */
	char token[TOKEN_MAX + 1];
	char name[PROTO_NAME_BYTES + 1], opened[PROTO_NAME_BYTES + 1];
	int64_t id;
	int64_t login_req;		/* 0: no login on the wire */
	uint64_t login_due_ms, relogin_ms, lost_ms;
	unsigned hops;			/* how often this login was sent to another server */
	unsigned agains;		/* errno 9 in a row while coming back */
	char *place;			/* where we were logged in last */
	uint64_t say_ms;		/* when a move is told if it lasts; 0: nothing to tell */
	char lost_why[300];
	struct talk_answer login, reg;
	char *reg_name, *reg_password;	/* to be sent when the connection is up */
	bool ended;
	int64_t last_writer;

	struct ask ask[ASKS_MAX];
	size_t nasks;
	int64_t req;
	unsigned failures;
};

/* What every reply carries. */
struct reply {
	int err;
	char errmsg[256];
	uint64_t retry_ms;
	int64_t req;
};

/* talk.c: members of the frame in hand; 0 or "" where one is missing or of another type. */
int64_t talk_get_int(struct talk *t, const struct json_val *obj, const char *name);
void talk_get_text(struct talk *t, const struct json_val *obj, const char *name, char *out,
    size_t cap);
bool talk_get_state(struct talk *t, const struct json_val *obj);
void talk_get_reply(struct talk *t, const struct json_val *root, struct reply *r);
/* A frame into BUF, up to its members; and its end, queued. -1: too long, or not connected. */
void talk_begin(struct json_out *w, char *buf, size_t cap, enum proto_msg msg);
int talk_send(struct talk *t, struct json_out *w);
void talk_answer_with(struct talk_answer *a, int err, const char *errmsg, uint64_t retry_ms);
/* Back to nobody: the person has to say what next. STOP hangs up, too. */
void talk_go_out(struct talk *t, bool stop);
/* Overwrites and frees a secret. */
void talk_wipe(char **s);

/* ask.c */
void ask_drop(struct talk *t, size_t i);
/* ERR 0: we say so ourselves. The request is dropped. */
void ask_fail(struct talk *t, size_t i, int err, const char *errmsg, uint64_t retry_ms);
void ask_fail_all(struct talk *t, const char *why);
/* A reply finds its request by `req`, or else by its kind: the oldest of it. */
struct ask *ask_find(struct talk *t, enum proto_msg reply_msg, int64_t req);
void ask_on_reply(struct talk *t, enum proto_msg msg, const struct json_val *root);
void ask_event_party(struct json_out *w, const char *key, int64_t id, const char *name);
/* The arrays of a frame into the book: how many elements, and the last one's id (may be NULL). */
size_t ask_take_friends(struct talk *t, const struct json_val *root, int64_t *last_r);
size_t ask_take_groups(struct talk *t, const struct json_val *root, int64_t *last_r);

#endif
