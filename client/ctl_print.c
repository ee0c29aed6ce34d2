/*
 * ctl_print.c - what the daemon answered, for people or for programs.
 */
#include "client/ctl_print.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void print_init(struct print *p, enum print_as as, bool json)
{
	*p = (struct print){ .as = as, .json = json };
	p->parser = json_new(JSON_UNTRUSTED | JSON_LARGE);
	if (p->parser == NULL) {
		fputs("parleyctl: out of memory\n", stderr);
		exit(1);
	}
}

/* A member as text, "" where it is missing; strings cleaned. Valid until the ring comes round. */
static const char *field(struct print *p, const struct json_val *obj, const char *name)
{
	static char ring[16][512];
	static unsigned turn;
	char *out = ring[turn++ % 16], raw[400];
	struct text t = { 0 };
	struct json_val v;

	out[0] = '\0';
	if (!json_get(p->parser, obj, name, &v))
		return out;
	if (v.type != JSON_STRING) {
		snprintf(out, sizeof *ring, "%.*s", (int)(v.len < 400 ? v.len : 400), v.raw);
		return out;
	}
	if (json_text(&v, raw, sizeof raw, NULL) != JSON_OK)
		return out;
	text_clean(&t, TEXT_SHOWN, raw, strlen(raw));
	snprintf(out, sizeof *ring, "%.500s", t.s != NULL ? t.s : "");
	text_fini(&t);
	return out;
}

static int64_t number(struct print *p, const struct json_val *obj, const char *name)
{
	struct json_val v;
	int64_t n = 0;

	if (json_get(p->parser, obj, name, &v))
		(void)json_int(&v, &n);
	return n;
}

