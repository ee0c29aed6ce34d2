#include "worker/auth.h"

#include <pthread.h>
#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG_MS 2000		/* work that may wait */
#define DEPTH_MIN 4
#define DEPTH_MAX 4096
#define GUESS_KIB_MS 1000	/* KiB and passes that a hash gets through in a ms, until one was measured */
#define NICE 10
#define STEP_MS 3		/* between two looks for room in the host's budget */

struct auth {
	struct auth_setup setup;
	int fd;
	pthread_t thread;
	pthread_mutex_t lock;		/* over what follows */
	pthread_cond_t more;
	struct auth_job *first, **last;		/* waiting */
	struct auth_job *ready, **ready_last;	/* finished */
	uint32_t depth;
	uint32_t cost_ms;		/* of a job, the budget's wait included; moving average */
	bool stop;
};

/*
 * The host's budget. A cell holds 30 bits of milliseconds and a state; 0 is idle. Claiming is
 * "mark, then look": of two that mark at once at least one sees the other (the stores and loads
 * are sequentially consistent), so the budget is never exceeded, and who sees too many steps
 * back. The steps differ between slots, so two do not dance for long.
 *
 * The kernel would let the thread that has just finished take the place again before any other
 * has looked: so it stands aside for one step when somebody waits.
 */
enum { CELL_WAITING = 1, CELL_COMPUTING = 2 };

#define CELL_MS_MASK 0x3fffffffu
#define WAITING_STALE_MS 100	/* refreshed every step */
#define COMPUTING_STALE_MS 10000

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void sleep_ms(unsigned ms)
{
	struct timespec ts = { .tv_nsec = (long)ms * 1000000 };

	nanosleep(&ts, NULL);
}

static _Atomic uint32_t *cell_at(const struct auth *a, uint32_t slot)
{
	return (_Atomic uint32_t *)(void *)((char *)(uintptr_t)a->setup.busy +
	    slot * a->setup.stride);
}

static void cell_mark(struct auth *a, unsigned state)
{
	uint32_t ms = (uint32_t)now_ms() & CELL_MS_MASK;

	atomic_store(cell_at(a, a->setup.slot), state == 0 ? 0 : ms << 2 | state);
}

/* How many others are in STATE; marks of the dead grow stale. */
static uint32_t count_others(const struct auth *a, unsigned state)
{
	uint32_t now = (uint32_t)now_ms(), n = 0, cell;
	uint32_t stale = state == CELL_WAITING ? WAITING_STALE_MS : COMPUTING_STALE_MS;

	for (uint32_t i = 0; i < a->setup.nslots; i++) {
		if (i == a->setup.slot)
			continue;
		cell = atomic_load(cell_at(a, i));
		if ((cell & 3) == state && ((now - (cell >> 2)) & CELL_MS_MASK) < stale)
			n++;
	}
	return n;
}

static bool stopping(struct auth *a)
{
	bool stop;

	pthread_mutex_lock(&a->lock);
	stop = a->stop;
	pthread_mutex_unlock(&a->lock);
	return stop;
}

/* False: told to stop before there was room. */
static bool budget_enter(struct auth *a)
{
	if (a->setup.busy == NULL)
		return true;
	for (;;) {
		if (count_others(a, CELL_COMPUTING) < a->setup.budget) {
			cell_mark(a, CELL_COMPUTING);
			if (count_others(a, CELL_COMPUTING) < a->setup.budget)
				return true;
		}
		cell_mark(a, CELL_WAITING);
		if (stopping(a)) {
			cell_mark(a, 0);
			return false;
		}
		sleep_ms(STEP_MS + a->setup.slot % 3);
	}
}

static void budget_leave(struct auth *a)
{
	if (a->setup.busy != NULL)
		cell_mark(a, 0);
}

static void stand_aside(const struct auth *a)
{
	if (a->setup.busy != NULL && count_others(a, CELL_WAITING) > 0)
		sleep_ms(STEP_MS + 3);
}

/*
 * The thread.
 */
static void hash_password(struct auth_job *job, char encoded[AUTH_ENCODED], uint32_t memory_kib,
    uint32_t passes)
{
	if (crypto_pwhash_str(encoded, job->password, job->len, passes,
	    (size_t)memory_kib * 1024) != 0)
		job->rc = AUTH_EMEMORY;
}

