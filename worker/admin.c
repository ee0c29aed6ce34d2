/*
 * admin.c - the admin connections of a worker.
 *
 * Each has at most a few answers under way (store jobs, hashes), counted in `pending`; jobs name
 * the connection by its number, so one that ended meanwhile is simply not found.
 */
#include "worker/admin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sodium.h>

#include "shm/sess.h"
#include "worker/admin_part.h"
#include "worker/auth.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/loop.h"
#include "worker/session.h"
#include "worker/state.h"
#include "worker/store.h"

#define ADMIN_MAX  16
#define LINE_MAX_  8192u		/* a line of an import */
#define WHO_STEP   2000u		/* records a turn */
#define HASHES     2u			/* hashes under way for an import */
#define QUIET_MS   60000

enum job_kind { DO_ADD, DO_PASSWD, DO_DEL, DO_KICK, DO_TOKEN };

static struct admin *admins[ADMIN_MAX];
static uint64_t next_number = 1;

struct admin *admin_find(uint64_t n)
{
	for (int i = 0; i < ADMIN_MAX; i++)
		if (admins[i] != NULL && admins[i]->used && admins[i]->number == n)
			return admins[i];
	return NULL;
}

/* ---- output ---- */

void admin_raw(struct admin *a, const char *text, size_t len)
{
	if (len == 0)
		return;
	if (a->out_len + len > a->out_cap) {
		size_t cap = (a->out_len + len) * 2;
		char *p = realloc(a->out, cap);

		if (p == NULL)
			return;
		a->out = p;
		a->out_cap = cap;
	}
	memcpy(a->out + a->out_len, text, len);
	a->out_len += len;
	loop_again();
}

void admin_say(struct admin *a, struct json_out *w)
{
	json_close(w, '}');
	json_raw(w, "\n", 1);
	if (!w->over)
		admin_raw(a, w->buf, w->len);
}

void admin_line(struct json_out *w)
{
	json_out_init(w, wk->scratch, SCRATCH);
	json_open(w, '{');
}

void admin_finish(struct admin *a, int code, const char *message)
{
	if (a->done)
		return;
	a->done = true;
	a->code = code;
	strncpy(a->message, message, sizeof a->message - 1);
	loop_again();
}

static const char *store_text(int rc)
{
	switch (rc) {
	case STORE_OK:
		return "";
	case STORE_GONE:
		return "no such user";
	case STORE_CONFLICT:
		return "this name is taken";
	default:
		return "the store is not available";
	}
}

/* ---- one account, by name or id ---- */

struct ask { enum job_kind kind; char secret[STORE_HASH]; bool hashed; };

static void ref_of(const char *text, struct store_job *j)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text != '\0' && *end == '\0' && n > 0 && n <= PROTO_ID_MAX)
		j->id = (uint32_t)n;
	else
		strncpy(j->name, text, sizeof j->name - 1);
}

static void say_user(struct admin *a, const struct store_user *u, const char *token)
{
	struct json_out w;

	admin_line(&w);
	json_kv_int(&w, "id", u->id);
	json_kv_str(&w, "name", u->name);
	if (token != NULL)
		json_kv_str(&w, "token", token);
	admin_say(a, &w);
}

static void say_error(struct admin *a, uint32_t line, const char *name, const char *error)
{
	struct json_out w;

	admin_line(&w);
	if (line > 0)
		json_kv_int(&w, "line", line);
	if (name != NULL)
		json_kv_str(&w, "name", name);
	json_kv_str(&w, "error", error);
	admin_say(a, &w);
	a->failed++;
}

static void changed(struct store_job *j, void *arg)
{
	struct admin *a = admin_find(j->tag);

	(void)arg;
	if (a == NULL)
		return;
	a->pending--;
	if (j->rc != STORE_OK) {
		admin_finish(a, 1, store_text(j->rc));
		return;
	}
	if (j->op == STORE_USER_DEL)
		admin_forget(j->id);
	if (j->op == STORE_USER_ADD)
		say_user(a, &j->user, NULL);
	if (j->op == STORE_USER_DEL && a->unsure)
		admin_finish(a, 0, "deleted; whether its user is online on another host is not known");
	else
		admin_finish(a, 0, j->op == STORE_USER_ADD ? "added" : j->op == STORE_USER_DEL ? "deleted" :
		    "password changed");
}

