/*
 * ctl_hosts.c - the hosts of a cluster: the list, the table, nginx's upstream block.
 */
#include "client/ctl_hosts.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "client/ctl_ring.h"
#include "client/place.h"

static void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void warn(const char *fmt, ...)
{
	va_list ap;

	fputs("parleyctl: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

/* --- The list --------------------------------------------------------------------------------- */

void hosts_fini(struct hosts *hs)
{
	free(hs->h);
	*hs = (struct hosts){ 0 };
}

static struct host *add(struct hosts *hs)
{
	if (hs->n == HOSTS_MAX)
		return NULL;
	hs->h = text_resize(hs->h, (hs->n + 1) * sizeof hs->h[0]);
	hs->h[hs->n] = (struct host){ .weight = 1 };
	return &hs->h[hs->n++];
}

static struct host *find(struct hosts *hs, const char *address)
{
	for (size_t i = 0; i < hs->n; i++)
		if (strcmp(hs->h[i].address, address) == 0)
			return &hs->h[i];
	return NULL;
}

/* A member as text that a terminal and a comment may hold. */
static void take_text(struct json *j, const struct json_val *o, const char *name, char *out, size_t cap)
{
	struct text t = { 0 };
	struct json_val v;
	char raw[512];

	out[0] = '\0';
	if (!json_get(j, o, name, &v))
		return;
	if (v.type != JSON_STRING)
		snprintf(raw, sizeof raw, "%.*s", (int)(v.len < 100 ? v.len : 100), v.raw);
	else if (json_text(&v, raw, sizeof raw, NULL) != JSON_OK)
		return;
	text_clean(&t, TEXT_SHOWN, raw, strlen(raw));
	snprintf(out, cap, "%s", t.s != NULL ? t.s : "");
	text_fini(&t);
}

static int64_t take_int(struct json *j, const struct json_val *o, const char *name)
{
	struct json_val v;
	int64_t n = 0;

	if (json_get(j, o, name, &v))
		(void)json_int(&v, &n);
	return n;
}

void hosts_take(struct hosts *hs, struct json *j, const struct json_val *o)
{
	struct json_val v;
	struct host *h;
	int64_t weight;
	char id[sizeof h->id];

	take_text(j, o, "id", id, sizeof id);
	if (id[0] == '\0')
		return;
	h = add(hs);
	if (h == NULL) {
		if (!hs->over)
			warn("more than %d hosts: the rest is left out", HOSTS_MAX);
		hs->over = true;
		return;
	}
	memcpy(h->id, id, sizeof id);
	take_text(j, o, "address", h->address, sizeof h->address);
	take_text(j, o, "state", h->state, sizeof h->state);
	take_text(j, o, "epoch", h->epoch, sizeof h->epoch);
	take_text(j, o, "version", h->version, sizeof h->version);
	weight = json_get(j, o, "weight", &v) ? take_int(j, o, "weight") : 1;
	h->weight = weight < 0 ? 0 : weight > INT32_MAX ? INT32_MAX : (uint32_t)weight;
	h->down = strcmp(h->state, "draining") == 0;
	h->was_weight = h->weight;
	h->was_down = h->down;
	h->workers = take_int(j, o, "workers");
	h->connections = take_int(j, o, "connections");
	h->sessions = take_int(j, o, "sessions");
	h->since = take_int(j, o, "since");
	h->seen_ms = take_int(j, o, "seen_ms");
	if (json_get(j, o, "self", &v))
		(void)json_bool(&v, &h->self);
}

static int by_id(const void *va, const void *vb)
{
	const struct host *a = va, *b = vb;
	int order = strcmp(a->id, b->id);

	return order != 0 ? order : strcmp(a->address, b->address);
}

void hosts_sort(struct hosts *hs)
{
	if (hs->n > 1)
		qsort(hs->h, hs->n, sizeof hs->h[0], by_id);
}

/* --- Addresses -------------------------------------------------------------------------------- */

/* Is it one that nginx can be told, and nothing that would end its line or be a variable? */
static bool is_address(const char *s)
{
	char host[PLACE_HOST], port[PLACE_PORT];

	for (const char *c = s; *c != '\0'; c++)
		if (!isascii((unsigned char)*c) || (!isalnum((unsigned char)*c) && strchr(".:-_[]/%", *c) == NULL))
			return false;
	if (strncasecmp(s, "unix:", 5) == 0)
		return s[5] == '/';
	/* an IPv6 address must stand in brackets, or nobody knows where its port begins */
	return strchr(s, '/') == NULL && place_split(s, host, port) == 0 && port[0] != '\0' &&
	    strncmp(s, "0.0.0.0:", 8) != 0 && strncmp(s, "[::]:", 5) != 0;
}

static bool is_usable(struct hosts *hs, const struct host *h)
{
	const struct host *first = find(hs, h->address);

	if (h->address[0] == '\0')
		warn("%s advertises no address: left out", h->id);
	else if (!is_address(h->address))
		warn("%s: %s is no address for others: left out", h->id, h->address);
	else if (h->weight < 1 || h->weight > RING_WEIGHT_MAX)
		warn("%s: the weight %" PRIu32 " is not between 1 and %d: left out", h->id, h->weight,
		    RING_WEIGHT_MAX);
	else if (first != h)
		warn("%s has the address of %s, %s: left out", h->id, first->id, h->address);
	else
		return true;
	return false;
}

/* Of several hosts at one address the one heard of last is real. */
static void put_newest_first(struct hosts *hs)
{
	for (size_t i = 0; i < hs->n; i++) {
		struct host *first = find(hs, hs->h[i].address), h = hs->h[i];

		if (first != &hs->h[i] && h.seen_ms < first->seen_ms) {
			hs->h[i] = *first;
			*first = h;
		}
	}
}

void hosts_reachable(struct hosts *hs)
{
	size_t kept = 0;

	put_newest_first(hs);
	/* those kept stand before the one looked at, so find() meets them first */
	for (size_t i = 0; i < hs->n; i++) {
		struct host h = hs->h[i];

		hs->h[kept] = h;
		if (is_usable(hs, &hs->h[kept]))
			kept++;
	}
	hs->n = kept;
	hosts_sort(hs);
}

/* HOST:PORT[=WEIGHT] */
static int read_server(const char *text, char address_r[HOSTS_ADDRESS], uint32_t *weight_r)
{
	const char *equals = strchr(text, '=');
	size_t len = equals != NULL ? (size_t)(equals - text) : strlen(text);
	int64_t weight = equals != NULL ? text_id(equals + 1) : 1;

	if (len >= HOSTS_ADDRESS || weight < 1 || weight > RING_WEIGHT_MAX) {
		warn("%.200s: a server is HOST:PORT or HOST:PORT=WEIGHT, with a weight from 1 to %d", text,
		    RING_WEIGHT_MAX);
		return -1;
	}
	memcpy(address_r, text, len);
	address_r[len] = '\0';
	*weight_r = (uint32_t)weight;
	if (is_address(address_r))
		return 0;
	warn("%s is no HOST:PORT", address_r);
	return -1;
}

static int new_server(struct hosts *hs, const char *address, uint32_t weight)
{
	struct host *h = add(hs);

	if (h == NULL) {
		warn("more than %d hosts", HOSTS_MAX);
		return -1;
	}
	snprintf(h->address, sizeof h->address, "%s", address);
	h->weight = weight;
	return 0;
}

int hosts_from(struct hosts *hs, const char *text)
{
	char *copy = text_copy(text), *rest = copy, *one;
	int rc = 0;

	while (rc == 0 && (one = strsep(&rest, ",")) != NULL) {
		char address[HOSTS_ADDRESS];
		uint32_t weight;

		rc = read_server(one, address, &weight);
		if (rc == 0 && find(hs, address) != NULL) {
			warn("%s is there twice", address);
			rc = -1;
		}
		if (rc == 0)
			rc = new_server(hs, address, weight);
		if (rc == 0)
			hs->h[hs->n - 1].was_weight = weight;
	}
	free(copy);
	return rc;
}

int hosts_change(struct hosts *hs, const char *kind, const char *text)
{
	char address[HOSTS_ADDRESS];
	uint32_t weight;
	struct host *h;

	if (read_server(text, address, &weight) != 0)
		return -1;
	hs->planned = true;
	h = find(hs, address);
	if (strcmp(kind, "add") == 0) {
		if (h == NULL)
			return new_server(hs, address, weight);
		h->weight = weight;
		h->down = false;
		return 0;
	}
	if (h == NULL || h->weight == 0) {
		warn("there is no host %s", address);
		return -1;
	}
	if (strcmp(kind, "del") == 0)
		h->weight = 0;
	else
		h->down = true;
	return 0;
}

/* --- Outputs ---------------------------------------------------------------------------------- */

static const char *since(int64_t wall_ms, char out[32])
{
	time_t t = (time_t)(wall_ms / 1000);
	struct tm tm;

	if (wall_ms <= 0 || localtime_r(&t, &tm) == NULL ||
	    strftime(out, 32, "%Y-%m-%d %H:%M:%S", &tm) == 0)
		snprintf(out, 32, "-");
	return out;
}

void hosts_table(const struct hosts *hs)
{
	int id = 4, address = 7;

	for (size_t i = 0; i < hs->n; i++) {
		int a = (int)strlen(hs->h[i].id), b = (int)strlen(hs->h[i].address);

		id = a > id ? a : id;
		address = b > address ? b : address;
	}
	if (hs->n > 0)
		printf("  %-*s %-*s %6s %-9s %7s %9s %9s %-19s %8s %s\n", id, "HOST", address, "ADDRESS",
		    "WEIGHT", "STATE", "WORKERS", "CONNECTED", "SESSIONS", "SINCE", "SEEN", "VERSION");
	for (size_t i = 0; i < hs->n; i++) {
		const struct host *h = &hs->h[i];
		char when[32];

		printf("%c %-*s %-*s %6" PRIu32 " %-9s %7" PRId64 " %9" PRId64 " %9" PRId64
		    " %-19s %5" PRId64 ".%" PRId64 " s %s\n", h->self ? '*' : ' ', id, h->id, address,
		    h->address[0] != '\0' ? h->address : "-", h->weight, h->state, h->workers,
		    h->connections, h->sessions, since(h->since, when), h->seen_ms / 1000,
		    h->seen_ms % 1000 / 100, h->version);
	}
}

/* Nothing in it changes while the hosts stay what they are, so that scripts can compare it. */
int hosts_upstream(const struct hosts *hs, const struct hosts_upstream *u)
{
	if (hs->n == 0) {
		warn("there is no host that nginx could reach");
		return -1;
	}
	printf("upstream %s {\n", u->name);
	printf("\tzone %s 128k;\n", u->name);
	if (u->consistent)
		printf("\thash $remote_addr consistent;\n");
	for (size_t i = 0; i < hs->n; i++) {
		const struct host *h = &hs->h[i];

		if (h->weight == 0)
			continue;
		/* one that is down keeps its place on the circle: the others' clients stay */
		printf("\tserver %s weight=%" PRIu32 " max_fails=%u fail_timeout=%us%s;", h->address,
		    h->weight, u->max_fails, u->fail_timeout_s, h->down ? " down" : "");
		if (h->id[0] != '\0')
			printf("\t# %s%s", h->id, h->was_down ? ", draining" : "");
		putchar('\n');
	}
	printf("}\n");
	return 0;
}
