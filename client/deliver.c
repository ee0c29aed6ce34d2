#include "client/deliver.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/home.h"
#include "client/outbox.h"
#include "client/seen.h"
#include "client/show.h"
#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/json.h"
#include "worker/proto.h"

#define RETRY_MIN_MS 50
#define RETRY_MAX_MS 60000
#define LIMIT_MIN    1024		/* no server's frame limit is smaller */
#define RETRY_OWN_MS 1000		/* where the server names no time */

/* A recipient that has to wait. */
struct lane {
	struct outbox_msg key;		/* only group, id and name */
	bool held;
	uint64_t due_ms;
	uint32_t pause_ms;		/* doubles with each refusal in a row */
};

/* Messages written to show up to MARK, to be noted and confirmed once it is written out. */
struct taken {
	uint64_t mark;
	int64_t n;
	uint32_t count;
	uint32_t fresh;			/* of them not in the file of seen messages */
};

struct deliver {
	struct show *show;
	struct deliver_ops ops;
	void *arg;
	struct outbox *outbox;
	struct seen *seen;
	uint64_t serial;		/* connection in use; 0: not logged in */
	bool dirty;			/* there may be something to send */

	char base[33];			/* of our cids */
	uint64_t count;
	char last_cid[PROTO_CID_MAX + 1];
	const char *last;
	char stored_for[64];		/* whom we have said it of */

	struct lane *lane;
	size_t nlanes;

	struct taken *taken;
	size_t ntaken, cap_taken;
	uint32_t unconfirmed, fresh;	/* sums over taken */
	int64_t confirmed, to_confirm;	/* of this connection */

	unsigned failures;
	char *frame;
	struct text label;		/* of label_of() */
};

static void new_base(struct deliver *d)
{
	unsigned char r[16];

	randombytes_buf(r, sizeof r);
	sodium_bin2hex(d->base, sizeof d->base, r, sizeof r);
	d->count = 0;
}

struct deliver *deliver_new(struct show *show, const struct deliver_ops *ops, void *arg)
{
	struct deliver *d = text_alloc(sizeof *d);

	d->show = show;
	d->ops = *ops;
	d->arg = arg;
	d->last = "";
	d->frame = text_alloc(DELIVER_FRAME_MAX);
	d->outbox = outbox_open(NULL);
	d->seen = seen_open(NULL, clock_wall_ms());
	new_base(d);
	return d;
}

static void drop_lane(struct deliver *d, size_t i)
{
	free(d->lane[i].key.name);
	d->lane[i] = d->lane[--d->nlanes];
}

static void drop_lanes(struct deliver *d)
{
	for (size_t i = 0; i < d->nlanes; i++)
		free(d->lane[i].key.name);
	d->nlanes = 0;
}

void deliver_free(struct deliver *d)
{
	if (d == NULL)
		return;
	drop_lanes(d);
	outbox_free(d->outbox);
	seen_free(d->seen);
	free(d->lane);
	free(d->taken);
	text_fini(&d->label);
	free(d->frame);
	free(d);
}

static void tell_file_trouble(struct deliver *d)
{
	const char *why = outbox_why(d->outbox);

	if (why != NULL)
		show_error(d->show, 0, NULL, 0, "the outbox cannot be kept on disk: %s", why);
	why = seen_why(d->seen);
	if (why != NULL)
		show_error(d->show, 0, NULL, 0, "seen messages cannot be noted on disk: %s", why);
}

void deliver_account(struct deliver *d, const struct home *home)
{
	char *path;

	seen_save(d->seen, 0);		/* still in show's queue, which this program writes out */
	outbox_free(d->outbox);
	seen_free(d->seen);
	path = home != NULL ? home_path(home, "outbox") : NULL;
	d->outbox = outbox_open(path);
	free(path);
	path = home != NULL ? home_path(home, "seen") : NULL;
	d->seen = seen_open(path, clock_wall_ms());
	free(path);
	d->ntaken = 0;
	d->unconfirmed = d->fresh = 0;
	d->last = "";
	d->last_cid[0] = d->stored_for[0] = '\0';
	new_base(d);			/* a cid is never used twice by an account */
	tell_file_trouble(d);
}

void deliver_up(struct deliver *d, uint64_t serial)
{
	d->serial = serial;
	d->confirmed = d->to_confirm = 0;
	d->dirty = true;
	drop_lanes(d);
}

