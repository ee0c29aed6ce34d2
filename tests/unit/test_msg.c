/* Chat messages in the segment: bodies, their renderings, and the way through the store's text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/json.h"
#include "worker/msg.h"
#include "worker/state.h"

static struct worker self;
struct worker *wk = &self;

static struct segment seg;
static struct json *in, *out;

static const unsigned char mid[16] = { 0, 1, 2, 3, 0xff, 0xfe, 0x80, 0x7f, 9, 10, 11, 12, 13, 14, 15, 16 };
#define MID_HEX "00010203fffe807f090a0b0c0d0e0f10"

static int set_up(void **state)
{
	const struct segment_shape shape = { 2, 16, 1 << 20 };

	(void)state;
	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	self = (struct worker){ .slot = 0, .gen = 1, .s = slot_at(0), .region = region_open(0, 1),
	    .json = json_new(0), .json2 = json_new(JSON_UNTRUSTED), .scratch = malloc(SCRATCH) };
	in = json_new(JSON_UNTRUSTED);
	out = json_new(JSON_UNTRUSTED);
	assert_true(self.region != NULL && self.json2 != NULL && self.scratch != NULL);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	json_free(in);
	json_free(out);
	json_free(self.json);
	json_free(self.json2);
	free(self.scratch);
	region_close(self.region);
	segment_close(&seg);
	return 0;
}

struct sent { const char *frame, *name, *cid; bool group; };

/* An entry as a worker makes it of a client's frame. */
static uint32_t entry(const struct sent *s)
{
	struct msg_parts parts = { .sender = 7, .rcpt = 12, .group = s->group, .name = s->name,
	    .name_len = strlen(s->name), .time_text = "2026-01-31 10:11:12", .time_len = 19, .ts = 1234567890123,
	    .cid = s->cid, .cid_len = s->cid != NULL ? strlen(s->cid) : 0 };
	static struct json_pair carried[32];
	struct json_val root;
	size_t n = 0;

	assert_int_equal(json_parse(in, s->frame, strlen(s->frame)), JSON_OK);
	root = json_root(in);
	assert_true(json_get(in, &root, "msg", &parts.msg));
	(void)json_get(in, &root, "time", &parts.time);
	memcpy(parts.mid, mid, 16);
	for (struct json_it it = json_it(in, &root); json_next(in, &it, &carried[n].key,
	    &carried[n].val); )
		n += msg_key_of(&carried[n].key) == MSG_K_OTHER;
	uint32_t ref = msg_make(s->group ? MK_GROUP : MK_DIRECT, 3, 4, &parts, carried, n, "\"r\"", 3);
	assert_int_not_equal(ref, CHUNK_NONE);
	struct msg *m = msg_at(ref);
	assert_int_equal(m->req_len, 3);
	assert_memory_equal(m->body + m->body_len, "\"r\"", 3);
	assert_ptr_equal(msg_of(0, ref), m);
	return ref;
}

static const char *render(uint32_t ref, enum proto_dialect d, uint32_t n, char term)
{
	static char text[70000];
	size_t len = msg_render(text, msg_at(ref), d, n, term);

	assert_true(len <= msg_frame_max(msg_at(ref)));
	text[len] = '\0';
	return text;
}

static void assert_json(const char *text)
{
	assert_int_equal(json_parse(out, text, strlen(text)), JSON_OK);
}

static void test_plain(void **state)
{
	const struct sent s = { .name = "ann", .cid = "c1", .frame =
	    "{\"msgid\":5,\"to\":12,\"msg\":\"hi\",\"time\":\"noon\",\"cid\":\"c1\",\"color\":\"red\"}" };
	uint32_t ref = entry(&s);

	(void)state;
	assert_string_equal(render(ref, DIALECT_PLAIN, 0, '\n'),
	    "{\"msgid\":5,\"id\":7,\"name\":\"ann\",\"to\":12,\"msg\":\"hi\",\"time\":\"noon\","
	    "\"color\":\"red\",\"ts\":1234567890123,\"mid\":\"" MID_HEX "\",\"cid\":\"c1\"}\n");
	assert_string_equal(render(ref, DIALECT_PLAIN, 4294967295u, '\x01'),
	    "{\"msgid\":5,\"id\":7,\"name\":\"ann\",\"to\":12,\"msg\":\"hi\",\"time\":\"noon\","
	    "\"color\":\"red\",\"ts\":1234567890123,\"mid\":\"" MID_HEX "\",\"cid\":\"c1\","
	    "\"n\":4294967295}");
}

