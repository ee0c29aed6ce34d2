/*
 * ctl_plan.c - `parleyctl ring`: the circle of a cluster's hosts, and what a change would move.
 */
#include "client/ctl_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int build(struct ring *r, const struct hosts *hs, bool was)
{
	struct ring_server *s = text_alloc((hs->n + 1) * sizeof *s);
	int rc;

	for (size_t i = 0; i < hs->n; i++) {
		const struct host *h = &hs->h[i];

		s[i] = (struct ring_server){ .name = h->address, .weight = was ? h->was_weight : h->weight,
		    .down = was ? h->was_down : h->down };
	}
	rc = ring_build(r, s, hs->n);
	free(s);
	return rc;
}

int plan_open(struct plan *p, const struct hosts *hs, bool json)
{
	const char *why = NULL;

	*p = (struct plan){ .hosts = hs, .json = json };
	if (build(&p->before, hs, true) != 0 || build(&p->after, hs, false) != 0)
		why = "the weights are too large";
	else if (p->after.n == 0)
		why = "there is no host that nginx could reach";
	if (why != NULL) {
		fprintf(stderr, "parleyctl: %s\n", why);
		plan_close(p);
		return -1;
	}
	p->moved = text_alloc(hs->n * hs->n * sizeof *p->moved);
	ring_compare(&p->before, &p->after, hs->n, p->moved);
	return 0;
}

void plan_close(struct plan *p)
{
	ring_fini(&p->before);
	ring_fini(&p->after);
	free(p->moved);
	p->moved = NULL;
}

/* --- Shares ----------------------------------------------------------------------------------- */

/* Of each host, as one circle has it. */
static uint64_t *shares(const struct plan *p, const struct ring *r)
{
	size_t n = p->hosts->n;
	uint64_t *all = text_alloc(n * n * sizeof *all), *out = text_alloc(n * sizeof *out);

	ring_compare(r, r, n, all);
	for (size_t i = 0; i < n; i++)
		out[i] = all[i * n + i];
	free(all);
	return out;
}

static size_t points_of(const struct ring *r, size_t host)
{
	size_t count = 0;

	for (size_t i = 0; i < r->n; i++)
		count += r->point[i].server == host;
	return count;
}

static double part(uint64_t keys)
{
	return (double)keys / (double)RING_KEYS;
}

static void json_share(struct json_out *w, const char *name, uint64_t keys)
{
	char text[32];

	snprintf(text, sizeof text, "%.6f", part(keys));
	json_kv_raw(w, name, text, strlen(text));
}

static void json_line(struct json_out *w)
{
	json_close(w, '}');
	printf("%.*s\n", (int)w->len, w->buf);
}

static const char *state(const struct host *h)
{
	return h->weight == 0 ? "deleted" : h->down ? "down" : "up";
}

static void host_as_json(const struct plan *p, size_t i, uint64_t before, uint64_t after)
{
	const struct host *h = &p->hosts->h[i];
	char buf[2048];
	struct json_out w;

	json_out_init(&w, buf, sizeof buf);
	json_open(&w, '{');
	json_kv_str(&w, "host", h->address);
	if (h->id[0] != '\0')
		json_kv_str(&w, "id", h->id);
	json_kv_str(&w, "state", state(h));
	json_kv_int(&w, "weight", h->weight);
	json_kv_int(&w, "points", (int64_t)points_of(&p->after, i));
	json_share(&w, "share", after);
	if (p->hosts->planned) {
		json_kv_int(&w, "weight_before", h->was_weight);
		json_share(&w, "share_before", before);
	}
	json_line(&w);
}

static int widest(const struct hosts *hs)
{
	size_t width = 12;

	for (size_t i = 0; i < hs->n; i++)
		if (strlen(hs->h[i].address) > width)
			width = strlen(hs->h[i].address);
	return (int)width;
}

