/*
 * cluster.c - the conductor: who leads, what happens when Redis or a host comes and goes, draining.
 */
#include "worker/cluster.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/bus.h"
#include "worker/call.h"
#include "worker/claim.h"
#include "worker/conn.h"
#include "worker/group.h"
#include "worker/hosts.h"
#include "worker/link.h"
#include "worker/notice.h"
#include "worker/peer.h"
#include "worker/presence.h"
#include "worker/route.h"
#include "worker/session.h"
#include "worker/state.h"
#include "worker/store.h"

#define TICK_MS     100u
#define ALONE_MS    250u		/* between looks at the drain flag without a cluster */
#define DRAIN_MS    50u
#define DRAIN_BATCH 512u		/* sessions a drain tick */
#define MISSED_MS   200u		/* between two rounds of looking into the store */
#define LOOK_MS     16u			/* between two steps of a round */
#define LOOK_STEP   128u		/* connections a step */
#define LOOK_STORE  256		/* store jobs waiting: the round pauses */
#define STALE_MS    2000u		/* a leader without a heartbeat for that long leads no more */
#define SETTLE_MS   2000u		/* and host_timeout_ms: to notice a death, and to look into the store */
#define LEAVE_MS    1000u		/* for the last answers of Redis */

static struct timer tick, look_timer, drain_timer;
static bool leading, begun, missed_again, look_again, look_late, some_wait;
static uint64_t beat_ms, missed_ms;
static uint64_t upset_ms;		/* when Redis was last away, or new, or a host's life over; 0: never */
static uint32_t lapses_seen, registry_seen, look_at, looks;
static uint32_t drain_at;
static uint64_t drain_tick_ms;
static double drain_credit;

/* ---- the lead ---- */

static uint64_t my_word(void)
{
	return (uint64_t)wk->gen << 32 | (wk->slot + 1);
}

bool cluster_on(void)
{
	return bus_configured();
}

bool cluster_up(void)
{
	return bus_up();
}

bool cluster_settled(void)
{
	return bus_up() && (upset_ms == 0 || clock_ms() - upset_ms >= wk->conf.host_timeout_ms + SETTLE_MS);
}

bool cluster_leads(void)
{
	return cluster_on() && atomic_load(&shm->head->lead) == my_word();
}

/* Does the holder of the lead still do what it is for? */
static bool holds(uint64_t word)
{
	uint32_t slot = (uint32_t)word - 1, gen = (uint32_t)(word >> 32);
	const struct slot *s;
	uint64_t beat;

	if (word == 0 || slot >= shm->head->max_workers || !slot_alive(slot, gen))
		return false;
	s = slot_at(slot);
	beat = atomic_load(&s->heartbeat_ms);
	return atomic_load(&s->bus_up) != 0 && atomic_load(&s->bus_left) != gen &&
	    (beat >= clock_ms() || clock_ms() - beat < STALE_MS);
}

static void step_down(void)
{
	if (!leading)
		return;
	leading = false;
	log_info("another worker reads the host's channel");
	bus_unsubscribe();
}

static void on_message(const char *data, size_t len)
{
	if (cluster_leads())
		link_on_packet(data, len);
	else
		step_down();
}

static void step_up(void)
{
	leading = true;
	begun = false;
	log_info("reading the host's channel");
	bus_subscribe(hosts_name("to", wk->boot->host_id), on_message);
}

static void look_at_lead(void)
{
	uint64_t word = atomic_load(&shm->head->lead);

	if (word != my_word() && bus_up() && !holds(word))
		(void)atomic_compare_exchange_strong(&shm->head->lead, &word, my_word());
	if (!cluster_leads())
		step_down();
	else if (!leading)
		step_up();
}

static void give_lead_up(void)
{
	uint64_t word = my_word();

	step_down();
	(void)atomic_compare_exchange_strong(&shm->head->lead, &word, 0);
}

/* ---- looking into the store ---- */

static void look_into(struct conn *c)
{
	c->look_due = false;
	c->looked = looks;
	session_notice(c);
	if (c->bound && c->ending == END_NONE && c->state == CONN_OPEN)
		group_recheck(c);
}

