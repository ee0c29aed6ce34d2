/* bench_mqtt.c - MQTT 3.1.1 (OASIS): a topic for each client, QoS 0 or 1. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONNECT = 0x10, CONNACK = 0x20, PUBLISH = 0x30, PUBACK = 0x40, SUBSCRIBE = 0x82, SUBACK = 0x90 };

#define STAMPS_MIN 64

struct stamps {				/* when the messages under way were sent, by packet id */
	uint32_t cap;
	int64_t at[];
};

/* The bytes of the fixed header, and those behind it. 0: more has to come. */
static size_t header_of(const char *p, size_t len, size_t *rest_r)
{
	size_t rest = 0;

	for (size_t i = 1; i < 5; i++) {
		if (i >= len)
			return 0;
		rest |= (size_t)(p[i] & 127) << (7 * (i - 1));
		if ((p[i] & 128) == 0) {
			*rest_r = rest;
			return i + 1;
		}
	}
	*rest_r = SIZE_MAX;
	return 5;
}

static ssize_t mqtt_cut(const char *p, size_t len)
{
	size_t rest, head = header_of(p, len, &rest);

	if (head == 0)
		return 0;
	if (rest == SIZE_MAX)
		return -1;
	return head + rest <= len ? (ssize_t)(head + rest) : 0;
}

static char *put_head(char *p, int type, size_t rest)
{
	*p++ = (char)type;
	do {
		*p++ = (char)((rest & 127) | (rest > 127 ? 128 : 0));
		rest >>= 7;
	} while (rest > 0);
	return p;
}

static char *put_word(char *p, uint32_t v)
{
	*p++ = (char)(v >> 8);
	*p++ = (char)v;
	return p;
}

/* Every client has a topic; or all have one. */
static uint32_t put_topic(char *p, uint32_t client)
{
	return (uint32_t)(opt.mode == MODE_GROUP ? sprintf(p, "g") : sprintf(p, "c/%u", client));
}

static void mqtt_hello(struct client *c)
{
	char buf[64], id[24], *p;
	uint32_t n = (uint32_t)sprintf(id, "c%u", client_base + c->index);

	p = put_head(buf, CONNECT, 10 + 2 + n);
	p = put_word(p, 4);
	p = put_text(p, "MQTT");
	*p++ = 4;				/* version 3.1.1 */
	*p++ = 2;				/* clean session */
	p = put_word(p, 0);			/* no keep-alive */
	p = put_word(p, n);
	p = put_text(p, id);
	client_send(c, buf, (size_t)(p - buf));
}

static void subscribe(struct client *c)
{
	char buf[64], topic[24], *p;
	uint32_t n = put_topic(topic, client_base + c->index);

	p = put_head(buf, SUBSCRIBE, 2 + 2 + n + 1);
	p = put_word(p, 1);
	p = put_word(p, n);
	p = put_text(p, topic);
	*p++ = (char)opt.qos;
	client_send(c, buf, (size_t)(p - buf));
}

static struct stamps *stamps_of(struct client *c)
{
	struct stamps *s = c->extra;

	if (s == NULL) {
		uint32_t cap = opt.window * 4 > STAMPS_MIN ? opt.window * 4 : STAMPS_MIN;

		s = c->extra = calloc(1, sizeof *s + cap * sizeof s->at[0]);
		if (s == NULL)
			abort();
		s->cap = cap;
	}
	return s;
}

/* The packet id is the message's number, which is never 0. */
static void publish(struct client *c, uint32_t to, int64_t stamp)
{
	char topic[24], *at = client_room(c, opt.size + 64), *p = at;
	uint32_t n = put_topic(topic, to), id = c->seq % 65535 + 1;

	p = put_head(p, PUBLISH | (int)opt.qos << 1, 2 + n + (opt.qos > 0 ? 2 : 0) + opt.size);
	p = put_word(p, n);
	p = put_text(p, topic);
	if (opt.qos > 0) {
		struct stamps *s = stamps_of(c);

		s->at[id % s->cap] = stamp;
		p = put_word(p, id);
	}
	p = text_put(p, stamp, client_base + c->index, c->seq);
	client_sent(c, (size_t)(p - at));
}

static void mqtt_chat(struct client *c, int64_t stamp)
{
	publish(c, client_base + (c->index ^ 1), stamp);
}

static void mqtt_group(struct client *c, int64_t stamp)
{
	publish(c, 0, stamp);
}

static void published(struct client *c, const char *p, size_t len)
{
	int qos = p[0] >> 1 & 3;
	size_t rest = 0, head = header_of(p, len, &rest), topic;

	if (rest < 2)
		return;
	topic = (size_t)((unsigned char)p[head] << 8 | (unsigned char)p[head + 1]);
	if (2 + topic + (qos > 0 ? 2 : 0) > rest)
		return;
	p += head + 2 + topic;
	rest -= 2 + topic;
	if (qos > 0) {
		char ack[4] = { PUBACK, 2, p[0], p[1] };

		client_send(c, ack, 4);
		p += 2;
		rest -= 2;
	}
	load_message(c, p, rest);
}

static void mqtt_frame(struct client *c, const char *p, size_t len)
{
	switch ((unsigned char)p[0] & 0xf0) {
	case CONNACK:
		if (len < 4 || p[3] != 0)
			load_fatal("the broker refused the connection (%d)", len < 4 ? -1 : p[3]);
		subscribe(c);
		break;
	case SUBACK:
		load_ready(c);
		break;
	case PUBLISH:
		published(c, p, len);
		break;
	case PUBACK:
		if (len >= 4 && opt.mode == MODE_PAIRS) {
			struct stamps *s = stamps_of(c);
			uint32_t id = (uint32_t)((unsigned char)p[2] << 8 | (unsigned char)p[3]);

			load_acked(c, s->at[id % s->cap], true);
		}
		break;
	default:
		break;
	}
}

const struct driver driver_mqtt = {
	.name = "mqtt", .cut = mqtt_cut, .hello = mqtt_hello, .frame = mqtt_frame,
	.chat = mqtt_chat, .group = mqtt_group,
};
