/* msg.c - entries in the segment, and their two renderings. */
#include "worker/msg.h"

#include <string.h>

#include "shm/fault.h"
#include "worker/base/clock.h"
#include "worker/base/frame.h"
#include "worker/base/log.h"
#include "worker/state.h"

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
	/* Only this slot's worker writes it: no locked instruction. */
	m->order = atomic_load_explicit(&wk->s->order, memory_order_relaxed);
	atomic_store_explicit(&wk->s->order, m->order + 1, memory_order_relaxed);
}

uint32_t msg_new(enum msg_kind kind, uint32_t sess, uint32_t gen, size_t body_len)
{
	/* It is a message only when its word says what: a sweep must not read a former life's. */
	uint32_t ref = chunk_alloc(wk->region, sizeof(struct msg) + body_len, CHUNK_OUT, sess, gen);

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

/* Four bytes as eight hexadecimal digits. */
static void hex8(const unsigned char in[4], char out[8])
{
	uint32_t four;
	uint64_t x;

	memcpy(&four, in, 4);
	x = four;		/* eight nibbles, a byte each; then 0 to 9 are digits, the rest letters */
	x = (x | x << 16) & 0x0000ffff0000ffffu;
	x = (x | x << 8) & 0x00ff00ff00ff00ffu;
	x = (x >> 4 | x << 8) & 0x0f0f0f0f0f0f0f0fu;
	x += 0x3030303030303030u + ((x + 0x0606060606060606u) >> 4 & 0x0101010101010101u) * 39;
	memcpy(out, &x, 8);
}

void msg_hex(const unsigned char mid[16], char out[33])
{
	for (int i = 0; i < 4; i++)
		hex8(mid + 4 * i, out + 8 * i);
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

static char *put_num(char *p, uint64_t n)
{
	return p + json_digits(n, p);
}

/* A time: the same as the last one's, in most cases. */
static char *put_ts(char *p, uint64_t ts)
{
	static char text[20];
	static size_t len;
	static uint64_t of = UINT64_MAX;

	if (ts != of) {
		len = json_digits(ts, text);
		of = ts;
	}
	return put(p, text, len);
}

/* Quoted; PLAIN: nothing in it must be escaped. */
static char *put_text(char *p, const char *s, size_t len, bool plain)
{
	struct json_out w;

	if (!plain) {
		json_out_init(&w, p, len * 6 + 2);
		json_put_text(&w, s, len);
		return p + w.len;
	}
	*p++ = '"';
	p = put(p, s, len);
	*p++ = '"';
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
	const char *s = name->raw + 1;
	enum msg_key k = MSG_K_OTHER;

	/* Its length and a letter or two leave one candidate. */
	switch (name->len - 2) {
	case 1:
		k = MSG_K_N;
		break;
	case 2:
		k = *s == 'i' ? MSG_K_ID : s[1] == 'o' ? MSG_K_TO : MSG_K_TS;
		break;
	case 3:
		k = *s == 'm' ? s[1] == 's' ? MSG_K_MSG : MSG_K_MID : *s == 'c' ? MSG_K_CID : MSG_K_REQ;
		break;
	case 4:
		k = *s == 'n' ? MSG_K_NAME : s[1] == 'o' ? MSG_K_TOID : MSG_K_TIME;
		break;
	case 5:
		k = MSG_K_MSGID;
		break;
	case 7:
		k = MSG_K_GROUPID;
	}
	if (k != MSG_K_OTHER && memcmp(s, text[k], name->len - 2) == 0)
		return k;
	if (memchr(s, '\\', name->len - 2) == NULL)
		return MSG_K_OTHER;
	for (int i = 1; i < MSG_NKEYS; i++)		/* written with escapes */
		if (json_is(name, text[i]))
			return (enum msg_key)i;
	return MSG_K_OTHER;
}

static char *put_core(char *p, struct msg *m, const struct msg_parts *parts, bool plain)
{
	p = put_lit(p, "\"id\":");
	p = put_num(p, parts->sender);
	p = put_lit(p, ",\"name\":");
	p = put_text(p, parts->name, parts->name_len, plain);
	*p++ = ',';
	m->to_off = parts->group ? 0 : (uint16_t)(p - m->body);
	p = parts->group ? put_lit(p, "\"groupid\":") : put_lit(p, "\"to\":");
	p = put_num(p, parts->rcpt);
	p = put_lit(p, ",\"msg\":");
	p = put(p, parts->msg.raw, parts->msg.len);
	p = put_lit(p, ",\"time\":");
	p = parts->time.type == JSON_STRING ? put(p, parts->time.raw, parts->time.len) :
	    put_text(p, parts->time_text, parts->time_len, true);
	m->core_len = (uint32_t)(p - m->body);
	return p;
}

static char *put_tail(char *p, struct msg *m, const struct msg_parts *parts, bool plain,
    const struct json_pair *carried, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		*p++ = ',';
		p = put(p, carried[i].key.raw, carried[i].key.len);
		*p++ = ':';
		p = put(p, carried[i].val.raw, carried[i].val.len);
	}
	p = put_lit(p, ",\"ts\":");
	p = put_ts(p, parts->ts);
	p = put_lit(p, ",\"mid\":\"");
	for (int i = 0; i < 16; i += 4, p += 8)
		hex8(parts->mid + i, p);
	*p++ = '"';
	m->cid_off = m->cid_len = 0;
	if (parts->cid != NULL) {
		p = put_lit(p, ",\"cid\":");
		m->cid_off = (uint32_t)(p + 1 - m->body);
		p = put_text(p, parts->cid, parts->cid_len, plain);
		m->cid_len = (uint32_t)(p - 1 - m->body) - m->cid_off;
	}
	return p;
}

uint32_t msg_make(enum msg_kind kind, uint32_t sess, uint32_t gen, const struct msg_parts *parts,
    const struct json_pair *carried, size_t n, const char *extra, size_t extra_len)
{
	bool plain_name = json_is_plain(parts->name, parts->name_len);
	bool plain_cid = parts->cid == NULL || json_is_plain(parts->cid, parts->cid_len);
	size_t max = sizeof "'id':,'name':'','groupid':,'msg':,'time':'','ts':,'mid':'','cid':''" +
	    32 + 3 * 20 + parts->name_len * (plain_name ? 1 : 6) + parts->msg.len +
	    (parts->time.type == JSON_STRING ? parts->time.len : parts->time_len) +
	    parts->cid_len * (plain_cid ? 1 : 6);

	for (size_t i = 0; i < n; i++)
		max += carried[i].key.len + carried[i].val.len + 2;
	uint32_t ref = msg_new(kind, sess, gen, max + extra_len);
	if (ref == CHUNK_NONE)
		return ref;
	struct msg *m = msg_at(ref);
	char *p = put_core(m->body, m, parts, plain_name);
	p = put_tail(p, m, parts, plain_cid, carried, n);
	ensure((size_t)(p - m->body) <= max);
	memcpy(p, extra, extra_len);
	m->body_len = (uint32_t)(p - m->body);
	m->req_len = (uint32_t)extra_len;
	m->sender = parts->sender;
	m->rcpt = parts->rcpt;
	memcpy(m->mid, parts->mid, 16);
	m->ts = parts->ts;
	return ref;
}

uint32_t msg_from_text(enum msg_kind kind, uint32_t sess, uint32_t gen, const char *text,
    size_t len, uint32_t sender, const unsigned char mid[16], uint64_t ts, uint64_t row)
{
	struct json *j = wk->json2;
	static struct json_pair pairs[FRAME_MAX_VALUES];
	struct json_val root, v, name, rcpt, cid;
	size_t npairs = 0;
	struct msg_parts parts = { .sender = sender, .ts = ts };
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
	for (struct json_it it = json_it(j, &root); npairs < FRAME_MAX_VALUES &&
	    json_next(j, &it, &pairs[npairs].key, &pairs[npairs].val); )
		npairs += msg_key_of(&pairs[npairs].key) == MSG_K_OTHER;
	uint32_t ref = msg_make(kind, sess, gen, &parts, pairs, npairs, "", 0);
	if (ref != CHUNK_NONE)
		msg_at(ref)->row = row;
	return ref;
}