static void change(struct admin *a, enum store_op op, uint32_t user, const char *hash)
{
	struct store_job *j = store_job_new(op, changed, NULL);

	j->tag = a->number;
	j->id = user;
	snprintf(j->hash, sizeof j->hash, "%s", hash);
	a->pending++;
	store_submit(wk->store, j);
}

static void kicked(struct admin *a, uint32_t user, enum elsewhere e, const char *why)
{
	char text[240];

	(void)user;
	snprintf(text, sizeof text, "not online on this host; where else is not known: %s", why);
	admin_finish(a, e != ELSEWHERE_ENDED, e == ELSEWHERE_ENDED ? "kicked" :
	    e == ELSEWHERE_NOBODY ? "not online" : text);
}

static void delete(struct admin *a, uint32_t user, enum elsewhere e, const char *why)
{
	(void)why;
	a->unsure = e == ELSEWHERE_UNKNOWN;
	admin_forget(user);
	change(a, STORE_USER_DEL, user, "");
}

static void make_token(struct admin *a, const struct store_user *u)
{
	char token[AUTH_TOKEN_BYTES];

	if (!wk->keys_ready) {
		admin_finish(a, 1, "the store is not available");
		return;
	}
	auth_token_make(wk->keys, u->id, u->epoch, clock_wall_ms(), wk->conf.token_days, token);
	say_user(a, u, token);
	a->shown++;
}

static void found(struct store_job *j, void *arg)
{
	struct admin *a = admin_find(j->tag);

	(void)arg;
	if (a == NULL)
		return;
	a->pending--;
	if (j->rc != STORE_OK) {
		if (j->tag2 == DO_TOKEN)
			say_error(a, 0, j->desc, store_text(j->rc));
		else
			admin_finish(a, 1, store_text(j->rc));
	} else if (j->tag2 == DO_KICK) {
		if (session_end_user(j->user.id, "kicked", 0))
			admin_finish(a, 0, "kicked");
		else
			admin_end_elsewhere(a, j->user.id, kicked);
	} else if (j->tag2 == DO_TOKEN) {
		make_token(a, &j->user);
	} else if (j->tag2 == DO_PASSWD) {
		change(a, STORE_USER_PASSWD, j->user.id, j->hash);
	} else if (session_end_user(j->user.id, "kicked", 0)) {
		delete(a, j->user.id, ELSEWHERE_ENDED, "");
	} else {
		admin_end_elsewhere(a, j->user.id, delete);
	}
	if (a->pending == 0 && j->tag2 == DO_TOKEN)
		admin_finish(a, a->failed > 0, a->failed > 0 ? "some have no token" : "");
}

static void look_up(struct admin *a, enum job_kind kind, const char *who, const char *hash)
{
	struct store_job *j = store_job_new(STORE_USER, found, NULL);

	j->tag = a->number;
	j->tag2 = kind;
	ref_of(who, j);
	strncpy(j->desc, who, sizeof j->desc - 1);
	if (hash != NULL)
		strncpy(j->hash, hash, sizeof j->hash - 1);
	a->pending++;
	store_submit(wk->store, j);
}

static void store_account(struct admin *a, const char *name, const char *hash, bool passwd)
{
	struct store_job *j;

	if (passwd) {
		look_up(a, DO_PASSWD, name, hash);
		return;
	}
	j = store_job_new(STORE_USER_ADD, changed, NULL);
	j->tag = a->number;
	strncpy(j->name, name, sizeof j->name - 1);
	strncpy(j->hash, hash, sizeof j->hash - 1);
	a->pending++;
	store_submit(wk->store, j);
}

struct hashing { struct auth_job job; uint64_t number; bool passwd, import; uint32_t line; char name[STORE_NAME]; };

static void import_row(struct admin *a, uint32_t line, const char *name, const char *hash);
static void import_go_on(struct admin *a);

static void hashed(struct auth_job *job)
{
	struct hashing *h = (struct hashing *)job;
	struct admin *a = admin_find(h->number);

	COUNT(hashes);
	if (a != NULL && h->import) {
		a->hashing--;
		if (job->rc == AUTH_OK)
			import_row(a, h->line, h->name, job->encoded);
		else
			say_error(a, h->line, h->name, "the password could not be hashed");
		import_go_on(a);
	} else if (a != NULL) {
		a->pending--;
		if (job->rc == AUTH_OK)
			store_account(a, h->name, job->encoded, h->passwd);
		else
			admin_finish(a, 1, "the password could not be hashed now");
	}
	free(h);
}

