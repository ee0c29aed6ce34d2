/* The numbers of the wire, against the table of the protocol's document written out again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "worker/proto.h"

static const struct { enum proto_msg msg; int plain, classic; const char *name; } low[] = {
	{ MSG_LOGIN, 1, 1, "LOGIN_MSG" }, { MSG_LOGIN_ACK, 2, 2, "LOGIN_MSG_ACK" },
	{ MSG_REG, 3, 4, "REG_MSG" }, { MSG_REG_ACK, 4, 5, "REG_MSG_ACK" },
	{ MSG_CHAT, 5, 6, "ONE_CHAT_MSG" }, { MSG_ADD_FRIEND, 6, 7, "ADD_FRIEND_MSG" },
	{ MSG_CREATE_GROUP, 7, 8, "CREATE_GROUP_MSG" }, { MSG_JOIN_GROUP, 8, 9, "ADD_GROUP_MSG" },
	{ MSG_GROUP_CHAT, 9, 10, "GROUP_CHAT_MSG" }, { MSG_LOGOUT, 10, 3, "LOGINOUT_MSG" },
};

static void test_low_numbers(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof low / sizeof *low; i++) {
		assert_int_equal(proto_to_wire(DIALECT_PLAIN, low[i].msg), low[i].plain);
		assert_int_equal(proto_to_wire(DIALECT_CLASSIC, low[i].msg), low[i].classic);
		assert_int_equal(proto_from_wire(DIALECT_PLAIN, low[i].plain), low[i].msg);
		assert_int_equal(proto_from_wire(DIALECT_CLASSIC, low[i].classic), low[i].msg);
		assert_string_equal(proto_name(low[i].msg), low[i].name);
	}
}

static void test_high_numbers_are_the_same(void **state)
{
	(void)state;
	for (int n = 11; n <= 29; n++) {
		assert_int_equal(proto_from_wire(DIALECT_PLAIN, n), n);
		assert_int_equal(proto_from_wire(DIALECT_CLASSIC, n), n);
		assert_int_equal(proto_to_wire(DIALECT_CLASSIC, (enum proto_msg)n), n);
		assert_string_not_equal(proto_name((enum proto_msg)n), "unknown");
	}
}

static void test_no_message(void **state)
{
	static const int64_t bad[] = { 0, -1, 30, 31, INT64_MIN, INT64_MAX, INT64_C(1) << 32,
		(INT64_C(1) << 32) + 5 };

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		assert_int_equal(proto_from_wire(DIALECT_PLAIN, bad[i]), MSG_NONE);
		assert_int_equal(proto_from_wire(DIALECT_CLASSIC, bad[i]), MSG_NONE);
	}
	assert_string_equal(proto_name(MSG_NONE), "unknown");
	assert_string_equal(proto_name((enum proto_msg)-1), "unknown");
	assert_string_equal(proto_name(MSG_MAX), "unknown");
}

static void test_replies(void **state)
{
	static const struct { enum proto_msg m, reply; } v[] = {
		{ MSG_LOGIN, MSG_LOGIN_ACK }, { MSG_REG, MSG_REG_ACK },
		{ MSG_ADD_FRIEND, MSG_ADD_FRIEND_ACK }, { MSG_CREATE_GROUP, MSG_CREATE_GROUP_ACK },
		{ MSG_JOIN_GROUP, MSG_JOIN_GROUP_ACK }, { MSG_LOGOUT, MSG_LOGOUT_ACK },
		{ MSG_DEL_FRIEND, MSG_DEL_FRIEND_ACK }, { MSG_DEL_GROUP, MSG_DEL_GROUP_ACK },
		{ MSG_FRIEND_LIST, MSG_FRIEND_LIST_ACK }, { MSG_GROUP_LIST, MSG_GROUP_LIST_ACK },
		{ MSG_PING, MSG_PONG },
	};
	int with_reply = 0;

	(void)state;
	for (size_t i = 0; i < sizeof v / sizeof *v; i++)
		assert_int_equal(proto_reply_of(v[i].m), v[i].reply);
	for (int m = 1; m < MSG_MAX; m++)
		with_reply += proto_reply_of((enum proto_msg)m) != MSG_NONE;
	assert_int_equal(with_reply, sizeof v / sizeof *v);
}

static void test_sentences(void **state)
{
	(void)state;
	for (int e = E_OK; e <= E_ALREADY; e++) {
		const char *text = proto_errmsg((enum proto_errno)e);

		assert_true(strlen(text) > 0);
		assert_null(strpbrk(text, "\"\\\n"));
		for (int f = E_OK; f < e; f++)
			assert_string_not_equal(text, proto_errmsg((enum proto_errno)f));
	}
	assert_string_equal(proto_errmsg((enum proto_errno)11), "unknown error");
	assert_string_equal(proto_errmsg((enum proto_errno)-1), "unknown error");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_low_numbers),
		cmocka_unit_test(test_high_numbers_are_the_same),
		cmocka_unit_test(test_no_message),
		cmocka_unit_test(test_replies),
		cmocka_unit_test(test_sentences),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
