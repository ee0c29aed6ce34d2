/*
 * report.c - what the master tells about itself.
 *
 * Numbers are read one by one while workers go on counting, so sums of a report need not add up
 * to the last unit. A session's fields are copied and its generation is compared before and
 * after, so that a line never mixes two connections.
 */
#include "master/report.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shm/rec.h"
#include "shm/segment.h"
#include "shm/sess.h"
#include "shm/slots.h"
#include "worker/base/clock.h"

#define LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)

/* Exact, and without a lock: the counter in the segment's head may be off by one a death. */
static uint64_t users_online(void)
{
	uint64_t live, tombs;

	sess_count(&live, &tombs);
	return live;
}

static uint64_t connections(void)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		n += LOAD(slot_at(i)->connections);
	return n;
}

static uint64_t heartbeat_age(const struct slot *sh)
{
	uint64_t now = clock_now_ms(), beat = LOAD(sh->heartbeat_ms);

	return now > beat ? now - beat : 0;
}

static const char *state_name(uint32_t state)
{
	static const char *const names[] = { [SLOT_EMPTY] = "empty", [SLOT_STARTING] = "starting",
	    [SLOT_READY] = "ready", [SLOT_LEAVING] = "leaving", [SLOT_STOPPING] = "stopping",
	    [SLOT_DEAD] = "dead" };

	return state < sizeof names / sizeof *names ? names[state] : "unknown";
}

static bool in_brief(const char *counter)
{
	return strcmp(counter, "messages_in") == 0 || strcmp(counter, "messages_out") == 0;
}

static void put_twins(struct json_out *w, const struct slot *sh)
{
	json_key(w, "twins");
	json_open(w, '[');
	for (unsigned k = 0; k < SLOT_TWINS; k++)
		if (LOAD(sh->twin_pid[k]) != 0)
			json_put_int(w, LOAD(sh->twin_pid[k]));
	json_close(w, ']');
	json_kv_int(w, "twin_deaths", LOAD(sh->twin_deaths));
}

static void put_worker(struct json_out *w, unsigned i, bool brief)
{
	const struct slot *sh = slot_at(i);
	const struct slot_counter *c;

	json_open(w, '{');
	json_kv_int(w, "slot", i);
	json_kv_int(w, "pid", LOAD(sh->pid));
	json_kv_int(w, "generation", LOAD(sh->gen));
	json_kv_str(w, "state", state_name(LOAD(sh->state)));
	json_kv_int(w, "heartbeat_age_ms", (int64_t)heartbeat_age(sh));
	json_kv_int(w, "connections", LOAD(sh->connections));
	json_kv_int(w, "sessions", LOAD(sh->sessions));
	json_kv_int(w, "restarts", LOAD(sh->restarts));
	put_twins(w, sh);
	json_kv_str(w, "store", LOAD(sh->store_up) ? "up" : "down");
	json_kv_bool(w, "redis_up", LOAD(sh->bus_up) != 0);
	json_kv_int(w, "region_used", (int64_t)LOAD(sh->region_used));
	json_kv_int(w, "queue_depth", (int64_t)LOAD(sh->queue_depth));
	json_kv_int(w, "conf_version", LOAD(sh->conf_version));
	for (unsigned k = 0; (c = slot_counter_at(k)) != NULL; k++)
		if (!brief || in_brief(c->name))
			json_kv_int(w, c->name, (int64_t)c->get(sh));
	json_close(w, '}');
}

/* Why a worker has no connection to Redis: its text may be changing while it is read. */
static const char *bus_error(const struct report *r, char *out, size_t cap)
{
	out[0] = '\0';
	for (unsigned i = 0; i < r->sup->nslots && out[0] == '\0'; i++) {
		const struct slot *sh = slot_at(i);

		if (LOAD(sh->state) == SLOT_EMPTY || LOAD(sh->bus_up))
			continue;
		memcpy(out, sh->bus_error, cap < sizeof sh->bus_error ? cap : sizeof sh->bus_error);
		out[(cap < sizeof sh->bus_error ? cap : sizeof sh->bus_error) - 1] = '\0';
	}
	if (!json_utf8_valid(out, strlen(out)))
		out[0] = '\0';
	return out;
}

