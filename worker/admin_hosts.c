/*
 * admin_hosts.c - admin requests that concern other hosts.
 *
 * A list that several hosts make is asked for in pages, a few hosts at a time and no faster than the
 * reader takes it, so that neither its length nor the number of hosts decides what is held here.
 */
#include "worker/admin_part.h"

#include <stdio.h>
#include <string.h>

#include "shm/segment.h"
#include "shm/slots.h"
#include "worker/base/clock.h"
#include "worker/call.h"
#include "worker/claim.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/hosts.h"
#include "worker/link.h"
#include "worker/method_ctl.h"
#include "worker/state.h"

#define PAGE    4000u			/* lines of `who` in one answer; far below CALL_ANSWER */
#define ASK_MS  5000
#define QUICK_MS 10000			/* a forwarded request */
#define SLOW_MS 95000			/* one that waits for workers, or looks at everything */
#define PAGES   (sizeof ((struct admin *)0)->page / sizeof(struct admin_page))

static const char alone[] = "this host is on its own: `redis` in its configuration makes it one of several";

static void warn(struct admin *a, const char *host, const char *why)
{
	struct json_out w;

	admin_line(&w);
	if (host != NULL)
		json_kv_str(&w, "host", host);
	json_kv_str(&w, "warning", why);
	admin_say(a, &w);
	a->unsure = true;
}

/* ---- hosts ---- */

static void host_line(struct admin *a, const struct host *h)
{
	struct json_out w;
	char epoch[24];

	snprintf(epoch, sizeof epoch, "%llu", (unsigned long long)h->epoch);
	admin_line(&w);
	json_kv_str(&w, "id", h->id);
	json_kv_str(&w, "address", h->address);
	json_kv_int(&w, "weight", h->weight);
	json_kv_str(&w, "state", h->draining ? "draining" : "up");
	json_kv_int(&w, "workers", h->workers);
	json_kv_int(&w, "connections", h->connections);
	json_kv_int(&w, "sessions", h->sessions);
	json_kv_str(&w, "epoch", epoch);
	json_kv_str(&w, "version", h->version);
	json_kv_int(&w, "since", (int64_t)h->since_ms);
	json_kv_bool(&w, "self", h->self);
	json_kv_int(&w, "seen_ms", h->seen_ms < clock_ms() ? (int64_t)(clock_ms() - h->seen_ms) : 0);
	admin_say(a, &w);
}

void admin_hosts(struct admin *a)
{
	struct host *h;

	if (!cluster_on()) {
		admin_finish(a, 1, alone);
		return;
	}
	for (unsigned i = 0; (h = hosts_at(i)) != NULL; i++)
		if (h->alive)
			host_line(a, h);
	if (cluster_up())
		admin_finish(a, 0, "");
	else
		admin_finish(a, 1, "Redis does not answer: this is what was known before");
}

/* ---- drain ---- */

static uint32_t host_sessions(void)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < shm->head->max_workers; i++)
		n += atomic_load(&slot_at(i)->sessions);
	return n;
}

void admin_drain(struct admin *a, const char *arg)
{
	bool cancel = strcmp(arg, "cancel") == 0;
	uint32_t sessions = host_sessions();
	struct json_out w;
	char text[160];

	if (*arg != '\0' && !cancel) {
		admin_finish(a, 2, "drain takes nothing, or cancel");
		return;
	}
	if (!cluster_on()) {
		admin_finish(a, 1, alone);
		return;
	}
	cluster_drain(!cancel);
	admin_line(&w);
	json_kv_str(&w, "host", wk->boot->host_id);
	json_kv_bool(&w, "draining", !cancel);
	json_kv_int(&w, "sessions", sessions);
	json_kv_int(&w, "seconds", cancel ? 0 : wk->conf.drain_seconds);
	admin_say(a, &w);
	if (cancel)
		snprintf(text, sizeof text, "takes logins again; %u sessions are here", sessions);
	else
		snprintf(text, sizeof text, "no more logins; %u sessions are sent away over %u seconds",
		    sessions, wk->conf.drain_seconds);
	admin_finish(a, 0, text);
}

/* ---- the last line of an answer ---- */

struct last { const char *line; size_t len, before; int64_t code; char message[400]; };

/* Finds it in the lines of a reply. False: they do not end with one. */
static bool last_line(const char *text, size_t len, struct last *out)
{
	struct json_val root, v;
	size_t end = len > 0 && text[len - 1] == '\n' ? len - 1 : len, start = end;
	bool done = false;

	while (start > 0 && text[start - 1] != '\n')
		start--;
	*out = (struct last){ .line = text + start, .len = end - start, .before = start };
	if (json_parse(wk->json2, out->line, out->len) != JSON_OK)
		return false;
	root = json_root(wk->json2);
	if (json_get(wk->json2, &root, "message", &v))
		(void)json_text(&v, out->message, sizeof out->message, NULL);
	return json_get(wk->json2, &root, "done", &v) && json_bool(&v, &done) == JSON_OK && done &&
	    json_get(wk->json2, &root, "code", &v) && json_int(&v, &out->code) == JSON_OK;
}

