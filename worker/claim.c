/*
 * claim.c - who serves whom, in Redis.
 *
 * Everything that decides is a script, so that Redis itself puts the hosts in order. Commands may
 * still be executed later than sent (a script that the server does not know is sent twice), and each
 * worker has a connection of its own. So none of them relies on the order of another: a claim gives
 * way to a later one of its host (by login number), a release names the login that it releases, and
 * whoever hears that a claim was made looks whether the session is still there.
 */
#include "worker/claim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/bus.h"
#include "worker/call.h"
#include "worker/cluster.h"
#include "worker/conn.h"
#include "worker/hosts.h"
#include "worker/session.h"
#include "worker/state.h"

#define PREFIX_MAX 64u			/* bytes of what a name in Redis begins with */
#define KEY_MAX    (PREFIX_MAX + 11)
#define VALUE_MAX  (HOST_ID_MAX + 3 * 21 + 1)
#define CHUNK      512u			/* users in one MGET */
#define BATCH      256u			/* sessions in one call of the restoring script */
#define LOOK       65536u		/* records looked at in one step of it */
#define VERIFY_MS  5000			/* by then every host that came back with Redis has its entry again */
#define AGAIN_MS   2000			/* after a command that was not answered */
#define FULL_MS    100			/* when no more commands were taken */
#define END_MS     2000			/* for a host to end a session that was replaced */
#define END_TRIES  4u
#define KEPT_MAX   65536u		/* releases that wait for Redis; the rest is mended when it is met */

/* ---- scripts ---- */

/*
 * A claim, and its parts; nothing for what is none. Who else writes into this Redis may have put anything
 * there: a value of another type (that is an error, a table), or one without an end.
 */
#define LUA_PARTS \
	"local function text(name)\n" \
	"  local v = redis.pcall('GETRANGE', name, 0, 199)\n" \
	"  return type(v) == 'string' and v or nil\n" \
	"end\n" \
	"local function parts(v)\n" \
	"  if v then return string.match(v, '^(%S+) (%d+) (%d+) (%d+)$') end\n" \
	"end\n"

/* Has a host an entry of this life? nil: it has none. What cannot be read is believed to be one. */
#define LUA_LIFE \
	"local function life(names, id, epoch)\n" \
	"  local v = redis.pcall('GETRANGE', names .. id, 0, 1023)\n" \
	"  if v == '' then return nil end\n" \
	"  local ok, entry = pcall(cjson.decode, v)\n" \
	"  local e = ok and type(entry) == 'table' and entry.epoch\n" \
	"  if type(e) == 'number' then e = string.format('%.0f', e) end\n" \
	"  return not e or e == epoch\n" \
	"end\n"

/*
 * KEYS: the user's. ARGV: id, epoch, login_ms, number; a value that may be overridden; grace in ms;
 * then what names of entries, channels and of silence begin with. {0, former value of a host that may
 * yet live, or '', 1 where it was another host's}, {1, value}: taken, {2, value}: later.
 *
 * A host is silent that has an entry and no reader, or a reader (a connection that Redis has not
 * given up yet, or a host that is just writing its entry) and no entry.
 */
static struct bus_script script_take = { .text =
	LUA_PARTS LUA_LIFE
	"local key, id, epoch = KEYS[1], ARGV[1], ARGV[2]\n"
	"local cur = text(key)\n"
	"local oid, oepoch, _, onumber = parts(cur)\n"
	"local function take(from)\n"
	"  redis.call('SET', key, id .. ' ' .. epoch .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])\n"
	"  return {0, from, oid and oid ~= id and 1 or 0}\n"
	"end\n"
	"if not oid or cur == ARGV[5] then return take('') end\n"
	"if oid == id then\n"
	"  if oepoch == epoch and tonumber(onumber) > tonumber(ARGV[4]) then return {0, ''} end\n"
	"  return take('')\n"
	"end\n"
	"local entry = life(ARGV[7], oid, oepoch)\n"
	"if entry == false then return take('') end\n"
	"local silent = ARGV[9] .. oid .. ':' .. oepoch\n"
	"local readers = redis.call('PUBSUB', 'NUMSUB', ARGV[8] .. oid)[2]\n"
	"if entry and readers > 0 then\n"
	"  redis.call('DEL', silent)\n"
	"  return {1, cur}\n"
	"end\n"
	"if not entry and readers == 0 then return take('') end\n"
	"local t = redis.call('TIME')\n"
	"local now, since = t[1] * 1000 + math.floor(t[2] / 1000), tonumber(text(silent) or '')\n"
	"if not since or since > now then\n"
	"  redis.call('SET', silent, string.format('%.0f', now), 'PX', ARGV[6] * 6)\n"
	"  return {2, cur}\n"
	"end\n"
	"if now - since < tonumber(ARGV[6]) then return {2, cur} end\n"
	"return take(cur)\n" };