/* The members of the original only, whatever came along. */
static void test_classic(void **state)
{
	const struct sent s = { .name = "ann", .cid = "c1", .frame =
	    "{\"msgid\":5,\"to\":12,\"msg\":\"hi\",\"cid\":\"c1\",\"toid\":3,\"color\":\"red\"}" };

	(void)state;
	assert_string_equal(render(entry(&s), DIALECT_CLASSIC, 9, '\n'),
	    "{\"msgid\":6,\"id\":7,\"name\":\"ann\",\"toid\":12,\"msg\":\"hi\","
	    "\"time\":\"2026-01-31 10:11:12\"}\n");
}

static void test_group(void **state)
{
	const struct sent s = { .name = "ann", .group = true, .frame =
	    "{\"msgid\":9,\"groupid\":12,\"msg\":\"hi\",\"x\":1}" };
	uint32_t ref = entry(&s);

	(void)state;
	assert_int_equal(msg_at(ref)->to_off, 0);
	assert_string_equal(render(ref, DIALECT_PLAIN, 0, '\x01'),
	    "{\"msgid\":9,\"id\":7,\"name\":\"ann\",\"groupid\":12,\"msg\":\"hi\","
	    "\"time\":\"2026-01-31 10:11:12\",\"x\":1,\"ts\":1234567890123,\"mid\":\"" MID_HEX "\"}");
	assert_string_equal(render(ref, DIALECT_CLASSIC, 1, '\x01'),
	    "{\"msgid\":10,\"id\":7,\"name\":\"ann\",\"groupid\":12,\"msg\":\"hi\","
	    "\"time\":\"2026-01-31 10:11:12\"}");
}

static void test_never_carried(void **state)
{
	static const char *const own[] = { "msgid", "id", "name", "to", "msg", "time", "ts", "mid" };
	const struct sent s = { .name = "ann", .frame =
	    "{\"msgid\":5,\"id\":7,\"name\":\"ANN\",\"to\":\"bob\",\"toid\":1,\"groupid\":2,\"msg\":\"m\","
	    "\"time\":null,\"ts\":5,\"n\":77,\"cid\":\"\",\"req\":\"r\","
	    "\"\\u006d\\u0069d\":\"forged\",\"Mid\":2,\"a\":{\"mid\":3,\"l\":[true,null,1.50e+3]}}" };
	struct json_val root, v;

	(void)state;
	assert_json(render(entry(&s), DIALECT_PLAIN, 0, '\x01'));
	root = json_root(out);
	assert_int_equal(json_count(out, &root), 8 + 2);
	for (size_t i = 0; i < sizeof own / sizeof *own; i++)
		assert_true(json_get(out, &root, own[i], &v));
	assert_true(json_get(out, &root, "mid", &v) && json_is(&v, MID_HEX));
	assert_true(json_get(out, &root, "to", &v) && v.type == JSON_NUMBER);
	assert_true(json_get(out, &root, "Mid", &v) && *v.raw == '2');
	assert_true(json_get(out, &root, "a", &v));
	assert_memory_equal(v.raw, "{\"mid\":3,\"l\":[true,null,1.50e+3]}", v.len);
}

