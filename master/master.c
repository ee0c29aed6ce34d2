/*
 * master.c - the master process.
 *
 * Order of the start: lock, then segment, sockets and channels, then the first fork. Whatever
 * a child can inherit must be there before it, and nothing may be bound while workers of a
 * dead master still serve.
 */
#include "master/master.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "master/control.h"
#include "master/listen.h"
#include "master/reactor.h"
#include "master/service.h"
#include "master/statedir.h"
#include "master/supervise.h"
#include "master/title.h"
#include "master/who.h"
#include "shm/segment.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"

#define START_MS   60000		/* with -d: up by then, or given up */
#define ORPHANS_MS 5000			/* after SIGKILL, for the kernel to close everything */
#define STATUS_MS  5000
#define RESERVE    64			/* descriptors for the store, the log, Redis, ... */

struct master {
	const struct master_args *args;
	struct conf *conf;
	struct who who;
	struct statedir state;
	struct segment segment;
	struct listeners listeners;
	struct reactor reactor;
	struct watch signals;
	struct sup sup;
	struct control control;
	struct service service;
	char host_id[65];
	unsigned char token_key[32];
	uint32_t conf_version;
	bool up, stopping;
	uint64_t start_by_ms, status_ms;
};

/* A start that failed: into the log, and to whoever waits for the verdict. */
static int fail(struct master *m, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int fail(struct master *m, int code, const char *fmt, ...)
{
	char text[900];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	log_fatal("%s", text);
	service_notify("STATUS=%.400s", text);
	service_failed(&m->service, code, text);
	return code;
}

/* --- Configuration ---------------------------------------------------------------------------- */

int master_read_conf(struct conf *c, const char *path, char **overrides, unsigned noverrides,
    conf_error_fn *tell, void *arg)
{
	int errors = 0;

	conf_init(c);
	if (path != NULL)
		errors += conf_read(c, path, tell, arg);
	for (unsigned i = 0; i < noverrides; i++)
		errors += conf_override(c, overrides[i], tell, arg);
	return errors + conf_finish(c, tell, arg);
}

static const char *log_target(const struct master *m, const struct conf *conf)
{
	/* Detached there is no stderr; syslog is where init scripts' daemons talk. */
	return m->args->detach && strcmp(conf->log, "stderr") == 0 ? "syslog" : conf->log;
}

/* Puts the configuration as text where workers read it, and makes it the one in force. */
static int publish(struct master *m, const struct conf *conf)
{
	struct segment_head *h = m->segment.head;
	uint32_t version = m->conf_version + 1;
	char *text = m->segment.base + h->conf_off + (size_t)(version & 1) * SEGMENT_CONF_MAX;
	size_t len;
	int rc = segment_reserve(h->conf_off, 2 * (uint64_t)SEGMENT_CONF_MAX);

	if (rc < 0)
		return rc;
	len = conf_dump(conf, text, SEGMENT_CONF_MAX);
	if (len >= SEGMENT_CONF_MAX)
		return -E2BIG;
	atomic_store(&h->conf_len[version & 1], (uint32_t)len);
	atomic_store(&h->conf_version, version);
	m->conf_version = version;
	return 0;
}

struct teller { conf_error_fn *tell; void *arg; };

static void tell_reload(void *arg, const char *file, int line, const char *text)
{
	const struct teller *t = arg;

	if (file != NULL)
		log_error("reload: %s:%d: %s", file, line, text);
	else
		log_error("reload: %s", text);
	if (t->tell != NULL)
		t->tell(t->arg, file, line, text);
}

/* Everything that can fail, before anything is changed. */
static int prepare_reload(struct master *m, struct conf *new, struct teller *t)
{
	const struct master_args *a = m->args;
	char text[200];
	int rc;

	if (master_read_conf(new, a->conf_path, a->overrides, a->noverrides, tell_reload, t) != 0 ||
	    conf_diff(m->conf, new, tell_reload, t) != 0)
		return -1;
	if (conf_dump(new, NULL, 0) >= SEGMENT_CONF_MAX) {
		tell_reload(t, a->conf_path, 0, "the configuration is too long");
		return -1;
	}
	if (strcmp(m->conf->log, new->log) != 0) {
		rc = log_open(log_target(m, new), (enum log_level)new->log_level);
		if (rc < 0) {
			snprintf(text, sizeof text, "log %.120s: %s", new->log, strerror(-rc));
			tell_reload(t, a->conf_path, 0, text);
			return -1;
		}
		if (m->who.drop)
			(void)log_chown(m->who.uid, m->who.gid);
	}
	return 0;
}

static int reload(void *arg, conf_error_fn *tell, void *tell_arg)
{
	struct master *m = arg;
	struct teller t = { tell, tell_arg };
	struct conf *new = calloc(1, sizeof *new), *old = m->conf;
	unsigned workers;
	char why[256];

	if (new == NULL || m->stopping) {
		free(new);
		return -1;
	}
	service_notify("RELOADING=1\nMONOTONIC_USEC=%llu",
	    (unsigned long long)clock_now_ms() * 1000);
	if (prepare_reload(m, new, &t) < 0 || publish(m, new) < 0) {
		log_error("reload failed: nothing was changed");
		service_notify("READY=1");
		conf_free(new);
		free(new);
		return -1;
	}
	workers = old->workers;
	m->conf = new;
	log_set_level((enum log_level)new->log_level);
	(void)statedir_sign(&m->state, new->stop_seconds);
	conf_free(old);
	free(old);
	log_info("reloaded: configuration %u is in force", m->conf_version);
	sup_reloaded(&m->sup);
	if (new->workers != workers && sup_scale(&m->sup, new->workers, why, sizeof why) < 0)
		log_error("reload: workers: %s", why);
	service_notify("READY=1");
	return 0;
}

/* --- Signals ---------------------------------------------------------------------------------- */

static void stop(void *arg, enum sup_how how)
{
	struct master *m = arg;

	if (!m->stopping)
		service_notify("STOPPING=1");
	m->stopping = true;
	sup_stop(&m->sup, how);
}

static void on_term(struct master *m, const char *name)
{
	log_info("%s: %s", name, m->stopping ? "stopping at once" : "stopping");
	stop(m, m->stopping ? SUP_AT_ONCE : SUP_GRACEFUL);
}

static void scale_by(struct master *m, int more)
{
	char why[256];

	if (sup_scale(&m->sup, m->sup.wanted + (unsigned)more, why, sizeof why) < 0)
		log_warn("the number of workers stays %u: %s", m->sup.wanted, why);
}

static void reopen_logs(struct master *m)
{
	int rc = log_reopen();

	if (rc < 0)
		log_error("the log cannot be opened again: %s", strerror(-rc));
	else if (m->who.drop)
		(void)log_chown(m->who.uid, m->who.gid);
	sup_reopen_logs(&m->sup);
	log_info("logs reopened");
}

static void reap(struct master *m)
{
	pid_t pid;
	int status;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		sup_reap(&m->sup, pid, status, clock_now_ms());
}

static void on_signals(struct watch *w, uint32_t events)
{
	struct master *m = w->arg;
	struct signalfd_siginfo si;

	(void)events;
	while (read(w->fd, &si, sizeof si) == (ssize_t)sizeof si)
		switch (si.ssi_signo) {
		case SIGTERM: on_term(m, "SIGTERM"); break;
		case SIGINT:  on_term(m, "SIGINT"); break;
		case SIGQUIT:
			log_info("SIGQUIT: ending at once");
			stop(m, SUP_AT_ONCE);
			break;
		case SIGHUP:  (void)reload(m, NULL, NULL); break;
		case SIGUSR1: reopen_logs(m); break;
		case SIGTTIN: scale_by(m, 1); break;
		case SIGTTOU: scale_by(m, -1); break;
		case SIGCHLD: break;		/* many deaths may be one signal: see below */
		}
	reap(m);
}

static int open_signals(struct master *m)
{
	static const int numbers[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGTTIN, SIGTTOU,
	    SIGCHLD };
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		sigaddset(&set, numbers[i]);
	/* Blocked before anything forks, so that none is lost; children inherit the mask. */
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0 || signal(SIGPIPE, SIG_IGN) == SIG_ERR ||
	    signal(SIGCHLD, SIG_DFL) == SIG_ERR)
		return -errno;
	m->signals = (struct watch){ .on_event = on_signals, .arg = m,
	    .fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC) };
	if (m->signals.fd < 0)
		return -errno;
	return reactor_add(&m->reactor, &m->signals, EPOLLIN);
}

