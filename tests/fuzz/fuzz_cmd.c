/*
 * Fuzz target: what clients may send, through connections, requests, sessions and their end.
 *
 * The real modules of one worker run on a clock of ours, over socket pairs. Store, password hashes
 * and epoll are played here: the store is a small table whose answers come late, or do not come, as
 * the input says.
 *
 * An input is a byte of modes, then a script (run_op). What must hold for any of them:
 *   - every byte that the server writes belongs to a frame that json_parse() accepts, within the
 *     bounds of length and values, that ends as the client's did; a classic client hears only
 *     what it knows; delivery numbers count 1, 2, 3;
 *   - a message that was acknowledged was shown to its recipient, or waits in the store;
 *   - when all clients are gone and time has passed, nothing is left: no connection, no session,
 *     no session memory, no entry of the hash.
 */
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shm/sess.h"
#include "worker/auth.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/base/shape.h"
#include "worker/cmd.h"
#include "worker/conn.h"
#include "worker/group.h"
#include "worker/loop.h"
#include "worker/move.h"
#include "worker/peer.h"
#include "worker/redo.h"
#include "worker/seat.h"
#include "worker/session.h"
#include "worker/state.h"
#include "worker/store.h"
#include "worker/sweep.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define must(cond) do { if (!(cond)) { \
	fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); abort(); } } while (0)

#define CLIENTS   3
#define USERS     16			/* ids 1 .. 15 */
#define GROUPS    10			/* ids 1 .. 9 */
#define LOG_ROWS  4096			/* stored messages of one input, and messages to keep track of */
#define END_SEP   0x1e			/* ends a piece of raw bytes */
#define TURNS     2000			/* enough for anything to end */

static struct worker self;
struct worker *wk = &self;

static struct segment seg;
static struct worker_boot boot;
static uint64_t now_ms = 1000000;

/*
 * The clock.
 */
void clock_tick(void) { }
uint64_t clock_ms(void) { return now_ms; }
uint64_t clock_wall_ms(void) { return now_ms + 1700000000000u; }
uint64_t clock_now_ms(void) { return now_ms; }
uint64_t clock_now_wall_ms(void) { return clock_wall_ms(); }

void clock_text(uint64_t wall_ms, char out[20])
{
	(void)wall_ms;
	strcpy(out, "2026-01-31 10:11:12");
}

/*
 * The loop: which descriptors the worker wants to hear of.
 */
static struct { bool used; uint32_t rec, gen, events; } watched[1024];

int loop_client_add(int fd, uint32_t rec, uint32_t gen, uint32_t events)
{
	must(fd >= 0 && fd < 1024 && !watched[fd].used);
	watched[fd].used = true;
	return loop_client_mod(fd, rec, gen, events);
}

int loop_client_mod(int fd, uint32_t rec, uint32_t gen, uint32_t events)
{
	must(fd >= 0 && fd < 1024 && watched[fd].used);
	watched[fd].rec = rec;
	watched[fd].gen = gen & 0x7fffffff;
	watched[fd].events = events;
	return 0;
}

void loop_client_del(int fd)
{
	must(fd >= 0 && fd < 1024);
	watched[fd].used = false;
}

int loop_watch(struct watch *w, uint32_t events) { (void)w; (void)events; return 0; }
void loop_unwatch(struct watch *w) { (void)w; }
void loop_again(void) { }
void loop_stop(void) { }

static void dispatch(void)
{
	struct pollfd p[64];
	struct { uint32_t rec, gen; } who[64];
	nfds_t n = 0;

	for (int fd = 0; fd < 1024 && n < 64; fd++)
		if (watched[fd].used) {
			p[n] = (struct pollfd){ .fd = fd, .events = (short)watched[fd].events };
			who[n].rec = watched[fd].rec;
			who[n++].gen = watched[fd].gen;
		}
	if (n == 0 || poll(p, n, 0) <= 0)
		return;
	for (nfds_t i = 0; i < n; i++)
		if (p[i].revents != 0)
			conn_event(who[i].rec, who[i].gen, (uint32_t)p[i].revents);
}

/*
 * Hashes and tokens: every password is right.
 */
static struct auth_job *auth_jobs;
static bool auth_busy, auth_short;

void auth_mid(uint32_t sender, const char *cid, size_t len, unsigned char out[AUTH_MID_BYTES])
{
	uint64_t h = 14695981039346656037u;

	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)cid[i]) * 1099511628211u;
	memcpy(out, &h, 8);
	memset(out + 8, 0xee, 4);
	memcpy(out + 12, &sender, 4);
}

uint32_t auth_retry_ms(struct auth *a) { (void)a; return 700; }

int auth_submit(struct auth *a, struct auth_job *job)
{
	struct auth_job **p = &auth_jobs;

	(void)a;
	if (auth_busy)
		return AUTH_EBUSY;
	while (*p != NULL)
		p = &(*p)->next;
	job->next = NULL;
	*p = job;
	return AUTH_OK;
}

static void auth_answer(void)
{
	struct auth_job *j;

	while ((j = auth_jobs) != NULL) {
		auth_jobs = j->next;
		j->rc = auth_short ? AUTH_EMEMORY : AUTH_OK;
		j->ok = true;
		memset(j->password, 0, sizeof j->password);
		if (j->op == AUTH_HASH)
			strcpy(j->encoded, "$argon2id$");
		j->done(j);
	}
}

/* `t1`: a token of user 1; of an old password where more than a digit follows. */
int auth_token_check(const unsigned char keys[2][AUTH_KEY_BYTES], const char *text, size_t len,
    uint64_t now_wall_ms, uint32_t *user_r, uint32_t *epoch_r)
{
	(void)keys;
	(void)now_wall_ms;
	if (len < 2 || text[0] != 't' || text[1] < '0' || text[1] > '9')
		return AUTH_ETOKEN;
	*user_r = (uint32_t)(text[1] - '0');
	*epoch_r = len == 2 ? 1 : 0;
	return AUTH_OK;
}