static const char *span(uint64_t ms, char out[32])
{
	uint64_t s = ms / 1000;

	if (s < 60)
		snprintf(out, 32, "%" PRIu64 ".%" PRIu64 " s", s, ms % 1000 / 100);
	else if (s < 86400)
		snprintf(out, 32, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, s / 3600, s / 60 % 60, s % 60);
	else
		snprintf(out, 32, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
	return out;
}

static const char *moment(int64_t wall_ms, char out[32])
{
	time_t t = (time_t)(wall_ms / 1000);
	struct tm tm;

	if (wall_ms <= 0 || localtime_r(&t, &tm) == NULL ||
	    strftime(out, 32, "%Y-%m-%d %H:%M:%S", &tm) == 0)
		snprintf(out, 32, "-");
	return out;
}

static const char *or_dash(const char *s)
{
	return s[0] != '\0' ? s : "-";
}

/* --- One function a kind of answer ------------------------------------------------------------ */

/* "123 456" of [123,456]. */
static const char *pids(struct print *p, const struct json_val *o, const char *name)
{
	static char out[64];
	char *to = out;

	for (const char *from = field(p, o, name); *from != '\0' && to < out + sizeof out - 1; from++)
		if (*from != '[' && *from != ']')
			*to++ = *from == ',' ? ' ' : *from;
	*to = '\0';
	return out;
}

static void cluster(struct print *p, const struct json_val *o)
{
	struct json_val c;
	const char *why;

	if (!json_get(p->parser, o, "cluster", &c) || strcmp(field(p, &c, "on"), "true") != 0)
		return;
	why = field(p, &c, "error");
	printf("cluster %s  hosts %s  Redis at %s of %s workers  read by worker %s%s%s%s\n", field(p, &c, "name"),
	    field(p, &c, "hosts"), field(p, &c, "workers_up"), field(p, o, "workers_ready"),
	    or_dash(field(p, &c, "leader")),
	    strcmp(field(p, &c, "draining"), "true") == 0 ? "  DRAINING" : "",
	    why[0] != '\0' ? "\nRedis: " : "", why);
}

static void status(struct print *p, const struct json_val *o)
{
	struct json_val list, w;
	char up[32];

	printf("parleyd %s  pid %s  host %s  up %s\n", field(p, o, "version"), field(p, o, "pid"),
	    field(p, o, "host_id"), span((uint64_t)number(p, o, "uptime_ms"), up));
	printf("users online %s  connections %s  sessions at most %s  configuration %s  locks mended %s\n",
	    field(p, o, "users_online"), field(p, o, "connections"), field(p, o, "max_sessions"),
	    field(p, o, "conf_version"), field(p, o, "repairs"));
	cluster(p, o);
	printf("workers %s of %s ready\n\n", field(p, o, "workers_ready"), field(p, o, "workers_wanted"));
	printf("%6s %8s %5s %-9s %8s %12s %9s %9s %7s %11s %11s %6s%s\n", "WORKER", "PID", "GEN", "STATE",
	    "RESTARTS", "HEARTBEAT", "CONNECTED", "SESSIONS", "STORE", "IN", "OUT", "QUEUE",
	    strcmp(field(p, o, "immortal"), "true") == 0 ? "  TWINS" : "");
	if (!json_get(p->parser, o, "workers", &list))
		return;
	for (struct json_it it = json_it(p->parser, &list); json_next(p->parser, &it, NULL, &w); )
		printf("%6s %8s %5s %-9s %8s %9s ms %9s %9s %7s %11" PRId64 " %11" PRId64 " %6" PRId64 "  %s\n",
		    field(p, &w, "slot"), field(p, &w, "pid"), field(p, &w, "generation"),
		    field(p, &w, "state"), field(p, &w, "restarts"), field(p, &w, "heartbeat_age_ms"),
		    field(p, &w, "connections"), field(p, &w, "sessions"), field(p, &w, "store"),
		    number(p, &w, "messages_in"), number(p, &w, "messages_out"),
		    number(p, &w, "queue_depth"), pids(p, &w, "twins"));
}

static void session(struct print *p, const struct json_val *o)
{
	char since[32];

	if (p->lines == 1)
		printf("%8s %6s %10s %-20s %-9s %-7s %-22s %-19s %8s %11s\n", "RECORD", "WORKER", "USER",
		    "NAME", "STATE", "DIALECT", "ADDRESS", "SINCE", "UNSENT", "UNCONFIRMED");
	printf("%8s %6s %10s %-20s %-9s %-7s %-22s %-19s %8" PRId64 " %11" PRId64 "\n",
	    field(p, o, "record"), field(p, o, "worker"), field(p, o, "user"),
	    or_dash(field(p, o, "name")), field(p, o, "state"), field(p, o, "dialect"),
	    field(p, o, "address"), moment(number(p, o, "since"), since), number(p, o, "unsent"),
	    number(p, o, "unconfirmed"));
}

static void who(struct print *p, const struct json_val *o)
{
	const char *host = field(p, o, "host");
	char since[32];

	if (p->lines == 1)
		printf("%10s %-30s %6s %-19s%s\n", "ID", "NAME", "WORKER", "SINCE",
		    host[0] != '\0' ? " HOST" : "");
	printf("%10s %-30s %6s %-19s%s%s\n", field(p, o, "id"), or_dash(field(p, o, "name")),
	    or_dash(field(p, o, "worker")), moment(number(p, o, "since"), since),
	    host[0] != '\0' ? " " : "", host);
}

static void metric(struct print *p, const struct json_val *o)
{
	struct json_val v;
	char *buf;
	size_t len;

	if (!json_get(p->parser, o, "text", &v) || (buf = malloc(v.len + 1)) == NULL)
		return;
	if (json_text(&v, buf, v.len + 1, &len) == JSON_OK)
		text_add(&p->text, buf, len);
	free(buf);
}

static void token(struct print *p, const struct json_val *o)
{
	if (p->as == PRINT_TOKEN_ONLY)
		printf("%s\n", field(p, o, "token"));
	else
		printf("%s\t%s\t%s\n", field(p, o, "id"), field(p, o, "name"), field(p, o, "token"));
}

static void user(struct print *p, const struct json_val *o)
{
	printf("%s has id %s\n", or_dash(field(p, o, "name")), field(p, o, "id"));
}

/* Something about one line of input, or about the whole. */
static void complaint(struct print *p, const struct json_val *o)
{
	const char *line = field(p, o, "line"), *name = field(p, o, "name");

	fprintf(stderr, "parleyctl: %s%s%s%s%s%s\n", line[0] != '\0' ? "line " : "", line,
	    line[0] != '\0' ? ": " : "", name, name[0] != '\0' ? ": " : "", field(p, o, "error"));
}

/* What is missing from the answer, and why. */
static void warning(struct print *p, const struct json_val *o)
{
	const char *host = field(p, o, "host");

	fprintf(stderr, "parleyctl: %s%s%s\n", host, host[0] != '\0' ? ": " : "",
	    field(p, o, "warning"));
}

static void plain(struct print *p, const struct json_val *o)
{
	struct json_val key, v;
	char name[64];
	const char *gap = "";

	for (struct json_it it = json_it(p->parser, o); json_next(p->parser, &it, &key, &v); ) {
		if (json_text(&key, name, sizeof name, NULL) != JSON_OK)
			continue;
		printf("%s%s %s", gap, name, field(p, o, name));
		gap = "  ";
	}
	putchar('\n');
}

static void data(struct print *p, const struct json_val *o)
{
	struct json_val v;

	if (json_get(p->parser, o, "error", &v)) {
		complaint(p, o);
		return;
	}
	if (json_get(p->parser, o, "warning", &v)) {
		p->lines--;
		warning(p, o);
		return;
	}
	switch (p->as) {
	case PRINT_STATUS: status(p, o); break;
	case PRINT_SESSIONS: session(p, o); break;
	case PRINT_WHO: who(p, o); break;
	case PRINT_METRICS: metric(p, o); break;
	case PRINT_TOKEN:
	case PRINT_TOKEN_ONLY: token(p, o); break;
	case PRINT_USER: user(p, o); break;
	case PRINT_MESSAGE: break;
	case PRINT_HOSTS:
	case PRINT_PLAIN: plain(p, o); break;
	}
}

/* May it be empty? */
static bool is_list(enum print_as as)
{
	return as == PRINT_SESSIONS || as == PRINT_WHO || as == PRINT_HOSTS;
}

void print_line(struct print *p, const char *line, size_t len, bool done)
{
	struct json_val root;
	int64_t code = 0;
	bool parsed = json_parse(p->parser, line, len) == JSON_OK;

	root = json_root(p->parser);
	if (done) {
		struct json_val v;

		if (parsed && json_get(p->parser, &root, "message", &v))
			(void)json_text(&v, p->message, sizeof p->message, NULL);
		code = number(p, &root, "code");
		if (p->json && (code != 0 || (p->lines == 0 && !is_list(p->as))))
			printf("%.*s\n", (int)len, line);
		return;
	}
	p->lines++;
	if (p->json && p->as != PRINT_METRICS)
		printf("%.*s\n", (int)len, line);
	else if (parsed)
		data(p, &root);
	else
		printf("%.*s\n", (int)len, line);
}

static void end_metrics(struct print *p)
{
	size_t cap = 6 * p->text.len + 64;
	char *buf;
	struct json_out w;

	if (!p->json) {
		fwrite(p->text.s, 1, p->text.len, stdout);
		return;
	}
	buf = text_alloc(cap);
	json_out_init(&w, buf, cap);
	json_open(&w, '{');
	json_kv_text(&w, "text", p->text.s, p->text.len);
	json_close(&w, '}');
	printf("%.*s\n", (int)w.len, buf);
	free(buf);
}

void print_end(struct print *p, int code)
{
	struct text t = { 0 };

	if (p->as == PRINT_METRICS && p->text.len > 0)
		end_metrics(p);
	text_clean(&t, TEXT_SHOWN, p->message, strlen(p->message));
	if (code != 0)
		fprintf(stderr, "parleyctl: %s\n", t.len > 0 ? t.s : "refused");
	else if (!p->json && !p->quiet && t.len > 0)
		printf("%s\n", t.s);
	text_fini(&t);
}

void print_fini(struct print *p)
{
	text_fini(&p->text);
	json_free(p->parser);
	p->parser = NULL;
}
