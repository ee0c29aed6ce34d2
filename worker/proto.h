/*
 * proto.h - the wire: message numbers of both dialects, error codes, limits.
 *
 * Scope   shared by the daemon and the shell client. The reference for people is
 *         worker/PROTOCOL.md; this is the same as tables.
 * Units   lengths in bytes unless the name says characters.
 */
#ifndef PARLEY_PROTO_H
#define PARLEY_PROTO_H

#include <stdint.h>

/* Messages by meaning. Values are the plain dialect's numbers; classic differs below 11. */
enum proto_msg {
	MSG_NONE = 0,
	MSG_LOGIN = 1, MSG_LOGIN_ACK = 2, MSG_REG = 3, MSG_REG_ACK = 4,
	MSG_CHAT = 5, MSG_ADD_FRIEND = 6, MSG_CREATE_GROUP = 7, MSG_JOIN_GROUP = 8,
	MSG_GROUP_CHAT = 9, MSG_LOGOUT = 10,
	MSG_ADD_FRIEND_ACK = 11, MSG_CREATE_GROUP_ACK = 12, MSG_JOIN_GROUP_ACK = 13,
	MSG_LOGOUT_ACK = 14, MSG_CHAT_ACK = 15, MSG_RECEIVED = 16,
	MSG_DEL_FRIEND = 17, MSG_DEL_FRIEND_ACK = 18, MSG_DEL_GROUP = 19, MSG_DEL_GROUP_ACK = 20,
	MSG_FRIEND_LIST = 21, MSG_FRIEND_LIST_ACK = 22, MSG_GROUP_LIST = 23,
	MSG_GROUP_LIST_ACK = 24, MSG_PING = 25, MSG_PONG = 26, MSG_PRESENCE = 27,
	MSG_SESSION_END = 28, MSG_ERROR = 29,
	MSG_MAX = 30
};

enum proto_dialect { DIALECT_PLAIN = 0, DIALECT_CLASSIC = 1 };

enum proto_errno {
	E_OK = 0,
	E_REFUSED = 1,		/* wrong id or password; name taken */
	E_ELSEWHERE = 2,	/* this account is online elsewhere */
	E_MALFORMED = 3,
	E_LOGIN = 4,		/* log in first */
	E_UNKNOWN = 5,		/* no such user or group */
	E_DENIED = 6,
	E_RATE = 7,		/* too fast; retry_ms */
	E_SIZE = 8,		/* too large, or a quota is full */
	E_AGAIN = 9,		/* temporarily unavailable; retry_ms */
	E_ALREADY = 10		/* it is so already */
};

#define PROTO_NAME_CHARS   50		/* characters of a user's or a group's name */
#define PROTO_NAME_BYTES   (PROTO_NAME_CHARS * 4)
#define PROTO_DESC_CHARS   200
#define PROTO_DESC_BYTES   (PROTO_DESC_CHARS * 4)
#define PROTO_PASSWORD_MAX 128
#define PROTO_CID_MAX      64
#define PROTO_REQ_MAX      64
#define PROTO_ID_MAX       2147483647	/* ids are 1 .. 2^31-1 */
#define PROTO_USERS_MAX    200		/* members listed with a group at once */
#define PROTO_FRAME_EXTRA  4096		/* what the server's frames may be longer than max_frame */
#define PROTO_VALUES_MAX   512		/* values in one frame, both directions */
#define PROTO_WINDOW_MSGS  256		/* unconfirmed messages after which the server may wait */
#define PROTO_WINDOW_BYTES (1u << 20)
#define PROTO_CLASSIC_READ 1000		/* a classic client takes each read of < 1024 bytes for one frame */

/* The meaning of a number received in a dialect: 0 where it is no message at all. */
enum proto_msg proto_from_wire(enum proto_dialect d, int64_t number);
/* The number under which a message is sent in a dialect. */
int proto_to_wire(enum proto_dialect d, enum proto_msg m);
/* The reply that answers a request (MSG_NONE where there is none of its own). */
enum proto_msg proto_reply_of(enum proto_msg m);
/* "LOGIN_MSG", for logs and errors. */
const char *proto_name(enum proto_msg m);
/* The standard sentence of an error code. */
const char *proto_errmsg(enum proto_errno e);

#endif
