"""Frames: how a byte stream becomes requests, and what happens to what is none."""

import pytest

from parleytest import *

PING_TEXT = b'{"msgid":25,"req":"%s"}'


def ping(req, pad=""):
    return dump({"msgid": 25, "req": req, "pad": pad}) if pad else PING_TEXT % req.encode()


# -- splits and glue ------------------------------------------------------------------------------


def request_stream(name):
    """Requests of every kind of terminator, with strings that look like structure."""
    return (ping("a") + b"\n" +
            dump({"msgid": 3, "name": name, "password": 'p"}{\\'}) + b" \t\r\n\0" +
            b'{ "msgid" : 1 ,\t"password":"p\\"}{\\\\" , "name":"' + name.encode() + b'" }' + b"\0" +
            dump({"msgid": 5, "to": name, "msg": "h\u00e9 {[\"\\]} \U0001f600", "time": "t"}) +
            ping("z") + b"\n")


def check_stream_replies(client, name):
    kinds = [PONG, REG_ACK, LOGIN_ACK, CHAT, PONG]
    client.wait(lambda c: len(c.frames) >= len(kinds) or c.eof, 20, "five replies")
    client._raise_violations()
    assert sorted(f.kind for f in client.frames) == sorted(kinds), client.frames
    assert [f.kind for f in client.frames if f.kind != CHAT] == [PONG, REG_ACK, LOGIN_ACK, PONG]
    assert client.frames[1]["errno"] == 0 and client.frames[2]["errno"] == 0
    assert client.frames[2]["name"] == name
    assert client.texts() == ["h\u00e9 {[\"\\]} \U0001f600"]


def test_every_byte_split_of_a_request_stream(daemon):
    """The stream is cut in two at each byte; the server has read the first part before the second
    is sent."""
    size = len(request_stream("split-0000"))
    for start in range(1, size, 24):            # more logins at once may be told to wait
        todo = []
        for cut in range(start, min(start + 24, size)):
            name = "split-%04d" % cut
            todo.append((daemon.connect(), name, request_stream(name), cut))
        for client, _, stream, cut in todo:
            client.send_raw(stream[:cut])
        daemon.wait_read(*[client for client, *_ in todo])
        for client, _, stream, cut in todo:
            client.send_raw(stream[cut:])
        for client, name, _, _ in todo:
            check_stream_replies(client, name)


def test_one_byte_a_packet(daemon):
    client = daemon.connect()
    for byte in request_stream("split-byte"):
        client.send_raw(bytes([byte]))
        daemon.wait_read(client)
    check_stream_replies(client, "split-byte")


def test_hundred_frames_in_one_packet(daemon):
    client = daemon.connect()
    client.send_raw(b"".join(ping("n%d" % i) + b"\n" for i in range(100)))
    client.wait(lambda c: len(c.of(PONG)) == 100, 5, "100 PONGs")
    assert [f["req"] for f in client.of(PONG)] == ["n%d" % i for i in range(100)]


def test_hundred_frames_undelimited_in_one_packet(daemon):
    client = daemon.connect()
    client.send_raw(b"".join(ping("n%d" % i) for i in range(100)))
    client.wait(lambda c: len(c.of(PONG)) == 100, 5, "100 PONGs")
    assert [f["req"] for f in client.of(PONG)] == ["n%d" % i for i in range(100)]


@pytest.mark.parametrize("slots", [(0, 0), (0, 1)], ids=["same-worker", "across-workers"])
def test_hundred_chat_frames_in_one_packet_arrive_in_order(daemon, slots):
    alice, bob = daemon.online(slot=slots[0]), daemon.online(slot=slots[1])
    alice.send_raw(b"".join(alice.frame(CHAT, to=bob.id, msg="m%d" % i) for i in range(100)))
    bob.wait_texts(["m%d" % i for i in range(100)])