/* --- Start ------------------------------------------------------------------------------------ */

/* Leaves the working directory alone while anything is configured relative to it. */
static void leave_directory(const struct conf *c)
{
	const char *paths[] = { c->state_dir, c->control, c->pid_file, c->store_password_file };

	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		if (paths[i][0] != '\0' && paths[i][0] != '/')
			return;
	for (unsigned i = 0; i < c->nlisten; i++)
		if (c->listen[i].path != NULL && c->listen[i].path[0] != '/')
			return;
	if ((strncmp(c->store, "sqlite:", 7) == 0 && c->store[7] != '/') ||
	    (c->log[0] != '/' && strcmp(c->log, "stderr") != 0 && strcmp(c->log, "syslog") != 0))
		return;
	if (chdir("/") < 0)
		log_warn("cannot change to /: %s", strerror(errno));
}

/* Descriptors: what a process may have, what the master needs, what is left for clients. */
static int raise_limits(struct master *m)
{
	const struct conf *c = m->conf;
	struct rlimit rl;
	uint64_t tcp = 0, need, own, clients;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return fail(m, MASTER_FAILED, "getrlimit: %s", strerror(errno));
	if (rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &rl) < 0)
			(void)getrlimit(RLIMIT_NOFILE, &rl);
	}
	for (unsigned i = 0; i < c->nlisten; i++)
		tcp += c->listen[i].path == NULL;
	need = c->max_workers * (tcp + 4) + RESERVE;
	own = 2 * (uint64_t)c->max_workers + c->nlisten + c->pool_max + RESERVE;
	if (need > rl.rlim_cur || own > rl.rlim_cur)
		return fail(m, MASTER_FAILED, "max_workers = %u with %llu addresses needs %llu open files, "
		    "and the limit is %llu (ulimit -n)", c->max_workers, (unsigned long long)tcp,
		    (unsigned long long)need, (unsigned long long)rl.rlim_cur);
	clients = rl.rlim_cur - own;
	log_info("%llu open files a process: %llu client connections a worker, %llu with %u workers",
	    (unsigned long long)rl.rlim_cur, (unsigned long long)clients,
	    (unsigned long long)clients * c->workers, c->workers);
	return 0;
}

