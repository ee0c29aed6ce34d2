/*
 * worker.c - a worker process: set up, loop, orders of the master, the ways to end.
 *
 * A turn: what epoll reports, timers, then everything gathered leaves: frames to clients, one
 * packet a peer, the store jobs' wake-up. The heart beats at its beginning.
 */
#include "worker/worker.h"

#include <errno.h>
#include <poll.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shm/fault.h"
#include "shm/lock.h"
#include "worker/admin.h"
#include "worker/auth.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/base/shape.h"
#include "worker/cluster.h"
#include "worker/conn.h"
#include "worker/ipc.h"
#include "worker/loop.h"
#include "worker/move.h"
#include "worker/notice.h"
#include "worker/peer.h"
#include "worker/presence.h"
#include "worker/redo.h"
#include "worker/route.h"
#include "worker/seat.h"
#include "worker/session.h"
#include "worker/state.h"
#include "worker/store.h"
#include "worker/sweep.h"

#define TICK_MS    1000
#define PARK_MS    2000u		/* what says nothing for so long is parked */
#define LEAVE_MS   4			/* between two looks at who can move */
#define PURGE_MS   30000
#define START_MS   1500			/* for the first word of the store */
#define START_STEP_MS 20
#define CLUSTER_MS 300			/* for the first connection to Redis */
#define RELEASE_MS 2000			/* a slot is given back at the latest, swept or not */

struct listener { struct watch w; unsigned index; };

/* A slot served here: the own one, and those of siblings that have no worker. */
struct port {
	bool used, swept_told, releasing;
	uint32_t slot, gen;
	struct watch inbox, control;
	struct listener listener[CONF_LISTEN_MAX];
	unsigned nlisteners;
	uint64_t release_by_ms;
};

static struct worker self;
struct worker *wk = &self;

static struct port *ports;		/* [max_workers] by slot */
static struct watch life, store_watch, auth_watch;
static struct timer tick, leave_timer;
static uint64_t stop_at_ms, hard_at_ms, purge_at_ms;
static int exit_code;
static bool own_conf;
static uint64_t commits_seen;
static bool store_told_down;

static void on_control(struct watch *w, uint32_t events);

/* ---- ports ---- */

static void on_listener(struct watch *w, uint32_t events)
{
	struct listener *l = (struct listener *)w;

	(void)events;
	conn_accept_from(w->fd, l->index);
}

static void on_inbox(struct watch *w, uint32_t events)
{
	(void)events;
	peer_read(w->fd);
}

static int listen_on(struct port *p, unsigned index, int fd)
{
	struct listener *l = &p->listener[index];

	l->index = index;
	l->w = (struct watch){ .fd = fd, .on_event = on_listener };
	if (wk->conf.listen[index].path == NULL)
		conn_tune_listener(fd);
	/* A unix listener is one for all workers: wake one of them. */
	return loop_watch(&l->w, wk->conf.listen[index].path != NULL ? EPOLLIN | EPOLLEXCLUSIVE : EPOLLIN);
}

static void port_unlisten(struct port *p)
{
	for (unsigned i = 0; i < p->nlisteners; i++)
		loop_unwatch(&p->listener[i].w);
}

static int port_open(uint32_t slot, uint32_t gen, int inbox, int control, const int *listeners,
    unsigned n)
{
	struct port *p = &ports[slot];
	int rc;

	*p = (struct port){ .used = true, .slot = slot, .gen = gen, .nlisteners = n };
	p->inbox = (struct watch){ .fd = inbox, .on_event = on_inbox };
	p->control = (struct watch){ .fd = control, .on_event = on_control };
	rc = loop_watch(&p->inbox, EPOLLIN);
	if (rc == 0)
		rc = loop_watch(&p->control, EPOLLIN);
	for (unsigned i = 0; rc == 0 && i < n; i++)
		rc = listen_on(p, i, listeners[i]);
	return rc;
}