# -- terminators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gap,end", [
    (b"\n", b"\n"), (b"\0", b"\0"), (b"\r\n", b"\n"), (b" ", b"\n"), (b"\t", b"\n"), (b"", b"\n"),
    (b"\n\0", b"\n"), (b"\0\n", b"\0"), (b" \t\r\n\0\0 ", b"\n"),
], ids=repr)
def test_server_answers_with_the_terminator_of_the_first_frame(daemon, gap, end):
    client = daemon.connect()
    client.send_raw(ping("1") + gap + ping("2") + gap + ping("3") + gap)
    client.expect(PONG, req="3")
    client.ping()
    assert {frame.end for frame in client.frames[2:]} == {end}
    if gap:
        assert client.frames[0].end == end


def test_terminator_of_later_frames_changes_nothing(daemon):
    client = daemon.connect()
    client.send_raw(ping("1") + b"\0")
    client.expect(PONG, req="1")
    client.send_raw(ping("2") + b"\n")
    assert client.expect(PONG, req="2").end == b"\0"


def test_until_the_terminator_is_known_it_is_a_newline(daemon):
    client = daemon.connect()
    client.send_raw(ping("1"))
    assert client.expect(PONG, req="1").end == b"\n"
    client.send_raw(b"\0" + ping("2"))
    assert client.expect(PONG, req="2").end == b"\0"


def test_classic_terminator_is_nul_until_known(daemon):
    client = daemon.connect("classic")
    client.send_raw(ping("1"))
    assert client.expect(PONG, req="1").end == b"\0"
    client.send_raw(b"\n" + ping("2"))
    assert client.expect(PONG, req="2").end == b"\n"


def test_classic_undelimited_stays_nul(daemon):
    client = daemon.connect("classic")
    client.send_raw(ping("1") + ping("2"))
    client.expect(PONG, req="2")
    client.send_raw(ping("3"))
    assert client.expect(PONG, req="3").end == b"\0"


def test_white_space_before_the_first_frame(daemon):
    client = daemon.connect()
    client.send_raw(b"\0\0\r\n \t" * 1000 + ping("1") + b"\0")
    client.expect(PONG, req="1")
    client.ping()
    assert client.frames[-1].end == b"\0"


def test_white_space_between_frames_is_not_limited_by_max_frame(daemon):
    client = daemon.connect()
    client.send_raw(ping("1") + b"\n" * 200000 + ping("2") + b"\n")
    client.expect(PONG, req="1")
    client.expect(PONG, req="2")


# -- limits ---------------------------------------------------------------------------------------


def padded(size):
    """A PING frame of exactly SIZE bytes."""
    frame = ping("max", "x")
    frame = ping("max", "x" * (size - len(frame) + 1))
    assert len(frame) == size
    return frame


def wait_error_and_end(client, errno=3):
    """ERROR, then an orderly end of the stream: no reset overtakes the error."""
    error = client.expect(ERROR)
    wanted = errno if isinstance(errno, tuple) else (errno,)
    assert error["errno"] in wanted, error
    client.wait_closed()
    assert client.frames[-1].kind == ERROR
    return error


def test_frame_of_max_frame_bytes_is_taken(daemon):
    client = daemon.connect()
    client.send_raw(padded(65536) + b"\n")
    client.expect(PONG, req="max")
    client.ping()


def test_frame_over_max_frame_is_refused(daemon):
    client = daemon.connect()
    client.send_raw(padded(65537) + b"\n")
    wait_error_and_end(client, (3, 8))
    assert not client.of(PONG)


def test_too_long_is_said_as_soon_as_it_is_seen(daemon):
    """The frame is never finished."""
    client = daemon.connect()
    client.send_raw(padded(65600)[:65537])
    wait_error_and_end(client, (3, 8))


def test_frame_one_byte_short_of_too_long_waits(daemon):
    client = daemon.connect()
    frame = padded(65536)
    client.send_raw(frame[:-1])
    daemon.wait_read(client)
    client.send_raw(frame[-1:])
    client.expect(PONG, req="max")


def test_max_frame_is_a_key(make_daemon):
    daemon = make_daemon(max_frame=2048)
    client = daemon.connect()
    client.send_raw(padded(2048) + b"\n")
    client.expect(PONG, req="max")
    client.send_raw(padded(2049) + b"\n")
    wait_error_and_end(client, (3, 8))


def values(count):
    """A PING with COUNT values inside its object."""
    return dump({"msgid": 25, "req": "v", "list": [1] * (count - 3)})