void deliver_down(struct deliver *d)
{
	d->serial = 0;
	for (size_t i = 0; i < d->ntaken; i++)
		d->taken[i].n = 0;	/* numbers of a connection that is gone confirm nothing */
	if (strcmp(d->last, "sent") == 0) {
		d->last = "sending";
		d->ops.changed(d->arg);
	}
}

/* The recipient for a person's eyes; valid until the next call. */
static const char *label_of(struct deliver *d, const struct outbox_msg *m)
{
	text_clear(&d->label);
	if (m->group)
		text_puts(&d->label, "#");
	if (text_id(m->label) > 0 && text_id(m->label) == m->id)
		text_puts(&d->label, m->label);
	else
		text_name(&d->label, m->label);
	return d->label.s;
}

/* ---- outgoing ------------------------------------------------------------------------------ */

/* 0 when the frame does not fit. */
static size_t make_frame(struct deliver *d, const struct outbox_msg *m)
{
	struct json_out w;
	const char *to = m->group ? "groupid" : "to";

	json_out_init(&w, d->frame, DELIVER_FRAME_MAX);
	json_open(&w, '{');
	json_kv_int(&w, "msgid", m->group ? MSG_GROUP_CHAT : MSG_CHAT);
	if (m->id > 0)
		json_kv_int(&w, to, m->id);
	else
		json_kv_str(&w, to, m->name);
	json_kv_str(&w, "msg", m->text);
	json_kv_str(&w, "time", m->time);
	json_kv_str(&w, "cid", m->cid);
	json_close(&w, '}');
	return w.over ? 0 : w.len;
}

static void set_last(struct deliver *d, const char *cid, const char *state)
{
	if (strcmp(cid, d->last_cid) != 0 || strcmp(state, d->last) == 0)
		return;
	d->last = state;
	d->ops.changed(d->arg);
}

int deliver_chat(struct deliver *d, const struct outbox_msg *m)
{
	char cid[PROTO_CID_MAX + 1], when[20];
	struct outbox_msg full = *m;

	snprintf(cid, sizeof cid, "%s-%llx", d->base, (unsigned long long)++d->count);
	full.at_ms = clock_wall_ms();
	clock_text(full.at_ms, when);
	full.cid = cid;
	full.time = when;
	if (make_frame(d, &full) == 0)
		return DELIVER_ESIZE;
	if (outbox_add(d->outbox, &full) == OUTBOX_EFULL)
		return DELIVER_EFULL;
	tell_file_trouble(d);
	memcpy(d->last_cid, cid, sizeof cid);
	d->last = "sending";
	d->dirty = true;
	d->ops.changed(d->arg);
	return DELIVER_OK;
}

static struct lane *find_lane(struct deliver *d, const struct outbox_msg *m)
{
	for (size_t i = 0; i < d->nlanes; i++)
		if (outbox_same_lane(&d->lane[i].key, m))
			return &d->lane[i];
	return NULL;
}

/* Writes what was not yet sent on this connection, oldest first, but for lanes that wait. */
static void send_open(struct deliver *d)
{
	struct outbox_msg *m;

	d->dirty = false;
	for (size_t i = 0; (m = outbox_at(d->outbox, i)) != NULL; i++) {
		struct lane *l = d->nlanes > 0 ? find_lane(d, m) : NULL;
		size_t len;

		if (m->sent_on == d->serial || (l != NULL && l->held))
			continue;
		len = make_frame(d, m);
		if (d->ops.send(d->arg, d->frame, len) != 0) {
			d->dirty = true;
			return;
		}
		m->sent_on = d->serial;
		set_last(d, m->cid, "sent");
	}
}

static void release_lane(struct deliver *d, struct lane *l)
{
	struct outbox_msg *m;

	l->held = false;
	d->dirty = true;
	for (size_t i = 0; (m = outbox_at(d->outbox, i)) != NULL; i++)
		if (outbox_same_lane(&l->key, m))
			m->sent_on = 0;
}

static void hold_lane(struct deliver *d, const struct outbox_msg *m, int err, const char *errmsg,
    uint64_t retry_ms)
{
	struct lane *l = find_lane(d, m);
	uint64_t pause;

	if (l == NULL) {
		d->lane = text_resize(d->lane, (d->nlanes + 1) * sizeof *l);
		l = &d->lane[d->nlanes++];
		*l = (struct lane){ .key = { .group = m->group, .id = m->id,
		    .name = text_copy(m->name) } };
		if (show_mode(d->show) == SHOW_TERM)
			show_error(d->show, err, errmsg, retry_ms, "the message to %s waits",
			    label_of(d, m));
	}
	if (l->held)
		return;			/* an answer to what was sent behind the refused one */
	l->pause_ms = l->pause_ms ? l->pause_ms * 2 : RETRY_MIN_MS;
	if (l->pause_ms > RETRY_MAX_MS)
		l->pause_ms = RETRY_MAX_MS;
	pause = retry_ms > 0 ? retry_ms : RETRY_OWN_MS;
	pause = pause < l->pause_ms ? l->pause_ms : pause;
	l->held = true;
	l->due_ms = clock_ms() + (pause > RETRY_MAX_MS ? RETRY_MAX_MS : pause);
}