void auth_token_make(const unsigned char keys[2][AUTH_KEY_BYTES], uint32_t user, uint32_t epoch,
    uint64_t now_wall_ms, uint32_t days, char out[AUTH_TOKEN_BYTES])
{
	(void)keys;
	(void)epoch;
	(void)now_wall_ms;
	(void)days;
	memset(out, 't', AUTH_TOKEN_BYTES - 1);
	out[AUTH_TOKEN_BYTES - 1] = '\0';
	out[1] = (char)('0' + user % 10);
}

/*
 * The store: tables.
 */
struct row {
	uint32_t id, rcpt, sender;	/* rcpt: a user or a group; id: row or number, 0: gone */
	unsigned char mid[16];
	uint64_t ts;
	char *body;
	uint32_t len;
};

static struct { bool used; char name[STORE_NAME]; uint32_t friends; } users[USERS];
static struct {
	bool used;
	char name[STORE_NAME], desc[STORE_DESC];
	uint32_t members, creator, head, cursor[USERS];
} rooms[GROUPS];
static struct row mails[LOG_ROWS], posts[LOG_ROWS];
static uint32_t nmails, nposts, next_row;

/* How it answers. */
static struct {
	bool down;
	uint32_t read_lag, write_lag;	/* turns from run to done */
	char once;			/* what happens to the next job, 0: nothing odd */
	uint32_t crowd;			/* friends and groups that every login is shown */
	uint32_t strange;		/* bodies that are not what the worker wrote */
} mood;

struct pending { struct store_job *job; struct pending *next; bool ran; uint32_t lag; };
static struct pending *reads, *writes;

static const char *const names[USERS] = { "", "ann", "Bob", "c\"d\\e", "\xf0\x9f\x98\x80",
	"a rather long name that does not fit the record" };

static void store_reset(void)
{
	for (uint32_t i = 0; i < nmails; i++)
		free(mails[i].body);
	for (uint32_t i = 0; i < nposts; i++)
		free(posts[i].body);
	nmails = nposts = 0;
	next_row = 1;
	memset(users, 0, sizeof users);
	memset(rooms, 0, sizeof rooms);
	memset(&mood, 0, sizeof mood);
	auth_busy = auth_short = false;
	for (uint32_t i = 1; i < USERS; i++)
		cmd_forget_user(i);
	for (uint32_t i = 1; i <= 6; i++) {
		users[i].used = true;
		users[i].friends = i < 4 ? 0xe : 0;
		strcpy(users[i].name, names[i] != NULL ? names[i] : "");
	}
	for (int i = 0; i < 50; i++)
		strcat(users[6].name, "\xf0\x9d\x84\x9e");
	for (uint32_t i = 1; i <= 3; i++) {
		rooms[i].used = true;
		rooms[i].creator = i;
		rooms[i].members = i == 1 ? 0x7e : 1u << i;
		snprintf(rooms[i].name, sizeof rooms[i].name, "room \"%u\"", i);
		strcpy(rooms[i].desc, "\\ and \"");
	}
}

static bool same_fold(const char *a, const char *b) { return strcasecmp(a, b) == 0; }

static uint32_t user_by(uint32_t id, const char *name)
{
	if (id != 0)
		return id < USERS && users[id].used ? id : 0;
	for (uint32_t i = 1; i < USERS; i++)
		if (users[i].used && *name != '\0' && same_fold(users[i].name, name))
			return i;
	return 0;
}

static uint32_t room_by(uint32_t id, const char *name)
{
	if (id != 0)
		return id < GROUPS && rooms[id].used ? id : 0;
	for (uint32_t i = 1; i < GROUPS; i++)
		if (rooms[i].used && *name != '\0' && same_fold(rooms[i].name, name))
			return i;
	return 0;
}

static void out_user(struct store_job *j, uint32_t id)
{
	j->user.id = id;
	j->user.epoch = 1;
	strcpy(j->user.name, users[id].name);
	strcpy(j->user.hash, "$argon2id$");
}

static void out_person(struct store_job *j, uint32_t id, uint32_t group, bool creator,
    const char *name)
{
	j->people = realloc(j->people, (j->npeople + 1) * sizeof *j->people);
	must(j->people != NULL);
	j->people[j->npeople++] = (struct store_person){ id, group, creator, strdup(name) };
}

static void out_room(struct store_job *j, uint32_t id, uint32_t user)
{
	struct store_group *g;

	j->groups = realloc(j->groups, (j->ngroups + 1) * sizeof *j->groups);
	must(j->groups != NULL);
	g = &j->groups[j->ngroups++];
	memset(g, 0, sizeof *g);
	g->id = id;
	g->creator = rooms[id].creator;
	g->members = (uint32_t)__builtin_popcount(rooms[id].members);
	g->head = rooms[id].head;
	g->cursor = rooms[id].cursor[user];
	g->mine = rooms[id].members >> user & 1;
	g->is_creator = rooms[id].creator == user;
	strcpy(g->name, rooms[id].name);
	strcpy(g->desc, rooms[id].desc);
}

static void out_members(struct store_job *j, uint32_t id, uint64_t after, uint32_t limit)
{
	for (uint32_t u = 1; u < USERS && limit > 0; u++)
		if ((rooms[id].members >> u & 1) && u > after) {
			out_person(j, u, id, rooms[id].creator == u, users[u].name);
			limit--;
		}
}

static void out_row(struct store_job *j, const struct row *r)
{
	j->msgs = realloc(j->msgs, (j->nmsgs + 1) * sizeof *j->msgs);
	must(j->msgs != NULL);
	struct store_msg *m = &j->msgs[j->nmsgs++];
	*m = (struct store_msg){ .row = r->id, .sender = r->sender, .ts = r->ts, .len = r->len };
	memcpy(m->mid, r->mid, 16);
	m->body = malloc(r->len + 1);
	must(m->body != NULL);
	memcpy(m->body, r->body, r->len);
	m->body[r->len] = '\0';
}