static bool hash(struct admin *a, const char *name, const char *password, size_t len, bool passwd,
    uint32_t import_line)
{
	struct hashing *h = calloc(1, sizeof *h);

	ensure(h != NULL);
	h->number = a->number;
	h->passwd = passwd;
	h->import = import_line > 0;
	h->line = import_line;
	strncpy(h->name, name, sizeof h->name - 1);
	h->job.op = AUTH_HASH;
	h->job.len = (uint32_t)len;
	memcpy(h->job.password, password, len);
	h->job.done = hashed;
	if (auth_submit(wk->auth, &h->job) == AUTH_OK)
		return true;
	free(h);
	return false;
}

/* ---- import ---- */

static void imported(struct store_job *j, void *arg)
{
	struct admin *a = admin_find(j->tag);
	const uint64_t *lines = j->ids;

	(void)arg;
	if (a == NULL)
		return;
	a->pending--;
	for (uint32_t i = 0; i < j->nrows; i++) {
		if (j->rc == STORE_OK && j->rows[i].rc == STORE_OK)
			a->imported++;
		else
			say_error(a, (uint32_t)lines[i], j->rows[i].name,
			    store_text(j->rc != STORE_OK ? j->rc : j->rows[i].rc));
	}
	import_go_on(a);
}

static void import_flush(struct admin *a)
{
	struct store_job *j;

	if (a->nrows == 0)
		return;
	j = store_job_new(STORE_USER_IMPORT, imported, NULL);
	j->tag = a->number;
	j->rows = malloc(a->nrows * sizeof *j->rows);
	j->ids = malloc(a->nrows * sizeof *j->ids);
	ensure(j->rows != NULL && j->ids != NULL);
	memcpy(j->rows, a->rows, a->nrows * sizeof *j->rows);
	for (uint32_t i = 0; i < a->nrows; i++)
		j->ids[i] = a->lines[i];
	j->nrows = j->nids = a->nrows;
	a->nrows = 0;
	a->pending++;
	store_submit(wk->store, j);
}

static void import_row(struct admin *a, uint32_t line, const char *name, const char *text)
{
	struct store_row *r = &a->rows[a->nrows];

	*r = (struct store_row){ .name = strdup(name), .hash = strdup(text) };
	ensure(r->name != NULL && r->hash != NULL);
	a->lines[a->nrows++] = line;
	if (a->nrows == ADMIN_BATCH)
		import_flush(a);
}

static bool name_ok(const char *name, size_t len)
{
	return len > 0 && json_utf8_chars(name, len) <= PROTO_NAME_CHARS && !json_has_control(name, len);
}

/* One line of an import. False: it has to wait for a hash thread. */
static bool import_line(struct admin *a, const char *text, size_t len)
{
	struct json_val root, v;
	char name[PROTO_NAME_BYTES + 1], secret[STORE_HASH];
	size_t nlen, slen;
	int64_t line = 0;
	bool end = false, none = false;

	if (json_parse(wk->json2, text, len) != JSON_OK) {
		say_error(a, 0, NULL, "a line that is not JSON");
		return true;
	}
	root = json_root(wk->json2);
	if (json_get(wk->json2, &root, "end", &v) && json_bool(&v, &end) == JSON_OK && end) {
		a->input_end = true;
		return true;
	}
	if (json_get(wk->json2, &root, "line", &v))
		(void)json_int(&v, &line);
	if (line <= 0)
		line = 1;
	if (!json_get(wk->json2, &root, "name", &v) ||
	    json_text(&v, name, sizeof name, &nlen) != JSON_OK || !name_ok(name, nlen)) {
		say_error(a, (uint32_t)line, NULL, "a name has 1 to 50 characters and no control characters");
	} else if (json_get(wk->json2, &root, "no_password", &v) && json_bool(&v, &none) == JSON_OK && none) {
		import_row(a, (uint32_t)line, name, "*");
	} else if (json_get(wk->json2, &root, "hash", &v)) {
		if (json_text(&v, secret, sizeof secret, &slen) == JSON_OK && slen < AUTH_ENCODED)
			import_row(a, (uint32_t)line, name, secret);
		else
			say_error(a, (uint32_t)line, name, "not a hash");
	} else if (json_get(wk->json2, &root, "password", &v) &&
	    json_text(&v, secret, PROTO_PASSWORD_MAX + 1, &slen) == JSON_OK && slen > 0) {
		if (a->hashing >= HASHES)
			return false;
		if (!hash(a, name, secret, slen, false, (uint32_t)line))
			return false;
		a->hashing++;
		sodium_memzero(secret, sizeof secret);
	} else {
		say_error(a, (uint32_t)line, name, "a password has 1 to 128 bytes");
	}
	return true;
}