static void show_done(struct deliver *d, const struct outbox_msg *m, const char *mid,
    const char *state)
{
	const char *label = label_of(d, m);
	struct json_out *w = show_event(d->show, "ack", (strlen(m->label) + strlen(mid)) * 6 + 256);

	if (w != NULL) {
		json_kv_str(w, "state", state);
		json_kv_str(w, "cid", m->cid);
		json_kv_str(w, "mid", mid);
		json_key(w, m->group ? "group" : "to");
		json_open(w, '{');
		if (m->id > 0)
			json_kv_int(w, "id", m->id);
		if (text_id(m->label) != m->id || m->id == 0)
			json_kv_str(w, "name", m->label);
		json_close(w, '}');
		show_event_end(d->show);
	} else if (show_mode(d->show) == SHOW_TEXT) {
		show_line(d->show, "%s: %s", state, label);
	} else if (!m->group && strcmp(state, "stored") == 0) {
		/* said once, not of each message: the prompt shows the rest */
		if (strncmp(d->stored_for, label, sizeof d->stored_for - 1) != 0)
			show_note(d->show, "%s is not online: the message is stored", label);
		snprintf(d->stored_for, sizeof d->stored_for, "%s", label);
	} else if (!m->group) {
		d->stored_for[0] = '\0';
	}
}

static void end_of_lane_trouble(struct deliver *d, const struct outbox_msg *m)
{
	struct lane *l = d->nlanes > 0 ? find_lane(d, m) : NULL;

	/* while held, an older message's good answer does not end the wait of a newer one */
	if (l != NULL && !l->held)
		drop_lane(d, (size_t)(l - d->lane));
}

static void refuse(struct deliver *d, struct outbox_msg *m, int err, const char *errmsg)
{
	show_error(d->show, err, errmsg, 0, "the message to %s was refused", label_of(d, m));
	set_last(d, m->cid, "refused");
	if (m->fresh)
		d->failures++;
	end_of_lane_trouble(d, m);
	outbox_close(d->outbox, m);
}

void deliver_ack(struct deliver *d, const char *cid, int err, const char *errmsg,
    uint64_t retry_ms, const char *mid, const char *state)
{
	struct outbox_msg *m = outbox_find(d->outbox, cid);

	if (m == NULL)
		return;			/* answered before, or not ours */
	switch (err) {
	case E_OK:
		state = strcmp(state, "delivered") == 0 ? "delivered" : "stored";
		set_last(d, cid, state);
		show_done(d, m, mid, state);
		end_of_lane_trouble(d, m);
		outbox_close(d->outbox, m);
		break;
	case E_LOGIN:
	case E_RATE:
	case E_AGAIN:
		hold_lane(d, m, err, errmsg, retry_ms);
		break;
	default:
		refuse(d, m, err, errmsg);
		break;
	}
	tell_file_trouble(d);
}

bool deliver_too_large(struct deliver *d, const char *errmsg)
{
	struct outbox_msg *m, *longest = NULL;

	for (size_t i = 0; (m = outbox_at(d->outbox, i)) != NULL; i++)
		if (m->sent_on == d->serial &&
		    (longest == NULL || strlen(m->text) > strlen(longest->text)))
			longest = m;
	if (longest == NULL || strlen(longest->text) < LIMIT_MIN / 2)
		return false;
	refuse(d, longest, E_SIZE, errmsg);
	return true;
}

static void give_up_old(struct deliver *d)
{
	uint64_t now = clock_wall_ms();
	struct outbox_msg *m;

	for (size_t i = 0; (m = outbox_at(d->outbox, i)) != NULL;) {
		if (m->at_ms + OUTBOX_LIFE_MS > now) {
			i++;
			continue;
		}
		show_error(d->show, 0, NULL, 0,
		    "gave up the message to %s of %s: not confirmed for 7 days", label_of(d, m),
		    m->time);
		d->failures++;
		set_last(d, m->cid, "refused");
		outbox_close(d->outbox, m);
	}
}

