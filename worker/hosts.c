/*
 * hosts.c - the copy of the registry, and our own entry in it.
 *
 * Writing and reading are one script each, so that a reader never sees half of a host, and an entry is
 * only ever written over by the life that it is of, but for a first time: the former life of this host
 * may have left one.
 */
#include "worker/hosts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/base/redis_url.h"
#include "worker/bus.h"
#include "worker/cluster.h"
#include "worker/state.h"

#define FORMER  4u			/* epochs of a host that are over, remembered */
#define ENTRY   1024u
#define VERSION PARLEY_VERSION
#define FORGET_MS 3600000u

struct life {				/* beside the host of the same index */
	uint64_t former[FORMER];
	unsigned next;
	uint32_t round;			/* the reading in which it was seen last */
};

static struct hosts_hooks hooks;
static struct host table[HOSTS_MAX];	/* [0] is ourselves */
static struct life lives[HOSTS_MAX];
static uint64_t keys[HOSTS_MAX];
static unsigned nhosts;
static char prefix[64];
static char born[33], my_born[33];	/* what Redis said, and what we would write */
static uint64_t born_ms;
static uint32_t rounds;
static bool reading, again;

/*
 * Who else writes into this Redis may have put anything there: what is no text, or longer than ours is,
 * is as good as nothing, and is written over. (A value of another type is an error, which is a table.)
 */
#define LUA_TEXT \
	"local function text(name, most) " \
	"local v = redis.pcall('GETRANGE', name, 0, most) " \
	"return type(v) == 'string' and v ~= '' and #v <= most and v or nil " \
	"end "

/* KEYS: entry, set. ARGV: id, entry, ms, how its life is written in it, 1: not for the first time. */
static struct bus_script announce = { .text =
    LUA_TEXT
    "local e = text(KEYS[1], 1024) "
    "if e and not string.find(e, '^{\"epoch\":\"%d+\"') then e = nil end "
    "if e and ARGV[5] == '1' and not string.find(e, ARGV[4], 1, true) then return 0 end "
    "redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) "
    "local added = redis.pcall('SADD', KEYS[2], ARGV[1]) "
    "if type(added) == 'table' then "
    "if not string.find(added.err, 'WRONGTYPE', 1, true) then return added end "
    "redis.call('DEL', KEYS[2]) redis.call('SADD', KEYS[2], ARGV[1]) "
    "end "
    "return e and 2 or 1" };
enum { ANNOUNCE_TAKEN = 0, ANNOUNCE_NEW = 1, ANNOUNCE_SAME = 2 };

/* KEYS: entry, set. ARGV: id, how its life is written. */
static struct bus_script leave = { .text =
    LUA_TEXT
    "local e = text(KEYS[1], 1024) "
    "if not e or not string.find(e, ARGV[2], 1, true) then return 0 end "
    "redis.pcall('SREM', KEYS[2], ARGV[1]) "
    "return redis.call('DEL', KEYS[1])" };

/* KEYS: set, born. ARGV: what entries' names begin with, a text for born. Born, then id and entry of each. */
static struct bus_script registry = { .text =
    LUA_TEXT
    "local born = text(KEYS[2], 32) "
    "if not born then redis.call('SET', KEYS[2], ARGV[2]) born = ARGV[2] end "
    "local out, ids = { born }, redis.pcall('SMEMBERS', KEYS[1]) "
    "for _, id in ipairs(ids) do "
    "local e = #id <= 64 and text(ARGV[1] .. id, 1024) "
    "if e then out[#out + 1] = id out[#out + 1] = e else redis.call('SREM', KEYS[1], id) end "
    "end return out" };

/* ---- names ---- */

void hosts_set_prefix(const struct conf *cf)
{
	struct redis_url u;

	snprintf(prefix, sizeof prefix, "%s", cf->cluster);
	if (*cf->redis != '\0' && redis_url_read(&u, cf->redis) == NULL && u.db != 0)
		snprintf(prefix, sizeof prefix, "%s:%u", cf->cluster, u.db);
}

