/* msg.c - entries in the segment, and their two renderings. */
#include "worker/msg.h"

#include <string.h>

#include "shm/fault.h"
#include "worker/base/clock.h"
#include "worker/base/frame.h"
#include "worker/base/log.h"
#include "worker/state.h"

struct msg *msg_at(uint32_t ref)
{
	return (struct msg *)chunk_at(wk->slot, ref)->data;
}

struct msg *msg_of(uint32_t slot, uint32_t ref)
{
	if (slot >= shm->head->max_workers || ref >= shm->head->region_bytes / CHUNK_MIN)
		return NULL;
	struct chunk *c = chunk_at(slot, ref);
	if (atomic_load_explicit(&c->kind, memory_order_acquire) != CHUNK_MSG)
		return NULL;
	struct msg *m = (struct msg *)c->data;
	size_t room = chunk_room(c);
	if (room < sizeof *m || m->body_len > room - sizeof *m ||
	    m->req_len > room - sizeof *m - m->body_len || m->core_len > m->body_len ||
	    m->to_off > m->core_len || m->cid_off > m->body_len ||
	    m->cid_len > m->body_len - m->cid_off)
		return NULL;
	return m;
}

enum msg_state msg_state(const struct msg *m)
{
	return msg_word_state(atomic_load_explicit(&m->word, memory_order_acquire));
}

uint32_t msg_seq(const struct msg *m)
{
	return msg_word_seq(atomic_load_explicit(&m->word, memory_order_relaxed));
}

void msg_set_state(struct msg *m, enum msg_state s)
{
	atomic_store_explicit(&m->word, msg_word(msg_seq(m), s), memory_order_release);
}

bool msg_claim(struct msg *m, uint32_t seq, enum msg_state from, enum msg_state to)
{
	uint32_t want = msg_word(seq, from);

	return atomic_compare_exchange_strong_explicit(&m->word, &want, msg_word(seq, to),
	    memory_order_acq_rel, memory_order_acquire);
}

uint32_t msg_next_seq(void)
{
	static uint32_t seq;

	/* A successor goes on elsewhere: a name that a predecessor gave finds nobody. */
	if (seq == 0)
		seq = (uint32_t)atomic_load(&wk->s->order) * 31 + wk->gen * 1000003u;
	return seq = (seq + 1) & 0xffffff;
}

/* The chunk's former life may have left any word. */
static void fresh(struct msg *m)
{
	uint32_t seq = msg_next_seq();

	memset((char *)m + sizeof m->word, 0, sizeof *m - sizeof m->word);
	atomic_store_explicit(&m->word, msg_word(seq, M_NONE), memory_order_release);
	m->lane_next = CHUNK_NONE;
	m->origin_slot = UINT32_MAX;
	m->rrec = REC_NONE;
	m->since_ms = clock_ms();
	m->order = atomic_fetch_add_explicit(&wk->s->order, 1, memory_order_relaxed);
}

uint32_t msg_new(enum msg_kind kind, uint32_t sess, uint32_t gen, size_t body_len)
{
	return msg_new_extra(kind, sess, gen, body_len, 0);
}

uint32_t msg_new_extra(enum msg_kind kind, uint32_t sess, uint32_t gen, size_t body_len, size_t extra)
{
	/* It is a message only when its word says what: a sweep must not read a former life's. */
	uint32_t ref = chunk_alloc(wk->region, sizeof(struct msg) + body_len + extra, CHUNK_OUT,
	    sess, gen);

	if (ref == CHUNK_NONE)
		return ref;
	struct msg *m = msg_at(ref);
	fresh(m);
	m->kind = (uint8_t)kind;
	m->body_len = (uint32_t)body_len;
	atomic_store_explicit(&chunk_at(wk->slot, ref)->kind, CHUNK_MSG, memory_order_release);
	FAULT("msg.new.1");
	return ref;
}

uint32_t msg_copy(const struct msg *from, uint32_t sess, uint32_t gen)
{
	uint32_t ref = msg_new(from->kind, sess, gen, from->body_len);

	if (ref == CHUNK_NONE)
		return ref;
	struct msg *m = msg_at(ref);
	uint64_t order = m->order, since = m->since_ms;
	memcpy((char *)m + sizeof m->word, (const char *)from + sizeof from->word,
	    sizeof *m - sizeof m->word + from->body_len);
	m->order = order;
	m->since_ms = since;
	m->req_len = 0;
	m->lane_next = CHUNK_NONE;
	return ref;
}

