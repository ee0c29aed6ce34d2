/*
 * Password hashes off the loop, the host's budget, resume tokens, message ids.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "worker/auth.h"

#define CHEAP_KIB 8
#define DEADLINE_MS 20000
#define NOW UINT64_C(1769854272345)
#define DAY UINT64_C(86400000)

static unsigned ndone;
static int last_id;

static void on_done(struct auth_job *job)
{
	static const char zero[AUTH_PASSWORD_MAX];

	assert_memory_equal(job->password, zero, sizeof zero);
	ndone++;
	last_id = (int)job->id;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Runs the loop's part until N jobs are done. */
static void wait_for(struct auth *a, unsigned n)
{
	uint64_t end = now_ms() + DEADLINE_MS;

	while (ndone < n) {
		struct pollfd p = { .fd = auth_fd(a), .events = POLLIN };

		assert_true(now_ms() < end);
		if (poll(&p, 1, 1000) == 1)
			auth_complete(a);
	}
}

static void fill(struct auth_job *job, enum auth_op op, const char *password, const char *encoded)
{
	memset(job, 0, sizeof *job);
	job->op = op;
	job->len = (uint32_t)strlen(password);
	memcpy(job->password, password, job->len);
	if (encoded != NULL)
		snprintf(job->encoded, sizeof job->encoded, "%s", encoded);
	job->done = on_done;
}

static void run(struct auth *a, struct auth_job *job, enum auth_op op, const char *password,
    const char *encoded)
{
	fill(job, op, password, encoded);
	ndone = 0;
	assert_int_equal(auth_submit(a, job), AUTH_OK);
	wait_for(a, 1);
}

static struct auth *new_cheap(void)
{
	struct auth_setup s = { .memory_kib = CHEAP_KIB, .passes = 1, .budget = 1 };
	struct auth *a = auth_new(&s);

	assert_non_null(a);
	return a;
}

static void passwords(void **state)
{
	struct auth *a = new_cheap();
	struct auth_job job;
	char encoded[AUTH_ENCODED], again[AUTH_ENCODED];

	(void)state;
	run(a, &job, AUTH_HASH, "secret", NULL);
	assert_int_equal(job.rc, AUTH_OK);
	assert_memory_equal(job.encoded, "$argon2id$", 10);
	assert_non_null(strstr(job.encoded, "m=8,t=1"));
	strcpy(encoded, job.encoded);
	run(a, &job, AUTH_HASH, "secret", NULL);
	strcpy(again, job.encoded);
	assert_string_not_equal(encoded, again);	/* salted */

	run(a, &job, AUTH_VERIFY, "secret", encoded);
	assert_true(job.rc == AUTH_OK && job.ok && !job.needs_rehash);
	run(a, &job, AUTH_VERIFY, "secret", again);
	assert_true(job.ok);
	run(a, &job, AUTH_VERIFY, "Secret", encoded);
	assert_true(job.rc == AUTH_OK && !job.ok && !job.needs_rehash);
	run(a, &job, AUTH_VERIFY, "", encoded);
	assert_false(job.ok);
	run(a, &job, AUTH_VERIFY, "secret", "");
	assert_true(job.rc == AUTH_OK && !job.ok);
	run(a, &job, AUTH_VERIFY, "*", "*");
	assert_true(job.rc == AUTH_OK && !job.ok);
	run(a, &job, AUTH_VERIFY, "x", "$argon2id$nonsense");
	assert_true(job.rc == AUTH_OK && !job.ok);

	auth_set_cost(a, 16, 2);
	run(a, &job, AUTH_VERIFY, "secret", encoded);
	assert_true(job.ok && job.needs_rehash);
	run(a, &job, AUTH_VERIFY, "wrong", encoded);
	assert_true(!job.ok && !job.needs_rehash);
	run(a, &job, AUTH_HASH, "secret", NULL);
	assert_non_null(strstr(job.encoded, "m=16,t=2"));
	auth_free(a);
}

static uint64_t cpu_us(struct auth *a, const char *encoded)
{
	struct auth_job job;
	struct timespec t0, t1;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
	run(a, &job, AUTH_VERIFY, "guess", encoded);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
	assert_false(job.ok);
	return (uint64_t)(t1.tv_sec - t0.tv_sec) * 1000000 +
	    (uint64_t)(t1.tv_nsec - t0.tv_nsec) / 1000;
}

