/* Session memory: what is handed out is whole and apart, and is found again after a death. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/chunk.h"
#include "shm/segment.h"

static struct segment seg;

static int setup(void **state)
{
	struct segment_shape shape = { 3, 100, 8 << 20 };

	(void)state;
	return segment_open(&seg, &shape, 1);
}

static int teardown(void **state)
{
	(void)state;
	segment_close(&seg);
	return 0;
}

static long kib(void)
{
	struct stat st;

	assert_int_equal(fstat(seg.fd, &st), 0);
	return (long)st.st_blocks / 2;
}

static void test_regions_have_room_for_what_was_asked(void **state)
{
	static const uint64_t usable[] = {
		0, 1, CHUNK_SPAN, CHUNK_SPAN + 1, 8 << 20, UINT64_C(1) << 30, UINT64_C(300) << 30,
		(UINT64_C(16384) - 8) * CHUNK_SPAN, UINT64_C(16384) * CHUNK_SPAN,
	};

	(void)state;
	for (size_t i = 0; i < sizeof(usable) / sizeof(usable[0]); i++) {
		uint64_t all = region_bytes(usable[i]);

		assert_int_equal(all % CHUNK_SPAN, 0);
		assert_true(all >= usable[i] + 32 + all / CHUNK_SPAN * 4);
		assert_true(all <= usable[i] + usable[i] / 1000 + 3 * CHUNK_SPAN);
	}
	assert_int_equal(region_bytes(UINT64_C(600) << 30), 0);
	assert_int_equal(region_bytes(UINT64_MAX), 0);
}

static void test_every_length(void **state)
{
	struct region *r = region_open(1, 1);

	(void)state;
	assert_non_null(r);
	assert_true(region_size(r) >= 8 << 20);
	for (size_t len = 0; len < 200000; len += len < 5000 ? 1 : 997) {
		uint32_t ref = chunk_alloc(r, len, CHUNK_OUT, 5, 6);
		struct chunk *c;

		assert_int_not_equal(ref, CHUNK_NONE);
		c = chunk_at(1, ref);
		assert_int_equal((uintptr_t)c->data % 32, 0);
		assert_true(chunk_room(c) >= len);
		assert_true(chunk_room(c) + 32 <= 2 * (len + 32) || chunk_room(c) + 32 == CHUNK_MIN);
		assert_true(len <= CHUNK_SPAN - 32 || chunk_room(c) + 32 < len + 32 + CHUNK_SPAN);
		assert_true(c->kind == CHUNK_OUT && c->sess == 5 && c->gen == 6);
		assert_true(c->next == CHUNK_NONE && c->aux == 0 && c->base == 0 && c->aux64 == 0);
		assert_int_equal(region_used(r), chunk_room(c) + 32);
		memset(c->data, 0xee, chunk_room(c));
		chunk_free(r, ref);
		assert_int_equal(region_used(r), 0);
	}
	region_close(r);
}

/* --- A model of what was handed out -------------------------------------------------------- */

#define HELD 3000

struct held {
	uint32_t ref, sess;
	uint32_t len;
};

/* Shared with children, so that what they held when they died can be asked for. */
struct model {
	struct held held[HELD];
	_Atomic uint32_t n;
};

static unsigned char mark(const struct held *h, size_t at)
{
	return (unsigned char)(h->sess * 31 + at);
}

static bool hold(struct region *r, struct model *m, uint32_t slot, size_t len, uint32_t sess)
{
	struct held *h = &m->held[m->n];
	struct chunk *c;

	h->ref = chunk_alloc(r, len, CHUNK_MSG, sess, 7);
	if (h->ref == CHUNK_NONE)
		return false;
	h->sess = sess;
	h->len = (uint32_t)len;
	c = chunk_at(slot, h->ref);
	for (size_t i = 0; i < len; i += i + 64 < len ? 64 : 1)
		c->data[i] = mark(h, i);
	m->n++;
	return true;
}

static void check_held(const struct held *h, uint32_t slot)
{
	const struct chunk *c = chunk_at(slot, h->ref);

	assert_int_equal(c->kind, CHUNK_MSG);
	assert_int_equal(c->sess, h->sess);
	for (size_t i = 0; i < h->len; i += i + 64 < h->len ? 64 : 1)
		assert_int_equal(c->data[i], mark(h, i));
}

static void drop(struct region *r, struct model *m, uint32_t slot, uint32_t at)
{
	check_held(&m->held[at], slot);
	chunk_free(r, m->held[at].ref);
	m->held[at] = m->held[m->n - 1];
	m->n--;
}