static unsigned bus_up(const struct report *r)
{
	unsigned n = 0;

	for (unsigned i = 0; i < r->sup->nslots; i++)
		n += LOAD(slot_at(i)->state) != SLOT_EMPTY && LOAD(slot_at(i)->bus_up);
	return n;
}

static void put_cluster(struct json_out *w, const struct report *r)
{
	uint64_t lead = LOAD(shm->head->lead);
	char error[96];

	json_key(w, "cluster");
	json_open(w, '{');
	json_kv_bool(w, "on", *(*r->conf)->redis != '\0');
	json_kv_str(w, "name", (*r->conf)->cluster);
	json_kv_int(w, "workers_up", bus_up(r));
	json_kv_str(w, "error", bus_error(r, error, sizeof error));
	if (slot_alive((uint32_t)lead - 1, (uint32_t)(lead >> 32)))
		json_kv_int(w, "leader", (uint32_t)lead - 1);
	json_kv_bool(w, "announced", LOAD(shm->head->announced) == SEGMENT_ANNOUNCED);
	json_kv_int(w, "hosts", LOAD(shm->head->hosts_alive));
	json_kv_bool(w, "draining", LOAD(shm->head->drain_ms) != 0);
	json_close(w, '}');
}

char *report_status(const struct report *r, bool brief, size_t *len_r)
{
	const struct segment_head *h = shm->head;
	size_t cap = 8192 + 4096 * (size_t)r->sup->nslots;
	char *buf = malloc(cap);
	struct json_out w;

	if (buf == NULL)
		return NULL;
	json_out_init(&w, buf, cap);
	json_open(&w, '{');
	json_kv_str(&w, "version", PARLEY_VERSION);
	json_kv_int(&w, "pid", getpid());
	json_kv_str(&w, "host_id", r->host_id);
	json_kv_int(&w, "epoch", (int64_t)h->epoch);
	json_kv_int(&w, "uptime_ms", (int64_t)(clock_now_ms() - h->started_ms));
	json_kv_str(&w, "state_dir", (*r->conf)->state_dir);
	json_kv_int(&w, "workers_wanted", r->sup->wanted);
	json_kv_int(&w, "workers_ready", sup_ready(r->sup));
	json_kv_int(&w, "users_online", (int64_t)users_online());
	json_kv_int(&w, "connections", (int64_t)connections());
	json_kv_int(&w, "max_sessions", h->max_sessions);
	json_kv_int(&w, "conf_version", LOAD(h->conf_version));
	json_kv_int(&w, "repairs", LOAD(h->repairs));
	json_kv_bool(&w, "schema_ready", r->sup->migrate.done);
	json_kv_bool(&w, "immortal", r->sup->immortal);
	put_cluster(&w, r);
	json_key(&w, "workers");
	json_open(&w, '[');
	for (unsigned i = 0; i < r->sup->nslots; i++)
		if (LOAD(slot_at(i)->state) != SLOT_EMPTY || r->sup->slot[i].wanted)
			put_worker(&w, i, brief);
	json_close(&w, ']');
	json_close(&w, '}');
	if (w.over) {
		free(buf);
		return NULL;
	}
	*len_r = w.len;
	return buf;
}

/* --- Metrics ---------------------------------------------------------------------------------- */

static uint64_t g_connections(const struct slot *sh) { return LOAD(sh->connections); }
static uint64_t g_sessions(const struct slot *sh) { return LOAD(sh->sessions); }
static uint64_t g_region(const struct slot *sh) { return LOAD(sh->region_used); }
static uint64_t g_queue(const struct slot *sh) { return LOAD(sh->queue_depth); }
static uint64_t g_restarts(const struct slot *sh) { return LOAD(sh->restarts); }
static uint64_t g_twins(const struct slot *sh)
{
	return (LOAD(sh->twin_pid[0]) != 0) + (uint64_t)(LOAD(sh->twin_pid[1]) != 0);
}
static uint64_t g_twin_deaths(const struct slot *sh) { return LOAD(sh->twin_deaths); }
static uint64_t g_store(const struct slot *sh) { return LOAD(sh->store_up); }
static uint64_t g_bus(const struct slot *sh) { return LOAD(sh->bus_up); }
static uint64_t g_ready(const struct slot *sh) { return LOAD(sh->state) == SLOT_READY; }
static uint64_t g_age(const struct slot *sh)
{
	return LOAD(sh->pid) != 0 ? heartbeat_age(sh) : 0;
}