/* Who does not exist must cost what a wrong password costs, or names could be found out. */
static void unknown_users_cost_the_same(void **state)
{
	struct auth *a = new_cheap();
	struct auth_job job;
	char encoded[AUTH_ENCODED];
	uint64_t known, unknown, barred;

	(void)state;
	auth_set_cost(a, 16384, 1);
	run(a, &job, AUTH_HASH, "secret", NULL);
	strcpy(encoded, job.encoded);
	known = cpu_us(a, encoded);
	unknown = cpu_us(a, "");
	barred = cpu_us(a, "*");
	assert_true(known > 1000);
	assert_in_range(unknown, known / 3, known * 3);
	assert_in_range(barred, known / 3, known * 3);
	auth_free(a);
}

static void the_queue_is_bounded(void **state)
{
	static struct auth_job jobs[5000];
	struct auth *a = new_cheap();
	unsigned taken = 0;

	(void)state;
	auth_set_cost(a, 32768, 1);	/* tens of ms each */
	ndone = 0;
	for (unsigned i = 0; i < 5000; i++) {
		fill(&jobs[i], AUTH_HASH, "x", NULL);
		jobs[i].id = i;
		if (auth_submit(a, &jobs[i]) != AUTH_OK)
			break;
		taken++;
	}
	assert_in_range(taken, 4, 1000);
	assert_in_range(auth_retry_ms(a), 200, 30000);
	assert_in_range(auth_depth(a), 1, taken);
	/* ending it: what was not begun comes back undone, all of it, in order */
	auth_free(a);
	assert_int_equal(ndone, taken);
	assert_int_equal(last_id, (int)taken - 1);
	assert_int_equal(jobs[taken - 1].rc, AUTH_EBUSY);
}

static void completions_come_in_order(void **state)
{
	static struct auth_job jobs[30];
	struct auth *a = new_cheap();

	(void)state;
	ndone = 0;
	for (unsigned i = 0; i < 30; i++) {
		fill(&jobs[i], AUTH_HASH, "x", NULL);
		jobs[i].id = i;
		assert_int_equal(auth_submit(a, &jobs[i]), AUTH_OK);
	}
	wait_for(a, 30);
	assert_int_equal(last_id, 29);
	assert_int_equal(auth_depth(a), 0);
	assert_int_equal(poll(&(struct pollfd){ .fd = auth_fd(a), .events = POLLIN }, 1, 0), 0);
	auth_free(a);
}

struct shared {
	_Atomic uint32_t cells[64];
	_Atomic unsigned finished;
	_Atomic uint32_t computing, most;
};

#define STRIDE 32		/* bytes: every eighth cell */

static struct shared *watch;	/* where hashes in progress are counted, NULL: nowhere */

int __real_crypto_pwhash_str(char *out, const char *password, unsigned long long len,
    unsigned long long passes, size_t memory);
int __wrap_crypto_pwhash_str(char *out, const char *password, unsigned long long len,
    unsigned long long passes, size_t memory);

/* Stands for libsodium's (test_auth.flags), to see how many processes are in it at a time. */
int __wrap_crypto_pwhash_str(char *out, const char *password, unsigned long long len,
    unsigned long long passes, size_t memory)
{
	uint32_t now, most;
	int rc;

	if (watch == NULL)
		return __real_crypto_pwhash_str(out, password, len, passes, memory);
	now = atomic_fetch_add(&watch->computing, 1) + 1;
	most = atomic_load(&watch->most);
	while (now > most && !atomic_compare_exchange_weak(&watch->most, &most, now))
		;
	rc = __real_crypto_pwhash_str(out, password, len, passes, memory);
	atomic_fetch_sub(&watch->computing, 1);
	return rc;
}

/* A worker with its own hash thread. */
static void hash_some(uint32_t slot, unsigned n)
{
	static struct auth_job jobs[20];
	struct auth_setup s = { .memory_kib = 4096, .passes = 1, .budget = 2,
	    .busy = watch->cells, .stride = STRIDE, .nslots = 6, .slot = slot };
	struct auth *a;

	if (auth_init() != 0 || (a = auth_new(&s)) == NULL)
		_exit(1);
	ndone = 0;
	for (unsigned i = 0; i < n; i++) {
		fill(&jobs[i], AUTH_HASH, "x", NULL);
		if (auth_submit(a, &jobs[i]) != AUTH_OK)
			_exit(2);
	}
	wait_for(a, n);
	for (unsigned i = 0; i < n; i++)
		if (jobs[i].rc != AUTH_OK)
			_exit(3);
	atomic_fetch_add(&watch->finished, n);
	auth_free(a);
	_exit(0);
}