/* KEYS: the user's. ARGV: id, epoch, number of the login that is over. */
static struct bus_script script_release = { .text =
	LUA_PARTS
	"local id, epoch, _, number = parts(text(KEYS[1]))\n"
	"if id == ARGV[1] and epoch == ARGV[2] and number == ARGV[3] then\n"
	"  redis.call('DEL', KEYS[1])\n"
	"end\n"
	"return 0\n" };

/*
 * ARGV: id, epoch, what names of users and of entries begin with, then "USER LOGIN_MS NUMBER MODE" for each
 * session; mode w (it is ending) takes nothing from anybody. {place, 1, former value}: taken from a live
 * host whose login was older; {place, 0, value}: theirs is newer; nothing for the others. Last, how many
 * claims were not there.
 */
static struct bus_script script_restore = { .text =
	LUA_PARTS LUA_LIFE
	"local id, epoch, said, set = ARGV[1], ARGV[2], {}, 0\n"
	"local function restore(i)\n"
	"  local user, login, number, mode = string.match(ARGV[i], '(%d+) (%d+) (%d+) (%a)')\n"
	"  local key, mine = ARGV[3] .. user, id .. ' ' .. epoch .. ' ' .. login .. ' ' .. number\n"
	"  local cur = text(key)\n"
	"  local oid, oepoch, ologin, onumber = parts(cur)\n"
	"  if cur == mine then return end\n"
	"  if oid == id and oepoch == epoch and tonumber(onumber) > tonumber(number) then return end\n"
	"  if oid and oid ~= id and life(ARGV[4], oid, oepoch) then\n"
	"    if mode == 'w' then return end\n"
	"    local l, o = tonumber(login), tonumber(ologin)\n"
	"    local ours = l > o or (l == o and id > oid)\n"
	"    said[#said + 1] = i - 5\n"
	"    said[#said + 1] = ours and 1 or 0\n"
	"    said[#said + 1] = cur\n"
	"    if not ours then return end\n"
	"  end\n"
	"  redis.call('SET', key, mine)\n"
	"  set = set + 1\n"
	"end\n"
	"for i = 5, #ARGV do restore(i) end\n"
	"said[#said + 1] = set\n"
	"return said\n" };

/* KEYS: the user's. ARGV: what names of entries begin with. The claim, if its host has an entry of that life. */
static struct bus_script script_where = { .text =
	LUA_PARTS LUA_LIFE
	"local cur = text(KEYS[1])\n"
	"local id, epoch = parts(cur)\n"
	"return id and life(ARGV[1], id, epoch) and cur\n" };

/* ---- names and values ---- */

static char users[PREFIX_MAX], entries[PREFIX_MAX], channels[PREFIX_MAX], silences[PREFIX_MAX];
static char epoch_text[24];

static void names_init(void)
{
	if (*users != '\0')
		return;
	snprintf(users, sizeof users, "%s:", hosts_name("user", NULL));
	snprintf(entries, sizeof entries, "%s:", hosts_name("host", NULL));
	snprintf(channels, sizeof channels, "%s:", hosts_name("to", NULL));
	snprintf(silences, sizeof silences, "%s:", hosts_name("silent", NULL));
	snprintf(epoch_text, sizeof epoch_text, "%llu", (unsigned long long)hosts_self()->epoch);
}

/* Whether there is a cluster to ask, and by which names. */
static bool ready(void)
{
	if (!cluster_on() || hosts_self() == NULL)
		return false;
	names_init();
	return true;
}

static const char *user_key(char out[KEY_MAX], uint32_t user)
{
	snprintf(out, KEY_MAX, "%s%u", users, user);
	return out;
}