static void import_lines(struct admin *a)
{
	size_t pos = 0;

	while (!a->input_end && a->pending < 4) {
		char *nl = memchr(a->in + pos, '\n', a->in_len - pos);

		if (nl == NULL)
			break;
		if (!import_line(a, a->in + pos, (size_t)(nl - a->in) - pos))
			break;
		pos = (size_t)(nl - a->in) + 1;
	}
	memmove(a->in, a->in + pos, a->in_len - pos);
	a->in_len -= pos;
}

static void import_go_on(struct admin *a)
{
	import_lines(a);
	if (a->input_end && a->hashing == 0)
		import_flush(a);
	if (a->input_end && a->hashing == 0 && a->pending == 0 && !a->done) {
		struct json_out w;

		admin_line(&w);
		json_kv_int(&w, "imported", a->imported);
		json_kv_int(&w, "failed", a->failed);
		admin_say(a, &w);
		admin_finish(a, a->failed > 0, a->failed > 0 ? "some were not imported" : "");
	}
}

/* ---- who, fsck ---- */

static void who_line(struct admin *a, uint32_t i)
{
	const struct rec *r = rec_at(i);
	uint32_t gen, w = rec_owner(r, &gen), user = atomic_load(&r->user), len = r->name_len;
	const char *name = r->name;
	struct json_out o;

	if (rec_word_state(w) == REC_FREE || atomic_load(&r->bound) == 0 || user == 0)
		return;
	if (len == 255) {
		struct chunk *c = r->name_chunk < shm->head->region_bytes / CHUNK_MIN ?
		    chunk_at((uint32_t)rec_word_slot(w), r->name_chunk) : NULL;
		len = c != NULL && c->aux <= PROTO_NAME_BYTES ? c->aux : 0;
		name = c != NULL ? (const char *)c->data : "";
	}
	if (len > PROTO_NAME_BYTES || !json_utf8_valid(name, len))
		len = 0;		/* it changed under the reading */
	admin_line(&o);
	if (cluster_on())
		json_kv_str(&o, "host", wk->boot->host_id);
	json_kv_int(&o, "id", user);
	json_kv_text(&o, "name", name, len);
	json_kv_int(&o, "worker", rec_word_slot(w));
	json_kv_int(&o, "since", r->since_wall_ms);
	admin_say(a, &o);
	a->who_left--;
}

/* MORE: only the page that was asked for; the next one begins there. */
static void who_end(struct admin *a, bool more)
{
	struct json_out w;

	if (more) {
		admin_line(&w);
		json_kv_int(&w, "more", a->who_next);
		admin_say(a, &w);
	}
	admin_finish(a, 0, "");
}

static void who_step(struct admin *a)
{
	uint32_t end = rec_high();

	for (uint32_t k = 0; k < WHO_STEP && a->who_next < end && a->who_left > 0; k++)
		who_line(a, a->who_next++);
	if (a->who_next < end && a->who_left > 0)
		loop_again();
	else if (a->who_across)
		admin_who_across(a);
	else
		who_end(a, a->who_next < end);
}

static void tell_fsck(void *arg, const char *text)
{
	say_error(arg, 0, NULL, text);
}

static void fsck(struct admin *a)
{
	struct json_out w;
	int n = sess_check(tell_fsck, a);

	admin_line(&w);
	json_kv_int(&w, "violations", n);
	json_kv_int(&w, "users_online", atomic_load(&shm->head->users_online));
	json_kv_int(&w, "repairs", atomic_load(&shm->head->repairs));
	admin_say(a, &w);
	admin_finish(a, n != 0, n != 0 ? "the session table is not as it should be" : "the session table is sound");
}

/* ---- the request ---- */