static void the_budget_holds_and_nobody_starves(void **state)
{
	uint64_t end = now_ms() + DEADLINE_MS;
	int status;

	(void)state;
	watch = mmap(NULL, sizeof *watch, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(watch != MAP_FAILED);
	for (uint32_t slot = 0; slot < 5; slot++)
		if (fork() == 0)
			hash_some(slot, 20);
	for (int i = 0; i < 5; i++)
		assert_true(wait(&status) > 0 && status == 0);
	assert_true(now_ms() < end);
	assert_int_equal(watch->finished, 100);
	assert_int_equal(watch->most, 2);
	for (unsigned k = 0; k < 64; k++)
		assert_true(watch->cells[k] == 0);	/* left clean, and no other cell touched */
	munmap(watch, sizeof *watch);
	watch = NULL;
}

/* A worker that was killed while it computed: its mark counts for a while, not for ever; its
 * successor clears it at once. */
static void a_dead_holder_does_not_block(void **state)
{
	struct shared *sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE,
	    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct auth_setup s = { .memory_kib = CHEAP_KIB, .passes = 1, .budget = 1,
	    .busy = sh->cells, .stride = STRIDE, .nslots = 2, .slot = 0 };
	struct auth *a, *successor;
	struct auth_job job;

	(void)state;
	assert_true(sh != MAP_FAILED);
	sh->cells[STRIDE / 4] = ((uint32_t)now_ms() & 0x3fffffff) << 2 | 2;	/* slot 1 computes */
	a = auth_new(&s);
	assert_non_null(a);
	fill(&job, AUTH_HASH, "x", NULL);
	ndone = 0;
	assert_int_equal(auth_submit(a, &job), AUTH_OK);
	/* it waits, which its own mark shows */
	for (uint64_t end = now_ms() + DEADLINE_MS; (sh->cells[0] & 3) != 1; usleep(200))
		assert_true(now_ms() < end);
	auth_complete(a);
	assert_int_equal(ndone, 0);
	s.slot = 1;
	successor = auth_new(&s);
	assert_non_null(successor);
	wait_for(a, 1);
	assert_int_equal(job.rc, AUTH_OK);
	auth_free(successor);
	/* a mark twelve seconds old is nobody's */
	sh->cells[STRIDE / 4] = ((uint32_t)(now_ms() - 12000) & 0x3fffffff) << 2 | 2;
	run(a, &job, AUTH_HASH, "x", NULL);
	assert_int_equal(job.rc, AUTH_OK);
	/* an end while waiting for room: the job comes back */
	sh->cells[STRIDE / 4] = ((uint32_t)now_ms() & 0x3fffffff) << 2 | 2;
	fill(&job, AUTH_HASH, "x", NULL);
	ndone = 0;
	assert_int_equal(auth_submit(a, &job), AUTH_OK);
	auth_free(a);
	assert_int_equal(ndone, 1);
	assert_int_equal(job.rc, AUTH_EBUSY);
	assert_true(sh->cells[0] == 0);
	munmap(sh, sizeof *sh);
}

static void tokens(void **state)
{
	unsigned char keys[2][AUTH_KEY_BYTES], other[2][AUTH_KEY_BYTES];
	char token[AUTH_TOKEN_BYTES], twin[AUTH_TOKEN_BYTES], bad[AUTH_TOKEN_BYTES + 1];
	uint32_t user = 0, epoch = 0;
	size_t len;

	(void)state;
	memset(keys, 0, sizeof keys);
	memset(keys[0], 0x11, AUTH_KEY_BYTES);
	auth_token_make((const unsigned char (*)[AUTH_KEY_BYTES])keys, 2147483647, 9, NOW, 7, token);
	auth_token_make((const unsigned char (*)[AUTH_KEY_BYTES])keys, 2147483647, 9, NOW, 7, twin);
	assert_string_not_equal(token, twin);
	len = strlen(token);
	assert_in_range(len, 60, AUTH_TOKEN_BYTES - 1);
	assert_int_equal(strspn(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	    "0123456789-_"), len);
#define CHECK(k, t, n, now) auth_token_check((const unsigned char (*)[AUTH_KEY_BYTES])(k), t, n, \
	now, &user, &epoch)
	assert_int_equal(CHECK(keys, token, len, NOW), AUTH_OK);
	assert_int_equal(user, 2147483647);
	assert_int_equal(epoch, 9);
	assert_int_equal(CHECK(keys, token, len, NOW + 7 * DAY - 1), AUTH_OK);
	assert_int_equal(CHECK(keys, token, len, NOW + 7 * DAY), AUTH_EEXPIRED);

	/* the key before the present one still opens; any other, and no key, do not */
	memset(other, 0x22, sizeof other);
	assert_int_equal(CHECK(other, token, len, NOW), AUTH_ETOKEN);
	memcpy(other[1], keys[0], AUTH_KEY_BYTES);
	assert_int_equal(CHECK(other, token, len, NOW), AUTH_OK);
	memset(other, 0, sizeof other);
	assert_int_equal(CHECK(other, token, len, NOW), AUTH_ETOKEN);
	auth_token_make((const unsigned char (*)[AUTH_KEY_BYTES])other, 1, 1, NOW, 7, twin);
	assert_int_equal(CHECK(other, twin, strlen(twin), NOW), AUTH_ETOKEN);

	/* every changed character, and every other length */
	user = epoch = 77;
	for (size_t i = 0; i < len; i++) {
		strcpy(bad, token);
		bad[i] = bad[i] == 'A' ? 'B' : 'A';
		assert_int_equal(CHECK(keys, bad, len, NOW), AUTH_ETOKEN);
		bad[i] = '\n';
		assert_int_equal(CHECK(keys, bad, len, NOW), AUTH_ETOKEN);
		assert_int_equal(CHECK(keys, token, i, NOW), AUTH_ETOKEN);
	}
	snprintf(bad, sizeof bad, "%sA", token);
	assert_int_equal(CHECK(keys, bad, len + 1, NOW), AUTH_ETOKEN);
	snprintf(bad, sizeof bad, "%s=", token);
	assert_int_equal(CHECK(keys, bad, len + 1, NOW), AUTH_ETOKEN);
	assert_int_equal(CHECK(keys, "", 0, NOW), AUTH_ETOKEN);
	assert_int_equal(user, 77);
	assert_int_equal(epoch, 77);
}