def test_512_values_in_a_frame(daemon):
    client = daemon.connect()
    client.send_raw(values(511) + b"\n")
    client.expect(PONG, req="v")
    client.send_raw(values(513) + b"\n")
    wait_error_and_end(client)


def test_512_values_count_in_nested_objects(daemon):
    client = daemon.connect()
    client.send_raw(dump({"msgid": 25, "o": {"k%d" % i: [i] for i in range(256)}}) + b"\n")
    wait_error_and_end(client)


def nested_arrays(count):
    """A PING nested COUNT levels deep, its own included."""
    return ('{"msgid":25,"req":"d","pad":' + "[" * (count - 1) + "]" * (count - 1) + "}").encode()


def nested_objects(count):
    return ('{"msgid":25,"req":"d","pad":' + '{"a":' * (count - 1) + "1" + "}" * (count - 1) + "}").encode()


@pytest.mark.parametrize("make", [nested_arrays, nested_objects], ids=["arrays", "objects"])
def test_16_levels(daemon, make):
    client = daemon.connect()
    client.send_raw(make(16) + b"\n")
    client.expect(PONG, req="d")
    client.send_raw(make(17) + b"\n")
    wait_error_and_end(client)


def test_braces_in_strings_are_no_levels(daemon):
    client = daemon.connect()
    client.send_raw(ping("s", "{[" * 100 + "]}" * 3) + b"\n")
    client.expect(PONG, req="s")


# -- what is no frame -----------------------------------------------------------------------------

NO_FRAME = {
    "array": b"[1]\n", "string": b'"x"\n', "number": b"1\n", "letter": b"x", "true": b"true\n",
    "closing brace": b"}\n", "utf-8 bom": b"\xef\xbb\xbf{}", "form feed": b"\x0c{}", "http": b"GET / HTTP/1.1\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00", "backspace": b"\x08",
    "comma between frames": b'{"msgid":25},{"msgid":25}',
    "trailing comma": b'{"msgid":25,}', "no colon": b'{"msgid" 25}', "two colons": b'{"msgid"::25}',
    "key without value": b'{"msgid"}', "leading comma": b'{,"msgid":25}', "no comma": b'{"msgid":25 "a":1}',
    "number as key": b'{1:2}', "bare key": b"{msgid:25}", "single quotes": b"{'msgid':25}",
    "array with colon": b'{"a":["b":1]}', "array trailing comma": b'{"a":[1,]}', "array two commas": b'{"a":[1,,2]}',
    "array no comma": b'{"a":[1 2]}', "wrong bracket": b'{"a":[1}', "wrong brace": b'{"a":{]}',
    "leading zero": b'{"a":01}', "leading plus": b'{"a":+1}', "bare minus": b'{"a":-}', "no fraction": b'{"a":1.}',
    "no integer": b'{"a":.5}', "no exponent": b'{"a":1e}', "sign only exponent": b'{"a":1e+}', "hexadecimal": b'{"a":0x10}',
    "infinity": b'{"a":Infinity}', "nan": b'{"a":NaN}', "number too large": b'{"a":1e999}',
    "number too large negative": b'{"a":-1e400}', "long number too large": b'{"a":' + b"9" * 400 + b"}",
    "minus zero one": b'{"a":-01}', "two points": b'{"a":1.2.3}',
    "tru": b'{"a":tru}', "True": b'{"a":True}', "nul": b'{"a":nul}', "truex": b'{"a":truex}', "undefined": b'{"a":undefined}',
    "raw newline in string": b'{"a":"x\ny"}', "raw tab in string": b'{"a":"x\ty"}', "nul in string": b'{"a":"x\0y"}',
    "raw escape byte": b'{"a":"\x1b"}', "control character 1f": b'{"a":"\x1f"}',
    "bad escape": b'{"a":"\\x41"}', "bad escape quote": b'{"a":"\\\'"}', "short unicode escape": b'{"a":"\\u12"}',
    "bad unicode escape": b'{"a":"\\u12g4"}', "escaped nul": b'{"a":"\\u0000"}', "escaped nul in key": b'{"\\u0000":1}',
    "lone high surrogate": b'{"a":"\\ud800"}', "lone low surrogate": b'{"a":"\\udc00"}',
    "high surrogate then text": b'{"a":"\\ud800x"}', "high surrogate then escape": b'{"a":"\\ud800\\n"}',
    "two high surrogates": b'{"a":"\\ud800\\ud800"}', "surrogate pair reversed": b'{"a":"\\udc00\\ud800"}',
    "invalid utf-8 byte": b'{"a":"\xff"}', "lone continuation": b'{"a":"\x80"}', "overlong slash": b'{"a":"\xc0\xaf"}',
    "overlong nul": b'{"a":"\xc0\x80"}', "overlong three": b'{"a":"\xe0\x80\xaf"}', "overlong four": b'{"a":"\xf0\x80\x80\xaf"}',
    "encoded surrogate": b'{"a":"\xed\xa0\x80"}', "above 10ffff": b'{"a":"\xf4\x90\x80\x80"}',
    "f5": b'{"a":"\xf5\x80\x80\x80"}', "cut sequence": b'{"a":"\xe2\x82"}', "invalid utf-8 in key": b'{"\xff":1}',
    "latin-1": b'{"a":"caf\xe9"}',
    "repeated name": b'{"msgid":25,"msgid":25}', "repeated unknown name": b'{"msgid":25,"a":1,"b":2,"a":1}',
    "repeated name, one escaped": b'{"msgid":25,"a":1,"\\u0061":2}', "repeated name in nested object": b'{"msgid":25,"o":{"a":1,"a":2}}',
    "repeated name deep in array": b'{"msgid":25,"l":[{"x":[{"a":1,"a":2}]}]}',
    "repeated name whose value is null": b'{"msgid":25,"a":null,"a":1}',
    "comment": b'{"a":1/**/}', "utf-16": '{"a":1}'.encode("utf-16-le")[:3] + b'"',
}