static void port_close(struct port *p)
{
	port_unlisten(p);
	loop_unwatch(&p->inbox);
	loop_unwatch(&p->control);
	for (unsigned i = 0; i < p->nlisteners; i++)
		close(p->listener[i].w.fd);
	close(p->inbox.fd);
	close(p->control.fd);
	p->used = false;
}

/* ---- telling the master ---- */

static void tell(enum ipc_ctl_type type, uint32_t a, uint32_t b)
{
	struct ipc_ctl m = { .type = type, .from_slot = wk->slot, .from_gen = wk->gen, .a = a, .b = b };

	if (ipc_ctl_send(wk->boot->up, &m, NULL, 0) != IPC_OK)
		log_warn("the master does not take %s", ipc_ctl_name(type));
}

/* ---- the end ---- */

static void end_session_of(struct conn *c, void *arg)
{
	if (c->state == CONN_OPEN)
		session_end_notice(c, arg, CLOSE_ENDED);
}

static void close_conn(struct conn *c, void *arg)
{
	(void)arg;
	if (c->state != CONN_CLOSED && c->state != CONN_MOVING)
		conn_close(c, CLOSE_STOP);
}

static void begin_stop(const char *reason, int code)
{
	static char text[65];

	if (wk->stopping)
		return;
	strncpy(text, reason != NULL && *reason != '\0' ? reason : "shutdown", sizeof text - 1);
	wk->stopping = true;
	wk->leaving = false;
	exit_code = code;
	stop_at_ms = clock_ms() + wk->conf.stop_seconds * 1000ull;
	hard_at_ms = clock_ms() + wk->conf.stop_seconds * 500ull;
	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		if (ports[i].used)
			port_unlisten(&ports[i]);
	conn_each(end_session_of, text);
	loop_again();
}

static bool nothing_left(void)
{
	return wk->nconns == 0 && route_idle() && sweep_idle() && redo_waiting() == 0 &&
	    store_depth(wk->store) == 0 && peer_idle() && move_count() == 0 && notice_idle();
}

static void stop_step(void)
{
	if (clock_ms() >= hard_at_ms && hard_at_ms != 0) {
		conn_each(close_conn, NULL);
		route_divert_all();
		hard_at_ms = 0;
	}
	if (nothing_left()) {
		loop_stop();
	} else if (clock_ms() >= stop_at_ms) {
		log_warn("stopped with %u connections and %u store jobs unfinished", wk->nconns,
		    redo_waiting() + (uint32_t)store_depth(wk->store));
		loop_stop();
	}
}

static void on_leave(struct timer *t)
{
	if (!wk->leaving)
		return;
	move_all();
	move_check();
	if (nothing_left() && region_used(wk->region) == 0) {
		tell(IPC_LEFT, wk->slot, wk->gen);
		loop_stop();
		return;
	}
	timer_set(t, clock_ms() + LEAVE_MS, on_leave);
}

static void begin_leave(void)
{
	if (wk->leaving || wk->stopping)
		return;
	log_info("leaving: %u connections go to siblings", wk->nconns);
	wk->leaving = true;
	port_unlisten(&ports[wk->slot]);
	timer_set(&leave_timer, clock_ms(), on_leave);
}

/* ---- reload ---- */

static void conf_error(void *arg, const char *file, int line, const char *text)
{
	(void)arg;
	log_error("configuration handed over: %s:%d: %s", file, line, text);
}

static void apply_conf(void)
{
	const struct conf *cf = &wk->conf;

	log_set_level((enum log_level)cf->log_level);
	auth_set_cost(wk->auth, cf->hash_memory, cf->hash_passes);
	store_set_pool(wk->store, cf->pool_wait_ms, cf->group_keep_days);
	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		for (unsigned k = 0; ports[i].used && k < ports[i].nlisteners; k++)
			if (cf->listen[k].path == NULL)
				conn_tune_listener(ports[i].listener[k].w.fd);
}

static void rearm(struct conn *c, void *arg)
{
	(void)arg;
	conn_rearm(c);
}