static size_t some_length(unsigned *seed)
{
	switch (rand_r(seed) % 16) {
	case 0: return (size_t)rand_r(seed) % 300000;
	case 1: case 2: return (size_t)rand_r(seed) % 40000;
	default: return (size_t)rand_r(seed) % 2000;
	}
}

/* STEPS random allocations and releases; how often the region was used up. */
static int churn(struct region *r, struct model *m, uint32_t slot, int steps, unsigned *seed)
{
	int full = 0;

	for (int i = 0; i < steps; i++) {
		unsigned want = (unsigned)(i / 1000 % 3);	/* grow, hover, shrink */

		if (m->n < HELD && (m->n == 0 || (unsigned)rand_r(seed) % 10 < 7 - 2 * want)) {
			if (!hold(r, m, slot, some_length(seed), (uint32_t)i)) {
				full++;
				drop(r, m, slot, (uint32_t)rand_r(seed) % m->n);
			}
		} else {
			drop(r, m, slot, (uint32_t)rand_r(seed) % m->n);
		}
	}
	return full;
}

struct seen {
	const struct model *m;
	uint32_t n, unknown;
};

static int see(void *arg, uint32_t ref, struct chunk *c)
{
	struct seen *s = arg;
	bool known = false;

	s->n++;
	for (uint32_t i = 0; i < s->m->n && !known; i++)
		known = s->m->held[i].ref == ref && s->m->held[i].sess == c->sess;
	s->unknown += !known;
	return 0;
}

/* What a scan finds is what the model holds, and one more at most, which was on its way. */
static void assert_scan(uint32_t slot, const struct model *m, uint32_t spare)
{
	struct seen s = { .m = m };

	assert_int_equal(chunk_scan(slot, see, &s), 0);
	assert_true(s.unknown <= spare);
	assert_true(s.n + spare >= m->n && s.n <= m->n + spare);
}

static uint64_t sizes(uint32_t slot, const struct model *m)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < m->n; i++)
		sum += chunk_room(chunk_at(slot, m->held[i].ref)) + sizeof(struct chunk);
	return sum;
}

static struct model model;

static void test_random_use(void **state)
{
	unsigned seed = 4711;
	struct region *r = region_open(0, 1);

	(void)state;
	model.n = 0;
	assert_true(churn(r, &model, 0, 60000, &seed) > 10);	/* it was used up now and then */
	assert_scan(0, &model, 0);
	assert_int_equal(region_used(r), sizes(0, &model));
	/* Opened again, as by the worker's successor: nothing is lost, the rest is free. */
	region_close(r);
	r = region_open(0, 0);
	assert_int_equal(region_used(r), sizes(0, &model));
	assert_scan(0, &model, 0);
	churn(r, &model, 0, 20000, &seed);
	while (model.n > 0)
		drop(r, &model, 0, model.n - 1);
	assert_int_equal(region_used(r), 0);
	assert_scan(0, &model, 0);
	region_close(r);
}

static int sweep(void *arg, uint32_t ref, struct chunk *c)
{
	assert_int_equal(c->kind, CHUNK_MSG);
	if (arg != NULL)
		chunk_free(arg, ref);
	else
		chunk_mark_free(2, ref);
	return 0;
}

/* A worker is killed in the middle of it all: its successor finds what it held. */
static void test_killed_in_the_middle(void **state)
{
	struct model *m = mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
	    -1, 0);
	unsigned seed = 815;

	(void)state;
	assert_true(m != MAP_FAILED);
	for (int round = 0; round < 40; round++) {
		pid_t pid;
		int st;

		m->n = 0;
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			struct region *r = region_open(2, round == 0);
			uint32_t ref;

			if (r == NULL || region_used(r) != 0)
				_exit(1);
			ref = chunk_alloc(r, 10, CHUNK_IN, 0, 0);	/* the lists must be usable */
			chunk_free(r, ref);
			for (;;)
				churn(r, m, 2, 1000, &seed);
		}
		while (atomic_load(&m->n) < 20 + (uint32_t)round * 37 % 300)
			assert_int_equal(waitpid(pid, &st, WNOHANG), 0);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &st, 0), pid);
		assert_int_equal(st, SIGKILL);
		assert_scan(2, m, 1);
		/* Its heir sweeps, with the region open or before that. */
		struct region *r = round % 2 == 0 ? region_open(2, 0) : NULL;
		assert_int_equal(chunk_scan(2, sweep, r), 0);
		m->n = 0;
		if (r != NULL) {
			assert_int_equal(region_used(r), 0);
			region_close(r);
		}
		assert_scan(2, m, 0);
	}
	munmap(m, sizeof(*m));
}

