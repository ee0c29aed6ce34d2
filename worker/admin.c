/*
 * admin.c - the admin connections of a worker.
 *
 * Each has at most a few answers under way (store jobs, hashes), counted in `pending`; jobs name
 * the connection by its number, so one that ended meanwhile is simply not found.
 */
#include "worker/admin.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sodium.h>

#include "shm/sess.h"
#include "worker/auth.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cmd.h"
#include "worker/loop.h"
#include "worker/peer.h"
#include "worker/session.h"
#include "worker/state.h"
#include "worker/store.h"

#define ADMIN_MAX  16
#define LINE_MAX_  8192u		/* a line of an import */
#define OUT_LOW    65536u
#define WHO_STEP   2000u		/* records a turn */
#define BATCH      500u			/* accounts in one import job */
#define HASHES     2u			/* hashes under way for an import */
#define QUIET_MS   60000

enum job_kind { DO_ADD, DO_PASSWD, DO_DEL, DO_KICK, DO_TOKEN };

struct admin {
	struct watch w;
	uint64_t number;
	bool used, done, importing, input_end, who;
	uint32_t pending;
	char *in, *out;
	size_t in_len, out_len, out_pos, out_cap;
	uint32_t who_next, imported, failed, shown;
	int code;
	char message[160];
	struct store_row rows[BATCH];
	uint32_t lines[BATCH], nrows;
	uint32_t hashing;
	struct timer quiet;
};

static struct admin *admins[ADMIN_MAX];
static uint64_t next_number = 1;

static struct admin *by_number(uint64_t n)
{
	for (int i = 0; i < ADMIN_MAX; i++)
		if (admins[i] != NULL && admins[i]->used && admins[i]->number == n)
			return admins[i];
	return NULL;
}

/* ---- output ---- */

static void say(struct admin *a, struct json_out *w)
{
	json_close(w, '}');
	json_raw(w, "\n", 1);
	if (w->over)
		return;
	if (a->out_len + w->len > a->out_cap) {
		size_t cap = (a->out_len + w->len) * 2;
		char *p = realloc(a->out, cap);

		if (p == NULL)
			return;
		a->out = p;
		a->out_cap = cap;
	}
	memcpy(a->out + a->out_len, w->buf, w->len);
	a->out_len += w->len;
	loop_again();
}

static void line_open(struct json_out *w)
{
	json_out_init(w, wk->scratch, SCRATCH);
	json_open(w, '{');
}

static void finish(struct admin *a, int code, const char *message)
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

	line_open(&w);
	json_kv_int(&w, "id", u->id);
	json_kv_str(&w, "name", u->name);
	if (token != NULL)
		json_kv_str(&w, "token", token);
	say(a, &w);
}

static void say_error(struct admin *a, uint32_t line, const char *name, const char *error)
{
	struct json_out w;

	line_open(&w);
	if (line > 0)
		json_kv_int(&w, "line", line);
	if (name != NULL)
		json_kv_str(&w, "name", name);
	json_kv_str(&w, "error", error);
	say(a, &w);
	a->failed++;
}

/* Ends the session of a user wherever on this host it is. */
static bool end_session(uint32_t user, const char *reason)
{
	struct sess_ref to;
	struct item_end it = { .user = user };

	if (sess_find(user, &to) != SESS_OK)
		return false;
	it.rrec = to.rec;
	it.rgen = to.gen;
	strncpy(it.reason, reason, sizeof it.reason - 1);
	if (to.slot == wk->slot)
		session_on_end(&it.head);
	else
		(void)peer_send(to.slot, IT_END, &it, sizeof it, NULL, 0);
	return true;
}

static void changed(struct store_job *j, void *arg)
{
	struct admin *a = by_number(j->tag);

	(void)arg;
	if (a == NULL)
		return;
	a->pending--;
	if (j->rc != STORE_OK) {
		finish(a, 1, store_text(j->rc));
		return;
	}
	if (j->op == STORE_USER_DEL)
		cmd_forget_user(j->id);
	if (j->op == STORE_USER_ADD)
		say_user(a, &j->user, NULL);
	finish(a, 0, j->op == STORE_USER_ADD ? "added" : j->op == STORE_USER_DEL ? "deleted" :
	    "password changed");
}

static void make_token(struct admin *a, const struct store_user *u)
{
	char token[AUTH_TOKEN_BYTES];

	if (!wk->keys_ready) {
		finish(a, 1, "the store is not available");
		return;
	}
	auth_token_make(wk->keys, u->id, u->epoch, clock_wall_ms(), wk->conf.token_days, token);
	say_user(a, u, token);
	a->shown++;
}