/* ---- a request for another host ---- */

static void no_such_host(struct admin *a, const char *id)
{
	struct host *h;
	char text[sizeof a->message];
	size_t n;

	n = (size_t)snprintf(text, sizeof text, "there is no live host %.64s; live are:", id);
	for (unsigned i = 0; (h = hosts_at(i)) != NULL && n < sizeof text - HOST_ID_MAX - 8; i++)
		if (h->alive)
			n += (size_t)snprintf(text + n, sizeof text - n, " %s", h->id);
	if (h != NULL)
		snprintf(text + n, sizeof text - n, " ...");
	admin_finish(a, 1, text);
}

static struct host *live_host(const char *id)
{
	struct host *h;

	for (unsigned i = 0; (h = hosts_at(i)) != NULL; i++)
		if ((h->alive || h->self) && strcmp(h->id, id) == 0)
			return h;
	return NULL;
}

static void forwarded(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	struct admin *a = admin_find(tag);
	struct last last;
	char why[160];

	(void)arg;
	if (a == NULL)
		return;
	a->pending--;
	if (code == CALL_OK && last_line(text, len, &last)) {
		admin_raw(a, text, last.before);
		admin_finish(a, (int)last.code, last.message);
	} else if (code == CALL_ABSENT && a->stopping) {
		snprintf(why, sizeof why, "host %s is gone", a->asked->id);
		admin_finish(a, 0, why);
	} else {
		snprintf(why, sizeof why, "host %s: %s", a->asked->id,
		    code == CALL_OK ? "the answer is not complete" : call_text(code));
		admin_finish(a, 1, why);
	}
}

bool admin_forward(struct admin *a, const char *host, const char *cmd, const char *line, size_t len)
{
	bool slow = strcmp(cmd, "scale") == 0 || strcmp(cmd, "reload") == 0 ||
	    strcmp(cmd, "stop") == 0 || strcmp(cmd, "fsck") == 0;
	struct host *h;

	if (strcmp(host, wk->boot->host_id) == 0)
		return false;
	if (a->ctl) {
		admin_finish(a, 1, "a request of another host is not handed on to a third");
	} else if (!cluster_on()) {
		admin_finish(a, 1, alone);
	} else if ((h = live_host(host)) == NULL) {
		no_such_host(a, host);
	} else if (method_ctl_anywhere(cmd)) {
		return false;
	} else {
		a->asked = h;
		a->stopping = strcmp(cmd, "stop") == 0;
		a->pending++;
		call_host(h, "ctl", line, len, slow ? SLOW_MS : QUICK_MS, forwarded, NULL, a->number);
	}
	return true;
}

/* ---- a method, called by hand ---- */

void admin_methods(struct admin *a)
{
	const struct call_method *m;
	struct json_out w;

	for (unsigned i = 0; (m = call_method_at(i)) != NULL; i++) {
		admin_line(&w);
		json_kv_str(&w, "name", m->name);
		json_kv_str(&w, "help", m->help);
		admin_say(a, &w);
	}
	admin_finish(a, 0, "");
}

static void called(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	struct admin *a = admin_find(tag);
	char why[160];

	(void)arg;
	if (a == NULL)
		return;
	a->pending--;
	admin_raw(a, text, len);
	if (code > 0)
		snprintf(why, sizeof why, "host %s: code %d", a->asked->id, code);
	else
		snprintf(why, sizeof why, "host %s: %s", a->asked->id, call_text(code));
	admin_finish(a, code != CALL_OK, code != CALL_OK ? why : "");
}

void admin_call(struct admin *a, const char *host, const char *method, const struct json_val *with)
{
	struct host *h;

	if (!cluster_on()) {
		admin_finish(a, 1, alone);
	} else if ((h = live_host(host)) == NULL) {
		no_such_host(a, host);
	} else {
		a->asked = h;
		a->pending++;
		if (with->type == JSON_OBJECT)
			call_host(h, method, with->raw, with->len, QUICK_MS, called, NULL, a->number);
		else
			call_host(h, method, "{}", 2, QUICK_MS, called, NULL, a->number);
	}
}

/* ---- who, on all hosts ---- */

static void page_done(void *arg, uint64_t tag, int code, const char *text, size_t len);

static void page_ask(struct admin *a, size_t i)
{
	char args[128];
	int n = snprintf(args, sizeof args,
	    "{\"cmd\":\"who\",\"local\":true,\"after\":%u,\"limit\":%u}", a->page[i].after, PAGE);

	a->page[i].asked = true;
	a->pending++;
	call_host(a->page[i].h, "ctl", args, (size_t)n, ASK_MS, page_done, (void *)(uintptr_t)i, a->number);
}

