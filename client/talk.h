/*
 * talk.h - the conversation with the server: login, requests, chat, confirmed delivery.
 *
 * Scope   one account at a time over one net. Everything that PROTOCOL says of a client with
 *         confirmed delivery is kept here: the outbox and its order, resending, waiting after
 *         errno 7 and 9, giving up after 7 days, dropping what was seen, confirming what has
 *         reached the person's side, the resume token. Results and messages go to show; the
 *         shell decides what to ask for.
 * Units   monotonic milliseconds unless the name says wall.
 * Owner   struct talk owns net, book, outbox, seen and the state folder; show is lent to it.
 * Errors  a request that cannot be made is shown at once and counted (talk_failures()); so is
 *         one that the server refuses, when its answer comes.
 */
#ifndef PARLEY_CLIENT_TALK_H
#define PARLEY_CLIENT_TALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/net.h"
#include "worker/proto.h"

struct book;
struct home;
struct pollfd;
struct show;
struct talk;

#define TALK_FRAME_MAX (64u << 10)	/* what servers take unless configured otherwise */
#define TALK_TEXT_MAX  (60u << 10)	/* bytes of one message */
#define TALK_ANSWER_MS 30000		/* a request without an answer has failed after that */

enum talk_state {
	TALK_OUT,		/* nobody is logged in */
	TALK_LOGIN,		/* the person's login is under way */
	TALK_IN,
	TALK_LOST		/* was in; coming back by itself */
};

struct talk_ops {
	/* State, or what the prompt says, may have changed. */
	void (*changed)(void *arg);
	/* Logged in to an account (HOME is NULL where it has no state folder). */
	void (*account)(void *arg, const struct home *home);
};

/* What became of a login or a registration. */
struct talk_answer {
	bool pending;
	int err;		/* 0; the server's errno; -1: no answer, errmsg says why */
	char errmsg[256];
	uint64_t retry_ms;
	int64_t id;
};

/* A user or a group as the person named it. */
struct talk_target {
	bool group;
	int64_t id;				/* 0: known by name only */
	char name[PROTO_NAME_BYTES + 1];	/* "" where only the id is known */
};

/* ROOT as for home_open(). */
struct talk *talk_new(struct show *show, const char *root, const struct talk_ops *ops, void *arg);
void talk_free(struct talk *t);
struct net *talk_net(struct talk *t);
struct book *talk_book(struct talk *t);

enum talk_state talk_state(const struct talk *t);
const char *talk_name(const struct talk *t);	/* the account's, "" before the first login */
int64_t talk_id(const struct talk *t);

/* WHO is a name, an id in digits, or @name. Connects first where necessary. */
void talk_login(struct talk *t, const char *who, const char *password);
/* Once more with what the last talk_login() had. False: there was none. */
bool talk_login_again(struct talk *t);
void talk_register(struct talk *t, const char *name, const char *password);
const struct talk_answer *talk_login_answer(const struct talk *t);
const struct talk_answer *talk_register_answer(const struct talk *t);

/* Finds out what WORD (a name, an id, @name) stands for. -1: no possible name. */
int talk_resolve(struct talk *t, const char *word, bool group, struct talk_target *target_r);
/* "bob", "#cats", cleaned, into OUT. */
struct text;
void talk_label(struct talk *t, const struct talk_target *target, struct text *out);

/*
 * Requests; 0 when under way, -1 when refused at once (shown). DESC: the new group's for
 * MSG_CREATE_GROUP; "online" with MSG_FRIEND_LIST leaves out who is not.
 */
int talk_chat(struct talk *t, const struct talk_target *to, const char *text);
int talk_ask(struct talk *t, enum proto_msg msg, const struct talk_target *about,
    const char *desc);

/* Logs out without a word, on the way out of the program; TALK_OUT when it is done. */
void talk_leave(struct talk *t);

size_t talk_asking(const struct talk *t);	/* requests without an answer */
size_t talk_unsafe(const struct talk *t);	/* open messages, those of earlier runs too */
size_t talk_unsafe_fresh(const struct talk *t);	/* those of this run */
unsigned talk_failures(const struct talk *t);
/* The server ended the session for good (kicked, replaced, refused). */
bool talk_ended(const struct talk *t);
/* How the newest message typed fares: "", "sending", "sent", "stored", "delivered", "refused". */
const char *talk_last(const struct talk *t);
/* Who wrote last to this account alone; 0 for nobody. */
int64_t talk_last_writer(const struct talk *t);
void talk_show_status(struct talk *t);

/* As net's; also makes what is due. Call with nothing of show's lines half written. */
int talk_poll_before(struct talk *t, struct pollfd *fds, int *timeout_ms);
void talk_poll_after(struct talk *t, const struct pollfd *fds, int count);

#endif