static void host_as_text(const struct plan *p, size_t i, uint64_t before, uint64_t after)
{
	const struct host *h = &p->hosts->h[i];

	printf("%-*s %6" PRIu32 " %-7s %7zu %8.3f %%", widest(p->hosts), h->address, h->weight, state(h),
	    points_of(&p->after, i), 100 * part(after));
	if (p->hosts->planned)
		printf(" %8.3f %%", 100 * part(before));
	printf("%s%s\n", h->id[0] != '\0' ? "  " : "", h->id);
}

void plan_hosts(const struct plan *p)
{
	uint64_t *before = shares(p, &p->before), *after = shares(p, &p->after);

	if (!p->json)
		printf("%-*s %6s %-7s %7s %10s%s\n", widest(p->hosts), "SERVER", "WEIGHT", "STATE", "POINTS",
		    "SHARE", p->hosts->planned ? "     BEFORE" : "");
	for (size_t i = 0; i < p->hosts->n; i++)
		if (p->json)
			host_as_json(p, i, before[i], after[i]);
		else
			host_as_text(p, i, before[i], after[i]);
	free(before);
	free(after);
}

void plan_moves(const struct plan *p)
{
	const struct hosts *hs = p->hosts;
	uint64_t total = 0;
	char buf[2048];
	struct json_out w;

	for (size_t i = 0; i < hs->n * hs->n; i++)
		if (i / hs->n != i % hs->n)
			total += p->moved[i];
	json_out_init(&w, buf, sizeof buf);
	json_open(&w, '{');
	json_share(&w, "moved", total);
	if (p->json)
		json_line(&w);
	else
		printf("\n%.3f %% of the clients would move:\n", 100 * part(total));
	for (size_t i = 0; i < hs->n * hs->n; i++) {
		const char *from = hs->h[i / hs->n].address, *to = hs->h[i % hs->n].address;

		if (p->moved[i] == 0 || i / hs->n == i % hs->n)
			continue;
		if (!p->json) {
			printf("%-*s -> %-*s %8.3f %%\n", widest(hs), from, widest(hs), to,
			    100 * part(p->moved[i]));
			continue;
		}
		json_out_init(&w, buf, sizeof buf);
		json_open(&w, '{');
		json_kv_str(&w, "from", from);
		json_kv_str(&w, "to", to);
		json_share(&w, "share", p->moved[i]);
		json_line(&w);
	}
}

void plan_points(const struct plan *p)
{
	char buf[1024];
	struct json_out w;

	if (!p->json)
		putchar('\n');
	for (size_t i = 0; i < p->after.n; i++) {
		const struct ring_point *at = &p->after.point[i];
		const char *host = p->hosts->h[at->server].address;

		if (!p->json) {
			printf("%08" PRIx32 "  %s\n", at->hash, host);
			continue;
		}
		json_out_init(&w, buf, sizeof buf);
		json_open(&w, '{');
		json_kv_int(&w, "point", at->hash);
		json_kv_str(&w, "host", host);
		json_line(&w);
	}
}

/* --- One client ------------------------------------------------------------------------------- */

int plan_client(const struct plan *p, const char *address)
{
	char key[RING_KEY], buf[1024];
	uint32_t hash, to, from;
	const char *host, *was;
	struct json_out w;

	if (ring_key(address, key) != 0) {
		fprintf(stderr, "parleyctl: %.100s is no address\n", address);
		return -1;
	}
	hash = ring_hash(key, strlen(key));
	to = ring_find(&p->after, hash);
	from = ring_find(&p->before, hash);
	host = p->hosts->h[to].address;
	was = from == RING_NOBODY ? "" : p->hosts->h[from].address;
	if (p->json) {
		json_out_init(&w, buf, sizeof buf);
		json_open(&w, '{');
		json_kv_str(&w, "client", key);
		json_kv_int(&w, "hash", hash);
		json_kv_str(&w, "host", host);
		if (p->hosts->planned)
			json_kv_str(&w, "before", was);
		json_line(&w);
	} else {
		printf("%-15s  %08" PRIx32 "  %s", key, hash, host);
		if (p->hosts->planned && from != to)
			printf("  (now at %s)", was[0] != '\0' ? was : "none");
		putchar('\n');
	}
	return 0;
}