/* Text that needs care: names are ours to escape, what the client wrote stays as it is. */
static void test_escapes(void **state)
{
	const struct sent s = { .name = "q\"b\\c\x07\xc3\xa9\xf0\x9f\x98\x80", .cid = "a\"\\\x01\xc3\xa9",
	    .frame = "{\"msgid\":5,\"to\":12,\"msg\":\"\\ud83d\\ude00 \\\"\\/\\u0009\xf0\x9f\x98\x80\","
	    "\"time\":\"\\n\",\"\\\"k\":\"\\\\\",\"to\\\"\":\"\\\"to\\\":\"}" };
	uint32_t ref = entry(&s);
	struct msg *m = msg_at(ref);
	struct json_val root, v;
	char text[100], quoted[400];

	(void)state;
	for (int d = DIALECT_PLAIN; d <= DIALECT_CLASSIC; d++) {
		assert_json(render(ref, (enum proto_dialect)d, 3, '\x01'));
		root = json_root(out);
		assert_true(json_get(out, &root, "name", &v));
		assert_int_equal(json_text(&v, text, sizeof text, NULL), JSON_OK);
		assert_string_equal(text, s.name);
		assert_true(json_get(out, &root, "msg", &v));
		assert_memory_equal(v.raw, "\"\\ud83d\\ude00 \\\"\\/\\u0009\xf0\x9f\x98\x80\"", v.len);
		assert_true(json_get(out, &root, d == DIALECT_PLAIN ? "to" : "toid", &v));
		assert_memory_equal(v.raw, "12", v.len);
	}
	/* cid_off and cid_len name the cid's JSON text, without its quotes. */
	assert_true(m->cid_len > 0);
	assert_int_equal(m->body[m->cid_off - 1], '"');
	assert_int_equal(m->body[m->cid_off + m->cid_len], '"');
	snprintf(quoted, sizeof quoted, "{\"c\":\"%.*s\"}", (int)m->cid_len, m->body + m->cid_off);
	assert_json(quoted);
	root = json_root(out);
	assert_true(json_get(out, &root, "c", &v));
	assert_int_equal(json_text(&v, text, sizeof text, NULL), JSON_OK);
	assert_string_equal(text, s.cid);
}

/* Stored and read again, it is rendered to the byte as it would have been at once. */
static void test_round_trip(void **state)
{
	static const struct sent v[] = {
		{ "{\"msg\":\"\"}", "a", NULL, false },
		{ "{\"msg\":\"\"}", "a", NULL, true },
		{ "{\"msg\":\"\\u00e9\",\"time\":\"\\\"\",\"x\":[1,{\"y\":\"}\"}],\"z\":null}", "\"", "\"", false },
		{ "{\"msg\":\"\\\\\",\"w\":-0.0e-5,\"\\u0078\":true}", "\xf0\x9f\x98\x80\\", "\\\x1f", true },
		{ "{\"msg\":\"m\",\"time\":\"\",\"deep\":[[[[[[[[[[[[[[1]]]]]]]]]]]]]]}", "deep", "7", false },
	};

	(void)state;
	for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
		char text[2000], one[2000];
		uint32_t ref = entry(&v[i]);
		size_t len = msg_store_text(text, msg_at(ref));
		uint32_t back = msg_from_text(v[i].group ? MK_GREF : MK_ROW, 5, 6, text, len, 7, mid,
		    1234567890123, 99);

		assert_int_not_equal(back, CHUNK_NONE);
		const struct msg *a = msg_at(ref), *b = msg_at(back);
		assert_int_equal(b->kind, v[i].group ? MK_GREF : MK_ROW);
		assert_true(b->sender == 7 && b->rcpt == 12 && b->row == 99 && b->ts == 1234567890123);
		assert_memory_equal(b->mid, mid, 16);
		assert_true(a->core_len == b->core_len && a->to_off == b->to_off &&
		    a->cid_off == b->cid_off && a->cid_len == b->cid_len);
		for (int d = DIALECT_PLAIN; d <= DIALECT_CLASSIC; d++) {
			strcpy(one, render(ref, (enum proto_dialect)d, 5, '\n'));
			assert_string_equal(render(back, (enum proto_dialect)d, 5, '\n'), one);
		}
		msg_free(ref);
		msg_free(back);
	}
	assert_int_equal(region_used(self.region), 0);
}