/* Rows of RCPT behind AFTER, at most up to UPTO, in order; at least one whatever its size. */
static void out_rows(struct store_job *j, const struct row *v, uint32_t n, uint32_t rcpt,
    uint64_t after, uint64_t upto, uint32_t limit, uint64_t bytes)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (v[i].id == 0 || v[i].rcpt != rcpt || v[i].id <= after || v[i].id > upto)
			continue;
		if (j->nmsgs == limit || (j->nmsgs > 0 && sum + v[i].len > bytes)) {
			j->more = true;
			return;
		}
		sum += v[i].len;
		out_row(j, &v[i]);
	}
}

static struct row *add_row(struct row *v, uint32_t *n, uint32_t rcpt, const struct store_job *j)
{
	struct row *r = &v[*n];

	if (*n == LOG_ROWS)
		return NULL;
	++*n;
	*r = (struct row){ .rcpt = rcpt, .sender = j->other, .ts = j->ts, .len = j->len };
	memcpy(r->mid, j->mid, 16);
	r->body = malloc(j->len + 1);
	must(r->body != NULL);
	memcpy(r->body, j->body, j->len);
	r->body[j->len] = '\0';
	return r;
}

/* What nobody of ours wrote, and a table may hold all the same. */
static const char *const strange[] = {
	"{}", "{", "[1]", "{\"name\":1,\"to\":1,\"msg\":\"x\"}", "{\"name\":\"a\",\"to\":1}",
	("{\"msgid\":5,\"id\":1,\"name\":\"\\u0061\\ud83d\\ude00\",\"to\":2,\"msg\":\"\\\"\\\\\","
	"\"time\":\"\\u000a\",\"cid\":\"\\\"\\u0001\",\"x\":[{\"y\":null}]}"),
	"{\"name\":\"a\",\"groupid\":1,\"to\":2,\"msg\":\"both\",\"cid\":7,\"mid\":\"\",\"n\":9}",
	"{\"name\":\"a\",\"groupid\":-1,\"to\":-1,\"msg\":{\"no\":\"string\"},\"time\":5}",
};

static void out_strange(struct store_job *j, uint32_t user)
{
	for (uint32_t i = 0; i < mood.strange; i++) {
		const char *s = strange[i % (sizeof strange / sizeof *strange)];
		struct row r = { .id = 100000 + i, .rcpt = user, .sender = 1 + i % 6, .ts = i,
		    .mid = { 0x77, (unsigned char)i }, .body = (char *)(uintptr_t)s,
		    .len = (uint32_t)strlen(s) };

		if (r.id > j->after && j->nmsgs < (j->limit > 0 ? j->limit : 100))
			out_row(j, &r);
	}
}

static void out_crowd(struct store_job *j, uint32_t n, uint32_t groups)
{
	char name[STORE_NAME];

	for (uint32_t i = 0; i < n; i++) {
		memset(name, i % 3 == 0 ? '"' : 'x', 50);
		snprintf(name + (i % 50), sizeof name - 50, "%u", i);
		out_person(j, 1000 + i, 0, false, name);
	}
	for (uint32_t i = 0; i < groups; i++) {
		out_room(j, 1, 1);
		struct store_group *g = &j->groups[j->ngroups - 1];
		g->id = 2000 + i;
		g->mine = i % 7 != 6;
		g->head = g->cursor = i;
		memset(g->desc, i % 2 ? '\\' : 'd', 200 + (i % 2) * 0);
		g->desc[200] = '\0';
		for (uint32_t k = 0; k < i % 40; k++)
			out_person(j, 3000 + k, g->id, k == 0, names[1 + k % 5]);
	}
}

/*
 * The store: operations.
 */
static int run_load(struct store_job *j)
{
	uint32_t u = user_by(j->id, "");

	if (u == 0)
		return STORE_GONE;
	out_user(j, u);
	for (uint32_t i = 1; i < USERS; i++)
		if (users[u].friends >> i & 1)
			out_person(j, i, 0, false, users[i].name);
	for (uint32_t i = 1; i < GROUPS; i++)
		if (rooms[i].used && (rooms[i].members >> u & 1)) {
			out_room(j, i, u);
			out_members(j, i, 0, 100);
		}
	if (mood.crowd > 0)
		out_crowd(j, mood.crowd * 30, mood.crowd * 9);
	out_rows(j, mails, nmails, u, 0, UINT64_MAX, 100, 49152);
	if (!j->more)
		out_strange(j, u);
	return STORE_OK;
}

static int run_rooms(struct store_job *j)
{
	for (uint32_t i = 1; i < GROUPS; i++)
		if (rooms[i].used && (rooms[i].members >> j->id & 1) && i > j->after) {
			out_room(j, i, j->id);
			out_members(j, i, 0, j->limit2);
		}
	if (mood.crowd > 0)
		out_crowd(j, 0, mood.crowd * 6);
	return STORE_OK;
}

static int run_room(struct store_job *j, bool members)
{
	uint32_t g = room_by(j->group, j->name);

	if (g == 0)
		return STORE_GONE;
	if (members && !(rooms[g].members >> j->id & 1))
		return STORE_DENIED;
	j->group = g;
	out_room(j, g, j->id < USERS ? j->id : 0);
	if (members)
		out_members(j, g, j->after, j->limit);
	return STORE_OK;
}

static int run_people(struct store_job *j)
{
	for (uint32_t i = 1; i < USERS; i++)
		if ((users[j->id].friends >> i & 1) && i > j->after && j->npeople < j->limit)
			out_person(j, i, 0, false, users[i].name);
	if (mood.crowd > 0)
		out_crowd(j, j->limit - j->npeople, 0);
	return STORE_OK;
}