static void reload(void)
{
	uint32_t version = atomic_load(&shm->head->conf_version), len;
	struct conf next;
	char *text = segment_at(shm->head->conf_off + (version & 1) * SEGMENT_CONF_MAX);

	len = atomic_load(&shm->head->conf_len[version & 1]);
	conf_init(&next);
	if (len > SEGMENT_CONF_MAX ||
	    conf_read_text(&next, "reload", text, len, conf_error, NULL) != 0 ||
	    conf_finish(&next, conf_error, NULL) != 0) {
		conf_free(&next);
		log_error("this worker keeps its former configuration");
		return;
	}
	if (own_conf)
		conf_free(&wk->conf);
	wk->conf = next;
	own_conf = true;
	apply_conf();
	conn_each(rearm, NULL);
	atomic_store(&wk->s->conf_version, version);
	tell(IPC_RELOADED, version, 0);
}

/* ---- orders ---- */

static void adopt(const struct ipc_ctl *m, int *fds, unsigned n)
{
	if (m->a >= shm->head->max_workers || m->a == wk->slot || n < 2 ||
	    n - 2 > wk->conf.nlisten || wk->stopping) {
		while (n > 0)
			close(fds[--n]);
		return;
	}
	if (ports[m->a].used)
		port_close(&ports[m->a]);
	if (port_open(m->a, m->b, fds[0], fds[1], fds + 2, n - 2) != 0)
		log_error("cannot serve slot %u: %s", m->a, strerror(errno));
	log_info("serving slot %u as well", m->a);
	sweep_start(m->a, 0);
	presence_recheck_later();
}

static void release_if_swept(struct port *p)
{
	if (!sweep_slot_idle(p->slot) && clock_ms() < p->release_by_ms)
		return;
	port_close(p);
	peer_flush();
	tell(IPC_RELEASED, p->slot, p->gen);
}

static void release(const struct ipc_ctl *m)
{
	struct port *p = m->a < shm->head->max_workers ? &ports[m->a] : NULL;

	if (p == NULL || m->a == wk->slot)
		return;
	if (!p->used) {
		tell(IPC_RELEASED, m->a, 0);
		return;
	}
	p->releasing = true;
	p->release_by_ms = clock_ms() + RELEASE_MS;
	release_if_swept(p);
}

static void run_order(const struct ipc_ctl *m, int *fds, unsigned n)
{
	char reason[65] = "";

	switch (m->type) {
	case IPC_STOP:
		memcpy(reason, m->body, m->len);
		begin_stop(reason, WORKER_DONE);
		break;
	case IPC_QUIT:
		_exit(WORKER_DONE);
	case IPC_LEAVE:
		begin_leave();
		break;
	case IPC_RELOAD:
		reload();
		break;
	case IPC_REOPEN:
		if (log_reopen() != 0)
			log_warn("the log could not be reopened");
		break;
	case IPC_ADOPT:
		adopt(m, fds, n);
		break;
	case IPC_RELEASE:
		release(m);
		break;
	case IPC_ADMIN:
		admin_take(fds[0], m->body, m->len);
		break;
	case IPC_MOVE:
		move_on_move(m, fds[0]);
		break;
	case IPC_TAKEN:
		move_on_taken(m);
		break;
	case IPC_KEEP:
		move_on_keep(m);
		break;
	default:
		log_warn("an order that is none: %s", ipc_ctl_name(m->type));
		while (n > 0)
			close(fds[--n]);
	}
}

/* On the control socket of an empty slot only what is for whoever serves it, or wants an answer. */
static bool for_me(const struct port *p, const struct ipc_ctl *m)
{
	if (p->slot == wk->slot && (m->to_gen == 0 || m->to_gen == wk->gen))
		return true;
	return m->type == IPC_ADMIN;
}