/* The line before the last one may say that there is more: {"more":N}. Cuts it off. */
static bool more_from(const char *text, size_t *len, uint32_t *after_r)
{
	static const char head[] = "{\"more\":";
	size_t start = *len > 0 ? *len - 1 : 0;
	int64_t n = 0;

	while (start > 0 && text[start - 1] != '\n')
		start--;
	if (*len - start < sizeof head || memcmp(text + start, head, sizeof head - 1) != 0)
		return false;
	for (const char *p = text + start + sizeof head - 1; *p >= '0' && *p <= '9' && n < UINT32_MAX; p++)
		n = n * 10 + (*p - '0');
	*len = start;
	if (n > UINT32_MAX || n <= *after_r)	/* it would never end */
		return false;
	*after_r = (uint32_t)n;
	return true;
}

static void page_done(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	struct admin *a = admin_find(tag);
	size_t i = (size_t)(uintptr_t)arg;
	struct last last;

	if (a == NULL)
		return;
	a->pending--;
	struct admin_page *p = &a->page[i];
	bool whole = code == CALL_OK && last_line(text, len, &last), more = false;
	p->asked = false;
	if (whole && last.code == 0) {
		more = more_from(text, &last.before, &p->after);
		admin_raw(a, text, last.before);
	} else {
		warn(a, p->h->id, whole ? last.message : code == CALL_OK ? "the answer is not complete" :
		    call_text(code));
	}
	if (!more)
		p->h = NULL;
	loop_again();
}

void admin_who_across(struct admin *a)
{
	bool idle = true;

	if (a->next_host == 0 && !cluster_up())
		warn(a, NULL, "Redis does not answer: who is online elsewhere is not known");
	for (size_t i = 0; i < PAGES; i++) {
		struct admin_page *p = &a->page[i];
		struct host *h;

		while (p->h == NULL && (h = hosts_at(a->next_host)) != NULL) {
			a->next_host++;
			if (h->alive && !h->self)
				*p = (struct admin_page){ .h = h };
		}
		if (p->h != NULL && !p->asked && a->out_len - a->out_pos < ADMIN_OUT_LOW)
			page_ask(a, i);
		idle = idle && p->h == NULL;
	}
	if (idle && hosts_at(a->next_host) == NULL)
		admin_finish(a, 0, a->unsure ? "not every host has answered" : "");
}

/* ---- a session elsewhere ---- */

static void then(struct admin *a, uint32_t user, enum elsewhere e, const char *why)
{
	elsewhere_fn *fn = a->then;

	a->then = NULL;
	a->pending--;
	fn(a, user, e, why);
}

static void ended(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	struct admin *a = admin_find(tag);
	uint32_t user = (uint32_t)(uintptr_t)arg;
	struct json_val root, v;
	bool yes = false;
	char why[160];

	if (a == NULL || a->then == NULL)
		return;
	if (code != CALL_OK && code != CALL_ABSENT) {
		snprintf(why, sizeof why, "host %s: %s", a->asked->id, call_text(code));
		then(a, user, ELSEWHERE_UNKNOWN, why);
		return;
	}
	if (code == CALL_OK && json_parse(wk->json2, text, len) == JSON_OK) {
		root = json_root(wk->json2);
		if (json_get(wk->json2, &root, "ended", &v))
			(void)json_bool(&v, &yes);
	}
	then(a, user, yes ? ELSEWHERE_ENDED : ELSEWHERE_NOBODY, "");
}

static void located(uint64_t tag, uint64_t user, enum where w, struct host *h)
{
	struct admin *a = admin_find(tag);
	char args[64];
	int n;

	if (a == NULL || a->then == NULL)
		return;
	if (w == WHERE_HOST && h != NULL && !h->self) {
		n = snprintf(args, sizeof args, "{\"user\":%u,\"reason\":\"kicked\"}", (uint32_t)user);
		a->asked = h;
		call_host(h, "session.end", args, (size_t)n, ASK_MS, ended, (void *)(uintptr_t)user, tag);
	} else if (w == WHERE_UNKNOWN) {
		then(a, (uint32_t)user, ELSEWHERE_UNKNOWN, "Redis does not answer");
	} else {
		then(a, (uint32_t)user, ELSEWHERE_NOBODY, "");
	}
}

void admin_end_elsewhere(struct admin *a, uint32_t user, elsewhere_fn *fn)
{
	a->then = fn;
	a->pending++;
	if (cluster_on())
		claim_where(user, located, a->number, user);
	else
		then(a, user, ELSEWHERE_NOBODY, "");
}

void admin_forget(uint32_t user)
{
	struct item_forget it = { .user = user };

	cmd_forget_user(user);
	if (cluster_on())
		(void)link_send_all(LK_FORGET, &it, sizeof it, NULL, 0);
}