static int nth(void *arg, uint32_t ref, struct chunk *c)
{
	int *left = arg;

	(void)ref;
	return --*left == 0 ? (int)c->sess : 0;
}

static void test_scan(void **state)
{
	struct region *r;
	int left = 3;

	(void)state;
	assert_int_equal(chunk_scan(0, nth, &left), 0);	/* a slot that never had a worker */
	assert_int_equal(left, 3);
	r = region_open(0, 1);
	for (uint32_t i = 1; i <= 5; i++)
		assert_int_not_equal(chunk_alloc(r, 100, CHUNK_IN, i * 11, 1), CHUNK_NONE);
	assert_int_equal(chunk_scan(0, nth, &left), 33);
	left = 9;
	assert_int_equal(chunk_scan(1, nth, &left), 0);	/* regions are apart */
	assert_int_equal(left, 9);
	/* Fresh: all is forgotten, and its memory gone. */
	region_close(r);
	r = region_open(0, 1);
	assert_int_equal(region_used(r), 0);
	assert_int_equal(chunk_scan(0, nth, &left), 0);
	assert_int_equal(left, 9);
	region_close(r);
}

/* Headers and table words that say nonsense are passed over, and do not lead out of the region. */
static void test_nonsense(void **state)
{
	struct region *r = region_open(0, 1);
	uint32_t *table = (uint32_t *)(shm->base + shm->head->region_off + 24);
	uint32_t ref[4], span, n = (uint32_t)(shm->head->region_bytes / CHUNK_SPAN);
	int left = 100;

	(void)state;
	for (int i = 0; i < 4; i++)
		ref[i] = chunk_alloc(r, 90, CHUNK_IN, 1, 1);
	chunk_at(0, ref[0])->cls = 3;
	chunk_at(0, ref[1])->kind = CHUNK_NKINDS;
	chunk_at(0, ref[2])->kind = 0xff;
	span = ref[3] / (CHUNK_SPAN / CHUNK_MIN);
	assert_int_equal(table[span], 1);		/* the layout that this test knows */
	table[n - 1] = 0xfe | 2 << 8;			/* a run beyond the end */
	table[n - 2] = 0xff;				/* a tail without a head */
	table[n - 3] = 0xfe;				/* a run of none */
	table[n - 4] = 0xfffffffe;
	table[n - 5] = 77;
	assert_int_equal(chunk_scan(0, nth, &left), 0);
	assert_int_equal(left, 99);
	region_close(r);
	r = region_open(0, 0);
	/* What was no chunk of any kind is not handed out either. */
	assert_int_equal(region_used(r), 4 * CHUNK_MIN);
	while (chunk_alloc(r, 60000, CHUNK_IN, 1, 1) != CHUNK_NONE)
		;
	assert_int_equal(region_used(r), 4 * CHUNK_MIN + region_size(r) - CHUNK_SPAN);
	region_close(r);
}

/* All of it can be had, in any size; NONE after that; and it comes back. */
static void test_used_up(void **state)
{
	static const size_t lens[] = { 96, 1000, 32736, 65504, 100000, 1 << 20 };

	(void)state;
	for (size_t k = 0; k < sizeof(lens) / sizeof(lens[0]); k++) {
		struct region *r = region_open(0, k == 0);
		static uint32_t refs[100000];
		uint32_t n = 0;

		while ((refs[n] = chunk_alloc(r, lens[k], CHUNK_IN, 1, 1)) != CHUNK_NONE)
			n++;
		assert_true(region_used(r) <= region_size(r));
		assert_true(region_size(r) - region_used(r) < lens[k] + CHUNK_SPAN);
		if (lens[k] < CHUNK_SPAN)
			assert_int_equal(region_used(r), region_size(r));
		chunk_free(r, refs[n / 2]);
		assert_int_equal(chunk_alloc(r, lens[k], CHUNK_IN, 1, 1), refs[n / 2]);
		for (uint32_t i = 0; i < n; i++)
			chunk_free(r, refs[i]);
		assert_int_equal(region_used(r), 0);
		region_tidy(r);
		region_tidy(r);				/* its memory is gone; it can be had again */
		for (uint32_t i = 0; i < n; i++)
			assert_int_not_equal(refs[i] = chunk_alloc(r, lens[k], CHUNK_IN, 1, 1), CHUNK_NONE);
		for (uint32_t i = 0; i < n; i++)
			chunk_free(r, refs[i]);
		/* One chunk of every size left behind does not keep the whole of it from a big one. */
		refs[0] = chunk_alloc(r, region_size(r) - sizeof(struct chunk), CHUNK_IN, 1, 1);
		assert_int_not_equal(refs[0], CHUNK_NONE);
		assert_int_equal(region_used(r), region_size(r));
		assert_int_equal(chunk_alloc(r, 1, CHUNK_IN, 1, 1), CHUNK_NONE);
		chunk_free(r, refs[0]);
		region_close(r);
	}
	struct region *r = region_open(0, 0);
	assert_int_equal(chunk_alloc(r, 16 << 20, CHUNK_IN, 1, 1), CHUNK_NONE);
	assert_int_equal(chunk_alloc(r, SIZE_MAX, CHUNK_IN, 1, 1), CHUNK_NONE);
	assert_int_equal(chunk_alloc(r, SIZE_MAX - 31, CHUNK_IN, 1, 1), CHUNK_NONE);
	region_close(r);
}