static int run_reg(struct store_job *j)
{
	if (user_by(0, j->name) != 0)
		return STORE_CONFLICT;
	for (uint32_t i = 1; i < USERS; i++)
		if (!users[i].used) {
			users[i].used = true;
			users[i].friends = 0;
			memcpy(users[i].name, j->name, sizeof j->name);
			out_user(j, i);
			return STORE_OK;
		}
	return STORE_FULL;
}

static int run_friend(struct store_job *j, bool add)
{
	uint32_t u = user_by(j->other, j->name);

	if (u == 0 || j->id >= USERS)
		return STORE_GONE;
	bool is = users[j->id].friends >> u & 1;
	if (add && is)
		return STORE_CONFLICT;
	if (!add && !is)
		return STORE_GONE;
	users[j->id].friends ^= 1u << u;
	out_user(j, u);
	return STORE_OK;
}

static int run_create(struct store_job *j)
{
	if (room_by(0, j->name) != 0)
		return STORE_CONFLICT;
	for (uint32_t i = 1; i < GROUPS; i++)
		if (!rooms[i].used) {
			memset(&rooms[i], 0, sizeof rooms[i]);
			rooms[i].used = true;
			rooms[i].members = 1u << j->id;
			rooms[i].creator = j->id;
			memcpy(rooms[i].name, j->name, sizeof j->name);
			memcpy(rooms[i].desc, j->desc, sizeof j->desc);
			j->group = i;
			return STORE_OK;
		}
	return STORE_FULL;
}

static int run_join(struct store_job *j)
{
	uint32_t g = room_by(j->group, j->name);

	if (g == 0)
		return STORE_GONE;
	j->group = g;
	if (rooms[g].members >> j->id & 1)
		return STORE_CONFLICT;
	rooms[g].members |= 1u << j->id;
	rooms[g].cursor[j->id] = rooms[g].head;
	out_room(j, g, j->id);
	out_members(j, g, 0, PROTO_USERS_MAX);
	return STORE_OK;
}

static int run_leave(struct store_job *j)
{
	uint32_t g = room_by(j->group, j->name);

	if (g == 0)
		return STORE_GONE;
	j->group = g;
	if (!(rooms[g].members >> j->id & 1))
		return STORE_DENIED;
	rooms[g].members &= ~(1u << j->id);
	if (rooms[g].creator == j->id) {
		rooms[g].used = false;
		rooms[g].members = 0;
		j->dissolved = true;
	}
	return STORE_OK;
}

static int run_mail(struct store_job *j)
{
	uint32_t waiting = 0;
	struct row *r;

	if (user_by(j->id, "") == 0)
		return STORE_GONE;
	for (uint32_t i = 0; i < nmails; i++) {
		if (mails[i].id != 0 && mails[i].rcpt == j->id) {
			if (memcmp(mails[i].mid, j->mid, 16) == 0)
				return STORE_OK;
			waiting++;
		}
	}
	if (j->limit > 0 && waiting >= j->limit)
		return STORE_FULL;
	r = add_row(mails, &nmails, j->id, j);
	if (r != NULL)
		r->id = next_row++;
	return r != NULL ? STORE_OK : STORE_FULL;
}

static int run_post(struct store_job *j)
{
	struct row *r;

	if (j->group >= GROUPS || !rooms[j->group].used)
		return STORE_GONE;
	if (!(rooms[j->group].members >> j->other & 1))
		return STORE_DENIED;
	for (uint32_t i = 0; i < nposts; i++)
		if (posts[i].rcpt == j->group && memcmp(posts[i].mid, j->mid, 16) == 0) {
			j->number = posts[i].id;
			return STORE_OK;
		}
	r = add_row(posts, &nposts, j->group, j);
	if (r == NULL)
		return STORE_DOWN;
	j->number = r->id = ++rooms[j->group].head;
	j->fresh = true;
	return STORE_OK;
}

static int run_drop(struct store_job *j)
{
	for (uint32_t i = 0; i < nmails; i++) {
		if (mails[i].id == 0 || mails[i].rcpt != j->id)
			continue;
		if (j->op == STORE_OFFLINE_DEL_MID && memcmp(mails[i].mid, j->mid, 16) == 0)
			mails[i].id = 0;
		for (uint32_t k = 0; j->op == STORE_OFFLINE_DEL && k < j->nids; k++)
			if (j->ids[k] == mails[i].id)
				mails[i].id = 0;
	}
	return STORE_OK;
}

static int run_cursors(struct store_job *j)
{
	for (uint32_t i = 0; i < j->ncursors; i++)
		if (j->cursors[i].group < GROUPS && j->id < USERS &&
		    rooms[j->cursors[i].group].cursor[j->id] < j->cursors[i].number)
			rooms[j->cursors[i].group].cursor[j->id] = (uint32_t)j->cursors[i].number;
	return STORE_OK;
}

static int run_job(struct store_job *j)
{
	uint32_t u;

	switch (j->op) {
	case STORE_USER:
		u = user_by(j->id, j->name);
		if (u != 0)
			out_user(j, u);
		return u != 0 ? STORE_OK : STORE_GONE;
	case STORE_LOAD:
		return run_load(j);
	case STORE_FRIENDS:
		return run_people(j);
	case STORE_GROUPS:
		return run_rooms(j);
	case STORE_MEMBERS:
		return run_room(j, true);
	case STORE_GROUP:
		return run_room(j, false);
	case STORE_OFFLINE:
		out_rows(j, mails, nmails, j->id, j->after, UINT64_MAX, j->limit, j->bytes);
		return STORE_OK;
	case STORE_RANGE:
		out_rows(j, posts, nposts, j->group, j->after, j->upto, j->limit, j->bytes);
		return STORE_OK;
	case STORE_USER_ADD:
		return run_reg(j);
	case STORE_FRIEND_ADD:
		return run_friend(j, true);
	case STORE_FRIEND_DEL:
		return run_friend(j, false);
	case STORE_GROUP_ADD:
		return run_create(j);
	case STORE_GROUP_JOIN:
		return run_join(j);
	case STORE_GROUP_LEAVE:
		return run_leave(j);
	case STORE_OFFLINE_ADD:
		return run_mail(j);
	case STORE_GROUP_MSG:
		return run_post(j);
	case STORE_OFFLINE_DEL:
	case STORE_OFFLINE_DEL_MID:
		return run_drop(j);
	case STORE_CURSORS:
		return run_cursors(j);
	default:
		must(!"an operation that the worker does not ask for");
	}
	return STORE_BAD;
}