static bool take_number(const char **p, char end, uint64_t *n_r)
{
	uint64_t n = 0;
	const char *s = *p;

	for (; *s >= '0' && *s <= '9'; s++)
		if (__builtin_mul_overflow(n, 10u, &n) || __builtin_add_overflow(n, (unsigned)(*s - '0'), &n))
			return false;
	if (s == *p || *s != end)
		return false;
	*p = s + 1;
	*n_r = n;
	return true;
}

/* "HOST EPOCH LOGIN_MS NUMBER". False: it is no claim. */
static bool read_owner(const struct bus_value *v, struct claim_owner *o_r)
{
	const char *p, *space;

	if (v->type != BUS_STR || strlen(v->s) != v->len || (space = strchr(v->s, ' ')) == NULL ||
	    space == v->s)
		return false;
	o_r->key = hosts_key(v->s, (size_t)(space - v->s));
	p = space + 1;
	return take_number(&p, ' ', &o_r->epoch) && take_number(&p, ' ', &o_r->login_ms) &&
	    take_number(&p, '\0', &o_r->number);
}

/* The value that OWNER's claim has; "" for a host that was never seen, or for none. */
static void put_owner(char out[VALUE_MAX], const struct claim_owner *o)
{
	const struct host *h = o != NULL ? hosts_find(o->key) : NULL;

	*out = '\0';
	if (h != NULL)
		snprintf(out, VALUE_MAX, "%s %llu %llu %llu", h->id, (unsigned long long)o->epoch,
		    (unsigned long long)o->login_ms, (unsigned long long)o->number);
}

static bool is_ours(const struct claim_owner *o)
{
	return o->key == hosts_self()->key && o->epoch == hosts_self()->epoch;
}

/* Is that login of the user still bound on this host? */
static bool still_bound(uint32_t user, uint64_t number)
{
	struct sess_ref ref;

	return sess_find(user, &ref) == SESS_OK && ref.login == number;
}

/* ---- release ---- */

struct kept { uint64_t number; uint32_t user; };

static struct kept *kept;		/* releases that did not reach Redis, or were not answered */
static uint32_t nkept, kept_cap;
static struct timer kept_timer;

static void on_kept(struct timer *t);

static void keep(uint32_t user, uint64_t number)
{
	if (nkept == kept_cap) {
		uint32_t cap = kept_cap == 0 ? 64 : kept_cap * 2;
		struct kept *v = cap <= KEPT_MAX ? realloc(kept, cap * sizeof *v) : NULL;

		if (v == NULL)
			return;
		kept = v;
		kept_cap = cap;
	}
	kept[nkept++] = (struct kept){ number, user };
	if (!timer_is_set(&kept_timer))
		timer_set(&kept_timer, clock_ms() + AGAIN_MS, on_kept);
}

/* The number is the tag, the user the argument. */
static void released(void *arg, uint64_t tag, const struct bus_value *v)
{
	if (v == NULL || v->type == BUS_ERROR)
		keep((uint32_t)(uintptr_t)arg, tag);
}

void claim_release(uint32_t user, uint64_t number)
{
	char key[KEY_MAX], text[24];

	if (!ready())
		return;
	snprintf(text, sizeof text, "%llu", (unsigned long long)number);
	const char *argv[] = { user_key(key, user), hosts_self()->id, epoch_text, text };
	if (!bus_up() || !bus_script(&script_release, 1, 4, argv, NULL, released,
	    (void *)(uintptr_t)user, number))
		keep(user, number);
}

static void release_kept(void)
{
	struct kept *v = kept;
	uint32_t n = nkept;

	kept = NULL;			/* those that fail again come into a new list */
	nkept = kept_cap = 0;
	for (uint32_t i = 0; i < n; i++)
		claim_release(v[i].user, v[i].number);
	free(v);
}

static void on_kept(struct timer *t)
{
	if (bus_up())
		release_kept();
	else
		timer_set(t, clock_ms() + AGAIN_MS, on_kept);
}

/* ---- another host's session is over ---- */

struct ending { struct claim_owner who; uint32_t user, tries; };

static void end_other(struct ending *e);

static void other_ended(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	struct ending *e = arg;

	(void)tag;
	(void)text;
	(void)len;
	if (code >= CALL_OK || code == CALL_ABSENT || --e->tries == 0)
		free(e);
	else
		end_other(e);
}