const char *hosts_name(const char *kind, const char *rest)
{
	static char names[4][sizeof prefix + 32 + HOST_ID_MAX];
	static unsigned turn;
	char *name = names[turn++ & 3];

	snprintf(name, sizeof names[0], "%s:%s%s%s", prefix, kind, rest != NULL ? ":" : "",
	    rest != NULL ? rest : "");
	return name;
}

uint64_t hosts_key(const char *id, size_t len)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)id[i]) * UINT64_C(0x100000001b3);
	h ^= h >> 32;
	return h != 0 ? h : 1;
}

static const char *epoch_mark(void)
{
	static char mark[48];

	snprintf(mark, sizeof mark, "{\"epoch\":\"%" PRIu64 "\"", shm->head->epoch);
	return mark;
}

/* ---- the table ---- */

struct host *hosts_self(void)
{
	return nhosts > 0 ? &table[0] : NULL;
}

struct host *hosts_find(uint64_t key)
{
	for (unsigned i = 0; i < nhosts; i++)
		if (keys[i] == key)
			return &table[i];
	return NULL;
}

struct host *hosts_by_id(const char *id)
{
	struct host *h = hosts_find(hosts_key(id, strlen(id)));

	return h != NULL && strcmp(h->id, id) == 0 ? h : NULL;
}

struct host *hosts_at(unsigned i)
{
	return i < nhosts ? &table[i] : NULL;
}

bool hosts_alive(uint64_t key, uint64_t epoch)
{
	const struct host *h = hosts_find(key);

	return h != NULL && h->alive && h->epoch == epoch;
}

static bool id_ok(const char *id, size_t len)
{
	static const char allowed[] =
	    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";

	if (len == 0 || len > HOST_ID_MAX)
		return false;
	for (size_t i = 0; i < len; i++)
		if (id[i] == '\0' || strchr(allowed, id[i]) == NULL)
			return false;
	return true;
}

/* A fresh one, or that of a host that is gone for so long that nobody waits for it any more. */
static struct host *host_place(void)
{
	if (nhosts < HOSTS_MAX)
		return &table[nhosts++];
	for (unsigned i = 1; i < nhosts; i++)
		if (!table[i].alive && clock_ms() - table[i].seen_ms > FORGET_MS)
			return &table[i];
	return NULL;
}

static struct host *host_add(const char *id, size_t len)
{
	static bool told;
	uint64_t key = hosts_key(id, len);
	struct host *h;

	if (hosts_find(key) != NULL) {
		log_error("host %.*s cannot be told from another one by its key: give it another id",
		    (int)len, id);
		return NULL;
	}
	if ((h = host_place()) == NULL) {
		if (!told)
			log_error("the cluster has had more than %u hosts: host %.*s is not seen",
			    HOSTS_MAX - 1, (int)len, id);
		told = true;
		return NULL;
	}
	*h = (struct host){ .key = key, .link = h->link };
	lives[h - table] = (struct life){ .round = 0 };
	memcpy(h->id, id, len);
	keys[h - table] = key;
	return h;
}

static struct life *life_of(const struct host *h)
{
	return &lives[h - table];
}

static bool is_former(const struct host *h, uint64_t epoch)
{
	const struct life *l = life_of(h);

	for (unsigned i = 0; i < FORMER; i++)
		if (l->former[i] == epoch)
			return true;
	return false;
}

static void host_gone(struct host *h)
{
	if (!h->alive)
		return;
	h->alive = false;
	log_info("host %s is gone", h->id);
	hooks.gone(h, h->epoch);
}

static void host_came(struct host *h, uint64_t epoch)
{
	struct life *l = life_of(h);

	if (h->alive && h->epoch == epoch)
		return;
	host_gone(h);
	if (h->epoch != 0 && h->epoch != epoch)
		l->former[l->next++ % FORMER] = h->epoch;
	h->epoch = epoch;
	h->alive = true;
	h->seen_ms = clock_ms();
	log_info("host %s is there", h->id);
	hooks.came(h);
}

struct host *hosts_meet(const char *id, size_t len, uint64_t epoch)
{
	struct host *h;