static void test_text_of_others(void **state)
{
	static const char *const bad[] = { "", "{", "[]", "{}", "{\"name\":\"a\",\"to\":1}",
		"{\"name\":\"a\",\"msg\":\"\"}", "{\"to\":1,\"msg\":\"\"}", "{\"name\":1,\"to\":1,\"msg\":\"\"}",
		"{\"name\":\"a\",\"to\":\"1\",\"msg\":\"\"}", "{\"name\":\"a\",\"to\":1,\"to\":1,\"msg\":\"\"}" };
	char text[600];

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		if (msg_from_text(MK_ROW, 0, 0, bad[i], strlen(bad[i]), 7, mid, 1, 1) != MSG_NOT_OURS)
			fail_msg("%s", bad[i]);
	snprintf(text, sizeof text, "{\"name\":\"%0250d\",\"to\":1,\"msg\":\"\"}", 0);
	assert_int_equal(msg_from_text(MK_ROW, 0, 0, text, strlen(text), 7, mid, 1, 1), MSG_NOT_OURS);
	assert_int_equal(region_used(self.region), 0);
}

static void test_claim(void **state)
{
	const struct sent s = { .name = "a", .frame = "{\"msg\":\"\"}" };
	uint32_t ref = entry(&s), seq = msg_seq(msg_at(ref));
	struct msg *m = msg_at(ref);

	(void)state;
	assert_int_equal(msg_state(m), M_NONE);
	msg_set_state(m, M_WAITING);
	assert_int_equal(msg_seq(m), seq);
	assert_false(msg_claim(m, seq + 1, M_WAITING, M_TAKEN));
	assert_false(msg_claim(m, seq, M_STORING, M_TAKEN));
	assert_int_equal(msg_state(m), M_WAITING);
	assert_true(msg_claim(m, seq, M_WAITING, M_TAKEN));
	assert_false(msg_claim(m, seq, M_WAITING, M_STORING));
	assert_int_equal(msg_state(m), M_TAKEN);
	msg_free(ref);
	uint32_t next = entry(&s);
	assert_int_not_equal(msg_seq(msg_at(next)), seq);	/* even in the same place */
	assert_false(msg_claim(msg_at(next), seq, M_NONE, M_TAKEN));
}

static void test_copy(void **state)
{
	const struct sent s = { .name = "a", .cid = "c", .frame = "{\"msg\":\"text\",\"x\":1}" };
	uint32_t ref = entry(&s), copy;

	(void)state;
	msg_at(ref)->flags = MF_CID;
	copy = msg_copy(msg_at(ref), 8, 9);
	assert_int_not_equal(copy, CHUNK_NONE);
	assert_int_equal(msg_state(msg_at(copy)), M_NONE);
	assert_int_equal(msg_at(copy)->flags, MF_CID);
	assert_true(msg_at(copy)->order > msg_at(ref)->order);
	assert_true(msg_seq(msg_at(copy)) != msg_seq(msg_at(ref)));
	assert_int_equal(chunk_at(0, copy)->sess, 8);
	assert_memory_equal(msg_at(copy)->body, msg_at(ref)->body, msg_at(ref)->body_len);
	assert_ptr_equal(msg_of(0, copy), msg_at(copy));
}

/* What another process reads of a chunk may be anything: lengths that lie are noticed. */
static void test_insane(void **state)
{
	const struct sent s = { .name = "a", .cid = "c", .frame = "{\"msg\":\"text\"}" };
	uint32_t ref = entry(&s);
	struct msg *m = msg_at(ref), good = *m;

	(void)state;
#define WRONG(field, value) do { m->field = (value); assert_null(msg_of(0, ref)); m->field = good.field; \
	assert_non_null(msg_of(0, ref)); } while (0)
	WRONG(body_len, UINT32_MAX);
	WRONG(body_len, (uint32_t)(chunk_room(chunk_at(0, ref)) - sizeof *m + 1));
	WRONG(req_len, UINT32_MAX);
	WRONG(core_len, good.body_len + 1);
	WRONG(to_off, (uint16_t)(good.core_len + 1));
	WRONG(cid_off, good.body_len + 1);
	WRONG(cid_len, UINT32_MAX);
#undef WRONG
	assert_null(msg_of(2, ref));
	assert_null(msg_of(0, UINT32_MAX));
	assert_null(msg_of(1, ref));
	msg_free(ref);
	assert_null(msg_of(0, ref));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_plain, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_classic, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_group, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_never_carried, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_escapes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_text_of_others, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_claim, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_copy, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_insane, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