/* ---- incoming ------------------------------------------------------------------------------ */

bool deliver_is_new(struct deliver *d, const char *mid, size_t len)
{
	return len == 0 || seen_add(d->seen, mid, len, clock_wall_ms());
}

void deliver_took(struct deliver *d, int64_t n, bool was_new)
{
	uint64_t mark = show_queued(d->show);
	struct taken *k;

	if (d->ntaken == 0 || d->taken[d->ntaken - 1].mark != mark) {
		if (d->ntaken == d->cap_taken) {
			d->cap_taken = d->cap_taken ? d->cap_taken * 2 : 64;
			d->taken = text_resize(d->taken, d->cap_taken * sizeof *k);
		}
		d->taken[d->ntaken++] = (struct taken){ .mark = mark };
	}
	k = &d->taken[d->ntaken - 1];
	k->n = n > k->n ? n : k->n;
	k->count++;
	d->unconfirmed++;
	k->fresh += was_new;
	d->fresh += was_new;
}

size_t deliver_unconfirmed(const struct deliver *d)
{
	return d->unconfirmed;
}

/* What show has written: noted, then confirmed, so that a crash in between costs no message. */
static void confirm(struct deliver *d)
{
	uint64_t written = show_written(d->show);
	size_t done = 0;
	char frame[64];

	for (; done < d->ntaken && d->taken[done].mark <= written; done++) {
		if (d->taken[done].n > d->to_confirm)
			d->to_confirm = d->taken[done].n;
		d->unconfirmed -= d->taken[done].count;
		d->fresh -= d->taken[done].fresh;
	}
	if (done > 0) {
		memmove(d->taken, d->taken + done, (d->ntaken - done) * sizeof d->taken[0]);
		d->ntaken -= done;
		seen_save(d->seen, d->fresh);
		tell_file_trouble(d);
	}
	if (d->to_confirm > d->confirmed && d->serial != 0) {
		int len = snprintf(frame, sizeof frame, "{\"msgid\":%d,\"n\":%lld}", MSG_RECEIVED,
		    (long long)d->to_confirm);

		if (d->ops.send(d->arg, frame, (size_t)len) == 0)
			d->confirmed = d->to_confirm;
	}
}

/* ---- the turn ------------------------------------------------------------------------------ */

void deliver_turn(struct deliver *d, int *timeout_ms)
{
	uint64_t now = clock_ms();
	struct outbox_msg *oldest;

	confirm(d);
	oldest = outbox_at(d->outbox, 0);
	if (oldest != NULL && oldest->at_ms + OUTBOX_LIFE_MS <= clock_wall_ms())
		give_up_old(d);
	for (size_t i = 0; i < d->nlanes; i++) {
		if (d->lane[i].held && d->lane[i].due_ms <= now)
			release_lane(d, &d->lane[i]);
		if (d->lane[i].held && (*timeout_ms < 0 ||
		    d->lane[i].due_ms - now < (uint64_t)*timeout_ms))
			*timeout_ms = (int)(d->lane[i].due_ms - now);
	}
	if (d->serial != 0 && d->dirty)
		send_open(d);
	if (oldest != NULL && (*timeout_ms < 0 || *timeout_ms > 60000))
		*timeout_ms = 60000;		/* its life is looked at now and then */
}

size_t deliver_open(const struct deliver *d, bool fresh_only)
{
	size_t n = 0;

	if (!fresh_only)
		return outbox_count(d->outbox);
	for (size_t i = 0; i < outbox_count(d->outbox); i++)
		n += outbox_at(d->outbox, i)->fresh;
	return n;
}

unsigned deliver_failures(const struct deliver *d)
{
	return d->failures;
}

const char *deliver_last(const struct deliver *d)
{
	return d->last;
}

void deliver_list(struct deliver *d)
{
	struct outbox_msg *m;

	for (size_t i = 0; (m = outbox_at(d->outbox, i)) != NULL; i++) {
		struct text t = { 0 };
		size_t n = strlen(m->text);

		for (n = n > 60 ? 60 : n; n > 0 && ((unsigned char)m->text[n] & 0xc0) == 0x80;)
			n--;			/* no character is cut in two */
		text_clean(&t, TEXT_SHOWN, m->text, n);
		show_line(d->show, "  not confirmed: to %s, %s: %s", label_of(d, m), m->time, t.s);
		text_fini(&t);
	}
}