static void message_ids(void **state)
{
	unsigned char a[AUTH_MID_BYTES], b[AUTH_MID_BYTES], (*many)[AUTH_MID_BYTES];
	int pipes[2];

	(void)state;
	auth_mid(7, "c1", 2, a);
	auth_mid(7, "c1", 2, b);
	assert_memory_equal(a, b, sizeof a);
	auth_mid(8, "c1", 2, b);
	assert_memory_not_equal(a, b, sizeof a);
	auth_mid(7, "c2", 2, b);
	assert_memory_not_equal(a, b, sizeof a);
	auth_mid(7, "c1", 1, b);
	assert_memory_not_equal(a, b, sizeof a);

	many = calloc(300, sizeof *many);
	for (int i = 0; i < 300; i++)
		auth_mid_random(many[i]);
	for (int i = 0; i < 300; i++)
		for (int k = 0; k < i; k++)
			assert_memory_not_equal(many[i], many[k], AUTH_MID_BYTES);
	free(many);
	/* a child draws its own */
	assert_int_equal(pipe(pipes), 0);
	auth_mid_random(a);
	if (fork() == 0) {
		auth_mid_random(a);
		_exit(write(pipes[1], a, sizeof a) != sizeof a);
	}
	auth_mid_random(a);
	assert_int_equal(read(pipes[0], b, sizeof b), sizeof b);
	assert_memory_not_equal(a, b, sizeof a);
	wait(NULL);
	close(pipes[0]);
	close(pipes[1]);
}

static int setup(void **state)
{
	(void)state;
	return auth_init() == 0 && auth_init() == 0 ? 0 : -1;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(message_ids),
		cmocka_unit_test(tokens),
		cmocka_unit_test(the_budget_holds_and_nobody_starves),
		cmocka_unit_test(passwords),
		cmocka_unit_test(unknown_users_cost_the_same),
		cmocka_unit_test(the_queue_is_bounded),
		cmocka_unit_test(completions_come_in_order),
		cmocka_unit_test(a_dead_holder_does_not_block)
	};

	return cmocka_run_group_tests_name("auth", tests, setup, NULL);
}