/* Waits MS; true when a signal asks to give up. */
static bool told_to_stop(struct master *m, int ms)
{
	struct pollfd p = { .fd = m->signals.fd, .events = POLLIN };
	struct signalfd_siginfo si;

	if (poll(&p, 1, ms) != 1 || read(m->signals.fd, &si, sizeof si) != (ssize_t)sizeof si)
		return false;
	return si.ssi_signo == SIGTERM || si.ssi_signo == SIGINT || si.ssi_signo == SIGQUIT;
}

/* Takes the lock of state_dir; of a dead master's workers, only after they are gone. */
static int take_lock(struct master *m)
{
	struct statedir_owner owner;
	uint64_t begun = clock_now_ms(), patience = 0;
	bool said = false, killed = false;

	for (;;) {
		enum statedir_holder h = statedir_lock(&m->state, &owner);
		uint64_t waited = clock_now_ms() - begun;

		if (h == STATEDIR_MINE)
			break;
		if (h == STATEDIR_ERROR)
			return fail(m, MASTER_FAILED, "state_dir %s: the lock cannot be taken: %s",
			    m->conf->state_dir, strerror(errno));
		/* A moment of grace for one that is in the middle of its exit. */
		if (h == STATEDIR_MASTER && waited >= 200)
			return fail(m, MASTER_FAILED, "another parleyd (pid %d) runs with this state_dir (%s)",
			    (int)owner.pid, m->conf->state_dir);
		if (h == STATEDIR_ORPHANS && !said) {
			patience = (uint64_t)owner.stop_seconds * 1000;
			said = true;
			log_warn("the last master (pid %d) died; waiting for its workers to end",
			    (int)owner.pid);
		}
		if (h == STATEDIR_ORPHANS && waited >= patience && !killed) {
			killed = true;
			log_warn("killed %u processes that a dead master left behind",
			    statedir_kill_holders(&m->state));
		}
		if (killed && waited >= patience + ORPHANS_MS)
			return fail(m, MASTER_FAILED, "state_dir %s: its lock is held by a process that cannot "
			    "be found", m->conf->state_dir);
		if (told_to_stop(m, 20))
			return fail(m, MASTER_FAILED, "told to stop while waiting for the lock");
	}
	if (statedir_sign(&m->state, m->conf->stop_seconds) < 0)
		return fail(m, MASTER_FAILED, "state_dir %s: %s", m->conf->state_dir, strerror(errno));
	return 0;
}

