/* bench_login.c - logins, one after the other on each of `parallel` connections; and accounts. */
#include "tests/bench/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NS 1000000000LL

static uint32_t next_user, last_user, nopened;

static void login_next(struct client *c, uint32_t p)
{
	client_close(c, false);
	if (next_user == last_user)		/* round again: their sessions have ended by now */
		next_user = p * (opt.nusers / opt.procs);
	c->user = next_user++;
	load_open(c, p + nopened++ * opt.procs);
}

static uint32_t process;

static bool login_frame(struct client *c, int64_t msgid, int64_t error, const char *frame, size_t len)
{
	if (msgid != 2 || parley_must_retry(c, frame, len, error))
		return msgid == 2;
	if (error != 0)
		return false;			/* reported as any refused login is */
	mine->received_all++;
	if (load_within(now_ns())) {
		mine->logins++;
		hist_add(&mine->hist, (uint64_t)(now_ns() - c->began_ns));
	}
	if (now_ns() < end_ns)
		login_next(c, process);
	else
		client_close(c, false);
	return true;
}

static void login_run(uint32_t p)
{
	process = p;
	next_user = p * (opt.nusers / opt.procs);
	last_user = next_user + opt.nusers / opt.procs;
	if (last_user - next_user < nclients)
		load_fatal("more users, please: at least as many as logins under way");
	for (uint32_t i = 0; i < nclients; i++)
		login_next(&clients[i], p);
	while (now_ns() < end_ns)
		load_turn(end_ns);
	mine->measured_ns = (uint64_t)(end_ns - begin_ns);
}

const struct scenario scene_login = {
	.few = true, .late = true, .run = login_run, .frame = login_frame,
};

/* --- accounts to work with --- */

static char (*tokens)[MAX_TOKEN];

static void register_send(struct client *c)
{
	char buf[300];
	int n = snprintf(buf, sizeof buf, "{\"msgid\":3,\"name\":\"%s%u\",\"password\":\"%s\"}\n",
	    opt.prefix, c->user + 1, opt.password);

	client_send(c, buf, (size_t)n);
}

static void register_next(struct client *c)
{
	if (next_user >= last_user) {
		client_close(c, false);
		return;
	}
	c->user = next_user++;
	register_send(c);
}

static bool register_frame(struct client *c, int64_t msgid, int64_t error, const char *frame,
    size_t len)
{
	struct user *u = &opt.users[c->user];

	if (parley_must_retry(c, frame, len, error))
		return true;
	if (error != 0)
		load_fatal("%s%u: %.*s", opt.prefix, c->user + 1, (int)(len < 300 ? len : 300), frame);
	if (msgid == 0) {			/* asked to speak, the first time or again */
		if (u->id == 0)
			register_send(c);
		else
			parley_login(c);
	} else if (msgid == 4) {
		u->id = (uint32_t)frame_number(frame, len, "id", 0);
		parley_login(c);
	} else if (msgid == 2) {
		if (!frame_string(frame, len, "token", tokens[c->user], MAX_TOKEN))
			load_fatal("no token in %.*s", (int)(len < 300 ? len : 300), frame);
		client_send(c, "{\"msgid\":10}\n", 13);
	} else if (msgid == 14) {
		mine->logins++;
		register_next(c);
	}
	return true;
}

static void register_run(uint32_t p)
{
	int64_t start = now_ns();
	FILE *f;

	(void)p;
	tokens = calloc(opt.nusers, sizeof *tokens);
	if (tokens == NULL)
		load_fatal("no memory");
	last_user = opt.nusers;
	for (uint32_t i = 0; i < nclients; i++) {
		clients[i].user = next_user++;
		load_open(&clients[i], i);
	}
	while (mine->logins < opt.nusers)
		load_turn(now_ns() + NS);
	mine->measured_ns = (uint64_t)(now_ns() - start);
	f = fopen(opt.out_file, "w");
	for (uint32_t i = 0; f != NULL && i < opt.nusers; i++)
		fprintf(f, "%u %s\n", opt.users[i].id, tokens[i]);
	if (f == NULL || fclose(f) != 0)
		load_fatal("--out %s: %s", opt.out_file, strerror(errno));
}

const struct scenario scene_register = {
	.few = true, .late = true, .run = register_run, .frame = register_frame,
};