static void on_control(struct watch *w, uint32_t events)
{
	struct port *p = (struct port *)((char *)w - offsetof(struct port, control));
	static struct ipc_ctl m;
	int fds[IPC_CTL_FDS];
	unsigned n;
	enum ipc_rc rc;

	(void)events;
	for (int i = 0; i < 32; i++) {
		if ((rc = ipc_ctl_recv(w->fd, &m, fds, &n)) == IPC_BAD)
			continue;
		if (rc != IPC_OK)
			return;
		if (for_me(p, &m)) {
			run_order(&m, fds, n);
			continue;
		}
		/* For a worker that died. A client that was being moved to it stays where it is:
		 * the descriptor is closed here, and the record was never taken. */
		while (n > 0)
			close(fds[--n]);
	}
}

static void on_life(struct watch *w, uint32_t events)
{
	(void)events;
	loop_unwatch(w);
	wk->orphan = true;
	log_error("the master is gone");
	begin_stop("shutdown", WORKER_ORPHAN);
}

/* ---- store, hashes, keys ---- */

static void on_store(struct watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	COUNT_N(store_jobs, store_complete(wk->store));
	atomic_store_explicit(&wk->s->store_up, store_up(wk->store), memory_order_relaxed);
}

static void on_auth(struct watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	auth_complete(wk->auth);
}

static void ask_for_keys(void);

static void got_keys(struct store_job *j, void *arg)
{
	(void)arg;
	if (j->rc != STORE_OK || j->len != 32 || j->body == NULL)
		return;			/* asked again by the tick */
	memcpy(wk->keys[0], j->body, 32);
	wk->keys_ready = true;
}

/* The key that signs resume tokens is the store's, so that every host accepts every token. */
static void ask_for_keys(void)
{
	struct store_job *j = store_job_new(STORE_META, got_keys, NULL);

	strcpy(j->name, "token_key");
	store_job_body(j, wk->boot->token_key, 32);
	store_submit(wk->store, j);
}

static void on_store_state(void *arg, bool up, const char *why)
{
	(void)arg;
	atomic_store(&wk->s->store_up, up);
	if (up) {
		log_info("the store is available");
		redo_run();
		if (!wk->keys_ready)
			ask_for_keys();
	} else {
		COUNT(store_failures);
		store_told_down = true;
		log_error("the store is not available: %s", why != NULL ? why : "no reason known");
	}
}

static void purge(void)
{
	struct store_job *j;

	/* One worker does it for the host: the lowest that serves. */
	for (uint32_t i = 0; i < wk->slot; i++)
		if (atomic_load(&slot_at(i)->state) == SLOT_READY)
			return;
	j = store_job_new(STORE_PURGE, NULL, NULL);
	j->limit = wk->conf.group_keep_days;
	store_submit(wk->store, j);
}

/* ---- the turn ---- */

static void beat(void)
{
	atomic_store_explicit(&wk->s->heartbeat_ms, clock_ms(), memory_order_relaxed);
}

static void on_lock_wait(int tid)
{
	atomic_store(&wk->s->waits_tid, tid);
	atomic_store(&wk->s->heartbeat_ms, clock_now_ms());
}

static void on_tick(struct timer *t)
{
	uint64_t commits = store_commits(wk->store);

	timer_set(t, clock_ms() + TICK_MS, on_tick);
	region_tidy(wk->region);
	seat_tidy(PARK_MS);
	atomic_store(&wk->s->region_used, region_used(wk->region));
	atomic_store(&wk->s->queue_depth, store_depth(wk->store) + redo_waiting());
	atomic_store(&wk->s->store_up, store_up(wk->store));
	COUNT_N(commits, commits - commits_seen);
	commits_seen = commits;
	move_check();
	if (!wk->keys_ready && store_up(wk->store))
		ask_for_keys();
	if (clock_ms() >= purge_at_ms) {
		purge_at_ms = clock_ms() + PURGE_MS;
		purge();
	}
}