/* In a first pass all; in a late one those that were being greeted: what that read may be older. */
static void look(struct conn *c, void *arg)
{
	if (!c->bound || c->ending != END_NONE || c->state == CONN_MOVING)
		return;
	if (arg != &look_late)
		c->look_due = true;
	if (c->greeted && c->look_due)
		look_into(c);
	else if (c->look_due)
		some_wait = true;
}

void cluster_look_first(struct conn *c)
{
	if (c->looked == looks && bus_up() && !claim_restoring() &&
	    atomic_load_explicit(&shm->head->lapses, memory_order_relaxed) == lapses_seen)
		return;
	c->looked = looks;
	session_notice(c);
}

void cluster_looking(struct conn *c)
{
	c->looked = looks;
}

static void on_look(struct timer *t)
{
	if (store_depth(wk->store) < LOOK_STORE)
		look_at = conn_each_from(look_at, LOOK_STEP, look, look_late ? &look_late : NULL);
	else if (look_at == 0)
		look_at = UINT32_MAX;		/* paused before the first step */
	if (look_at != 0) {
		look_at = look_at == UINT32_MAX ? 0 : look_at;
		timer_set(t, clock_ms() + LOOK_MS, on_look);
		return;
	}
	look_late = some_wait && !look_again;
	if (look_late || look_again)
		timer_set(t, clock_ms() + (look_late ? 10 * LOOK_MS : LOOK_MS), on_look);
	look_again = some_wait = false;
}

void cluster_look_again(void)
{
	if (!cluster_on())
		return;
	looks++;
	presence_hosts_changed();
	route_resend(NULL);		/* answers may be among what was lost */
	if (timer_is_set(&look_timer)) {
		look_again = true;	/* those already looked at, once more */
		return;
	}
	look_at = 0;
	look_late = some_wait = false;
	timer_set(&look_timer, clock_ms(), on_look);
}

static void tell_missed(void)
{
	struct item_look it = { .head = { .flags = 0 } };

	missed_ms = clock_ms();
	missed_again = false;
	peer_send_all(IT_LOOK, &it, sizeof it, NULL, 0);
	cluster_look_again();
}

void cluster_missed(void)
{
	if (clock_ms() - missed_ms >= MISSED_MS)
		tell_missed();
	else
		missed_again = true;
}

/* ---- what others say ---- */

static void on_bus_up(void)
{
	/* It was away; and not just not yet connected to. */
	if (upset_ms != 0 || clock_ms() > atomic_load(&wk->s->spawned_ms) + SETTLE_MS)
		upset_ms = clock_ms();
	atomic_store(&wk->s->bus_up, 1);
	COUNT(bus_connects);
	look_at_lead();
	claim_restore();
	notice_bus_up();
	cluster_look_again();
	hosts_beat();
}

static void on_bus_down(void)
{
	upset_ms = clock_ms();
	atomic_store(&wk->s->bus_up, 0);
	link_drop_all();
	notice_bus_down();
	route_host_gone(NULL, 0);
}

/* Before the first message. A subscription that was lost and is back goes on with the streams it knows. */
static void on_subscribed(void)
{
	if (!begun)
		link_begin_reading();
	begun = true;
	cluster_missed();
	hosts_beat();
}

static void on_unsubscribed(void)
{
	log_debug("the host's channel is not read");
}

/* What it stored while nobody heard of it, or in the life that it had before. */
static void on_host_came(struct host *h)
{
	(void)h;
	cluster_look_again();
}

static void on_host_gone(struct host *h, uint64_t epoch)
{
	upset_ms = clock_ms();
	link_host_gone(h);
	route_host_gone(h, epoch);
	call_host_gone(h, epoch);
	cluster_look_again();		/* what it stored, and told nobody any more */
}

static void on_reborn(void)
{
	upset_ms = clock_ms();
	log_warn("Redis has forgotten everything, or is another one: claims are made again");
	claim_restore();
	cluster_missed();
}

/* ---- draining ---- */

bool cluster_draining(void)
{
	return atomic_load(&shm->head->drain_ms) != 0;
}