static void run_user(struct admin *a, const struct json_val *root, const char *what, const char *name)
{
	struct json_val v;
	char password[PROTO_PASSWORD_MAX + 1];
	size_t len = 0;
	bool none = false, passwd = strcmp(what, "passwd") == 0;

	if (strcmp(what, "import") == 0) {
		a->importing = true;
		return;
	}
	if (strcmp(what, "del") == 0) {
		look_up(a, DO_DEL, name, NULL);
		return;
	}
	if (strcmp(what, "add") != 0 && !passwd) {
		admin_finish(a, 2, "user takes add, passwd, del or import");
		return;
	}
	if (!passwd && !name_ok(name, strlen(name))) {
		admin_finish(a, 1, "a name has 1 to 50 characters and no control characters");
		return;
	}
	if (json_get(wk->json2, root, "no_password", &v))
		(void)json_bool(&v, &none);
	if (none) {
		store_account(a, name, "*", passwd);
	} else if (!json_get(wk->json2, root, "password", &v) ||
	    json_text(&v, password, sizeof password, &len) != JSON_OK || len == 0 ||
	    len < wk->conf.password_min) {
		admin_finish(a, 1, "a password has 1 to 128 bytes, and not less than password_min");
	} else if (!hash(a, name, password, len, passwd, 0)) {
		admin_finish(a, 1, "too many logins at once, try again");
	} else {
		a->pending++;
		sodium_memzero(password, sizeof password);
	}
}

static void run_tokens(struct admin *a, const struct json_val *args)
{
	struct json_val v;
	char who[STORE_NAME];

	for (struct json_it it = json_it(wk->json2, args); json_next(wk->json2, &it, NULL, &v); )
		if (json_text(&v, who, sizeof who, NULL) == JSON_OK)
			look_up(a, DO_TOKEN, who, NULL);
		else
			say_error(a, 0, NULL, "not a name");
	if (a->pending == 0)
		admin_finish(a, 1, "nobody was named");
}

/* {"local":true}: of this host alone; with "after" and "limit" a page of them. */
static void run_who(struct admin *a, const struct json_val *root)
{
	struct json_val v;
	int64_t n;
	bool local = false;

	if (json_get(wk->json2, root, "local", &v))
		(void)json_bool(&v, &local);
	if (json_get(wk->json2, root, "after", &v) && json_int(&v, &n) == JSON_OK && n > 0)
		a->who_next = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
	a->who_left = UINT32_MAX;
	if (json_get(wk->json2, root, "limit", &v) && json_int(&v, &n) == JSON_OK && n > 0)
		a->who_left = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
	a->who = true;
	a->who_across = cluster_on() && !local && !a->ctl;
}

static void run_call(struct admin *a, const struct json_val *root, const char *host,
    const char *method)
{
	struct json_val with;

	if (!json_get(wk->json2, root, "with", &with))
		with.type = JSON_NONE;
	admin_call(a, host, method, &with);
}

static void run(struct admin *a, const char *line, size_t len)
{
	struct json_val root, v, args = { .type = JSON_NONE };
	char cmd[32] = "", arg[2][STORE_NAME] = { "", "" }, host[65];
	unsigned n = 0;

	if (json_parse(wk->json2, line, len) != JSON_OK) {
		admin_finish(a, 2, "the request is not JSON");
		return;
	}
	root = json_root(wk->json2);
	if (json_get(wk->json2, &root, "cmd", &v))
		(void)json_text(&v, cmd, sizeof cmd, NULL);
	if (json_get(wk->json2, &root, "args", &args))
		for (struct json_it it = json_it(wk->json2, &args); n < 2 && json_next(wk->json2, &it, NULL, &v); n++)
			(void)json_text(&v, arg[n], sizeof arg[n], NULL);
	if (json_get(wk->json2, &root, "ctl", &v))
		(void)json_bool(&v, &a->ctl);
	if (json_get(wk->json2, &root, "host", &v)) {
		if (json_text(&v, host, sizeof host, NULL) != JSON_OK)
			admin_finish(a, 1, "there is no host with a name like that");
		else if (admin_forward(a, host, cmd, line, len))
			return;
	}
	if (a->done)
		return;
	if (strcmp(cmd, "who") == 0)
		run_who(a, &root);
	else if (strcmp(cmd, "hosts") == 0)
		admin_hosts(a);
	else if (strcmp(cmd, "drain") == 0)
		admin_drain(a, arg[0]);
	else if (strcmp(cmd, "methods") == 0)
		admin_methods(a);
	else if (strcmp(cmd, "call") == 0)
		run_call(a, &root, arg[0], arg[1]);
	else if (strcmp(cmd, "fsck") == 0)
		fsck(a);
	else if (strcmp(cmd, "kick") == 0)
		look_up(a, DO_KICK, arg[0], NULL);
	else if (strcmp(cmd, "token") == 0)
		run_tokens(a, &args);
	else if (strcmp(cmd, "user") == 0)
		run_user(a, &root, arg[0], arg[1]);
	else
		admin_finish(a, 2, "there is no such command");
}