static void end_other(struct ending *e)
{
	char args[128];
	int len = snprintf(args, sizeof args, "{\"user\":%u,\"number\":%llu,\"reason\":\"replaced\"}",
	    e->user, (unsigned long long)e->who.number);
	struct host *h = hosts_find(e->who.key);

	if (h == NULL || h->epoch != e->who.epoch)
		free(e);
	else
		call_host(h, "session.end", args, (size_t)len, END_MS, other_ended, e, 0);
}

/* A claim was taken from a host that may live, and does not know: it ends that session, and no other. */
static void tell_former(uint32_t user, const struct bus_value *v)
{
	struct claim_owner o;
	struct ending *e;

	if (!read_owner(v, &o) || (e = malloc(sizeof *e)) == NULL)
		return;
	*e = (struct ending){ o, user, END_TRIES };
	end_other(e);
}

/* ---- take ---- */

struct take {
	struct take *next;		/* among those that wait for the first connection */
	uint32_t user, rec, gen;
	uint64_t number, login_ms;
	char over[VALUE_MAX];
	claim_fn *done;			/* NULL: told that Redis is silent */
	struct timer patience;
};

static struct take *waiting;
static bool was_up;			/* Redis has been there once */

static void restore_late(uint32_t user, uint64_t number, uint32_t rec, uint32_t gen);
static void restore_again(uint32_t ms);

static void take_tell(struct take *t, enum claim_rc rc, const struct claim_owner *by)
{
	claim_fn *done = t->done;

	t->done = NULL;
	timer_stop(&t->patience);
	if (done != NULL)
		done(t->rec, t->gen, rc, by);
}

static enum claim_rc read_take(const struct bus_value *v, struct claim_owner *by)
{
	if (v == NULL || v->type != BUS_ARRAY || v->nv < 2 || v->v[0].type != BUS_INT)
		return CLAIM_SILENT;
	if (v->v[0].n == 0)
		return v->nv > 2 && v->v[2].n == 1 ? CLAIM_AFTER : CLAIM_OURS;
	if (!read_owner(&v->v[1], by))
		return CLAIM_SILENT;
	return v->v[0].n == 1 ? CLAIM_TAKEN : CLAIM_LATER;
}

static void took(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct take *t = arg;
	struct claim_owner by = { 0 };
	enum claim_rc rc = read_take(v, &by);
	bool bound = still_bound(t->user, t->number), late = t->done == NULL;

	(void)tag;
	if (rc == CLAIM_OURS || rc == CLAIM_AFTER) {
		tell_former(t->user, &v->v[1]);
		if (!bound)
			claim_release(t->user, t->number);
	} else if (rc == CLAIM_SILENT) {
		restore_again(AGAIN_MS);	/* it may have been done, or not */
	} else if (late && bound) {
		restore_late(t->user, t->number, t->rec, t->gen);
	}
	take_tell(t, rc, &by);
	free(t);
}

static bool take_send(struct take *t)
{
	char key[KEY_MAX], login[24], number[24], grace[12];

	snprintf(login, sizeof login, "%llu", (unsigned long long)t->login_ms);
	snprintf(number, sizeof number, "%llu", (unsigned long long)t->number);
	snprintf(grace, sizeof grace, "%d", CLAIM_GRACE_MS);
	const char *argv[] = { user_key(key, t->user), hosts_self()->id, epoch_text, login, number,
	    t->over, grace, entries, channels, silences };
	return bus_script(&script_take, 1, sizeof argv / sizeof *argv, argv, NULL, took, t, 0);
}

static void on_patience(struct timer *timer)
{
	struct take *t = (struct take *)((char *)timer - offsetof(struct take, patience));
	struct take **p = &waiting;

	while (*p != NULL && *p != t)
		p = &(*p)->next;
	bool sent = *p == NULL;
	if (!sent)
		*p = t->next;
	take_tell(t, CLAIM_SILENT, NULL);
	if (!sent)			/* otherwise its answer frees it */
		free(t);
}

