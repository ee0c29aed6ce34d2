/* Keys to sessions, compared with a plain list of what was put in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "worker/index.h"

static void test_one_key(void **state)
{
	struct index ix = { 0 };

	(void)state;
	assert_null(index_find(&ix, 7));
	index_del(&ix, 7, 1, 1);
	assert_null(index_entry(&ix, 7, 1, 1));
	assert_int_equal(index_add(&ix, 7, 1, 10, 0), 0);
	assert_int_equal(index_add(&ix, 7, 2, 20, 5), 0);
	assert_int_equal(index_find(&ix, 7)->len, 2);
	assert_int_equal(index_entry(&ix, 7, 2, 20)->flag, 5);
	assert_null(index_entry(&ix, 7, 2, 21));	/* another life of the record */
	index_del(&ix, 7, 2, 21);
	assert_int_equal(index_find(&ix, 7)->len, 2);
	index_del(&ix, 7, 1, 10);
	assert_int_equal(index_find(&ix, 7)->len, 1);
	assert_int_equal(index_find(&ix, 7)->v[0].rec, 2);
	index_del(&ix, 7, 2, 20);
	assert_null(index_find(&ix, 7));
	assert_int_equal(ix.nkeys, 0);
	free(ix.bucket);
}

#define KEYS 3000u
#define RECS 20u

static uint8_t model[KEYS][RECS];
static uint32_t seed = 1;

static uint32_t dice(uint32_t n)
{
	seed = seed * 1664525u + 1013904223u;
	return (seed >> 8) % n;
}

/* Keys that differ in high bits only, too: groups and users are dense, hashes must not mind. */
static uint32_t key_of(uint32_t k)
{
	return k % 2 ? k : k << 19;
}

static void compare(const struct index *ix)
{
	uint32_t keys = 0;

	for (uint32_t k = 0; k < KEYS; k++) {
		struct index_vec *v = index_find(ix, key_of(k));
		uint32_t n = 0;

		for (uint32_t r = 0; r < RECS; r++) {
			struct index_entry *e = index_entry(ix, key_of(k), r, r * 3);

			assert_int_equal(e != NULL, model[k][r]);
			assert_true(e == NULL || e->flag == k);
			n += model[k][r];
		}
		assert_int_equal(v != NULL ? v->len : 0, n);
		keys += n > 0;
	}
	assert_int_equal(ix->nkeys, keys);
}

static void test_many(void **state)
{
	struct index ix = { 0 };

	(void)state;
	for (int round = 0; round < 4; round++) {
		for (int i = 0; i < 40000; i++) {
			uint32_t k = dice(KEYS), r = dice(RECS);

			if (model[k][r] || dice(4) == round % 4u) {
				index_del(&ix, key_of(k), r, r * 3);
				model[k][r] = 0;
			} else {
				assert_int_equal(index_add(&ix, key_of(k), r, r * 3, k), 0);
				model[k][r] = 1;
			}
		}
		compare(&ix);
	}
	assert_true(ix.nbuckets >= 1024);
	for (uint32_t k = 0; k < KEYS; k++)
		for (uint32_t r = 0; r < RECS; r++)
			index_del(&ix, key_of(k), r, r * 3);
	assert_int_equal(ix.nkeys, 0);
	free(ix.bucket);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_key),
		cmocka_unit_test(test_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