static void found(struct store_job *j, void *arg)
{
	struct admin *a = by_number(j->tag);
	struct store_job *n;

	(void)arg;
	if (a == NULL)
		return;
	a->pending--;
	if (j->rc != STORE_OK) {
		if (j->tag2 == DO_TOKEN)
			say_error(a, 0, j->desc, store_text(j->rc));
		else
			finish(a, 1, store_text(j->rc));
	} else if (j->tag2 == DO_KICK) {
		finish(a, end_session(j->user.id, "kicked") ? 0 : 1,
		    sess_online(j->user.id) ? "kicked" : "not online");
	} else if (j->tag2 == DO_TOKEN) {
		make_token(a, &j->user);
	} else {
		n = store_job_new(j->tag2 == DO_DEL ? STORE_USER_DEL : STORE_USER_PASSWD, changed, NULL);
		n->tag = j->tag;
		n->id = j->user.id;
		memcpy(n->hash, j->hash, sizeof n->hash);
		if (j->tag2 == DO_DEL) {
			(void)end_session(j->user.id, "kicked");
			cmd_forget_user(j->user.id);
		}
		a->pending++;
		store_submit(wk->store, n);
	}
	if (a->pending == 0 && j->tag2 == DO_TOKEN)
		finish(a, a->failed > 0, a->failed > 0 ? "some have no token" : "");
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
	struct admin *a = by_number(h->number);

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
			finish(a, 1, "the password could not be hashed now");
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
	struct admin *a = by_number(j->tag);
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
	if (a->nrows == BATCH)
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

		line_open(&w);
		json_kv_int(&w, "imported", a->imported);
		json_kv_int(&w, "failed", a->failed);
		say(a, &w);
		finish(a, a->failed > 0, a->failed > 0 ? "some were not imported" : "");
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
	line_open(&o);
	json_kv_int(&o, "id", user);
	json_kv_text(&o, "name", name, len);
	json_kv_int(&o, "worker", rec_word_slot(w));
	json_kv_int(&o, "since", r->since_wall_ms);
	say(a, &o);
}

static void who_step(struct admin *a)
{
	uint32_t end = rec_high();

	for (uint32_t k = 0; k < WHO_STEP && a->who_next < end; k++)
		who_line(a, a->who_next++);
	if (a->who_next >= end)
		finish(a, 0, "");
	else
		loop_again();
}

static void tell_fsck(void *arg, const char *text)
{
	say_error(arg, 0, NULL, text);
}

static void fsck(struct admin *a)
{
	struct json_out w;
	int n = sess_check(tell_fsck, a);

	line_open(&w);
	json_kv_int(&w, "violations", n);
	json_kv_int(&w, "users_online", atomic_load(&shm->head->users_online));
	json_kv_int(&w, "repairs", atomic_load(&shm->head->repairs));
	say(a, &w);
	finish(a, n != 0, n != 0 ? "the session table is not as it should be" : "the session table is sound");
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
		finish(a, 2, "user takes add, passwd, del or import");
		return;
	}
	if (!passwd && !name_ok(name, strlen(name))) {
		finish(a, 1, "a name has 1 to 50 characters and no control characters");
		return;
	}
	if (json_get(wk->json2, root, "no_password", &v))
		(void)json_bool(&v, &none);
	if (none) {
		store_account(a, name, "*", passwd);
	} else if (!json_get(wk->json2, root, "password", &v) ||
	    json_text(&v, password, sizeof password, &len) != JSON_OK || len == 0 ||
	    len < wk->conf.password_min) {
		finish(a, 1, "a password has 1 to 128 bytes, and not less than password_min");
	} else if (!hash(a, name, password, len, passwd, 0)) {
		finish(a, 1, "too many logins at once, try again");
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
		finish(a, 1, "nobody was named");
}

static void run(struct admin *a, const char *line, size_t len)
{
	struct json_val root, v, args = { .type = JSON_NONE };
	char cmd[32] = "", arg[2][STORE_NAME] = { "", "" };
	unsigned n = 0;

	if (json_parse(wk->json2, line, len) != JSON_OK) {
		finish(a, 2, "the request is not JSON");
		return;
	}
	root = json_root(wk->json2);
	if (json_get(wk->json2, &root, "cmd", &v))
		(void)json_text(&v, cmd, sizeof cmd, NULL);
	if (json_get(wk->json2, &root, "args", &args))
		for (struct json_it it = json_it(wk->json2, &args); n < 2 && json_next(wk->json2, &it, NULL, &v); n++)
			(void)json_text(&v, arg[n], sizeof arg[n], NULL);
	if (strcmp(cmd, "who") == 0)
		a->who = true;
	else if (strcmp(cmd, "fsck") == 0)
		fsck(a);
	else if (strcmp(cmd, "kick") == 0)
		look_up(a, DO_KICK, arg[0], NULL);
	else if (strcmp(cmd, "token") == 0)
		run_tokens(a, &args);
	else if (strcmp(cmd, "user") == 0)
		run_user(a, &root, arg[0], arg[1]);
	else
		finish(a, 2, "there is no such command");
}

/* ---- the connection ---- */

static void on_quiet(struct timer *t)
{
	struct admin *a = (struct admin *)((char *)t - offsetof(struct admin, quiet));

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
			finish(a, 2, "a line is too long");
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

	line_open(&w);
	json_kv_bool(&w, "done", true);
	json_kv_int(&w, "code", a->code);
	json_kv_str(&w, "message", a->message);
	say(a, &w);
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
	bool last = a->done && a->message[sizeof a->message - 1] == '\0';

	if (last) {
		done_line(a);
		a->message[sizeof a->message - 1] = 1;	/* said */
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
		if (a->used && a->who && !a->done && a->out_len < OUT_LOW)
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