static int open_state(struct master *m)
{
	char why[512];
	int rc;

	if (statedir_open(&m->state, m->conf->state_dir, m->who.uid, m->who.gid, why, sizeof why) < 0)
		return fail(m, MASTER_FAILED, "state_dir: %s", why);
	rc = take_lock(m);
	if (rc != 0)
		return rc;
	if (statedir_host_id(&m->state, m->conf->host_id, m->host_id, why, sizeof why) < 0 ||
	    statedir_token_key(&m->state, m->token_key, why, sizeof why) < 0)
		return fail(m, MASTER_FAILED, "%s", why);
	return 0;
}

/* A segment for a new epoch. All that the old one held is gone. */
static int make_segment(struct master *m, char *why, size_t cap)
{
	struct segment_shape shape = { .max_workers = m->conf->max_workers,
	    .max_sessions = m->conf->max_sessions, .region_bytes = m->conf->memory_limit };
	uint64_t epoch;
	int rc;

	if (statedir_epoch(&m->state, &epoch, why, cap) < 0)
		return -1;
	rc = segment_open(&m->segment, &shape, epoch);
	if (rc == 0)
		rc = publish(m, m->conf);
	if (rc < 0)
		snprintf(why, cap, "shared memory: %s", strerror(-rc));
	return rc < 0 ? -1 : 0;
}

static int rebuild(void *arg)
{
	struct master *m = arg;
	char why[512];

	segment_close(&m->segment);
	if (make_segment(m, why, sizeof why) == 0)
		return 0;
	log_fatal("%s", why);
	return -1;
}

/* In a child: what is the master's alone. */
static void child(void *arg)
{
	struct master *m = arg;

	control_child(&m->control);
	service_child(&m->service);
	close(m->signals.fd);
	if (m->state.dir >= 0)
		close(m->state.dir);	/* the lock stays open: it says that we still live */
}

static int open_parts(struct master *m)
{
	struct sup_host sup = { .conf = &m->conf, .listeners = &m->listeners,
	    .reactor = &m->reactor, .who = &m->who, .token_key = m->token_key,
	    .host_id = m->host_id, .arg = m, .child = child, .rebuild = rebuild };
	struct control_host ctl = { .sup = &m->sup, .reactor = &m->reactor, .arg = m,
	    .report = { .sup = &m->sup, .conf = &m->conf, .host_id = m->host_id },
	    .reload = reload, .stop = stop };
	char why[512];

	if (make_segment(m, why, sizeof why) < 0 ||
	    listeners_open(&m->listeners, m->conf, why, sizeof why) < 0 ||
	    sup_open(&m->sup, &sup, why, sizeof why) < 0 ||
	    control_open(&m->control, &ctl, m->conf->control, &m->who, why, sizeof why) < 0)
		return fail(m, MASTER_FAILED, "%s", why);
	return 0;
}

static int start(struct master *m)
{
	char why[512];
	int rc;

	if (m->args->detach) {
		rc = service_detach(&m->service);
		if (rc < 0)
			return fail(m, MASTER_FAILED, "cannot detach: %s", strerror(-rc));
	}
	umask(027);
	rc = log_open(log_target(m, m->conf), (enum log_level)m->conf->log_level);
	if (rc < 0)
		return fail(m, MASTER_CONFIG, "log %s: %s", m->conf->log, strerror(-rc));
	log_ident("master");
	title_set("parleyd: master", "parleyd");
	if (m->args->detach)
		leave_directory(m->conf);
	if (who_find(&m->who, m->conf, why, sizeof why) < 0)
		return fail(m, MASTER_CONFIG, "%s", why);
	if (m->who.drop)
		(void)log_chown(m->who.uid, m->who.gid);
	else if (m->conf->user[0] != '\0')
		log_warn("not started as root: going on as we are, not as user %s", m->conf->user);
	if ((rc = reactor_init(&m->reactor)) < 0 || (rc = open_signals(m)) < 0)
		return fail(m, MASTER_FAILED, "cannot set up: %s", strerror(-rc));
	if ((rc = raise_limits(m)) != 0 || (rc = open_state(m)) != 0)
		return rc;
	return open_parts(m);
}