void msg_free(uint32_t ref)
{
	msg_set_state(msg_at(ref), M_NONE);
	chunk_free(wk->region, ref);
}

void msg_hex(const unsigned char mid[16], char out[33])
{
	static const char digit[] = "0123456789abcdef";

	for (int i = 0; i < 16; i++) {
		out[2 * i] = digit[mid[i] >> 4];
		out[2 * i + 1] = digit[mid[i] & 15];
	}
	out[32] = '\0';
}

size_t msg_frame_max(const struct msg *m)
{
	return m->body_len + 64;
}

static char *put(char *p, const char *s, size_t len)
{
	memcpy(p, s, len);
	return p + len;
}

static char *put_lit(char *p, const char *s)
{
	return put(p, s, strlen(s));
}

static char *put_num(char *p, uint32_t n)
{
	char digits[10];
	int k = 0;

	do
		digits[k++] = (char)('0' + n % 10);
	while ((n /= 10) != 0);
	while (k > 0)
		*p++ = digits[--k];
	return p;
}

static bool is_group(const struct msg *m)
{
	return m->kind == MK_GROUP || m->kind == MK_GREF || m->to_off == 0;
}

size_t msg_render(char *out, const struct msg *m, enum proto_dialect d, uint32_t n, char term)
{
	enum proto_msg what = is_group(m) ? MSG_GROUP_CHAT : MSG_CHAT;
	char *p = put_lit(out, "{\"msgid\":");

	p = put_num(p, (uint32_t)proto_to_wire(d, what));
	*p++ = ',';
	if (d == DIALECT_PLAIN) {
		p = put(p, m->body, m->body_len);
		if (n > 0) {
			p = put_lit(p, ",\"n\":");
			p = put_num(p, n);
		}
	} else if (what == MSG_CHAT) {		/* `"to"` is `"toid"` there, and nothing is carried */
		p = put(p, m->body, m->to_off);
		p = put_lit(p, "\"toid\"");
		p = put(p, m->body + m->to_off + 4, m->core_len - m->to_off - 4);
	} else {
		p = put(p, m->body, m->core_len);
	}
	*p++ = '}';
	if (term != '\x01')
		*p++ = term;
	return (size_t)(p - out);
}

size_t msg_store_text(char *out, const struct msg *m)
{
	return msg_render(out, m, DIALECT_PLAIN, 0, '\x01');
}

enum msg_key msg_key_of(const struct json_val *name)
{
	static const char *const text[MSG_NKEYS] = { "", "msgid", "id", "name", "to", "toid",
	    "groupid", "msg", "time", "ts", "mid", "n", "cid", "req" };
	/* By length (quotes included), so that a name is compared with one or two candidates. */
	static const unsigned char by_len[10][4] = { [3] = { MSG_K_N }, [4] = { MSG_K_ID, MSG_K_TO,
	    MSG_K_TS }, [5] = { MSG_K_MSG, MSG_K_CID, MSG_K_MID, MSG_K_REQ }, [6] = { MSG_K_NAME,
	    MSG_K_TOID, MSG_K_TIME }, [7] = { MSG_K_MSGID }, [9] = { MSG_K_GROUPID } };

	if (name->len < 10 && memchr(name->raw, '\\', name->len) == NULL) {
		for (int i = 0; i < 4 && by_len[name->len][i] != 0; i++)
			if (memcmp(name->raw + 1, text[by_len[name->len][i]], name->len - 2) == 0)
				return (enum msg_key)by_len[name->len][i];
		return MSG_K_OTHER;
	}
	for (int k = 1; k < MSG_NKEYS; k++)		/* long, or written with escapes */
		if (json_is(name, text[k]))
			return (enum msg_key)k;
	return MSG_K_OTHER;
}