/* The last empty spans of each size do not stand in the way of another size. */
static void test_sizes_share_the_region(void **state)
{
	struct region *r = region_open(0, 1);

	(void)state;
	for (size_t len = 10; len < 40000; len *= 2)
		chunk_free(r, chunk_alloc(r, len, CHUNK_IN, 1, 1));
	assert_int_not_equal(chunk_alloc(r, region_size(r) - 32, CHUNK_IN, 1, 1), CHUNK_NONE);
	region_close(r);
}

/* Memory comes with use and goes when it is no longer needed; coming and going costs no call. */
static void test_memory(void **state)
{
	struct region *r = region_open(0, 1);
	static uint32_t refs[5000];
	long before = kib();
	int fd;

	(void)state;
	for (int i = 0; i < 1000; i++)
		refs[i] = chunk_alloc(r, 990, CHUNK_IN, 1, 1);
	assert_in_range(kib() - before, 1000, 1000 + 64);
	fd = seg.fd;
	seg.fd = -1;				/* no system call can succeed from here */
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < 1000; i++)
			chunk_free(r, refs[i]);
		for (int i = 0; i < 1000; i++)
			assert_int_not_equal(refs[i] = chunk_alloc(r, 990, CHUNK_IN, 1, 1), CHUNK_NONE);
	}
	seg.fd = fd;
	for (int i = 0; i < 1000; i++)
		chunk_free(r, refs[i]);
	region_tidy(r);				/* all of it was needed a moment ago */
	region_tidy(r);
	assert_in_range(kib() - before, 0, 10 * 64);
	/* What is in use stays, and what comes and goes between two calls is kept for it. */
	for (int i = 0; i < 3000; i++)
		refs[i] = chunk_alloc(r, 990, CHUNK_IN, 1, 1);
	memset(chunk_at(0, refs[0])->data, 7, 900);
	region_tidy(r);
	for (int i = 1; i < 3000; i++)
		chunk_free(r, refs[i]);
	region_tidy(r);
	region_tidy(r);
	assert_int_equal(chunk_at(0, refs[0])->data[899], 7);
	assert_in_range(kib() - before, 0, 11 * 64);
	region_close(r);
}

/* Spans that the kernel does not give are not used, and those in use go on. */
static void test_no_memory(void **state)
{
	struct region *r = region_open(0, 1);
	uint32_t first = chunk_alloc(r, 990, CHUNK_IN, 1, 1), n = 1;
	int fd = seg.fd;

	(void)state;
	seg.fd = -1;
	assert_int_equal(chunk_alloc(r, 100, CHUNK_IN, 1, 1), CHUNK_NONE);
	assert_int_equal(chunk_alloc(r, 100000, CHUNK_IN, 1, 1), CHUNK_NONE);
	while (chunk_alloc(r, 990, CHUNK_IN, 1, 1) != CHUNK_NONE)
		n++;
	assert_int_equal(n, 64);
	assert_null(region_open(1, 1));
	seg.fd = fd;
	assert_int_not_equal(chunk_alloc(r, 100, CHUNK_IN, 1, 1), CHUNK_NONE);
	chunk_free(r, first);
	region_close(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_regions_have_room_for_what_was_asked),
		cmocka_unit_test_setup_teardown(test_every_length, setup, teardown),
		cmocka_unit_test_setup_teardown(test_random_use, setup, teardown),
		cmocka_unit_test_setup_teardown(test_killed_in_the_middle, setup, teardown),
		cmocka_unit_test_setup_teardown(test_scan, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nonsense, setup, teardown),
		cmocka_unit_test_setup_teardown(test_used_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sizes_share_the_region, setup, teardown),
		cmocka_unit_test_setup_teardown(test_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_memory, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
