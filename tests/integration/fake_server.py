"""A server for the shell client's tests: the plain dialect in memory, with handles to misbehave.

It keeps every frame that arrives, and does what a test asks of it: cut connections, hold or refuse
acknowledgements, send a message twice, send anything at all.
"""

import hashlib
import itertools
import json
import socket
import threading
import time


class Session:
    def __init__(self, server, sock):
        self.server = server
        self.sock = sock
        self.user = None
        self.ack = False
        self.n = 0
        self.confirmed = 0
        self.unconfirmed = {}           # n -> chat

    def send(self, frame):
        with self.server.lock:
            try:
                self.sock.sendall(json.dumps(frame, ensure_ascii=False).encode() + b"\n")
            except OSError:
                pass

    def send_raw(self, data):
        self.sock.sendall(data)

    def chat(self, chat):
        """Delivers a stored or live chat message, numbered."""
        with self.server.lock:
            chat = dict(chat)
            if self.ack:
                self.n += 1
                chat["n"] = self.n
                self.unconfirmed[self.n] = chat
            self.send(chat)

    def cut(self):
        """The connection is reset under the client."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class FakeServer:
    def __init__(self):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.users = {}                 # id -> {id, name, password}
        self.groups = {}                # id -> {id, name, desc, members}
        self.friends = {}               # id -> [ids]
        self.stored = {}                # id -> [chats]
        self.had = {}                   # mid -> number of times it was sent to us
        self.sessions = []
        self.online = {}                # id -> session
        self.frames = []                # all that arrived: (user id or None, frame)
        self.refusals = []              # for the next chats: dicts with errno, retry_ms
        self.refuse_logins = []         # for the next logins
        self.hold_acks = False
        self.silent = False             # answers nothing at all
        self.tokens = {}
        self.count = itertools.count(1)
        self.sock = None
        self.port = None
        self.open()

    # -- life --

    def open(self):
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("127.0.0.1", self.port or 0))
        self.sock.listen(64)
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.sock,), daemon=True).start()

    def close(self):
        """Down: nobody can connect, and everybody is cut off."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
        self.cut_all()

    def cut_all(self):
        with self.lock:
            for session in list(self.sessions):
                session.cut()

    def _accept(self, sock):
        while True:
            try:
                conn, _ = sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn):
        session = Session(self, conn)
        with self.lock:
            self.sessions.append(session)
        decoder = json.JSONDecoder()
        text = b""
        try:
            while True:
                data = conn.recv(65536)
                if not data:
                    break
                text += data
                while True:
                    line, sep, rest = text.partition(b"\n")
                    if not sep:
                        break
                    text = rest
                    self._take(session, decoder.decode(line.decode()))
        except OSError:
            pass
        finally:
            with self.lock:
                self.sessions.remove(session)
                self._end(session)
                conn.close()
                self.changed.notify_all()

    def _end(self, session):
        if session.user is not None and self.online.get(session.user) is session:
            del self.online[session.user]
            for chat in session.unconfirmed.values():
                chat.pop("n", None)
                self.stored.setdefault(session.user, []).append(chat)
            session.unconfirmed = {}
        session.user = None

    # -- what tests look at --

    def wait(self, predicate, what="condition", seconds=10):
        end = time.monotonic() + seconds
        with self.lock:
            while True:
                value = predicate()
                if value:
                    return value
                left = end - time.monotonic()
                assert left > 0, f"the server never saw: {what}; last frames: {self.frames[-5:]}"
                self.changed.wait(left)

    def add_user(self, name, password="pw"):
        with self.lock:
            uid = len(self.users) + 1
            self.users[uid] = {"id": uid, "name": name, "password": password}
            return uid

    def add_group(self, name, *members, desc=""):
        with self.lock:
            gid = 100 + len(self.groups)
            self.groups[gid] = {"id": gid, "name": name, "desc": desc, "members": list(members)}
            return gid

    def of(self, msgid, user=None):
        with self.lock:
            return [f for u, f in self.frames if f.get("msgid") == msgid and user in (None, u)]

    def wait_online(self, uid, other_than=None):
        return self.wait(lambda: self.online.get(uid) not in (None, other_than) and self.online[uid],
                         f"login of {uid}")

    # -- the protocol --

    def _who(self, value, table, key="name"):
        with self.lock:
            if isinstance(value, int):
                return value if value in table else None
            for item in table.values():
                if item[key].lower() == str(value).lower():
                    return item["id"]
            return None

    def _state(self, uid):
        return {"id": uid, "name": self.users[uid]["name"],
                "state": "online" if uid in self.online else "offline"}

    def _group(self, gid):
        group = self.groups[gid]
        return {"id": gid, "groupname": group["name"], "groupdesc": group["desc"],
                "members": len(group["members"]),
                "users": [dict(self._state(u), role="creator" if i == 0 else "normal")
                          for i, u in enumerate(group["members"])]}

    def _take(self, session, frame):
        with self.lock:
            self.frames.append((session.user, frame))
            if not self.silent:
                self._handle(session, frame)
            self.changed.notify_all()

    def _reply(self, session, frame, msgid, errno=0, errmsg="", **members):
        reply = {"msgid": msgid, "errno": errno, **members}
        if errno:
            reply["errmsg"] = errmsg or f"error {errno}"
        if "req" in frame:
            reply["req"] = frame["req"]
        session.send(reply)

    def _handle(self, session, frame):
        msgid = frame.get("msgid")
        handler = {1: self._login, 3: self._register, 5: self._chat, 6: self._add_friend,
                   7: self._create, 8: self._join, 9: self._chat, 10: self._logout,
                   16: self._received, 17: self._del_friend, 19: self._del_group,
                   21: self._friend_list, 23: self._group_list, 25: self._ping}.get(msgid)
        if handler:
            handler(session, frame)

    def _login(self, session, frame):
        if self.refuse_logins:
            refusal = self.refuse_logins.pop(0)
            self._reply(session, frame, 2, **refusal)
            return
        uid = self._who(frame.get("id", frame.get("name")), self.users)
        good = uid is not None and (frame.get("password") == self.users[uid]["password"] or
                                    frame.get("token") in self.tokens.get(uid, ()))
        if not good:
            self._reply(session, frame, 2, 1, "wrong id or password")
            return
        if uid in self.online:
            self._reply(session, frame, 2, 2, "this account is online elsewhere")
            return
        session.user, session.ack = uid, bool(frame.get("ack"))
        self.online[uid] = session
        token = f"token-{uid}-{next(self.count)}"
        self.tokens.setdefault(uid, set()).add(token)
        waiting = []
        for chat in self.stored.pop(uid, []):
            if session.ack:
                session.n += 1
                chat = dict(chat, n=session.n)
                session.unconfirmed[session.n] = chat
            waiting.append(chat)
        self._reply(session, frame, 2, id=uid, name=self.users[uid]["name"], token=token,
                    friends=[self._state(f) for f in self.friends.get(uid, [])],
                    groups=[self._group(g) for g, v in self.groups.items() if uid in v["members"]],
                    offlinemsg=waiting)

    def _register(self, session, frame):
        if self._who(frame["name"], self.users) is not None:
            self._reply(session, frame, 4, 1, "the name is taken")
            return
        self._reply(session, frame, 4, id=self.add_user(frame["name"], frame["password"]))

    def _chat(self, session, frame):
        group = frame["msgid"] == 9
        cid = frame.get("cid")
        if session.user is None:
            self._reply(session, frame, 15, 4, "log in first", cid=cid)
            return
        if self.refusals:
            refusal = dict(self.refusals.pop(0))
            session.send({"msgid": 15, "cid": cid, "errmsg": "refused by the test", **refusal})
            return
        target = self._who(frame["groupid" if group else "to"], self.groups if group else self.users)
        if target is None:
            session.send({"msgid": 15, "errno": 5, "cid": cid, "errmsg": "no such user or group"})
            return
        mid = hashlib.sha256(f"{session.user}:{cid}".encode()).hexdigest()[:32]
        self.had[mid] = self.had.get(mid, 0) + 1
        if self.hold_acks:
            return
        chat = {"msgid": frame["msgid"], "id": session.user, "name": self.users[session.user]["name"],
                "groupid" if group else "to": target, "msg": frame["msg"], "time": frame["time"],
                "cid": cid, "mid": mid, "ts": int(time.time() * 1000)}
        state = "stored"
        members = [u for u in self.groups[target]["members"] if u != session.user] if group else [target]
        if self.had[mid] == 1 or group is False and not any(
                c["mid"] == mid for c in self.stored.get(target, [])):
            for uid in members:
                if uid in self.online:
                    self.online[uid].chat(chat)
                    state = state if group else "delivered"
                else:
                    self.stored.setdefault(uid, []).append(chat)
        session.send({"msgid": 15, "errno": 0, "cid": cid, "mid": mid, "state": state})

    def _received(self, session, frame):
        session.confirmed = frame["n"]
        for n in [n for n in session.unconfirmed if n <= frame["n"]]:
            del session.unconfirmed[n]

    def _add_friend(self, session, frame):
        uid = self._who(frame["friendid"], self.users)
        friends = self.friends.setdefault(session.user, [])
        if uid is None:
            self._reply(session, frame, 11, 5, "no such user")
        elif uid in friends:
            self._reply(session, frame, 11, 10, "is your friend already")
        else:
            friends.append(uid)
            self._reply(session, frame, 11, friend=self._state(uid))

    def _del_friend(self, session, frame):
        uid = self._who(frame["friendid"], self.users)
        if uid not in self.friends.get(session.user, []):
            self._reply(session, frame, 18, 5, "not on your list")
            return
        self.friends[session.user].remove(uid)
        self._reply(session, frame, 18)

    def _create(self, session, frame):
        if self._who(frame["groupname"], self.groups) is not None:
            self._reply(session, frame, 12, 1, "the name is taken")
            return
        self._reply(session, frame, 12, groupid=self.add_group(
            frame["groupname"], session.user, desc=frame["groupdesc"]))

    def _join(self, session, frame):
        gid = self._who(frame["groupid"], self.groups)
        if gid is None:
            self._reply(session, frame, 13, 5, "no such group")
            return
        if session.user in self.groups[gid]["members"]:
            self._reply(session, frame, 13, 10, "member already")
            return
        self.groups[gid]["members"].append(session.user)
        self._reply(session, frame, 13, group=self._group(gid))

    def _del_group(self, session, frame):
        gid = self._who(frame["groupid"], self.groups)
        if gid is None or session.user not in self.groups[gid]["members"]:
            self._reply(session, frame, 20, 6 if gid else 5, "not a member of that group")
            return
        self.groups[gid]["members"].remove(session.user)
        self._reply(session, frame, 20)

    def _friend_list(self, session, frame):
        """Two a page, so that the client has to turn pages."""
        ids = [f for f in sorted(self.friends.get(session.user, [])) if f > frame.get("after", 0)]
        self._reply(session, frame, 22, friends=[self._state(f) for f in ids[:2]])

    def _group_list(self, session, frame):
        after = frame.get("after", 0)
        if "groupid" in frame:
            gid = self._who(frame["groupid"], self.groups)
            if gid is None:
                self._reply(session, frame, 24, 5, "no such group")
                return
            group = self._group(gid)
            group["users"] = [u for u in group["users"] if u["id"] > after][:2]
            self._reply(session, frame, 24, groups=[group])
            return
        ids = [g for g, v in sorted(self.groups.items()) if session.user in v["members"] and g > after]
        self._reply(session, frame, 24, groups=[self._group(g) for g in ids[:2]])

    def _logout(self, session, frame):
        self._end(session)
        self._reply(session, frame, 14)

    def _ping(self, session, frame):
        pong = {"msgid": 26}
        if "req" in frame:
            pong["req"] = frame["req"]
        session.send(pong)
