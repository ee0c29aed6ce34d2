/*
 * segment.c - lays the host's shared memory out, maps it, and asks the kernel for its pages.
 *
 * The layout is computed once, by plan(), for the size question and for the real thing alike.
 * Whatever is indexed by a number from the configuration goes through add() and mul(), so that a
 * wild configuration is refused and never wraps.
 */
#include "shm/segment.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "shm/chunk.h"
#include "shm/rec.h"
#include "shm/sess.h"
#include "shm/slots.h"

#define PAGE  UINT64_C(4096)
#define NADDR 16384u

struct segment *shm;

_Static_assert(sizeof(struct segment_head) <= 4096, "the header is one page");
_Static_assert(sizeof(struct slot) == 4096, "a slot is one page");
_Static_assert(sizeof(struct rec) % 64 == 0, "records do not share cache lines");

static int add(uint64_t *sum, uint64_t n)
{
	return __builtin_add_overflow(*sum, n, sum) ? -EOVERFLOW : 0;
}

/* Places N things of SIZE bytes at *END, rounded up to ALIGN, and moves *END behind them. */
static int place(uint64_t *off_r, uint64_t *end, uint64_t n, uint64_t size, uint64_t align)
{
	uint64_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes) || add(end, align - 1) != 0)
		return -EOVERFLOW;
	*end &= ~(align - 1);
	*off_r = *end;
	return add(end, bytes);
}

static int plan(struct segment_head *h, const struct segment_shape *shape)
{
	uint64_t end = PAGE;

	if (shape->max_workers == 0 || shape->max_sessions == 0)
		return -EINVAL;
	h->max_workers = shape->max_workers;
	h->max_sessions = shape->max_sessions;
	h->naddr = NADDR;
	h->region_bytes = region_bytes(shape->region_bytes);
	if (h->region_bytes == 0 ||
	    sess_plan(shape->max_sessions, &h->hash_slots, &h->hash_shards) != 0)
		return -EOVERFLOW;
	if (place(&h->slots_off, &end, h->max_workers, sizeof(struct slot), PAGE) != 0 ||
	    place(&h->conf_off, &end, 2, SEGMENT_CONF_MAX, PAGE) != 0 ||
	    place(&h->addr_off, &end, h->naddr, 32, PAGE) != 0 ||
	    place(&h->hash_off, &end, 1, sess_bytes(h->hash_slots, h->hash_shards), PAGE) != 0 ||
	    place(&h->hint_off, &end, ((uint64_t)h->max_sessions + 63) / 64, 8, PAGE) != 0 ||
	    place(&h->rec_off, &end, h->max_sessions, sizeof(struct rec), PAGE) != 0 ||
	    place(&h->region_off, &end, h->max_workers, h->region_bytes, CHUNK_SPAN) != 0)
		return -EOVERFLOW;
	h->bytes = end;
	return end > INT64_MAX ? -EOVERFLOW : 0;
}

uint64_t segment_bytes(const struct segment_shape *shape)
{
	struct segment_head h = { .magic = SEGMENT_MAGIC };

	return plan(&h, shape) == 0 ? h.bytes : 0;
}

static int64_t clock_ms(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* A sealed memfd of BYTES bytes, mapped; nothing in it has a page yet. */
static int map(struct segment *s, uint64_t bytes)
{
	int rc;

	s->bytes = bytes;
	s->fd = memfd_create("parley", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (s->fd < 0)
		return -errno;
	if (ftruncate(s->fd, (off_t)bytes) != 0 ||
	    fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
		goto fail;
	s->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->fd, 0);
	if (s->base == MAP_FAILED)
		goto fail;
	(void)madvise(s->base, bytes, MADV_DONTDUMP);	/* only a smaller core is at stake */
	return 0;
fail:
	rc = -errno;
	close(s->fd);
	s->base = NULL;
	s->fd = -1;
	return rc;
}

static void describe(struct segment_head *h, uint64_t epoch)
{
	h->magic = SEGMENT_MAGIC;
	h->layout = SEGMENT_LAYOUT;
	h->head_bytes = sizeof(struct segment_head);
	h->slot_bytes = sizeof(struct slot);
	h->rec_bytes = sizeof(struct rec);
	h->chunk_bytes = sizeof(struct chunk);
	h->epoch = epoch;
	h->started_wall_ms = clock_ms(CLOCK_REALTIME);
	h->started_ms = (uint64_t)clock_ms(CLOCK_MONOTONIC);
}

static void remember(struct segment *s)
{
	const struct segment_head *h = s->head;

	s->recs = s->base + h->rec_off;
	s->regions = s->base + h->region_off;
	s->region_bytes = h->region_bytes;
	s->max_workers = h->max_workers;
	s->max_sessions = h->max_sessions;
	region_refs(h->region_bytes, &s->chunk_first, &s->chunk_end);
}

int segment_open(struct segment *s, const struct segment_shape *shape, uint64_t epoch)
{
	struct segment_head h = { .magic = 0 };
	int rc = plan(&h, shape);

	assert(shm == NULL);
	memset(s, 0, sizeof(*s));
	s->fd = -1;
	if (rc != 0)
		return rc;
	if (h.bytes > SIZE_MAX)
		return -EOVERFLOW;
	rc = map(s, h.bytes);
	if (rc != 0)
		return rc;
	shm = s;
	rc = segment_reserve(0, h.slots_off + (uint64_t)h.max_workers * sizeof(struct slot));
	if (rc == 0) {
		s->head = (struct segment_head *)s->base;
		memcpy(s->head, &h, sizeof(h));
		describe(s->head, epoch);
		remember(s);
		rc = sess_init();
	}
	if (rc != 0)
		segment_close(s);
	return rc;
}

void segment_close(struct segment *s)
{
	if (s->base != NULL)
		munmap(s->base, s->bytes);
	if (s->fd >= 0)
		close(s->fd);
	memset(s, 0, sizeof(*s));
	s->fd = -1;
	if (shm == s)
		shm = NULL;
}

/* fallocate() of [OFF, OFF + LEN), which must lie in the segment. */
static int allocate(int mode, uint64_t off, uint64_t len)
{
	int rc;

	assert(off <= shm->bytes && len <= shm->bytes - off);
	do {
		rc = fallocate(shm->fd, mode, (off_t)off, (off_t)len);
	} while (rc != 0 && errno == EINTR);
	return rc == 0 ? 0 : -errno;
}

int segment_reserve(uint64_t off, uint64_t len)
{
	uint64_t from = off & ~(PAGE - 1), to = (off + len + PAGE - 1) & ~(PAGE - 1);

	if (len == 0)
		return 0;
	return allocate(0, from, (to < shm->bytes ? to : shm->bytes) - from);
}

int segment_release(uint64_t off, uint64_t len)
{
	uint64_t from = (off + PAGE - 1) & ~(PAGE - 1), to = (off + len) & ~(PAGE - 1);

	if (from >= to)
		return 0;
	return allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from);
}
