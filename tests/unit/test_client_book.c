/* client/book.c: names and ids, within bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "client/book.h"

static void test_friends(void **state)
{
	struct book *b = book_new();

	(void)state;
	book_set_friend(b, 1, "Ann", false);
	book_set_friend(b, 2, "bob", true);
	book_set_friend(b, 1, "Anna", true);
	assert_int_equal(book_find_person(b, "ANNA"), 1);
	assert_int_equal(book_find_person(b, "Ann"), 0);
	assert_true(book_friend(b, 1)->online);
	assert_null(book_friend_at(b, 2));
	book_drop_friend(b, 1);
	assert_null(book_friend(b, 1));
	assert_int_equal(book_find_person(b, "anna"), 1);	/* still somebody one knows */
	assert_string_equal(book_name(b, 1, false), "Anna");
	assert_string_equal(book_friend_at(b, 0)->name, "bob");
	book_drop_friend(b, 77);
	book_clear(b);
	assert_int_equal(book_find_person(b, "anna"), 0);
	book_free(b);
}

static void test_groups(void **state)
{
	struct book *b = book_new();

	(void)state;
	book_set_group(b, 5, "cats", "meow", 3);
	book_set_group(b, 5, "cats", "purr", 4);
	assert_int_equal(book_group(b, 5)->members, 4);
	assert_string_equal(book_group_at(b, 0)->desc, "purr");
	assert_null(book_group_at(b, 1));
	assert_int_equal(book_find_group(b, "Cats"), 5);
	assert_int_equal(book_find_person(b, "cats"), 0);
	assert_string_equal(book_name(b, 5, true), "cats");
	assert_string_equal(book_name(b, 5, false), "");
	book_drop_group(b, 5);
	assert_int_equal(book_find_group(b, "cats"), 0);
	book_free(b);
}

/* A server that names a million people and friends does not fill the memory. */
static void test_bounded(void **state)
{
	struct book *b = book_new();
	char name[32];
	size_t n = 0;

	(void)state;
	for (int i = 1; i <= 3000; i++) {
		snprintf(name, sizeof name, "p%d", i);
		book_see(b, i, name);
	}
	assert_int_equal(book_find_person(b, "p3000"), 3000);
	assert_int_equal(book_find_person(b, "p1"), 0);
	while (book_person_at(b, n) != NULL)
		n++;
	assert_true(n < 3000);
	for (int i = 1; i <= 25000; i++) {
		snprintf(name, sizeof name, "f%d", i);
		book_set_friend(b, i, name, false);
	}
	for (n = 0; book_friend_at(b, n) != NULL;)
		n++;
	assert_true(n >= 1000 && n <= 20000);
	book_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_friends), cmocka_unit_test(test_groups),
		cmocka_unit_test(test_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