void msg_body(struct json_out *w, const struct msg_parts *parts, const struct json_pair *carried,
    size_t n, struct msg_marks *marks_r)
{
	char hex[33];

	json_raw(w, "\"id\":", 5);
	w->comma = false;
	json_put_int(w, parts->sender);
	json_raw(w, ",\"name\":", 8);
	w->comma = false;
	json_put_text(w, parts->name, parts->name_len);
	json_raw(w, ",", 1);
	marks_r->to_off = parts->group ? 0 : (uint16_t)w->len;
	if (parts->group)
		json_raw(w, "\"groupid\":", 10);
	else
		json_raw(w, "\"to\":", 5);
	w->comma = false;
	json_put_int(w, parts->rcpt);
	json_raw(w, ",\"msg\":", 7);
	json_raw(w, parts->msg.raw, parts->msg.len);
	json_raw(w, ",\"time\":", 8);
	w->comma = false;
	if (parts->time.type == JSON_STRING)
		json_raw(w, parts->time.raw, parts->time.len);
	else
		json_put_text(w, parts->time_text, strlen(parts->time_text));
	marks_r->core_len = (uint32_t)w->len;
	for (size_t i = 0; i < n; i++) {
		json_raw(w, ",", 1);
		json_raw(w, carried[i].key.raw, carried[i].key.len);
		json_raw(w, ":", 1);
		json_raw(w, carried[i].val.raw, carried[i].val.len);
	}
	json_raw(w, ",\"ts\":", 6);
	w->comma = false;
	json_put_int(w, (int64_t)parts->ts);
	msg_hex(parts->mid, hex);
	json_raw(w, ",\"mid\":\"", 8);
	json_raw(w, hex, 32);
	json_raw(w, "\"", 1);
	w->comma = true;
	marks_r->cid_off = marks_r->cid_len = 0;
	if (parts->cid != NULL) {
		marks_r->cid_off = (uint32_t)w->len + 8;	/* behind `,"cid":"` */
		json_kv_text(w, "cid", parts->cid, parts->cid_len);
		marks_r->cid_len = (uint32_t)w->len - 1 - marks_r->cid_off;
	}
}

uint32_t msg_from_text(enum msg_kind kind, uint32_t sess, uint32_t gen, const char *text,
    size_t len, uint32_t sender, const unsigned char mid[16], uint64_t ts, uint64_t row)
{
	struct json *j = wk->json2;
	static struct json_pair pairs[FRAME_MAX_VALUES];
	struct json_val root, v, name, rcpt, cid;
	size_t npairs = 0;
	struct msg_parts parts = { .sender = sender, .ts = ts };
	struct msg_marks marks;
	struct json_out w;
	char name_text[PROTO_NAME_BYTES + 1], cid_text[PROTO_CID_MAX + 1];
	int64_t n;

	if (json_parse(j, text, len) != JSON_OK)
		return MSG_NOT_OURS;
	root = json_root(j);
	parts.group = kind == MK_GREF || kind == MK_GROUP;
	if (!json_get(j, &root, "name", &name) ||
	    !json_get(j, &root, parts.group ? "groupid" : "to", &rcpt) ||
	    !json_get(j, &root, "msg", &parts.msg) || json_int(&rcpt, &n) != JSON_OK ||
	    json_text(&name, name_text, sizeof name_text, &parts.name_len) != JSON_OK)
		return MSG_NOT_OURS;
	parts.name = name_text;
	parts.rcpt = (uint32_t)n;
	parts.time_text = "";
	if (json_get(j, &root, "time", &v))
		parts.time = v;
	if (json_get(j, &root, "cid", &cid) &&
	    json_text(&cid, cid_text, sizeof cid_text, &parts.cid_len) == JSON_OK)
		parts.cid = cid_text;
	memcpy(parts.mid, mid, 16);
	json_out_init(&w, wk->scratch, SCRATCH);
	for (struct json_it it = json_it(j, &root); npairs < FRAME_MAX_VALUES &&
	    json_next(j, &it, &pairs[npairs].key, &pairs[npairs].val); )
		npairs += msg_key_of(&pairs[npairs].key) == MSG_K_OTHER;
	msg_body(&w, &parts, pairs, npairs, &marks);
	if (w.over)
		return MSG_NOT_OURS;
	uint32_t ref = msg_new(kind, sess, gen, w.len);
	if (ref == CHUNK_NONE)
		return ref;
	struct msg *m = msg_at(ref);
	memcpy(m->body, wk->scratch, w.len);
	m->core_len = marks.core_len;
	m->to_off = marks.to_off;
	m->cid_off = marks.cid_off;
	m->cid_len = marks.cid_len;
	m->sender = sender;
	m->rcpt = parts.rcpt;
	memcpy(m->mid, mid, 16);
	m->ts = ts;
	m->row = row;
	return ref;
}