/* --- The loop --------------------------------------------------------------------------------- */

/* Who detached it finds it by that: without a word about it, in state_dir. */
static void pid_path(const struct master *m, char *out, size_t cap)
{
	if (m->conf->pid_file[0] == '\0' && m->args->detach)
		snprintf(out, cap, "%s/parleyd.pid", m->conf->state_dir);
	else
		snprintf(out, cap, "%s", m->conf->pid_file);
}

static void came_up(struct master *m)
{
	char why[512], path[4096];

	m->up = true;
	pid_path(m, path, sizeof path);
	if (service_pid_write(&m->service, path, why, sizeof why) < 0) {
		m->sup.exit_code = fail(m, MASTER_FAILED, "%s", why);
		stop(m, SUP_AT_ONCE);
		return;
	}
	log_info("parleyd " PARLEY_VERSION " is up: host %s, %u workers", m->host_id, m->sup.wanted);
	service_notify("READY=1\nMAINPID=%d\nSTATUS=%u workers", (int)getpid(), m->sup.wanted);
	service_up(&m->service);
}

static void tend(struct master *m, uint64_t now_ms)
{
	if (!m->up && m->sup.started)
		came_up(m);
	/* Whoever waits for -d gets an answer; a long migration is not counted. */
	if (m->sup.phase == SUP_MIGRATING)
		m->start_by_ms = now_ms + START_MS;
	if (!m->up && !m->stopping && service_awaited(&m->service) && now_ms >= m->start_by_ms) {
		m->sup.exit_code = fail(m, MASTER_FAILED, "workers were not ready within %d s; the log says "
		    "why", START_MS / 1000);
		stop(m, SUP_AT_ONCE);
	}
	if (m->up && !m->stopping && now_ms - m->status_ms >= STATUS_MS) {
		m->status_ms = now_ms;
		service_notify("STATUS=%u of %u workers, %u users online", sup_ready(&m->sup), m->sup.wanted,
		    atomic_load(&shm->head->users_online));
	}
}

static void run(struct master *m)
{
	sup_start(&m->sup, m->conf->workers);
	while (m->sup.phase != SUP_DONE) {
		uint64_t now_ms = clock_now_ms();
		int a = sup_tick(&m->sup, now_ms), b;

		if (m->sup.phase == SUP_DONE)
			break;
		tend(m, now_ms);
		b = control_tick(&m->control, now_ms);
		if (reactor_turn(&m->reactor, a < b ? a : b) < 0) {
			log_fatal("epoll: %s", strerror(errno));
			m->sup.exit_code = MASTER_FAILED;
			stop(m, SUP_AT_ONCE);
		}
		clock_tick();
	}
}

/*
 * Removes what others see of us, then gives the lock up, then answers `parleyctl stop`. What is
 * still open ends with the process; the sanitizers find all of it reachable.
 */
static void end(struct master *m)
{
	service_pid_remove(&m->service);
	control_close(&m->control);
	listeners_close(&m->listeners);
	statedir_unlock(&m->state);
	control_finish(&m->control);
	conf_free(m->conf);
	free(m->conf);
	m->conf = NULL;
}

int master_run(const struct master_args *args)
{
	static struct master m = { .service = SERVICE_INIT, .state = { .dir = -1, .lock = -1 },
	    .reactor = { .epfd = -1 }, .signals = { .fd = -1 }, .control = { .listen_fd = -1,
	    .listener = { .fd = -1 } } };
	int code;

	m.args = args;
	m.conf = args->conf;
	clock_tick();
	code = start(&m);
	if (code == 0) {
		run(&m);
		code = m.sup.exit_code;
		if (m.sup.failure[0] != '\0')
			(void)fail(&m, code, "%s", m.sup.failure);
		else if (!m.up && service_awaited(&m.service))
			service_failed(&m.service, code != 0 ? code : 1, "stopped before it was up");
		log_info("parleyd has ended");
	}
	end(&m);
	return code;
}