@pytest.mark.parametrize("data", NO_FRAME.values(), ids=NO_FRAME.keys())
def test_what_is_no_frame_gets_error_and_the_end(daemon, data):
    client = daemon.connect()
    client.send_raw(data)
    client.send_raw(b"\n")
    error = wait_error_and_end(client)
    assert error["errmsg"].strip()


@pytest.mark.parametrize("data", [
    b"x", b'{"a" 1', b'{"a":tx', b'{"a":"\xff', b'{"a":"\\ud800x', b'{"a":"\\u0000', b'{"a":01', b'{"a":[1}',
    b'{"a":"\x01', b"{" + b'"a":[' + b"[" * 15, b'{"a":"\\q',
], ids=repr)
def test_said_as_soon_as_it_is_seen(daemon, data):
    """The closing brace never comes."""
    client = daemon.connect()
    client.send_raw(data)
    wait_error_and_end(client)


def test_valid_json_of_every_kind_is_taken(daemon):
    client = daemon.connect()
    good = [
        b'{"msgid":25,"req":"1","a":[0,-0,1.5,-1.25e-7,1E+3,123456789012345678901234567890,1e308,5e-324,1e-999]}',
        b'{"msgid":25,"req":"2","a":[true,false,null,{},[],"",{"":""}]}',
        b'{"msgid":25,"req":"3","a":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\\uFFFF"}',
        '{"msgid":25,"req":"4","a":"\u00e9\u20ac\U0010ffff\u007f"}'.encode(),
        b' { \t"msgid"\r\n: 25 , "req" :"5" , "o" : { "a":1 , "b":{"a":1}} }',
        b'{"\\u006dsgid":25,"req":"6"}',
    ]
    client.send_raw(b"\n".join(good) + b"\n")
    for number in range(1, 7):
        client.expect(PONG, req=str(number))


def test_good_frames_before_the_bad_byte_are_executed(daemon):
    alice, bob = daemon.online(), daemon.online()
    alice.send_raw(alice.frame(CHAT, to=bob.id, msg="before") + b"#" + alice.frame(CHAT, to=bob.id, msg="after"))
    wait_error_and_end(alice)
    bob.expect(CHAT, msg="before")
    bob.ping()
    assert bob.texts() == ["before"]


def test_nothing_after_the_bad_byte_is_executed(daemon):
    name = unique_name()
    client = daemon.connect()
    client.send_raw(b"x" + dump({"msgid": 3, "name": name, "password": "p"}))
    wait_error_and_end(client)
    with daemon.connect() as other:
        other.refused(LOGIN, 1, name=name, password="p")