void claim_take(uint32_t user, uint32_t rec, uint32_t gen, const struct claim_owner *over,
    claim_fn *done)
{
	struct take *t;

	/* A connection that is being made for the first time is waited for, a lost one is not. */
	bool soon = !was_up && clock_ms() < atomic_load(&wk->s->spawned_ms) + 2 * CLAIM_MS;
	if (!ready() || (!bus_up() && !soon) || (t = calloc(1, sizeof *t)) == NULL) {
		done(rec, gen, CLAIM_SILENT, NULL);
		return;
	}
	*t = (struct take){ .user = user, .rec = rec, .gen = gen, .done = done,
	    .number = atomic_load(&rec_at(rec)->login),
	    .login_ms = (uint64_t)rec_at(rec)->since_wall_ms };
	put_owner(t->over, over);
	timer_set(&t->patience, clock_ms() + CLAIM_MS, on_patience);
	if (!bus_up()) {
		t->next = waiting;
		waiting = t;
	} else if (!take_send(t)) {
		restore_again(AGAIN_MS);
		take_tell(t, CLAIM_SILENT, NULL);
		free(t);
	}
}

static void take_waiting(void)
{
	struct take *t;

	while (bus_up() && (t = waiting) != NULL) {
		waiting = t->next;
		if (take_send(t))
			continue;
		take_tell(t, CLAIM_SILENT, NULL);
		free(t);
	}
}

/* ---- restore ---- */

struct one { uint64_t number, login_ms; uint32_t user, rec, gen; bool ending; };
struct batch { uint32_t n, pass; struct one v[]; };	/* pass: its number, 0: alone */

static struct { uint32_t number, next; bool on, missed; } pass;	/* through the records */
static struct timer pass_timer, again_timer, verify_timer;

static void pass_step(void);

/* The session of a record of ours, if its claim is to be there. What is logging in claims by itself. */
static bool restorable(uint32_t rec, struct one *o_r)
{
	uint32_t gen = atomic_load(&rec_at(rec)->gen);
	const struct conn *c = conn_get(rec, gen);

	if (c == NULL || !c->bound || c->claiming || c->state == CONN_MOVING)
		return false;
	*o_r = (struct one){ atomic_load(&c->r->login), (uint64_t)c->r->since_wall_ms,
	    atomic_load(&c->r->user), rec, gen, c->ending != END_NONE };
	return true;
}

/* Two hosts have the user, and the other's login is newer. */
static void end_ours(const struct one *o)
{
	struct conn *c = conn_get(o->rec, o->gen);

	if (c == NULL || !c->bound || c->claiming || c->state == CONN_MOVING ||
	    c->ending != END_NONE || atomic_load(&c->r->login) != o->number)
		return;
	log_info("user %u: a newer login on another host", o->user);
	session_end_notice(c, "replaced", CLOSE_ENDED);
}

static void restored(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct batch *b = arg;
	bool answered = v != NULL && v->type == BUS_ARRAY;

	(void)tag;
	for (size_t i = 0; answered && i + 2 < v->nv; i += 3) {
		int64_t place = v->v[i].type == BUS_INT ? v->v[i].n : -1;

		if (place < 0 || place >= b->n)
			continue;
		if (v->v[i + 1].n == 1)
			tell_former(b->v[place].user, &v->v[i + 2]);
		else
			end_ours(&b->v[place]);
	}
	if (!answered || (v->nv > 0 && v->v[v->nv - 1].n > 0))
		pass.missed = true;	/* not there until now, or for all that is known */
	/* Released meanwhile, and perhaps claimed after that. */
	for (uint32_t i = 0; i < b->n; i++)
		if (!still_bound(b->v[i].user, b->v[i].number))
			claim_release(b->v[i].user, b->v[i].number);
	if (!answered)
		restore_again(AGAIN_MS);
	else if (pass.on && b->pass == pass.number)
		pass_step();
	free(b);
}

static bool batch_send(struct batch *b)
{
	static char text[BATCH][72];
	const char *argv[4 + BATCH] = { hosts_self()->id, epoch_text, users, entries };

	for (uint32_t i = 0; i < b->n; i++) {
		const struct one *o = &b->v[i];

		snprintf(text[i], sizeof text[i], "%u %llu %llu %c", o->user,
		    (unsigned long long)o->login_ms, (unsigned long long)o->number,
		    o->ending ? 'w' : 's');
		argv[4 + i] = text[i];
	}
	return bus_up() && bus_script(&script_restore, 0, 4 + b->n, argv, NULL, restored, b, 0);
}