void cluster_drain(bool on)
{
	uint64_t now = clock_ms(), none = 0;

	if (on)
		(void)atomic_compare_exchange_strong(&shm->head->drain_ms, &none, now != 0 ? now : 1);
	else
		atomic_store(&shm->head->drain_ms, 0);
	atomic_fetch_add(&shm->head->registry, 1);
}

static uint32_t to_move;

static void send_away(struct conn *c, void *arg)
{
	(void)arg;
	if (to_move == 0 || c->state != CONN_OPEN || !session_logged_in(c))
		return;
	to_move--;
	session_end_notice(c, "moved", CLOSE_ENDED);
}

/* As many as keep the pace that ends with drain_seconds. */
static uint32_t due(uint64_t now)
{
	uint64_t end = atomic_load(&shm->head->drain_ms) + wk->conf.drain_seconds * 1000ull;
	uint32_t n = atomic_load(&wk->s->sessions);

	if (now >= end)
		return DRAIN_BATCH;
	drain_credit += (double)n * (double)(now - drain_tick_ms) / (double)(end - drain_tick_ms);
	return drain_credit < DRAIN_BATCH ? (uint32_t)drain_credit : DRAIN_BATCH;
}

static void on_drain(struct timer *t)
{
	uint64_t now = clock_ms();
	uint32_t steps = 0, want;

	if (!cluster_draining())
		return;
	want = to_move = due(now);
	drain_tick_ms = now;
	/* Once through all of them, in bounded steps. */
	while (to_move > 0 && steps++ < 64) {
		drain_at = conn_each_from(drain_at, 1024, send_away, NULL);
		if (drain_at == 0)
			break;
	}
	drain_credit -= want - to_move;
	if (drain_credit < 0 || to_move > 0)
		drain_credit = 0;
	timer_set(t, now + DRAIN_MS, on_drain);
}

static void look_at_drain(void)
{
	if (!cluster_draining() || timer_is_set(&drain_timer))
		return;
	drain_at = 0;
	drain_credit = 0;
	drain_tick_ms = clock_ms();
	timer_set(&drain_timer, clock_ms(), on_drain);
}

/* ---- the clock ---- */

/* Counters of the segment: a sibling heard of something that concerns all workers. */
static void look_at_counters(void)
{
	uint32_t n = atomic_load(&shm->head->lapses);

	if (n != lapses_seen) {
		lapses_seen = n;
		log_warn("our entry had vanished from the registry: claims are made again");
		claim_restore();
	}
	n = atomic_load(&shm->head->registry);
	if (n != registry_seen) {
		registry_seen = n;
		beat_ms = 0;
	}
}

/* What a worker left behind that died, or that was sent away while Redis was. */
static void look_at_debts(void)
{
	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		if (!slot_alive(i, atomic_load(&slot_at(i)->gen)))
			notice_take_over(slot_at(i));
	notice_pay();
}

static void note_error(void)
{
	char *out = wk->s->bus_error;

	if (strncmp(out, bus_error(), sizeof wk->s->bus_error - 1) != 0)
		snprintf(out, sizeof wk->s->bus_error, "%s", bus_error());
}

static void on_tick(struct timer *t)
{
	look_at_drain();
	if (!cluster_on()) {
		timer_set(t, clock_ms() + ALONE_MS, on_tick);
		return;
	}
	timer_set(t, clock_ms() + (wk->conf.heartbeat_ms < TICK_MS ? wk->conf.heartbeat_ms : TICK_MS),
	    on_tick);
	look_at_lead();
	look_at_counters();
	if (leading)
		look_at_debts();
	note_error();
	if (missed_again && clock_ms() - missed_ms >= MISSED_MS)
		tell_missed();
	if (bus_up() && (beat_ms == 0 || clock_ms() - beat_ms >= wk->conf.heartbeat_ms)) {
		beat_ms = clock_ms();
		hosts_beat();
		link_heartbeat();
	}
}

void cluster_turn_end(void)
{
	if (!cluster_on())
		return;
	link_flush();
	bus_turn_end();
}