/*
 * The store: jobs.
 */
struct store_job *store_job_new(enum store_op op, void (*done)(struct store_job *, void *), void *arg)
{
	struct store_job *j = calloc(1, sizeof *j);

	must(j != NULL);
	j->op = op;
	j->done = done;
	j->arg = arg;
	return j;
}

void store_job_body(struct store_job *job, const void *body, size_t len)
{
	free(job->body);
	job->body = malloc(len + 1);
	must(job->body != NULL);
	memcpy(job->body, body, len);
	job->len = (uint32_t)len;
}

void store_job_free(struct store_job *j)
{
	for (uint32_t i = 0; j->people != NULL && i < j->npeople; i++)
		free(j->people[i].name);
	for (uint32_t i = 0; j->msgs != NULL && i < j->nmsgs; i++)
		free(j->msgs[i].body);
	free(j->people);
	free(j->msgs);
	free(j->groups);
	free(j->body);
	free(j->ids);
	free(j->cursors);
	free(j);
}

struct store_job *store_job_take(struct store_job *j)
{
	struct store_job *own = malloc(sizeof *own);

	must(own != NULL);
	*own = *j;
	own->next = NULL;
	j->people = NULL;
	j->msgs = NULL;
	j->groups = NULL;
	j->body = NULL;
	j->ids = NULL;
	j->cursors = NULL;
	return own;
}

static bool is_read(const struct store_job *j) { return j->op <= STORE_ROSTER; }

void store_submit(struct store *st, struct store_job *job)
{
	struct pending **p = is_read(job) ? &reads : &writes, *n = calloc(1, sizeof *n);

	(void)st;
	must(n != NULL);
	n->job = job;
	while (*p != NULL)
		p = &(*p)->next;
	*p = n;
}

uint64_t store_depth(const struct store *st) { (void)st; return reads != NULL || writes != NULL; }
bool store_up(const struct store *st) { (void)st; return !mood.down; }

/* The one odd thing that the script asked for, if it can happen to such a job. */
static bool odd(struct store_job *j)
{
	bool keep = j->flags & STORE_MUST;
	char what = mood.once;

	mood.once = 0;
	switch (what) {
	case 'd':
		j->rc = STORE_DOWN;
		return true;
	case 'b':
		j->rc = keep ? STORE_DOWN : STORE_BUSY;
		return true;
	case 'u':			/* it was done, and nobody knows */
		if (is_read(j))
			return false;
		(void)run_job(j);
		j->rc = STORE_UNSURE;
		return true;
	case 'f':
		j->rc = STORE_FULL;
		return !keep && (j->op == STORE_OFFLINE_ADD || j->op == STORE_FRIEND_ADD ||
		    j->op == STORE_GROUP_ADD || j->op == STORE_GROUP_JOIN);
	case 'g':
		j->rc = STORE_GONE;
		return !keep && j->op != STORE_OFFLINE && j->op != STORE_RANGE;
	case 'c':
		j->rc = STORE_CONFLICT;
		return j->op == STORE_USER_ADD || j->op == STORE_FRIEND_ADD ||
		    j->op == STORE_GROUP_ADD || j->op == STORE_GROUP_JOIN;
	case 'x':
		j->rc = STORE_DENIED;
		return !keep && (j->op == STORE_GROUP_MSG || j->op == STORE_GROUP_LEAVE ||
		    j->op == STORE_MEMBERS);
	default:
		return false;
	}
}

static void run_pending(struct pending *p)
{
	p->ran = true;
	p->lag = is_read(p->job) ? mood.read_lag : mood.write_lag;
	if (mood.down)
		p->job->rc = STORE_DOWN;
	else if (mood.once == 0 || !odd(p->job))
		p->job->rc = run_job(p->job);
}

/* A lane's turn: what is due is answered in order, what is new is run. */
static void lane_turn(struct pending **lane)
{
	struct pending *list = NULL, **tail = &list, *p;

	for (p = *lane; p != NULL; p = p->next)
		if (!p->ran)
			run_pending(p);
		else if (p->lag > 0)
			p->lag--;
	while ((p = *lane) != NULL && p->lag == 0) {
		*lane = p->next;
		p->next = NULL;
		*tail = p;
		tail = &p->next;
	}
	while ((p = list) != NULL) {
		list = p->next;
		if (p->job->done != NULL)
			p->job->done(p->job, p->job->arg);
		store_job_free(p->job);
		free(p);
	}
}

/*
 * The clients.
 */
struct client {
	int fd;
	bool classic, deaf;		/* deaf: reads nothing */
	char buf[400000];
	size_t len;
	struct frame scan;
	uint32_t last_n, cids;
	uint32_t user;			/* as whom it logged in last */
	bool above;			/* it sent a number above 10, so one may come back */
	bool own;			/* what it said was all of the script's making */
	bool asked, asked_ack, ack;	/* its last login, its session */
	int nul, lf;			/* frames that ended so */
};

static struct client clients[CLIENTS];
static struct json *strict, *large;

/* Messages of the script's own making: text -> who is to have it, what was said about it. */
static struct { uint32_t rcpt; unsigned client; bool acked, shown; } tracked[LOG_ROWS];
static uint32_t ntracked;
static bool lossy;			/* raw input speaks for itself: nothing is promised */