static void verify_password(struct auth_job *job, uint32_t memory_kib, uint32_t passes)
{
	char dummy[AUTH_ENCODED];

	job->encoded[AUTH_ENCODED - 1] = '\0';
	if (job->encoded[0] != '$') {
		hash_password(job, dummy, memory_kib, passes);
		return;
	}
	job->ok = crypto_pwhash_str_verify(job->encoded, job->password, job->len) == 0;
	job->needs_rehash = job->ok && crypto_pwhash_str_needs_rehash(job->encoded, passes,
	    (size_t)memory_kib * 1024) != 0;
}

static void compute(struct auth_job *job, uint32_t memory_kib, uint32_t passes)
{
	job->rc = AUTH_OK;
	job->ok = job->needs_rehash = false;
	if (job->op == AUTH_HASH)
		hash_password(job, job->encoded, memory_kib, passes);
	else
		verify_password(job, memory_kib, passes);
}

/* Puts a job where the loop finds it. The lock is held. */
static void finish(struct auth *a, struct auth_job *job)
{
	sodium_memzero(job->password, sizeof job->password);
	job->next = NULL;
	if (a->ready == NULL)
		eventfd_write(a->fd, 1);
	*a->ready_last = job;
	a->ready_last = &job->next;
	a->depth--;
}

static struct auth_job *take(struct auth *a)
{
	struct auth_job *job = a->first;

	a->first = job->next;
	if (a->first == NULL)
		a->last = &a->first;
	return job;
}

/* One job; called and left with the lock held. */
static void serve(struct auth *a, struct auth_job *job)
{
	uint32_t memory_kib = a->setup.memory_kib, passes = a->setup.passes;
	uint64_t began = now_ms(), took;

	pthread_mutex_unlock(&a->lock);
	if (budget_enter(a)) {
		compute(job, memory_kib, passes);
		budget_leave(a);
	} else {
		job->rc = AUTH_EBUSY;
	}
	took = now_ms() - began;
	pthread_mutex_lock(&a->lock);
	a->cost_ms = (uint32_t)((a->cost_ms * 7 + (took < 60000 ? took : 60000)) / 8);
	finish(a, job);
	pthread_mutex_unlock(&a->lock);
	stand_aside(a);
	pthread_mutex_lock(&a->lock);
}

static void *run(void *arg)
{
	struct auth *a = arg;

	(void)pthread_setname_np(pthread_self(), "parleyd-hash");
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
	pthread_mutex_lock(&a->lock);
	for (;;) {
		while (a->first == NULL && !a->stop)
			pthread_cond_wait(&a->more, &a->lock);
		if (a->stop)
			break;
		serve(a, take(a));
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

/* The thread takes no signal: they are the loop's. */
static int start_thread(struct auth *a)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&a->thread, NULL, run, a);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}

static uint32_t guess_ms(const struct auth_setup *setup)
{
	uint64_t ms = (uint64_t)setup->memory_kib * setup->passes / GUESS_KIB_MS;

	return ms < 1 ? 1 : ms > 60000 ? 60000 : (uint32_t)ms;
}

struct auth *auth_new(const struct auth_setup *setup)
{
	struct auth *a = calloc(1, sizeof *a);

	if (a == NULL)
		return NULL;
	a->setup = *setup;
	if (a->setup.budget == 0)
		a->setup.budget = 1;
	a->last = &a->first;
	a->ready_last = &a->ready;
	a->cost_ms = guess_ms(setup);
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->more, NULL);
	if (setup->busy != NULL)
		cell_mark(a, 0);
	a->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (a->fd < 0)
		goto no_fd;
	if (start_thread(a) != 0)
		goto no_thread;
	return a;
no_thread:
	close(a->fd);
no_fd:
	pthread_cond_destroy(&a->more);
	pthread_mutex_destroy(&a->lock);
	free(a);
	return NULL;
}