static void restore_late(uint32_t user, uint64_t number, uint32_t rec, uint32_t gen)
{
	struct batch *b = malloc(sizeof *b + sizeof b->v[0]);

	if (b == NULL)
		return;
	b->n = 1;
	b->pass = 0;
	if (restorable(rec, &b->v[0]) && b->v[0].user == user && b->v[0].number == number &&
	    b->v[0].gen == gen && batch_send(b))
		return;
	free(b);
}

static void on_pass_timer(struct timer *t)
{
	(void)t;
	pass_step();
}

/* One batch is under way at a time: its answer asks for the next. */
static void pass_step(void)
{
	struct batch *b = malloc(sizeof *b + BATCH * sizeof b->v[0]);
	uint32_t looked = 0, first = pass.next, high = rec_high();

	if (b == NULL || !bus_up()) {
		free(b);
		restore_again(AGAIN_MS);
		return;
	}
	b->n = 0;
	b->pass = pass.number;
	for (; pass.next < high && b->n < BATCH && looked < LOOK; pass.next++, looked++)
		b->n += restorable(pass.next, &b->v[b->n]);
	if (b->n > 0 && batch_send(b))
		return;
	if (b->n > 0) {
		pass.next = first;
		timer_set(&pass_timer, clock_ms() + FULL_MS, on_pass_timer);
	} else if (pass.next < high) {
		timer_set(&pass_timer, clock_ms(), on_pass_timer);
	} else {
		pass.on = false;
		if (pass.missed)	/* what was stored while nobody could know who serves them */
			cluster_look_again();
		pass.missed = false;
	}
	free(b);
}

bool claim_restoring(void)
{
	return pass.on || timer_is_set(&again_timer);
}

static void pass_begin(void)
{
	pass.next = 0;
	if (pass.on)
		return;			/* what is under way goes on from the start */
	pass.on = true;
	pass.number++;
	pass_step();
}

static void on_again(struct timer *t)
{
	(void)t;
	if (bus_up())
		claim_restore();
}

/* Something was not answered: all is claimed again, unless the connection is lost and that comes anyway. */
static void restore_again(uint32_t ms)
{
	pass.on = false;
	timer_stop(&pass_timer);
	if (!timer_is_set(&again_timer))
		timer_set(&again_timer, clock_ms() + ms, on_again);
}

static void on_verify(struct timer *t)
{
	(void)t;
	if (bus_up())
		pass_begin();
}

void claim_restore(void)
{
	if (!ready() || !bus_up())
		return;
	was_up = true;
	timer_stop(&again_timer);
	take_waiting();
	release_kept();
	pass_begin();
	/* Once more when all hosts that came back have their entries: claims without one were free. */
	timer_set(&verify_timer, clock_ms() + VERIFY_MS, on_verify);
}

/* ---- asking ---- */

struct ask { where_fn *done; uint64_t tag, tag2; uint32_t user; };

static void ask_tell(struct ask *a, enum where w, struct host *h)
{
	a->done(a->tag, a->tag2, w, h);
	free(a);
}

/* A claim of ours holds while its session does; one that was left over is taken away. */
static void ask_ours(struct ask *a, const struct claim_owner *o)
{
	struct sess_ref ref;

	if (sess_find(a->user, &ref) == SESS_OK) {
		ask_tell(a, WHERE_HOST, hosts_self());
		return;
	}
	claim_release(a->user, o->number);
	ask_tell(a, WHERE_NOBODY, NULL);
}

/* Redis says that this life goes on; our copy of the registry does not know it (yet). */
static void asked_again(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct ask *a = arg;
	struct claim_owner o;

	(void)tag;
	if (v != NULL && v->type == BUS_NIL)
		ask_tell(a, WHERE_NOBODY, NULL);
	else if (v != NULL && read_owner(v, &o) && hosts_alive(o.key, o.epoch))
		ask_tell(a, WHERE_HOST, hosts_find(o.key));
	else
		ask_tell(a, WHERE_UNKNOWN, NULL);
}

/* Was it answered, be it that what is there is no text? */
static bool says_something(const struct bus_value *v)
{
	return v != NULL && (v->type == BUS_STR || v->type == BUS_NIL ||
	    (v->type == BUS_ERROR && strncmp(v->s, "WRONGTYPE", 9) == 0));
}