static void saw_message(struct client *c, const struct json_val *root)
{
	struct json_val v;
	int64_t n;
	unsigned k;

	if (json_get(strict, root, "n", &v)) {
		must(!c->classic && json_int(&v, &n) == JSON_OK);
		must(n == c->last_n + 1);
		c->last_n = (uint32_t)n;
		must(c->ack || !c->own);
	} else {
		must(!c->ack || !c->own);
	}
	if (json_get(strict, root, "msg", &v) && v.type == JSON_STRING && v.len > 4 &&
	    v.raw[1] == '#' && (k = (unsigned)strtoul(v.raw + 2, NULL, 10)) < ntracked)
		tracked[k].shown = true;
}

static void saw_greeting(struct client *c, const struct json_val *root)
{
	struct json_val list, one, v;

	c->ack = c->asked_ack && !c->classic;
	if (json_get(strict, root, "id", &v))
		c->user = (uint32_t)atoi(v.raw);
	if (!json_get(strict, root, "offlinemsg", &list))
		return;
	for (struct json_it it = json_it(strict, &list); json_next(strict, &it, NULL, &one); ) {
		static char text[400000];
		static struct json *inner;
		size_t len;

		if (!c->classic) {
			saw_message(c, &one);
			continue;
		}
		if (inner == NULL)
			inner = json_new(JSON_UNTRUSTED);
		must(json_text(&one, text, sizeof text, &len) == JSON_OK);
		must(json_parse(inner, text, len) == JSON_OK);
		struct json *keep = strict;
		struct json_val in = json_root(inner);
		strict = inner;
		saw_message(c, &in);
		strict = keep;
	}
}

static void saw_ack(const struct json_val *root)
{
	struct json_val e, cid;
	char text[PROTO_CID_MAX + 1];
	unsigned k;

	must(json_get(strict, root, "errno", &e) && json_get(strict, root, "cid", &cid));
	if (*e.raw == '0' && cid.type == JSON_STRING &&
	    json_text(&cid, text, sizeof text, NULL) == JSON_OK &&
	    sscanf(text, "k%u\"", &k) == 1 && k < ntracked)
		tracked[k].acked = true;
}

static void check_frame(struct client *c, const char *text, size_t len)
{
	struct json_val root, v;
	int64_t id;

	if (json_parse(large, text, len) != JSON_OK || json_parse(strict, text, len) != JSON_OK) {
		fprintf(stderr, "%s\n%.*s\n", json_why(strict), (int)len, text);
		abort();
	}
	must(len <= wk->conf.max_frame + PROTO_FRAME_EXTRA);
	root = json_root(strict);
	must(json_get(strict, &root, "msgid", &v) && json_int(&v, &id) == JSON_OK);
	enum proto_msg m = proto_from_wire(c->classic ? DIALECT_CLASSIC : DIALECT_PLAIN, id);
	must(m != MSG_NONE);
	if (c->classic) {
		must(id <= 10 || c->above);
		must(m != MSG_ERROR && m != MSG_PRESENCE && m != MSG_CHAT_ACK);
		must(m != MSG_LOGIN_ACK || len <= PROTO_CLASSIC_READ);
	}
	if (m == MSG_CHAT || m == MSG_GROUP_CHAT)
		saw_message(c, &root);
	else if (m == MSG_LOGIN_ACK)
		saw_greeting(c, &root);
	else if (m == MSG_CHAT_ACK)
		saw_ack(&root);
}

static void client_parse(struct client *c)
{
	size_t start, end;
	enum frame_rc rc;

	while ((rc = frame_next_values(&c->scan, c->buf, c->len,
	    wk->conf.max_frame + PROTO_FRAME_EXTRA, FRAME_LARGE_VALUES, &start, &end)) == FRAME_ONE)
		check_frame(c, c->buf + start, end - start);
	if (rc == FRAME_BAD) {
		fprintf(stderr, "%s: %.*s\n", frame_why(&c->scan), (int)c->len, c->buf);
		abort();
	}
	size_t keep = frame_idle(&c->scan) ? c->scan.pos : c->scan.start;
	memmove(c->buf, c->buf + keep, c->len - keep);
	c->len -= keep;
	frame_shift(&c->scan, keep);
}

static void client_read(struct client *c)
{
	ssize_t n;

	while (c->fd >= 0 && !c->deaf &&
	    (n = recv(c->fd, c->buf + c->len, sizeof c->buf - c->len, MSG_DONTWAIT)) > 0) {
		c->len += (size_t)n;
		client_parse(c);
	}
}