int cluster_init(void)
{
	static const struct bus_hooks bus = { on_bus_up, on_bus_down, on_subscribed, on_unsubscribed };
	static const struct hosts_hooks hosts = { on_host_came, on_host_gone, on_reborn };

	atomic_store(&wk->s->bus_up, 0);
	timer_set(&tick, clock_ms(), on_tick);
	if (*wk->conf.redis == '\0')
		return 0;
	lapses_seen = atomic_load(&shm->head->lapses);
	registry_seen = atomic_load(&shm->head->registry);
	notice_take_over(wk->s);
	if (hosts_init(&hosts) != 0 || call_init() != 0)
		return -1;
	return bus_init(&bus);
}

/*
 * Logins before that would be let in without a claim, or with one that others take for a dead host's. A
 * worker that is born while no sibling has a connection has nothing to wait for.
 */
bool cluster_ready(void)
{
	bool hope = wk->gen == 1;

	if (!cluster_on() || (bus_up() && atomic_load(&shm->head->announced) != SEGMENT_UNKNOWN))
		return true;
	for (uint32_t i = 0; i < shm->head->max_workers && !hope; i++)
		hope = i != wk->slot && atomic_load(&slot_at(i)->bus_up) != 0;
	return !hope;
}

/* Does another worker of this host still speak to other hosts? */
static bool others(void)
{
	for (uint32_t i = 0; i < shm->head->max_workers; i++) {
		uint32_t gen = atomic_load(&slot_at(i)->gen);

		if (i != wk->slot && slot_alive(i, gen) && atomic_load(&slot_at(i)->bus_left) != gen)
			return true;
	}
	return false;
}

void cluster_stop(void)
{
	if (!cluster_on())
		return;
	atomic_store(&wk->s->bus_left, wk->gen);
	give_lead_up();
	link_flush();
	if (wk->stopping && !others())
		hosts_leave();
	bus_close(LEAVE_MS);
	atomic_store(&wk->s->bus_up, 0);
}

/* ---- before the first worker ---- */

static int ask(const struct conf *cf, const char *a, const char *b, const char *c, char *value,
    size_t cap, int64_t *n)
{
	const char *argv[3] = { a, b, c };
	char why[256] = "";
	int rc = bus_ask(cf, c != NULL ? 3 : 2, argv, value, cap, n, why, sizeof why);

	if (rc != 0)
		log_warn("redis: %s; whether another host has our id is not known", why);
	return rc;
}

/* Is there an entry of another life, and does somebody read its channel? 1, 0, or -1: not known. */
static int other_life(const struct conf *cf, const char *host_id)
{
	char entry[1024], mark[48];
	int64_t n;

	snprintf(mark, sizeof mark, "{\"epoch\":\"%" PRIu64 "\"", shm->head->epoch);
	if (ask(cf, "GET", hosts_name("host", host_id), NULL, entry, sizeof entry, &n) != 0)
		return -1;
	if (entry[0] == '\0' || strncmp(entry, mark, strlen(mark)) == 0)
		return 0;
	if (ask(cf, "PUBSUB", "NUMSUB", hosts_name("to", host_id), NULL, 0, &n) != 0)
		return -1;
	return n > 0;
}

static void wait_ms(uint32_t ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	(void)nanosleep(&ts, NULL);
}

/*
 * A former life of ours may have left an entry, and even, where its machine lost power, a connection
 * that Redis believes in; but only one that lives prolongs it.
 */
int cluster_check_start(const struct conf *conf, const char *host_id)
{
	int64_t left = INT64_MAX, now_left;

	if (*conf->redis == '\0')
		return 0;
	if (strncmp(conf->store, "sqlite:", 7) == 0)
		log_warn("the store is a file of this host: hosts of a cluster need one MySQL");
	hosts_set_prefix(conf);
	if (other_life(conf, host_id) <= 0)
		return 0;
	wait_ms(300);
	/* What does not run out (-1) was not written by a host. */
	while (other_life(conf, host_id) > 0 &&
	    ask(conf, "PTTL", hosts_name("host", host_id), NULL, NULL, 0, &now_left) == 0 && now_left >= 0) {
		if (now_left > left) {
			log_fatal("another host with host_id %s is alive in cluster %s: give one of them "
			    "another id", host_id, conf->cluster);
			return WORKER_CONFIG;
		}
		left = now_left;
		wait_ms(50);
	}
	return 0;
}
