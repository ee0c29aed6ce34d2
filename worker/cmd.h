/*
 * cmd.h - requests: one table, all common checks once, replies.
 *
 * Scope   a frame's bytes in, effects and replies out. The table says for each message whether a
 *         login is needed, which members it must have and of which type, and what it costs; the
 *         checks come in the order of the protocol: JSON, msgid, logged in, members, sender is oneself, rate, the rest.
 */
#ifndef PARLEY_CMD_H
#define PARLEY_CMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/msg.h"
#include "worker/route.h"
#include "worker/state.h"

/* A request being executed; valid for the call only. */
struct req {
	enum proto_msg msg;
	int wire;			/* its number as the client wrote it */
	const struct json *json;
	struct json_val root;
	/* The members that chat messages know, by name, and the others, in the order written: made by
	 * one pass over the frame. JSON_NONE where there is none, or null. */
	struct json_val known[MSG_NKEYS];
	const struct json_pair *others;
	size_t nothers;
	char echo[PROTO_REQ_MAX * 6 + 3];	/* `req` as a ready JSON value, "" for none */
};

static inline bool cmd_get(const struct req *rq, enum msg_key key, struct json_val *v_r)
{
	*v_r = rq->known[key];
	return v_r->type != JSON_NONE;
}

/* Fills in known and others from json and root. */
void cmd_index(struct req *rq);
void cmd_frame(struct conn *c, const char *text, size_t len, const struct frame_seen *seen);
/* Does a frame that looks like an earlier one, of those that come all the time, stand at the scanner's
 * place? Then the scanner is behind it, and cmd_run() executes it: at once, before anything else. */
bool cmd_fits(struct conn *c, const char *buf, size_t len);
void cmd_run(struct conn *c);
void cmd_bad_frame(struct conn *c, const char *why);
void cmd_ping(struct conn *c);		/* a PING of ours */

/*
 * Replies. ECHO is the request's `req` ("" or NULL: none). cmd_open() starts a frame of message M
 * in the scratch buffer, cmd_send() closes and queues it.
 */
void cmd_open(struct conn *c, struct json_out *w, enum proto_msg m, const char *echo);
void cmd_send(struct conn *c, struct json_out *w);
/* A reply that says only errno (and retry_ms, where > 0). TEXT NULL: the standard sentence. */
void cmd_reply(struct conn *c, enum proto_msg m, const char *echo, enum proto_errno e,
    const char *text, uint32_t retry_ms);
/* Refuses a request in its own reply, or with ERROR where it has none. */
void cmd_refuse(struct conn *c, enum proto_msg of, int wire, const char *echo, enum proto_errno e,
    const char *text, uint32_t retry_ms);
/*
 * What became of a chat message: CHAT_ACK where CID is given, ERROR for a silent failure. ORDER is
 * one more than its place among those that this worker has taken, 0 where that is not known.
 */
void cmd_verdict(struct conn *c, enum msg_kind kind, enum verdict v, uint32_t rcpt,
    uint64_t order, const unsigned char *mid, const char *cid, uint32_t cid_len, const char *echo,
    uint32_t echo_len);
/* The errno of a store result that is not an answer. */
enum proto_errno cmd_store_errno(int rc);

/* Drops the list of refused lanes. */
/* An account was deleted: it is looked up again, by every worker. */
void cmd_forget_user(uint32_t user);
struct item;
void cmd_on_forget(const struct item *it);
void cmd_forget_refused(struct conn *c);
/* It moves with its session: bytes used (0: there is none), and back. */
size_t cmd_pack_refused(const struct conn *c, char *out, size_t cap);
void cmd_unpack_refused(struct conn *c, const char *in, size_t len);

/* A store job on behalf of a request: the connection waits for it (blocked). */
struct store_job *cmd_job(struct conn *c, int op, const struct req *rq,
    void (*done)(struct store_job *, void *));
/* In done(): the connection that asked, unblocked; NULL when it is gone. ECHO_R: its `req`. */
struct conn *cmd_job_conn(struct store_job *job, char *echo_r);

/*
 * Members and sender: the first thing wrong, as an errno and a sentence in WHY (80 bytes of room).
 * Called by the dispatcher, but for chat messages, whose answers depend on their `cid`.
 */
enum proto_errno cmd_check(struct conn *c, const struct req *rq, char *why, size_t cap);
void cmd_chat_refuse(struct conn *c, const struct req *rq, enum proto_errno e, const char *text,
    uint32_t retry_ms);

/* A member that is an id or a name (NAME: STORE_NAME bytes). False: nobody can be meant. */
bool cmd_ref(const struct req *rq, const char *member, uint32_t *id_r, char *name);

/* Handlers, by file. */
void cmd_login(struct conn *c, const struct req *rq);		/* login.c */
void cmd_reg(struct conn *c, const struct req *rq);
void cmd_logout(struct conn *c, const struct req *rq);		/* cmd_account.c */
void cmd_add_friend(struct conn *c, const struct req *rq);	/* cmd_friend.c */
void cmd_del_friend(struct conn *c, const struct req *rq);
void cmd_friend_list(struct conn *c, const struct req *rq);
void cmd_create_group(struct conn *c, const struct req *rq);	/* cmd_group.c */
void cmd_join_group(struct conn *c, const struct req *rq);
void cmd_del_group(struct conn *c, const struct req *rq);
void cmd_group_list(struct conn *c, const struct req *rq);
void cmd_chat(struct conn *c, const struct req *rq);		/* cmd_chat.c */
void cmd_group_chat(struct conn *c, const struct req *rq);
void cmd_received(struct conn *c, const struct req *rq);

#endif