static void look_at_ports(void)
{
	for (uint32_t i = 0; i < shm->head->max_workers; i++) {
		struct port *p = &ports[i];

		if (!p->used || i == wk->slot)
			continue;
		if (!p->swept_told && sweep_slot_idle(i)) {
			p->swept_told = true;
			atomic_store(&slot_at(i)->swept, p->gen);
			tell(IPC_SWEPT, i, p->gen);
		}
		if (p->releasing)
			release_if_swept(p);
	}
}

static void turn_begin(void)
{
	COUNT(turns);
	atomic_store_explicit(&wk->s->waits_tid, 0, memory_order_relaxed);
	beat();
}

static void turn_end(void)
{
	redo_turn_end();
	conn_flush_all();
	admin_turn_end();
	look_at_ports();
	store_flush(wk->store);
	cluster_turn_end();
	peer_flush();
	if (wk->stopping)
		stop_step();
}

/* ---- set-up ---- */

/* This worker's part of the host's connections, but for the one that writes; at least one reads. */
static uint32_t share(uint32_t of_host, uint32_t workers)
{
	uint32_t n = of_host / (workers > 0 ? workers : 1);

	return n > 2 ? n - 1 : 1;
}

static struct store_setup store_setup_of(const struct conf *cf)
{
	return (struct store_setup){ .url = cf->store, .password = NULL,
	    .pool_init = share(cf->pool_init, cf->workers), .pool_max = share(cf->pool_max, cf->workers),
	    .pool_idle_seconds = cf->pool_idle_seconds, .pool_wait_ms = cf->pool_wait_ms,
	    .timeout_seconds = cf->store_timeout_seconds, .keep_days = cf->group_keep_days,
	    .sqlite_full = cf->sqlite_full, .load = { .friends = cf->friends_max,
	    .groups = cf->groups_max, .members = 100, .offline = 100, .offline_bytes = 49152 },
	    .on_state = on_store_state };
}

/* The first line of store_password_file, NULL where there is none. Static memory. */
static const char *password_of(const struct conf *cf)
{
	static char line[256];
	FILE *f;

	if (cf->store_password_file == NULL || *cf->store_password_file == '\0')
		return NULL;
	f = fopen(cf->store_password_file, "re");
	if (f == NULL || fgets(line, sizeof line, f) == NULL) {
		log_error("store_password_file %s: %s", cf->store_password_file, strerror(errno));
		line[0] = '\0';
	}
	if (f != NULL)
		fclose(f);
	line[strcspn(line, "\r\n")] = '\0';
	return line;
}

static int open_store(void)
{
	struct store_setup s = store_setup_of(&wk->conf);

	s.password = password_of(&wk->conf);
	wk->store = store_new(&s);
	if (wk->store == NULL)
		return -1;
	store_watch = (struct watch){ .fd = store_fd(wk->store), .on_event = on_store };
	return loop_watch(&store_watch, EPOLLIN);
}

static int open_auth(void)
{
	struct auth_setup a = { .memory_kib = wk->conf.hash_memory, .passes = wk->conf.hash_passes,
	    .budget = wk->conf.hash_threads, .busy = &slot_at(0)->hash_busy,
	    .stride = sizeof(struct slot), .nslots = shm->head->max_workers, .slot = wk->slot };

	if (auth_init() != 0 || (wk->auth = auth_new(&a)) == NULL)
		return -1;
	auth_watch = (struct watch){ .fd = auth_fd(wk->auth), .on_event = on_auth };
	return loop_watch(&auth_watch, EPOLLIN);
}

/*
 * Whoever is let in expects its token: the store says what signs them, or that it is not there. A
 * store that does neither is not waited for any longer than START_MS.
 */
static void wait_for_store(void)
{
	uint64_t until = clock_now_ms() + START_MS;
	struct pollfd p = { .fd = store_fd(wk->store), .events = POLLIN };

	ask_for_keys();
	while (!wk->keys_ready && !store_told_down && clock_now_ms() < until) {
		store_flush(wk->store);
		(void)poll(&p, 1, START_STEP_MS);
		clock_tick();
		beat();
		on_store(&store_watch, 0);
	}
}

