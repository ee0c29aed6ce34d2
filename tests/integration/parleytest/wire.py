"""Message numbers of both dialects, error numbers, and the frame text that tests build by hand."""

import json
from decimal import Decimal

LOGIN = "LOGIN_MSG"
LOGIN_ACK = "LOGIN_MSG_ACK"
REG = "REG_MSG"
REG_ACK = "REG_MSG_ACK"
CHAT = "ONE_CHAT_MSG"
ADD_FRIEND = "ADD_FRIEND_MSG"
CREATE_GROUP = "CREATE_GROUP_MSG"
ADD_GROUP = "ADD_GROUP_MSG"
GROUP_CHAT = "GROUP_CHAT_MSG"
LOGOUT = "LOGINOUT_MSG"
ADD_FRIEND_ACK = "ADD_FRIEND_ACK"
CREATE_GROUP_ACK = "CREATE_GROUP_ACK"
ADD_GROUP_ACK = "ADD_GROUP_ACK"
LOGOUT_ACK = "LOGINOUT_ACK"
CHAT_ACK = "CHAT_ACK"
RECEIVED = "RECEIVED"
DEL_FRIEND = "DEL_FRIEND"
DEL_FRIEND_ACK = "DEL_FRIEND_ACK"
DEL_GROUP = "DEL_GROUP"
DEL_GROUP_ACK = "DEL_GROUP_ACK"
FRIEND_LIST = "FRIEND_LIST"
FRIEND_LIST_ACK = "FRIEND_LIST_ACK"
GROUP_LIST = "GROUP_LIST"
GROUP_LIST_ACK = "GROUP_LIST_ACK"
PING = "PING"
PONG = "PONG"
PRESENCE = "PRESENCE"
SESSION_END = "SESSION_END"
ERROR = "ERROR"

_COMMON = {
    ADD_FRIEND_ACK: 11, CREATE_GROUP_ACK: 12, ADD_GROUP_ACK: 13, LOGOUT_ACK: 14, CHAT_ACK: 15,
    RECEIVED: 16, DEL_FRIEND: 17, DEL_FRIEND_ACK: 18, DEL_GROUP: 19, DEL_GROUP_ACK: 20,
    FRIEND_LIST: 21, FRIEND_LIST_ACK: 22, GROUP_LIST: 23, GROUP_LIST_ACK: 24, PING: 25, PONG: 26,
    PRESENCE: 27, SESSION_END: 28, ERROR: 29,
}
NUMBER = {
    "plain": dict(_COMMON, **{
        LOGIN: 1, LOGIN_ACK: 2, REG: 3, REG_ACK: 4, CHAT: 5, ADD_FRIEND: 6, CREATE_GROUP: 7,
        ADD_GROUP: 8, GROUP_CHAT: 9, LOGOUT: 10}),
    "classic": dict(_COMMON, **{
        LOGIN: 1, LOGIN_ACK: 2, REG: 4, REG_ACK: 5, CHAT: 6, ADD_FRIEND: 7, CREATE_GROUP: 8,
        ADD_GROUP: 9, GROUP_CHAT: 10, LOGOUT: 3}),
}
NAME = {dialect: {n: k for k, n in table.items()} for dialect, table in NUMBER.items()}

# What answers what. A chat message has a reply only where it carries a cid.
REPLY = {
    LOGIN: LOGIN_ACK, REG: REG_ACK, ADD_FRIEND: ADD_FRIEND_ACK, CREATE_GROUP: CREATE_GROUP_ACK,
    ADD_GROUP: ADD_GROUP_ACK, LOGOUT: LOGOUT_ACK, DEL_FRIEND: DEL_FRIEND_ACK,
    DEL_GROUP: DEL_GROUP_ACK, FRIEND_LIST: FRIEND_LIST_ACK, GROUP_LIST: GROUP_LIST_ACK, PING: PONG,
}

OK, REFUSED, ELSEWHERE, MALFORMED, NOT_LOGGED_IN, NO_SUCH = 0, 1, 2, 3, 4, 5
NOT_ALLOWED, TOO_FAST, TOO_LARGE, UNAVAILABLE, ALREADY = 6, 7, 8, 9, 10


def dump(obj):
    """The bytes of one frame, without a terminator."""
    return json.dumps(obj, ensure_ascii=False, separators=(",", ":")).encode()


def _object(pairs):
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a name is repeated: %r" % names)
    return dict(pairs)


def _constant(text):
    raise ValueError("%s is not JSON" % text)


def load(data):
    """Strict JSON: no repeated names, no NaN, numbers kept exactly."""
    return json.loads(data.decode(), object_pairs_hook=_object, parse_float=Decimal,
                      parse_constant=_constant)
