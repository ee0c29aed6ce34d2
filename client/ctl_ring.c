/*
 * ctl_ring.c - the circle of points on which nginx's `hash KEY consistent` looks a server up.
 */
#include "client/ctl_ring.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/text.h"

/* --- CRC-32 ----------------------------------------------------------------------------------- */

static const uint32_t *crc_table(void)
{
	static uint32_t table[256];

	if (table[1] == 0)
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t c = i;

			for (int bit = 0; bit < 8; bit++)
				c = (c >> 1) ^ ((c & 1) != 0 ? 0xedb88320u : 0);
			table[i] = c;
		}
	return table;
}

/* Goes on from CRC, which is inverted at the start and at the end. */
static uint32_t crc_add(uint32_t crc, const void *data, size_t len)
{
	const uint32_t *table = crc_table();
	const unsigned char *p = data;

	while (len-- > 0)
		crc = table[(crc ^ *p++) & 0xff] ^ (crc >> 8);
	return crc;
}

uint32_t ring_hash(const void *key, size_t len)
{
	return ~crc_add(UINT32_MAX, key, len);
}

/* --- Points ----------------------------------------------------------------------------------- */

/* Where nginx parts host and port: at a colon with nothing but digits behind it. */
static size_t host_len(const char *name)
{
	size_t len = strlen(name), digits = 0;

	while (digits < len && name[len - 1 - digits] >= '0' && name[len - 1 - digits] <= '9')
		digits++;
	return digits < len && name[len - 1 - digits] == ':' ? len - 1 - digits : len;
}

/* HOST \0 PORT: what each of a server's points begins with. */
static uint32_t seed(const char *name)
{
	bool is_unix = strncasecmp(name, "unix:", 5) == 0;
	const char *host = is_unix ? name + 5 : name;
	size_t len = is_unix ? strlen(host) : host_len(host);
	uint32_t crc = crc_add(UINT32_MAX, host, len);

	crc = crc_add(crc, "", 1);
	return host[len] == ':' ? crc_add(crc, host + len + 1, strlen(host + len + 1)) : crc;
}

/* Each point is hashed from the one before it, its bytes in little endian order. */
static size_t add_points(struct ring_point *p, const struct ring_server *s, uint32_t server)
{
	uint32_t crc = seed(s->name), hash = 0;
	size_t count = (size_t)s->weight * RING_POINTS;

	for (size_t i = 0; i < count; i++) {
		unsigned char before[4] = { (unsigned char)hash, (unsigned char)(hash >> 8),
		    (unsigned char)(hash >> 16), (unsigned char)(hash >> 24) };

		hash = ~crc_add(crc, before, sizeof before);
		p[i] = (struct ring_point){ hash, server };
	}
	return count;
}

static int by_hash(const void *va, const void *vb)
{
	const struct ring_point *a = va, *b = vb;

	if (a->hash != b->hash)
		return a->hash < b->hash ? -1 : 1;
	return a->server < b->server ? -1 : a->server > b->server;
}

int ring_build(struct ring *r, const struct ring_server *s, size_t n)
{
	size_t total = 0, used = 0, kept = 0;

	*r = (struct ring){ 0 };
	for (size_t i = 0; i < n; i++) {
		total += s[i].weight;
		if (s[i].weight > RING_WEIGHT_MAX || total > RING_TOTAL_MAX)
			return -1;
	}
	r->point = text_alloc((total * RING_POINTS + 1) * sizeof r->point[0]);
	for (size_t i = 0; i < n; i++)
		used += add_points(r->point + used, &s[i], (uint32_t)i);
	qsort(r->point, used, sizeof r->point[0], by_hash);
	/* of points that meet, the first server's stays, even where that one is down */
	for (size_t i = 0; i < used; i++)
		if (i == 0 || r->point[i].hash != r->point[kept - 1].hash)
			r->point[kept++] = r->point[i];
	for (size_t i = 0; i < kept; i++)
		if (!s[r->point[i].server].down)
			r->point[r->n++] = r->point[i];
	return 0;
}

void ring_fini(struct ring *r)
{
	free(r->point);
	*r = (struct ring){ 0 };
}

/* --- Keys ------------------------------------------------------------------------------------- */

uint32_t ring_find(const struct ring *r, uint32_t hash)
{
	size_t from = 0, to = r->n;

	while (from < to) {
		size_t mid = from + (to - from) / 2;

		if (r->point[mid].hash < hash)
			from = mid + 1;
		else
			to = mid;
	}
	if (r->n == 0)
		return RING_NOBODY;
	return r->point[from < r->n ? from : 0].server;
}

void ring_compare(const struct ring *before, const struct ring *after, size_t n, uint64_t *moved_r)
{
	size_t i = 0, j = 0;

	memset(moved_r, 0, n * n * sizeof *moved_r);
	if (before->n == 0 || after->n == 0)
		return;
	/* stretches between neighbouring points of either circle; what is behind the last point is the first's */
	for (uint64_t from = 0; from < RING_KEYS;) {
		const struct ring_point *b = &before->point[i < before->n ? i : 0];
		const struct ring_point *a = &after->point[j < after->n ? j : 0];
		uint64_t b_end = i < before->n ? b->hash : RING_KEYS - 1;
		uint64_t a_end = j < after->n ? a->hash : RING_KEYS - 1;
		uint64_t end = b_end < a_end ? b_end : a_end;

		moved_r[b->server * n + a->server] += end + 1 - from;
		i += i < before->n && b->hash == end;
		j += j < after->n && a->hash == end;
		from = end + 1;
	}
}

int ring_key(const char *address, char key_r[RING_KEY])
{
	unsigned char bin[16];
	int family = strchr(address, ':') != NULL ? AF_INET6 : AF_INET;

	if (strcmp(address, "unix:") == 0) {
		strcpy(key_r, address);
		return 0;
	}
	if (inet_pton(family, address, bin) != 1 || inet_ntop(family, bin, key_r, RING_KEY) == NULL)
		return -1;
	return 0;
}