/* One value a worker; `milli`: kept in thousandths, shown in units. */
static const struct gauge {
	const char *name, *type, *help;
	uint64_t (*get)(const struct slot *);
	bool milli;
} gauges[] = {
	{ "connections", "gauge", "client connections now", g_connections, false },
	{ "sessions", "gauge", "logged in sessions now", g_sessions, false },
	{ "heartbeat_age_seconds", "gauge", "time since the worker's last sign of life", g_age, true },
	{ "region_used_bytes", "gauge", "session memory in use", g_region, false },
	{ "queue_depth", "gauge", "store jobs waiting", g_queue, false },
	{ "store_up", "gauge", "1 while the worker reaches the store", g_store, false },
	{ "redis_up", "gauge", "1 while the worker reaches Redis (0, too, where none is configured)", g_bus, false },
	{ "worker_ready", "gauge", "1 while the worker serves", g_ready, false },
	{ "restarts_total", "counter", "deaths of the worker that were not asked for", g_restarts, false },
	{ "twins", "gauge", "processes that hold the worker's descriptors besides it", g_twins, false },
	{ "twin_deaths_total", "counter", "deaths of twins that were not asked for", g_twin_deaths, false }
};
#define NGAUGES (sizeof gauges / sizeof *gauges)

static uint64_t h_users(const struct report *r) { (void)r; return users_online(); }
static uint64_t h_repairs(const struct report *r) { (void)r; return LOAD(shm->head->repairs); }
static uint64_t h_conf(const struct report *r) { (void)r; return LOAD(shm->head->conf_version); }
static uint64_t h_max(const struct report *r) { (void)r; return shm->head->max_sessions; }
static uint64_t h_hosts(const struct report *r) { (void)r; return LOAD(shm->head->hosts_alive); }
static uint64_t h_drain(const struct report *r) { (void)r; return LOAD(shm->head->drain_ms) != 0; }
static uint64_t h_wanted(const struct report *r) { return r->sup->wanted; }
static uint64_t h_uptime(const struct report *r)
{
	(void)r;
	return clock_now_ms() - shm->head->started_ms;
}

static const struct { const char *name, *type, *help; uint64_t (*get)(const struct report *); bool milli; }
totals[] = {
	{ "users_online", "gauge", "users bound to a session on this host", h_users, false },
	{ "hosts_alive", "gauge", "hosts of the cluster that live, this one included", h_hosts, false },
	{ "draining", "gauge", "1 while this host sends its clients elsewhere", h_drain, false },
	{ "workers_wanted", "gauge", "workers that should run", h_wanted, false },
	{ "max_sessions", "gauge", "session records of the host", h_max, false },
	{ "conf_version", "gauge", "configuration in force, counted from 1", h_conf, false },
	{ "uptime_seconds", "gauge", "since the master started", h_uptime, true },
	{ "lock_repairs_total", "counter", "locks inherited from dead processes and mended", h_repairs, false }
};
#define NTOTALS (sizeof totals / sizeof *totals)

static void put_head(FILE *f, const char *name, const char *suffix, const char *type, const char *help)
{
	fprintf(f, "# HELP parley_%s%s %s\n# TYPE parley_%s%s %s\n", name, suffix, help, name, suffix, type);
}

static void put_value(FILE *f, uint64_t v, bool milli)
{
	if (milli)
		fprintf(f, " %" PRIu64 ".%03u\n", v / 1000, (unsigned)(v % 1000));
	else
		fprintf(f, " %" PRIu64 "\n", v);
}

static void put_slots(FILE *f, const struct report *r, const char *name, const char *suffix,
    uint64_t (*get)(const struct slot *), bool milli)
{
	for (unsigned i = 0; i < r->sup->nslots; i++)
		if (r->sup->slot[i].gen > 0) {
			fprintf(f, "parley_%s%s{worker=\"%u\"}", name, suffix, i);
			put_value(f, get(slot_at(i)), milli);
		}
}