static void wait_for_cluster(void)
{
	uint64_t until = clock_now_ms() + CLUSTER_MS;

	clock_tick();
	while (!cluster_ready() && clock_now_ms() < until) {
		cluster_turn_end();
		loop_turn(START_STEP_MS);
		beat();
	}
}

static int set_up(const struct worker_boot *boot)
{
	const struct loop_hooks hooks = { conn_event, turn_begin, turn_end };

	self = (struct worker){ .boot = boot, .conf = *boot->conf, .slot = boot->slot,
	    .gen = boot->gen, .s = slot_at(boot->slot) };
	(void)signal(SIGPIPE, SIG_IGN);
	clock_tick();
	beat();
	lock_on_wait(on_lock_wait);
#ifdef PARLEY_FAULTS
	fault_slot((int)boot->slot);
#endif
	ports = calloc(shm->head->max_workers, sizeof *ports);
	wk->json = json_new(0);
	wk->shapes = shapes_new();
	wk->json2 = json_new(JSON_UNTRUSTED);
	wk->scratch = malloc(SCRATCH);
	wk->text = malloc(SCRATCH);
	wk->region = region_open(wk->slot, wk->gen == 1);
	if (ports == NULL || wk->json == NULL || wk->shapes == NULL || wk->json2 == NULL || wk->scratch == NULL || wk->text == NULL ||
	    wk->region == NULL || loop_init(&hooks) != 0 || conn_init() != 0 || peer_init() != 0 || cluster_init() != 0 ||
	    route_init() != 0 || open_store() != 0 || open_auth() != 0)
		return -1;
	/* What the predecessor held is on its way to the store before its inbox is read on. */
	sweep_start(wk->slot, wk->gen);
	atomic_store(&wk->s->swept, wk->gen - 1);
	life = (struct watch){ .fd = boot->life, .on_event = on_life };
	return loop_watch(&life, EPOLLIN);
}

int worker_run(const struct worker_boot *boot)
{
	/* Said outright, because glibc raises it to megabytes that ended store threads then keep. */
	mallopt(M_TRIM_THRESHOLD, 128 << 10);
	mallopt(M_ARENA_MAX, 2);	/* the loop's, and one that the threads share */
	if (boot->keep != NULL)
		worker_tidy(boot);
	if (set_up(boot) != 0) {
		log_fatal("the worker cannot start: %s", strerror(errno));
		return WORKER_FAILED;
	}
	if (wk->gen > 1)
		presence_recheck_later();
	wait_for_store();
	wait_for_cluster();
	if (port_open(wk->slot, wk->gen, boot->inbox, boot->control, boot->listeners, boot->conf->nlisten) != 0) {
		log_fatal("the worker cannot serve: %s", strerror(errno));
		return WORKER_FAILED;
	}
	timer_set(&tick, clock_ms() + TICK_MS, on_tick);
	purge_at_ms = clock_ms() + PURGE_MS;
	store_flush(wk->store);
	atomic_store(&wk->s->conf_version, atomic_load(&shm->head->conf_version));
	tell(IPC_READY, 0, 0);
	log_debug("serving");
	loop_run();
	cluster_stop();
	peer_flush();
	store_free(wk->store, 1000);
	return exit_code;
}

/* ---- migration ---- */

static void migrate_tell(const char *text)
{
	log_warn("store: %s", text);
}

int worker_migrate(const struct conf *conf, const char *host_id)
{
	struct store_setup s = store_setup_of(conf);
	char why[512] = "";
	int rc;

	if ((rc = cluster_check_start(conf, host_id)) != 0)
		return rc;
	s.password = password_of(conf);
	rc = store_migrate(&s, migrate_tell, why, sizeof why);
	if (rc == STORE_OK)
		return 0;
	if (rc == STORE_DOWN || rc == STORE_BUSY || rc == STORE_UNSURE) {
		log_error("the store is not available: %s", why);
		return WORKER_FAILED;
	}
	log_fatal("the store cannot be used: %s", why);
	return WORKER_CONFIG;
}
