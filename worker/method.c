/*
 * method.c - what other hosts may ask of this one: a table of names, and a few lines each.
 *
 * README.md, "Adding a method", has the steps.
 */
#include <string.h>

#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/call.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/method_ctl.h"
#include "worker/session.h"
#include "worker/state.h"

/* ---- arguments and answers ---- */

static bool get_user(const struct json *j, const struct json_val *args, uint32_t *user_r)
{
	struct json_val v;
	int64_t n;

	if (!json_get(j, args, "user", &v) || json_int(&v, &n) != JSON_OK || n < 1 || n > PROTO_ID_MAX)
		return false;
	*user_r = (uint32_t)n;
	return true;
}

/* An answer of one object: answer_open(), its members, answer(). */
static void answer_open(struct json_out *w, char *buf, size_t cap)
{
	json_out_init(w, buf, cap);
	json_open(w, '{');
}

static void answer(struct call *c, struct json_out *w)
{
	json_close(w, '}');
	(void)call_say(c, w->buf, w->len);
	call_finish(c, CALL_OK);
}

/* ---- the methods ---- */

static void run_ping(struct call *c, struct json *j, const struct json_val *args)
{
	char buf[256];
	struct json_out w;

	(void)j;
	(void)args;
	answer_open(&w, buf, sizeof buf);
	json_kv_str(&w, "host", wk->boot->host_id);
	json_kv_int(&w, "ms", (int64_t)clock_wall_ms());
	answer(c, &w);
}

static void run_host_status(struct call *c, struct json *j, const struct json_val *args)
{
	uint32_t workers = 0, connections = 0, sessions = 0;
	char buf[512];
	struct json_out w;

	(void)j;
	(void)args;
	for (uint32_t i = 0; i < shm->head->max_workers; i++) {
		workers += atomic_load(&slot_at(i)->state) == SLOT_READY;
		connections += atomic_load(&slot_at(i)->connections);
		sessions += atomic_load(&slot_at(i)->sessions);
	}
	answer_open(&w, buf, sizeof buf);
	json_kv_str(&w, "host", wk->boot->host_id);
	json_kv_str(&w, "version", PARLEY_VERSION);
	json_kv_int(&w, "workers", workers);
	json_kv_int(&w, "connections", connections);
	json_kv_int(&w, "sessions", sessions);
	json_kv_bool(&w, "draining", cluster_draining());
	json_kv_int(&w, "since", shm->head->started_wall_ms);
	answer(c, &w);
}

/* One that is being moved lives; of a dead worker, or on its way out, it only waits for its end. */
static const char *session_state(uint32_t user)
{
	struct sess_ref ref;

	if (sess_find(user, &ref) != SESS_OK)
		return "none";
	if (ref.state == REC_CLOSING || ref.live == LIVE_ENDING || !slot_alive(ref.slot, ref.slot_gen))
		return "closing";
	return "live";
}

static void run_session_check(struct call *c, struct json *j, const struct json_val *args)
{
	uint32_t user;
	char buf[64];
	struct json_out w;

	if (!get_user(j, args, &user)) {
		call_finish(c, CALL_BAD);
		return;
	}
	answer_open(&w, buf, sizeof buf);
	json_kv_str(&w, "state", session_state(user));
	answer(c, &w);
}

static void run_session_end(struct call *c, struct json *j, const struct json_val *args)
{
	uint32_t user;
	int64_t number = 0;
	char reason[16] = "", buf[64];
	struct json_val v;
	struct json_out w;

	if (json_get(j, args, "reason", &v))
		(void)json_text(&v, reason, sizeof reason, NULL);
	if (!get_user(j, args, &user) ||
	    (strcmp(reason, "replaced") != 0 && strcmp(reason, "kicked") != 0) ||
	    (json_get(j, args, "number", &v) && (json_int(&v, &number) != JSON_OK || number < 1))) {
		call_finish(c, CALL_BAD);
		return;
	}
	answer_open(&w, buf, sizeof buf);
	json_kv_bool(&w, "ended", session_end_user(user, reason, (uint64_t)number));
	answer(c, &w);
}

static void run_user_forget(struct call *c, struct json *j, const struct json_val *args)
{
	uint32_t user;

	if (get_user(j, args, &user)) {
		cmd_forget_user(user);
		call_finish(c, CALL_OK);
	} else {
		call_finish(c, CALL_BAD);
	}
}

static const struct call_method methods[] = {
	{ "ctl", "an admin request, as parleyctl sends it: the lines of its reply", method_ctl, true },
	{ "host.status", "{}: workers, connections and sessions of this host", run_host_status, false },
	{ "ping", "{}: this host's id and clock", run_ping, false },
	{ "session.check", "{\"user\":N}: its session here is none, live or closing", run_session_check, false },
	{ "session.end", "{\"user\":N,\"reason\":\"replaced\"|\"kicked\",\"number\":login number, or left out}",
	    run_session_end, false },
	{ "user.forget", "{\"user\":N}: the account was deleted", run_user_forget, false },
};

const struct call_method *call_method_find(const char *name, size_t len)
{
	for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
		if (strlen(methods[i].name) == len && memcmp(methods[i].name, name, len) == 0)
			return &methods[i];
	return NULL;
}

const struct call_method *call_method_at(unsigned i)
{
	return i < sizeof methods / sizeof *methods ? &methods[i] : NULL;
}