static void client_open(struct client *c)
{
	int sv[2], small = 4608;

	if (c->fd >= 0)
		return;
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) == 0);
	(void)setsockopt(sv[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	c->fd = sv[0];
	c->len = 0;
	c->last_n = c->user = 0;
	c->deaf = c->above = c->asked = c->ack = false;
	c->own = true;
	frame_init(&c->scan);
	conn_accept_fd(sv[1], c->classic);
}

/* What the server wrote it has had, so it counts: whole frames, that is. */
static void client_close(struct client *c)
{
	if (c->fd < 0)
		return;
	c->deaf = false;
	client_read(c);
	close(c->fd);
	c->fd = -1;
}

static void client_write(struct client *c, const void *bytes, size_t len)
{
	if (c->fd >= 0)
		(void)!send(c->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/*
 * Turns.
 */
static void turn(uint32_t ms)
{
	now_ms += ms;
	dispatch();
	auth_answer();
	lane_turn(&writes);
	lane_turn(&reads);
	timer_run(now_ms);
	seat_tidy(0);
	redo_turn_end();
	conn_flush_all();
	peer_flush();
	for (int i = 0; i < CLIENTS; i++)
		client_read(&clients[i]);
}

static bool nothing_left(void)
{
	return wk->nconns == 0 && reads == NULL && writes == NULL && auth_jobs == NULL &&
	    redo_waiting() == 0 && route_idle() && sweep_idle() && peer_idle() && move_count() == 0;
}

static void tell(void *arg, const char *text)
{
	(void)arg;
	fprintf(stderr, "%s\n", text);
}

/* Every message that was acknowledged: shown to somebody, or still there to be shown. */
static void check_promises(void)
{
	for (uint32_t k = 0; k < ntracked && !lossy; k++) {
		unsigned char mid[16];
		char cid[24];
		bool there = tracked[k].shown;

		if (!tracked[k].acked)
			continue;
		snprintf(cid, sizeof cid, "k%u\"", k);
		for (uint32_t u = 1; u < USERS && !there; u++) {
			auth_mid(u, cid, strlen(cid), mid);
			for (uint32_t i = 0; i < nmails; i++)
				there |= mails[i].id != 0 && memcmp(mails[i].mid, mid, 16) == 0;
			for (uint32_t i = 0; i < nposts; i++)
				there |= memcmp(posts[i].mid, mid, 16) == 0;
		}
		must(there);
	}
}

static void end_all(void)
{
	int i;

	mood.down = false;
	mood.once = 0;
	mood.read_lag = mood.write_lag = 0;
	redo_run();
	for (i = 0; i < CLIENTS; i++)
		client_close(&clients[i]);
	for (i = 0; i < TURNS && !nothing_left(); i++)
		turn(i < 100 ? 1 : 50);
	must(nothing_left());
	turn(1);
	must(region_used(wk->region) == 0);
	must(sess_check(tell, NULL) == 0);
	must(wk->s->connections == 0 && wk->s->sessions == 0);
	for (uint32_t g = 1; g < GROUPS; g++)
		must(group_sessions(g) == 0);
	for (i = 0; i < 1024; i++)
		must(!watched[i].used);
	check_promises();
}

/*
 * The script.
 */
struct script { const uint8_t *p; size_t left; };

static unsigned digit(struct script *s)
{
	unsigned b = 0;

	if (s->left > 0) {
		b = *s->p++;
		s->left--;
	}
	return b >= '0' && b <= '9' ? b - '0' : b & 15;
}

static void say(struct client *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct client *c, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	client_write(c, text, (size_t)n);
	client_write(c, c->classic ? "" : "\n", 1);
}

static uint32_t track(const struct client *c, uint32_t rcpt)
{
	if (ntracked == LOG_ROWS)
		return ntracked;
	tracked[ntracked].rcpt = rcpt;
	tracked[ntracked].client = (unsigned)(c - clients);
	tracked[ntracked].acked = tracked[ntracked].shown = false;
	return ntracked++;
}

static void say_chat(struct client *c, bool group, unsigned to, bool cid)
{
	uint32_t k = track(c, to);
	const char *member = group ? "groupid" : c->classic ? "toid" : "to";
	int id = group ? c->classic ? 10 : 9 : c->classic ? 6 : 5;

	if (cid)
		say(c, "{\"msgid\":%d,\"%s\":%u,\"msg\":\"#%u \",\"time\":\"t\",\"cid\":\"k%u\\\"\"}",
		    id, member, to, k, k);
	else
		say(c, "{\"msgid\":%d,\"%s\":%u,\"msg\":\"#%u \",\"x\":[1,{}]}", id, member, to, k);
}

static void say_big(struct client *c, unsigned to, unsigned size)
{
	static char text[70000];
	size_t len = size * 7000 + 1, n;
	uint32_t k = track(c, to);

	if (len > wk->conf.max_frame - 200)
		len = wk->conf.max_frame - 200;
	n = (size_t)sprintf(text, "{\"msgid\":%d,\"%s\":%u,\"cid\":\"k%u\\\"\",\"msg\":\"#%u ",
	    c->classic ? 6 : 5, c->classic ? "toid" : "to", to, k, k);
	memset(text + n, 'b', len);
	n += len;
	memcpy(text + n, "\"}\n", 3);
	client_write(c, text, n + 3);
}

/* As many values as a frame may have, less what the digit says. */
static void say_many(struct client *c, unsigned to, unsigned less)
{
	char text[1400];
	size_t n = (size_t)sprintf(text, "{\"msgid\":%d,\"%s\":%u,\"msg\":\"m\",\"x\":[0",
	    c->classic ? 6 : 5, c->classic ? "toid" : "to", to);

	for (unsigned i = 0; i < FRAME_MAX_VALUES - 6 - less * 2; i++)
		n += (size_t)sprintf(text + n, ",1");
	memcpy(text + n, "]}\n", 3);
	client_write(c, text, n + 3);
}

static void kick(struct client *c)
{
	struct sess_ref to;
	struct item_end it = { .reason = "kicked" };

	if (sess_find(c->user, &to) != SESS_OK)
		return;
	it.user = c->user;
	it.rrec = to.rec;
	it.rgen = to.gen;
	session_on_end(&it.head);
}

static void raw(struct client *c, struct script *s)
{
	const uint8_t *end = memchr(s->p, END_SEP, s->left);
	size_t len = end != NULL ? (size_t)(end - s->p) : s->left;

	lossy = c->above = true;
	c->own = false;
	client_write(c, s->p, len);
	s->p += len + (end != NULL);
	s->left -= len + (end != NULL);
}

static void store_mood(struct script *s)
{
	uint8_t b = s->left > 0 ? *s->p : '0';

	(void)digit(s);
	if (b == 'D') {
		mood.down = true;
	} else if (b == 'U') {
		mood.down = false;
		redo_run();
	} else if (b == 'A') {
		auth_busy = !auth_busy;
	} else if (b == 'M') {
		auth_short = !auth_short;
	} else {
		mood.once = (char)b;
	}
}

static struct client *run_op(struct client *c, uint8_t op, struct script *s)
{
	unsigned d;

	switch (op) {
	case '0': case '1': case '2':		/* which client acts */
		return &clients[op - '0'];
	case 'w':				/* raw bytes, up to END_SEP */
		raw(c, s);
		break;
	case 't':				/* turns, and a little time */
		turn(1);
		break;
	case 'T':
		d = digit(s);
		for (unsigned i = 0; i < 4; i++)
			turn(d * d * 25);
		region_tidy(wk->region);
		break;
	case 'n':
		client_open(c);
		break;
	case 'c':
		client_close(c);
		break;
	case 'h':				/* no more from this side */
		if (c->fd >= 0)
			(void)shutdown(c->fd, SHUT_WR);
		break;
	case 'd':				/* reads nothing, reads again */
		c->deaf = !c->deaf;
		break;
	case 'L': case 'A':
		if (c->asked && c->asked_ack != (op == 'A'))
			c->own = false;		/* one of the two is refused: only the server knows */
		c->asked = true;
		c->asked_ack = op == 'A';
		say(c, "{\"msgid\":1,\"id\":%u,\"password\":\"p\"%s}", digit(s),
		    op == 'A' ? ",\"ack\":true" : "");
		break;
	case 'X':
		say(c, "{\"msgid\":%d}", c->classic ? 3 : 10);
		break;
	case 'M': case 'm':
		say_chat(c, false, digit(s), op == 'M');
		break;
	case 'G': case 'g':
		say_chat(c, true, digit(s), op == 'G');
		break;
	case 'B':
		d = digit(s);
		say_big(c, d, digit(s));
		break;
	case 'V':
		d = digit(s);
		say_many(c, d, digit(s));
		break;
	case 'R':
		c->above = true;
		say(c, "{\"msgid\":16,\"n\":%u}", c->last_n);
		break;
	case 'F': case 'f':
		c->above |= op == 'f';
		say(c, "{\"msgid\":%d,\"friendid\":%u}", op == 'f' ? 17 : c->classic ? 7 : 6, digit(s));
		break;
	case 'C':
		say(c, "{\"msgid\":%d,\"groupname\":\"new %u\"}", c->classic ? 8 : 7, digit(s));
		break;
	case 'J': case 'j':
		c->above |= op == 'j';
		say(c, "{\"msgid\":%d,\"groupid\":%u,\"req\":\"\\u0022\"}",
		    op == 'j' ? 19 : c->classic ? 9 : 8, digit(s));
		break;
	case 'l': case 'k':
		c->above = true;
		say(c, "{\"msgid\":%d,\"after\":%u}", op == 'l' ? 21 : 23, digit(s));
		break;
	case 'S':
		store_mood(s);
		break;
	case 'r':
		mood.read_lag = digit(s);
		break;
	case 'W':
		mood.write_lag = digit(s);
		break;
	case 'o':
		mood.crowd = digit(s);
		break;
	case 'q':
		mood.strange = digit(s) * 3;
		break;
	case 'E':
		kick(c);
		break;
	default:
		break;
	}
	return c;
}

/*
 * Set-up, once.
 */
static void conf_tell(void *arg, const char *file, int line, const char *text)
{
	(void)arg;
	fprintf(stderr, "%s:%d: %s\n", file, line, text);
}

static void set_up(void)
{
	static const char text[] = "listen = 127.0.0.1:1\nlisten = 127.0.0.1:2 dialect=classic\n"
	    "store = sqlite:/nowhere\nworkers = 1\nmax_workers = 2\nlog_level = error\n";
	const struct segment_shape shape = { 2, 64, 2u << 20 };
	static int inbox[2][2], ends[2];

	log_set_level(LOG_L_FATAL);
	must(segment_open(&seg, &shape, 7) == 0);
	slot_at(0)->gen = 1;
	slot_at(0)->state = SLOT_READY;
	for (int i = 0; i < 2; i++) {
		must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, inbox[i]) == 0);
		ends[i] = inbox[i][1];
	}
	self = (struct worker){ .boot = &boot, .slot = 0, .gen = 1, .s = slot_at(0),
	    .json = json_new(0), .shapes = shapes_new(), .json2 = json_new(JSON_UNTRUSTED), .scratch = malloc(SCRATCH),
	    .text = malloc(SCRATCH), .region = region_open(0, 1), .keys_ready = true };
	boot = (struct worker_boot){ .slot = 0, .gen = 1, .conf = &self.conf, .peer_inbox = ends,
	    .peer_control = ends };
	conf_init(&self.conf);
	must(conf_read_text(&self.conf, "fuzz", text, sizeof text - 1, conf_tell, NULL) == 0);
	must(conf_finish(&self.conf, conf_tell, NULL) == 0);
	must(self.scratch != NULL && self.text != NULL && self.region != NULL);
	strict = json_new(JSON_UNTRUSTED);
	large = json_new(JSON_UNTRUSTED | JSON_LARGE);
	must(self.json != NULL && self.json2 != NULL && strict != NULL && large != NULL);
	must(conn_init() == 0 && peer_init() == 0 && route_init() == 0);
	for (int i = 0; i < CLIENTS; i++)
		clients[i].fd = -1;
}

static void set_modes(uint8_t modes)
{
	struct conf *cf = &wk->conf;

	for (int i = 0; i < CLIENTS; i++)
		clients[i].classic = modes >> i & 1;
	cf->max_frame = modes & 8 ? 1500 : 65536;
	cf->output_limit = 262144;
	cf->replace = modes & 16;
	cf->rate_messages = modes & 32 ? 2 : 0;
	cf->offline_max = modes & 32 ? 3 : 0;
	cf->ping_ms = modes & 128 ? 400 : 30000;
	cf->login_ms = cf->idle_ms = modes & 128 ? 1500 : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool ready;
	struct script s = { data, size };
	struct client *c = &clients[0];

	if (!ready)
		set_up();
	ready = true;
	store_reset();
	ntracked = 0;
	lossy = false;
	set_modes(s.left > 0 ? *s.p : 0);
	if (s.left > 0) {
		s.p++;
		s.left--;
	}
	for (int i = 0; i < CLIENTS; i++)
		client_open(&clients[i]);
	while (s.left > 0) {
		uint8_t op = *s.p++;

		s.left--;
		c = run_op(c, op, &s);
	}
	turn(1);
	end_all();
	return 0;
}