void auth_free(struct auth *a)
{
	struct auth_job *job;

	if (a == NULL)
		return;
	pthread_mutex_lock(&a->lock);
	a->stop = true;
	pthread_cond_signal(&a->more);
	pthread_mutex_unlock(&a->lock);
	pthread_join(a->thread, NULL);
	pthread_mutex_lock(&a->lock);
	while (a->first != NULL) {
		job = take(a);
		job->rc = AUTH_EBUSY;
		job->ok = job->needs_rehash = false;
		finish(a, job);
	}
	pthread_mutex_unlock(&a->lock);
	auth_complete(a);
	close(a->fd);
	pthread_cond_destroy(&a->more);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

void auth_set_cost(struct auth *a, uint32_t memory_kib, uint32_t passes)
{
	pthread_mutex_lock(&a->lock);
	if (memory_kib != a->setup.memory_kib || passes != a->setup.passes) {
		a->setup.memory_kib = memory_kib;
		a->setup.passes = passes;
		a->cost_ms = guess_ms(&a->setup);
	}
	pthread_mutex_unlock(&a->lock);
}

/* Jobs that two seconds of work hold. The lock is held. */
static uint32_t depth_limit(const struct auth *a)
{
	uint32_t n = BACKLOG_MS / (a->cost_ms > 0 ? a->cost_ms : 1);

	return n < DEPTH_MIN ? DEPTH_MIN : n > DEPTH_MAX ? DEPTH_MAX : n;
}

int auth_submit(struct auth *a, struct auth_job *job)
{
	int rc = AUTH_EBUSY;

	pthread_mutex_lock(&a->lock);
	if (a->depth < depth_limit(a)) {
		job->next = NULL;
		*a->last = job;
		a->last = &job->next;
		a->depth++;
		pthread_cond_signal(&a->more);
		rc = AUTH_OK;
	}
	pthread_mutex_unlock(&a->lock);
	return rc;
}

uint32_t auth_retry_ms(struct auth *a)
{
	uint32_t ms;

	pthread_mutex_lock(&a->lock);
	ms = a->depth * a->cost_ms;
	pthread_mutex_unlock(&a->lock);
	return ms < 200 ? 200 : ms > 30000 ? 30000 : ms;
}

uint32_t auth_depth(struct auth *a)
{
	uint32_t depth;

	pthread_mutex_lock(&a->lock);
	depth = a->depth;
	pthread_mutex_unlock(&a->lock);
	return depth;
}

int auth_fd(const struct auth *a)
{
	return a->fd;
}

void auth_complete(struct auth *a)
{
	struct auth_job *job, *next;
	eventfd_t n;

	eventfd_read(a->fd, &n);
	pthread_mutex_lock(&a->lock);
	job = a->ready;
	a->ready = NULL;
	a->ready_last = &a->ready;
	pthread_mutex_unlock(&a->lock);
	for (; job != NULL; job = next) {
		next = job->next;
		job->done(job);
	}
}

/*
 * Tokens: version, key id, user, password epoch, login time, expiry, random bytes, MAC.
 */
#define TOKEN_VERSION 1
#define TOKEN_MAC 32
#define TOKEN_RANDOM 8

enum { AT_VERSION = 0, AT_KEY = 1, AT_USER = 2, AT_EPOCH = 6, AT_LOGIN = 10, AT_EXPIRY = 18,
	AT_RANDOM = 26, AT_MAC = AT_RANDOM + TOKEN_RANDOM, TOKEN_RAW = AT_MAC + TOKEN_MAC };

_Static_assert(sodium_base64_ENCODED_LEN(TOKEN_RAW, sodium_base64_VARIANT_URLSAFE_NO_PADDING) <=
    AUTH_TOKEN_BYTES, "a token's text must fit");

static void put_le(unsigned char *p, uint64_t n, int bytes)
{
	for (int i = 0; i < bytes; i++, n >>= 8)
		p[i] = (unsigned char)n;
}

static uint64_t get_le(const unsigned char *p, int bytes)
{
	uint64_t n = 0;

	while (bytes-- > 0)
		n = n << 8 | p[bytes];
	return n;
}

/* Tells apart which of two keys made a token; tells nothing else about them. */
static unsigned char key_id(const unsigned char key[AUTH_KEY_BYTES])
{
	static const unsigned char tag[] = "parley token key id";
	unsigned char id[16];

	crypto_generichash(id, sizeof id, tag, sizeof tag - 1, key, AUTH_KEY_BYTES);
	return id[0];
}

static void token_mac(const unsigned char key[AUTH_KEY_BYTES], const unsigned char *raw,
    unsigned char mac[TOKEN_MAC])
{
	crypto_generichash(mac, TOKEN_MAC, raw, AT_MAC, key, AUTH_KEY_BYTES);
}

void auth_token_make(const unsigned char keys[2][AUTH_KEY_BYTES], uint32_t user, uint32_t epoch,
    uint64_t now_wall_ms, uint32_t days, char out[AUTH_TOKEN_BYTES])
{
	unsigned char raw[TOKEN_RAW];

	raw[AT_VERSION] = TOKEN_VERSION;
	raw[AT_KEY] = key_id(keys[0]);
	put_le(raw + AT_USER, user, 4);
	put_le(raw + AT_EPOCH, epoch, 4);
	put_le(raw + AT_LOGIN, now_wall_ms, 8);
	put_le(raw + AT_EXPIRY, now_wall_ms + (uint64_t)days * 86400000, 8);
	randombytes_buf(raw + AT_RANDOM, TOKEN_RANDOM);
	token_mac(keys[0], raw, raw + AT_MAC);
	sodium_bin2base64(out, AUTH_TOKEN_BYTES, raw, sizeof raw,
	    sodium_base64_VARIANT_URLSAFE_NO_PADDING);
}

static bool mac_matches(const unsigned char key[AUTH_KEY_BYTES], const unsigned char *raw)
{
	unsigned char mac[TOKEN_MAC];

	if (sodium_is_zero(key, AUTH_KEY_BYTES) || raw[AT_KEY] != key_id(key))
		return false;
	token_mac(key, raw, mac);
	return sodium_memcmp(mac, raw + AT_MAC, TOKEN_MAC) == 0;
}

int auth_token_check(const unsigned char keys[2][AUTH_KEY_BYTES], const char *text, size_t len,
    uint64_t now_wall_ms, uint32_t *user_r, uint32_t *epoch_r)
{
	unsigned char raw[TOKEN_RAW];
	const char *end;
	size_t n;

	if (sodium_base642bin(raw, sizeof raw, text, len, NULL, &n, &end,
	    sodium_base64_VARIANT_URLSAFE_NO_PADDING) != 0 || end != text + len ||
	    n != sizeof raw || raw[AT_VERSION] != TOKEN_VERSION)
		return AUTH_ETOKEN;
	if (!mac_matches(keys[0], raw) && !mac_matches(keys[1], raw))
		return AUTH_ETOKEN;
	if (get_le(raw + AT_EXPIRY, 8) <= now_wall_ms)
		return AUTH_EEXPIRED;
	*user_r = (uint32_t)get_le(raw + AT_USER, 4);
	*epoch_r = (uint32_t)get_le(raw + AT_EPOCH, 4);
	return AUTH_OK;
}

/*
 * Message ids.
 */
void auth_mid(uint32_t sender, const char *cid, size_t len, unsigned char out[AUTH_MID_BYTES])
{
	static const unsigned char tag[] = "parley mid 1";
	unsigned char hash[32], who[4];
	crypto_generichash_state st;

	put_le(who, sender, sizeof who);
	crypto_generichash_init(&st, NULL, 0, sizeof hash);
	crypto_generichash_update(&st, tag, sizeof tag);
	crypto_generichash_update(&st, who, sizeof who);
	crypto_generichash_update(&st, (const unsigned char *)cid, len);
	crypto_generichash_final(&st, hash, sizeof hash);
	memcpy(out, hash, AUTH_MID_BYTES);
}

/* Asking the kernel costs a system call: so for many ids at a time. A child of fork() must not
 * hand out its parent's. */
static _Thread_local unsigned char pool[64 * AUTH_MID_BYTES];
static _Thread_local size_t pool_left;

static void forget_pool(void)
{
	pool_left = 0;
}

void auth_mid_random(unsigned char out[AUTH_MID_BYTES])
{
	if (pool_left == 0) {
		randombytes_buf(pool, sizeof pool);
		pool_left = sizeof pool;
	}
	pool_left -= AUTH_MID_BYTES;
	memcpy(out, pool + pool_left, AUTH_MID_BYTES);
}

int auth_init(void)
{
	static bool done;

	if (done)
		return 0;
	if (sodium_init() < 0 || pthread_atfork(NULL, NULL, forget_pool) != 0)
		return -1;
	done = true;
	return 0;
}