static void asked(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct ask *a = arg;
	struct claim_owner o;
	char key[KEY_MAX];

	(void)tag;
	if (!says_something(v)) {
		ask_tell(a, WHERE_UNKNOWN, NULL);
	} else if (!read_owner(v, &o)) {
		ask_tell(a, WHERE_NOBODY, NULL);
	} else if (is_ours(&o)) {
		ask_ours(a, &o);
	} else if (o.key == hosts_self()->key) {
		ask_tell(a, WHERE_NOBODY, NULL);
	} else if (hosts_alive(o.key, o.epoch)) {
		ask_tell(a, WHERE_HOST, hosts_find(o.key));
	} else {
		const char *argv[] = { user_key(key, a->user), entries };

		if (!bus_script(&script_where, 1, 2, argv, NULL, asked_again, a, 0))
			ask_tell(a, WHERE_UNKNOWN, NULL);
	}
}

void claim_where(uint32_t user, where_fn *done, uint64_t tag, uint64_t tag2)
{
	struct ask *a;
	char key[KEY_MAX];

	if (!cluster_on()) {
		done(tag, tag2, WHERE_NOBODY, NULL);
		return;
	}
	if (!ready() || !bus_up() || (a = malloc(sizeof *a)) == NULL) {
		done(tag, tag2, WHERE_UNKNOWN, NULL);
		return;
	}
	*a = (struct ask){ done, tag, tag2, user };
	const char *argv[] = { "GETRANGE", user_key(key, user), "0", "199" };	/* of whatever is there */
	if (!bus_send(4, argv, NULL, asked, a, 0))
		ask_tell(a, WHERE_UNKNOWN, NULL);
}

struct many {
	const uint32_t *ids;
	struct host **at;
	uint32_t n, under_way;		/* chunks */
	bool known;
	claim_many_fn *done;
	void *arg;
};

static void many_put(struct many *m)
{
	if (--m->under_way > 0)
		return;
	m->done(m->arg, m->known);
	free(m);
}

/* From place FROM on as many ids as a chunk has room for; equal neighbours share a place in it. */
static uint32_t chunk_end(const struct many *m, uint32_t from)
{
	uint32_t i = from, keys = 0;

	for (; i < m->n; i++)
		if ((i == from || m->ids[i] != m->ids[i - 1]) && ++keys > CHUNK)
			break;
	return i;
}

static void chunk_came(void *arg, uint64_t tag, const struct bus_value *v)
{
	struct many *m = arg;
	uint32_t from = (uint32_t)(tag >> 32), to = (uint32_t)tag, k = 0;
	struct claim_owner o;

	if (v == NULL || v->type != BUS_ARRAY)
		m->known = false;
	for (uint32_t i = from; m->known && i < to; i++) {
		if (i > from && m->ids[i] == m->ids[i - 1]) {
			m->at[i] = m->at[i - 1];
			continue;
		}
		if (k >= v->nv)
			break;
		if (read_owner(&v->v[k++], &o) && o.key != hosts_self()->key &&
		    hosts_alive(o.key, o.epoch))
			m->at[i] = hosts_find(o.key);
	}
	many_put(m);
}

static bool chunk_send(struct many *m, uint32_t from, uint32_t to)
{
	static char keys[CHUNK][KEY_MAX];
	const char *argv[1 + CHUNK] = { "MGET" };
	unsigned argc = 1;

	for (uint32_t i = from; i < to; i++)
		if (i == from || m->ids[i] != m->ids[i - 1]) {
			argv[argc] = user_key(keys[argc - 1], m->ids[i]);
			argc++;
		}
	return bus_send(argc, argv, NULL, chunk_came, m, (uint64_t)from << 32 | to);
}

void claim_online(const uint32_t *ids, struct host **at, uint32_t n, claim_many_fn *done, void *arg)
{
	struct many *m = NULL;
	uint32_t to;

	memset(at, 0, n * sizeof *at);
	if (n == 0 || !ready() || !bus_up() || (m = malloc(sizeof *m)) == NULL) {
		done(arg, n == 0 || !cluster_on());
		return;
	}
	*m = (struct many){ .ids = ids, .at = at, .n = n, .under_way = 1, .known = true, .done = done,
	    .arg = arg };
	for (uint32_t from = 0; from < n && m->known; from = to) {
		to = chunk_end(m, from);
		m->under_way++;
		if (!chunk_send(m, from, to)) {
			m->under_way--;
			m->known = false;
		}
	}
	many_put(m);
}