def unique_name():
    from parleytest.daemon import unique
    return unique("frame")


def test_no_reset_overtakes_the_error(daemon):
    """The client goes on sending after its bad byte: it still reads ERROR and the end."""
    client = daemon.connect(reading=False)
    client.send_raw(b"x" * 300000)
    client.resume()
    wait_error_and_end(client)


def test_server_reads_and_discards_for_two_seconds(daemon):
    client = daemon.connect()
    client.send_raw(b"x")
    error = wait_error_and_end(client)
    watch = Stopwatch()

    def refused():
        try:
            client.send_raw(b"more of the same\n" * 100)
            return False
        except OSError:
            return True

    holds_for(lambda: not refused(), 1.5, "the server closed before 2 s had passed")
    wait_until(refused, 4, "the server closes after 2 s", step=0.05)
    assert watch.seconds > 1.6 and error


def test_well_formed_and_wrong_leaves_the_connection_open(daemon):
    client = daemon.connect()
    for text in (b"{}", b'{"msgid":"x"}', b'{"msgid":999}', b'{"msgid":1}', b'{"msgid":25.5}', b'{"a":{}}'):
        client.send_raw(text + b"\n")
    client.ping()
    assert not client.eof
    assert len(client.of(ERROR)) == 5 and len(client.of(LOGIN_ACK)) == 1


def test_frames_of_the_server_are_single_lines_of_json(daemon):
    alice = daemon.online()
    alice.chat(alice, "line\nbreak \u0001 nul? \u2028 \U0001f600 \"quoted\" back\\slash /")
    chat = alice.expect(CHAT)
    assert chat["msg"] == "line\nbreak \u0001 nul? \u2028 \U0001f600 \"quoted\" back\\slash /"


def test_a_large_message_is_delivered_whole(daemon):
    """The server's frame may be 4 KiB longer than max_frame."""
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    room = 65536 - len(alice.frame(CHAT, to=bob.id, msg="")) + 1
    alice.chat(bob, "x" * room)
    assert bob.expect(CHAT)["msg"] == "x" * room


@pytest.mark.parametrize("fill", ["\u00e9", "\U0001f600", "\\", '"', "\u0001"], ids=ascii)
def test_a_large_message_of_awkward_characters_is_delivered_whole(daemon, fill):
    """However the server writes them, the frame that it makes stays within max_frame + 4 KiB."""
    alice, bob = daemon.online(), daemon.online()
    room = 65536 - len(alice.frame(CHAT, to=bob.id, msg="")) + 1
    text = fill * (room // (len(dump(fill)) - 2))
    alice.chat(bob, text)
    assert bob.expect(CHAT)["msg"] == text


def test_large_message_written_with_the_shortest_escapes(daemon):
    """A client may write a character raw where a server would escape it."""
    alice, bob = daemon.online(), daemon.online()
    room = 65536 - len(alice.frame(CHAT, to=bob.id, msg="")) + 1
    text = "\u007f/" * (room // 2)
    alice.chat(bob, text)
    assert bob.expect(CHAT)["msg"] == text


# -- order ----------------------------------------------------------------------------------------


def test_requests_take_effect_in_the_order_sent(daemon):
    alice = daemon.online()
    others = daemon.accounts(30)
    alice.send_raw(b"".join(alice.frame(ADD_FRIEND, friendid=o.id, req="a%d" % o.id) for o in others[:15]) +
                   b"".join(alice.frame(DEL_FRIEND, friendid=o.id, req="d%d" % o.id) for o in others[:10]) +
                   alice.frame(FRIEND_LIST, req="list"))
    listed = alice.expect(FRIEND_LIST_ACK, req="list")
    assert [f["id"] for f in listed["friends"]] == [o.id for o in others[10:15]]
    replies = [f["req"] for f in alice.of(ADD_FRIEND_ACK, DEL_FRIEND_ACK, FRIEND_LIST_ACK)]
    assert replies == (["a%d" % o.id for o in others[:15]] + ["d%d" % o.id for o in others[:10]] + ["list"])