	if (!id_ok(id, len) || epoch == 0)
		return NULL;
	h = hosts_find(hosts_key(id, len));
	if (h != NULL && (h->self || (h->alive && h->epoch == epoch)))
		return h->self ? NULL : h;
	if (!reading)
		atomic_fetch_add(&shm->head->registry, 1);
	hosts_refresh();
	if (h == NULL)
		h = host_add(id, len);
	if (h == NULL || h->epoch == epoch || is_former(h, epoch))
		return NULL;
	host_came(h, epoch);
	return h;
}

/* ---- reading ---- */

static uint32_t number_in(struct json *j, const struct json_val *obj, const char *name)
{
	struct json_val v;
	int64_t n;

	return json_get(j, obj, name, &v) && v.type == JSON_NUMBER && json_int(&v, &n) == JSON_OK &&
	    n >= 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

static uint64_t digits_in(struct json *j, const struct json_val *obj, const char *name)
{
	struct json_val v;
	char text[24];
	uint64_t n = 0;

	if (!json_get(j, obj, name, &v) || v.type != JSON_STRING ||
	    json_text(&v, text, sizeof text, NULL) != JSON_OK)
		return 0;
	for (const char *p = text; *p != '\0'; p++) {
		if (*p < '0' || *p > '9' || n > (UINT64_MAX - 9) / 10)
			return 0;
		n = n * 10 + (uint64_t)(*p - '0');
	}
	return n;
}

static void text_in(struct json *j, const struct json_val *obj, const char *name, char *out,
    size_t cap)
{
	struct json_val v;

	if (!json_get(j, obj, name, &v) || v.type != JSON_STRING ||
	    json_text(&v, out, cap, NULL) != JSON_OK || json_has_control(out, strlen(out)))
		out[0] = '\0';
}

static void fill(struct host *h, struct json *j, const struct json_val *obj)
{
	struct json_val v;

	text_in(j, obj, "address", h->address, sizeof h->address);
	text_in(j, obj, "direct", h->direct, sizeof h->direct);
	text_in(j, obj, "version", h->version, sizeof h->version);
	h->weight = number_in(j, obj, "weight");
	h->workers = number_in(j, obj, "workers");
	h->connections = number_in(j, obj, "connections");
	h->sessions = number_in(j, obj, "sessions");
	h->since_ms = digits_in(j, obj, "since");
	if (!json_get(j, obj, "draining", &v) || json_bool(&v, &h->draining) != JSON_OK)
		h->draining = false;
}

static void on_entry(const struct bus_value *id, const struct bus_value *text)
{
	struct json_val obj;
	struct host *h;
	uint64_t epoch;

	if (id->type != BUS_STR || text->type != BUS_STR || !id_ok(id->s, id->len))
		return;
	if (json_parse(wk->json2, text->s, text->len) != JSON_OK)
		return;
	obj = json_root(wk->json2);
	epoch = digits_in(wk->json2, &obj, "epoch");
	h = hosts_find(hosts_key(id->s, id->len));
	if (epoch == 0 || (h == NULL && (h = host_add(id->s, id->len)) == NULL))
		return;
	life_of(h)->round = rounds;
	if (h->self)
		return;			/* another life's? The script that writes it finds out, nobody else can */
	fill(h, wk->json2, &obj);
	h->seen_ms = clock_ms();
	host_came(h, epoch);
}

/* Redis was emptied a moment ago: a host that has not written itself again yet is not gone. */
static bool spared(const struct host *h)
{
	return born_ms != 0 && clock_ms() - born_ms < wk->conf.host_timeout_ms &&
	    clock_ms() - h->seen_ms < wk->conf.host_timeout_ms;
}

static void on_born(const struct bus_value *v)
{
	bool other;

	if (v->type != BUS_STR || v->len == 0 || v->len >= sizeof born)
		return;
	other = born[0] != '\0' && strcmp(born, v->s) != 0;
	if (strcmp(born, v->s) == 0)
		return;
	memcpy(born, v->s, v->len + 1);
	if (!other)
		return;
	born_ms = clock_ms();
	hooks.reborn();
}

static void on_registry(void *arg, uint64_t tag, const struct bus_value *v)
{
	uint32_t alive = 0;

	(void)arg;
	(void)tag;
	reading = false;
	if (v == NULL || v->type != BUS_ARRAY || v->nv == 0) {
		again = false;
		return;
	}
	rounds++;
	on_born(&v->v[0]);
	for (size_t i = 1; i + 1 < v->nv; i += 2)
		on_entry(&v->v[i], &v->v[i + 1]);
	for (unsigned i = 0; i < nhosts; i++) {
		if (!table[i].self && lives[i].round != rounds && !spared(&table[i]))
			host_gone(&table[i]);
		alive += table[i].alive;
	}
	atomic_store(&shm->head->hosts_alive, alive);
	if (again) {
		again = false;
		hosts_beat();
	}
}

bool hosts_known(void)
{
	return rounds > 0;
}

static void read_registry(void)
{
	const char *argv[4];

	argv[0] = hosts_name("hosts", NULL);
	argv[1] = hosts_name("born", NULL);
	argv[2] = hosts_name("host", "");
	argv[3] = my_born;
	reading = bus_script(&registry, 2, 4, argv, NULL, on_registry, NULL, 0);
}

/* ---- our entry ---- */

/* The first TCP listener, unless nobody can connect to what it says. */
/* An address of the configuration that somebody else can use, or "". Static memory. */
static const char *listener_address(const struct conf_listen *l)
{
	static char text[128];

	if (strcmp(l->host, "0.0.0.0") == 0 || strcmp(l->host, "::") == 0)
		return "";
	snprintf(text, sizeof text, strchr(l->host, ':') != NULL ? "[%s]:%u" : "%s:%u", l->host, l->port);
	return text;
}

static const char *own_address(void)
{
	const struct conf *cf = &wk->conf;

	if (*cf->advertise != '\0')
		return cf->advertise;
	for (unsigned i = 0; i < cf->nlisten; i++)
		if (cf->listen[i].host != NULL)
			return listener_address(&cf->listen[i]);
	return "";
}

/* A listener that wants a PROXY header is of no use to a client: then it is another one, or none. */
static const char *direct_address(void)
{
	const struct conf *cf = &wk->conf;
	const struct conf_listen *open = NULL;
	bool proxy = false;

	if (*cf->advertise_direct != '\0')
		return cf->advertise_direct;
	for (unsigned i = 0; i < cf->nlisten; i++) {
		const struct conf_listen *l = &cf->listen[i];

		proxy |= l->proxy;
		if (open == NULL && l->host != NULL && !l->proxy && l->dialect == CONF_PLAIN)
			open = l;
	}
	return !proxy ? own_address() : open != NULL ? listener_address(open) : "";
}

static void fill_self(struct host *h)
{
	h->weight = wk->conf.weight;
	h->workers = h->connections = h->sessions = 0;
	for (uint32_t i = 0; i < shm->head->max_workers; i++) {
		const struct slot *s = slot_at(i);

		h->workers += atomic_load(&s->state) == SLOT_READY;
		h->connections += atomic_load(&s->connections);
		h->sessions += atomic_load(&s->sessions);
	}
	h->draining = cluster_draining();
	h->seen_ms = clock_ms();
	snprintf(h->address, sizeof h->address, "%s", own_address());
	snprintf(h->direct, sizeof h->direct, "%s", direct_address());
}

static void put_entry(const struct host *h, char *out, size_t cap)
{
	struct json_out w;
	char n[24];

	json_out_init(&w, out, cap - 1);
	json_open(&w, '{');
	snprintf(n, sizeof n, "%" PRIu64, h->epoch);
	json_kv_str(&w, "epoch", n);
	json_kv_str(&w, "id", h->id);
	json_kv_str(&w, "address", h->address);
	json_kv_str(&w, "direct", h->direct);
	json_kv_str(&w, "version", h->version);
	json_kv_int(&w, "weight", h->weight);
	json_kv_int(&w, "workers", h->workers);
	json_kv_int(&w, "connections", h->connections);
	json_kv_int(&w, "sessions", h->sessions);
	json_kv_bool(&w, "draining", h->draining);
	snprintf(n, sizeof n, "%" PRIu64, h->since_ms);
	json_kv_str(&w, "since", n);
	json_close(&w, '}');
	out[w.len] = '\0';
}

static uint64_t acked_ms;		/* when our entry was last known to be there */

static void on_announced(void *arg, uint64_t tag, const struct bus_value *v)
{
	uint32_t was = SEGMENT_ANNOUNCED;

	(void)arg;
	if (v == NULL || v->type != BUS_INT)
		return;
	if (v->n == ANNOUNCE_TAKEN) {
		if (atomic_compare_exchange_strong(&shm->head->announced, &was, SEGMENT_USURPED))
			log_error("another host of the cluster uses our host_id, %s: this one says nothing "
			    "more of itself; give one of them another id", table[0].id);
		return;
	}
	acked_ms = clock_ms();
	was = SEGMENT_UNKNOWN;
	(void)atomic_compare_exchange_strong(&shm->head->announced, &was, SEGMENT_ANNOUNCED);
	/* It had run out, or was thrown away: what hung on it may be another's by now. */
	if (v->n == ANNOUNCE_NEW && tag == SEGMENT_ANNOUNCED)
		atomic_fetch_add(&shm->head->lapses, 1);
}

/*
 * It was not written for longer than it lives. Whoever reads the new one must not find a session that has
 * not looked into the store since, so this is said before it is written.
 */
static void note_silence(void)
{
	if (acked_ms != 0 && clock_ms() - acked_ms >= wk->conf.host_timeout_ms)
		atomic_fetch_add(&shm->head->lapses, 1);
}

static void write_entry(void)
{
	uint32_t state = atomic_load(&shm->head->announced);
	char entry[ENTRY], ms[16];
	const char *argv[7];

	if (state == SEGMENT_USURPED)
		return;
	if (state == SEGMENT_ANNOUNCED)
		note_silence();
	put_entry(&table[0], entry, sizeof entry);
	snprintf(ms, sizeof ms, "%u", wk->conf.host_timeout_ms);
	argv[0] = hosts_name("host", table[0].id);
	argv[1] = hosts_name("hosts", NULL);
	argv[2] = table[0].id;
	argv[3] = entry;
	argv[4] = ms;
	argv[5] = epoch_mark();
	argv[6] = state == SEGMENT_ANNOUNCED ? "1" : "0";
	(void)bus_script(&announce, 2, 7, argv, NULL, on_announced, NULL, state);
}

void hosts_beat(void)
{
	if (!bus_up())
		return;
	fill_self(&table[0]);
	if (cluster_leads())
		write_entry();
	if (reading)
		again = true;
	else
		read_registry();
}

void hosts_refresh(void)
{
	if (!reading)
		hosts_beat();
}

void hosts_leave(void)
{
	const char *argv[4];

	argv[0] = hosts_name("host", table[0].id);
	argv[1] = hosts_name("hosts", NULL);
	argv[2] = table[0].id;
	argv[3] = epoch_mark();
	(void)bus_script(&leave, 2, 4, argv, NULL, NULL, NULL, 0);
}

void hosts_put_try(struct json_out *w)
{
	uint32_t from = 0, told = 0;

	if (nhosts == 0)
		return;
	(void)getrandom(&from, sizeof from, GRND_NONBLOCK);
	for (unsigned i = 0; i < nhosts && told < 8; i++) {
		const struct host *h = &table[(from + i) % nhosts];

		if (h->self || !h->alive || h->draining || h->direct[0] == '\0')
			continue;
		json_put_text(w, h->direct, strlen(h->direct));
		told++;
	}
}

int hosts_init(const struct hosts_hooks *h)
{
	uint64_t r[2] = { 0, 0 };

	hooks = *h;
	hosts_set_prefix(&wk->conf);
	if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r)
		return -1;
	snprintf(my_born, sizeof my_born, "%016" PRIx64 "%016" PRIx64, r[0], r[1]);
	if (host_add(wk->boot->host_id, strlen(wk->boot->host_id)) == NULL)
		return -1;
	table[0].self = table[0].alive = true;
	table[0].epoch = shm->head->epoch;
	table[0].since_ms = (uint64_t)shm->head->started_wall_ms;
	snprintf(table[0].version, sizeof table[0].version, "%s", VERSION);
	fill_self(&table[0]);
	return 0;
}
