/* proto.c - the numbers and names of the wire, as tables. */
#include "worker/proto.h"

#include <stddef.h>

static const struct {
	const char *name;
	uint8_t classic;	/* number in the classic dialect */
	uint8_t reply;		/* what answers it */
} table[MSG_MAX] = {
	[MSG_LOGIN] = { "LOGIN_MSG", 1, MSG_LOGIN_ACK },
	[MSG_LOGIN_ACK] = { "LOGIN_MSG_ACK", 2, 0 },
	[MSG_REG] = { "REG_MSG", 4, MSG_REG_ACK },
	[MSG_REG_ACK] = { "REG_MSG_ACK", 5, 0 },
	[MSG_CHAT] = { "ONE_CHAT_MSG", 6, 0 },
	[MSG_ADD_FRIEND] = { "ADD_FRIEND_MSG", 7, MSG_ADD_FRIEND_ACK },
	[MSG_CREATE_GROUP] = { "CREATE_GROUP_MSG", 8, MSG_CREATE_GROUP_ACK },
	[MSG_JOIN_GROUP] = { "ADD_GROUP_MSG", 9, MSG_JOIN_GROUP_ACK },
	[MSG_GROUP_CHAT] = { "GROUP_CHAT_MSG", 10, 0 },
	[MSG_LOGOUT] = { "LOGINOUT_MSG", 3, MSG_LOGOUT_ACK },
	[MSG_ADD_FRIEND_ACK] = { "ADD_FRIEND_ACK", 11, 0 },
	[MSG_CREATE_GROUP_ACK] = { "CREATE_GROUP_ACK", 12, 0 },
	[MSG_JOIN_GROUP_ACK] = { "ADD_GROUP_ACK", 13, 0 },
	[MSG_LOGOUT_ACK] = { "LOGINOUT_ACK", 14, 0 },
	[MSG_CHAT_ACK] = { "CHAT_ACK", 15, 0 },
	[MSG_RECEIVED] = { "RECEIVED", 16, 0 },
	[MSG_DEL_FRIEND] = { "DEL_FRIEND", 17, MSG_DEL_FRIEND_ACK },
	[MSG_DEL_FRIEND_ACK] = { "DEL_FRIEND_ACK", 18, 0 },
	[MSG_DEL_GROUP] = { "DEL_GROUP", 19, MSG_DEL_GROUP_ACK },
	[MSG_DEL_GROUP_ACK] = { "DEL_GROUP_ACK", 20, 0 },
	[MSG_FRIEND_LIST] = { "FRIEND_LIST", 21, MSG_FRIEND_LIST_ACK },
	[MSG_FRIEND_LIST_ACK] = { "FRIEND_LIST_ACK", 22, 0 },
	[MSG_GROUP_LIST] = { "GROUP_LIST", 23, MSG_GROUP_LIST_ACK },
	[MSG_GROUP_LIST_ACK] = { "GROUP_LIST_ACK", 24, 0 },
	[MSG_PING] = { "PING", 25, MSG_PONG },
	[MSG_PONG] = { "PONG", 26, 0 },
	[MSG_PRESENCE] = { "PRESENCE", 27, 0 },
	[MSG_SESSION_END] = { "SESSION_END", 28, 0 },
	[MSG_ERROR] = { "ERROR", 29, 0 },
};

enum proto_msg proto_from_wire(enum proto_dialect d, int64_t number)
{
	if (number < 1 || number >= MSG_MAX)
		return MSG_NONE;
	if (d == DIALECT_PLAIN)
		return (enum proto_msg)number;
	for (int m = 1; m < MSG_MAX; m++)
		if (table[m].classic == number)
			return (enum proto_msg)m;
	return MSG_NONE;
}

int proto_to_wire(enum proto_dialect d, enum proto_msg m)
{
	return d == DIALECT_PLAIN ? (int)m : table[m].classic;
}

enum proto_msg proto_reply_of(enum proto_msg m)
{
	return (enum proto_msg)table[m].reply;
}

const char *proto_name(enum proto_msg m)
{
	const char *name = m > MSG_NONE && m < MSG_MAX ? table[m].name : NULL;

	return name != NULL ? name : "unknown";
}

const char *proto_errmsg(enum proto_errno e)
{
	static const char *const text[] = {
		[E_OK] = "done",
		[E_REFUSED] = "wrong id or password",
		[E_ELSEWHERE] = "this account is online elsewhere",
		[E_MALFORMED] = "malformed request",
		[E_LOGIN] = "log in first",
		[E_UNKNOWN] = "no such user or group",
		[E_DENIED] = "not allowed",
		[E_RATE] = "too fast, try again later",
		[E_SIZE] = "too large, or a quota is full",
		[E_AGAIN] = "temporarily unavailable, try again later",
		[E_ALREADY] = "it is so already",
	};

	return (unsigned)e < sizeof text / sizeof *text ? text[e] : "unknown error";
}