/* ---- the connection ---- */

static void on_quiet(struct timer *t)
{
	struct admin *a = (struct admin *)((char *)t - offsetof(struct admin, quiet));

	if (a->pending > 0) {		/* we are who is slow */
		timer_set(t, clock_ms() + QUIET_MS, on_quiet);
		return;
	}
	a->used = false;
	loop_again();
}

static void on_event(struct watch *w, uint32_t events)
{
	struct admin *a = (struct admin *)w;

	(void)events;
	if (!a->used)
		return;
	timer_set(&a->quiet, clock_ms() + QUIET_MS, on_quiet);
	if (a->in_len == LINE_MAX_ * 8) {
		if (memchr(a->in, '\n', a->in_len) == NULL)
			admin_finish(a, 2, "a line is too long");
		return;
	}
	ssize_t n = recv(w->fd, a->in + a->in_len, LINE_MAX_ * 8 - a->in_len, MSG_DONTWAIT);
	if (n == 0 && a->importing)
		a->input_end = true;
	else if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		a->used = false;
	else if (n > 0 && a->importing)
		a->in_len += (size_t)n;
	if (a->used && a->importing)
		import_go_on(a);
	loop_again();
}

static void done_line(struct admin *a)
{
	struct json_out w;

	admin_line(&w);
	json_kv_bool(&w, "done", true);
	json_kv_int(&w, "code", a->code);
	json_kv_str(&w, "message", a->message);
	admin_say(a, &w);
}

static void release(int i)
{
	struct admin *a = admins[i];

	loop_unwatch(&a->w);
	close(a->w.fd);
	timer_stop(&a->quiet);
	for (uint32_t k = 0; k < a->nrows; k++) {
		free(a->rows[k].name);
		free(a->rows[k].hash);
	}
	free(a->in);
	free(a->out);
	free(a);
	admins[i] = NULL;
}

static void flush(struct admin *a)
{
	if (a->done && !a->said) {
		a->said = true;
		done_line(a);
	}
	while (a->out_pos < a->out_len) {
		ssize_t n = send(a->w.fd, a->out + a->out_pos, a->out_len - a->out_pos,
		    MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			a->used = false;
			return;
		}
		a->out_pos += (size_t)n;
	}
	if (a->out_pos == a->out_len) {
		a->out_pos = a->out_len = 0;
		if (a->done)
			a->used = false;
	}
	/* A reader that is slow is asked again when it has room; the input's end is no news then. */
	uint32_t want = (a->out_len > 0 ? EPOLLOUT : 0u) |
	    (a->importing && !a->input_end && a->in_len < LINE_MAX_ * 8 && a->pending < 4 ? EPOLLIN : 0u);
	(void)loop_watch(&a->w, want);
}

void admin_turn_end(void)
{
	for (int i = 0; i < ADMIN_MAX; i++) {
		struct admin *a = admins[i];

		if (a == NULL)
			continue;
		if (a->used && a->who && !a->done && a->out_len - a->out_pos < ADMIN_OUT_LOW)
			who_step(a);
		if (a->used)
			flush(a);
		if (!a->used)
			release(i);
	}
}

void admin_take(int fd, const char *line, size_t len)
{
	for (int i = 0; i < ADMIN_MAX; i++) {
		struct admin *a;

		if (admins[i] != NULL)
			continue;
		a = calloc(1, sizeof *a);
		if (a == NULL || (a->in = malloc(LINE_MAX_ * 8)) == NULL) {
			free(a);
			break;
		}
		a->w.fd = fd;
		a->w.on_event = on_event;
		a->number = next_number++;
		a->used = true;
		admins[i] = a;
		timer_set(&a->quiet, clock_ms() + QUIET_MS, on_quiet);
		/* Behind the request line may stand the first lines of an import. */
		const char *nl = memchr(line, '\n', len);
		size_t first = nl != NULL ? (size_t)(nl - line) : len;
		if (nl != NULL && len - first - 1 <= LINE_MAX_ * 8) {
			a->in_len = len - first - 1;
			memcpy(a->in, nl + 1, a->in_len);
		}
		(void)loop_watch(&a->w, 0);
		run(a, line, first);
		if (a->importing)
			import_go_on(a);
		loop_again();
		return;
	}
	static const char busy[] = "{\"done\":true,\"code\":1,\"message\":\"too many requests at once\"}\n";
	(void)!send(fd, busy, sizeof busy - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	close(fd);
}