static void put_metric(FILE *f, const struct report *r, unsigned i)
{
	const struct slot_counter *c;

	if (i == 0) {
		put_head(f, "info", "", "gauge", "what runs here");
		fprintf(f, "parley_info{version=\"%s\",host_id=\"%s\"} 1\n", PARLEY_VERSION, r->host_id);
		return;
	}
	if (--i < NTOTALS) {
		put_head(f, totals[i].name, "", totals[i].type, totals[i].help);
		fprintf(f, "parley_%s", totals[i].name);
		put_value(f, totals[i].get(r), totals[i].milli);
		return;
	}
	i -= NTOTALS;
	if (i < NGAUGES) {
		put_head(f, gauges[i].name, "", gauges[i].type, gauges[i].help);
		put_slots(f, r, gauges[i].name, "", gauges[i].get, gauges[i].milli);
		return;
	}
	c = slot_counter_at(i - NGAUGES);
	if (c != NULL) {
		put_head(f, c->name, "_total", "counter", c->help);
		put_slots(f, r, c->name, "_total", c->get, false);
	}
}

char *report_metric(const struct report *r, unsigned i, size_t *len_r)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, len_r);

	if (f == NULL)
		return NULL;
	put_metric(f, r, i);
	if (fclose(f) != 0) {
		free(text);
		return NULL;
	}
	return text;
}

/* --- Sessions --------------------------------------------------------------------------------- */

static void put_address(struct json_out *w, const struct rec *r)
{
	static const unsigned char v4[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };
	static const unsigned char none[16];
	char text[80], ip[INET6_ADDRSTRLEN];

	if (memcmp(r->addr, none, sizeof none) == 0 && r->port == 0)
		snprintf(text, sizeof text, "unix");
	else if (memcmp(r->addr, v4, sizeof v4) == 0)
		snprintf(text, sizeof text, "%s:%u", inet_ntop(AF_INET, r->addr + 12, ip, sizeof ip),
		    (unsigned)r->port);
	else
		snprintf(text, sizeof text, "[%s]:%u", inet_ntop(AF_INET6, r->addr, ip, sizeof ip),
		    (unsigned)r->port);
	json_kv_str(w, "address", text);
}

static const char *session_state(uint32_t word, uint32_t bound, uint32_t live)
{
	if (rec_word_state(word) == REC_CLOSING)
		return "closing";
	if (!bound)
		return "connected";
	return live == LIVE_YES ? "online" : "draining";
}

static void put_session(struct json_out *w, uint32_t i, uint32_t word, const struct rec *r)
{
	uint32_t bound = LOAD(r->bound), user = LOAD(r->user);
	size_t len = r->name_len;

	json_open(w, '{');
	json_kv_int(w, "record", i);
	json_kv_int(w, "user", bound ? user : 0);
	if (bound && len > 0 && len <= sizeof r->name && json_utf8_valid(r->name, len))
		json_kv_text(w, "name", r->name, len);
	json_kv_int(w, "worker", rec_word_slot(word));
	put_address(w, r);
	json_kv_str(w, "state", session_state(word, bound, LOAD(r->live)));
	json_kv_int(w, "since", r->since_wall_ms);
	json_kv_int(w, "unsent", (int64_t)(r->wend - r->wsent));
	json_kv_int(w, "unconfirmed", (int64_t)(uint32_t)(r->sent_n - r->seen_n));
	json_kv_bool(w, "ack", r->ack != 0);
	json_kv_str(w, "dialect", r->dialect == CONF_CLASSIC ? "classic" : "plain");
	json_close(w, '}');
}

bool report_session(uint32_t i, struct json_out *w)
{
	const struct rec *r = rec_at(i);
	uint32_t word = atomic_load_explicit(&r->word, memory_order_acquire);
	uint32_t gen = atomic_load_explicit(&r->gen, memory_order_acquire);
	struct json_out before = *w;
	struct rec copy;

	if (rec_word_state(word) != REC_OPEN && rec_word_state(word) != REC_CLOSING)
		return false;
	memcpy(&copy, r, sizeof copy);
	atomic_thread_fence(memory_order_acquire);
	if (atomic_load_explicit(&r->gen, memory_order_relaxed) != gen)
		return false;
	put_session(w, i, word, &copy);
	if (w->over) {
		*w = before;
		return false;
	}
	return true;
}
