#include "worker/base/redis_url.h"

#include <string.h>

#include "worker/base/conf_addr.h"

#define REDIS_PORT    6379
#define SENTINEL_PORT 26379
#define DB_MAX        65535u

static bool begins(const char *s, const char *with)
{
	return strncmp(s, with, strlen(with)) == 0;
}

static int hex(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 :
	    c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Copies [s, end) with its %XX undone. False: too long, a NUL, or a % that is nothing. */
static bool decode(const char *s, const char *end, char *out, size_t cap)
{
	size_t len = 0;
	int c;

	for (; s < end; s++) {
		c = (unsigned char)*s;
		if (c == '%') {
			if (end - s < 3 || hex(s[1]) < 0 || hex(s[2]) < 0)
				return false;
			c = hex(s[1]) << 4 | hex(s[2]);
			s += 2;
		}
		if (c == 0 || len + 1 >= cap)
			return false;
		out[len++] = (char)c;
	}
	out[len] = '\0';
	return true;
}

/* [[USER]:PASSWORD@] at *S, which is moved behind it. The last @ ends it. */
static const char *read_user(struct redis_url *u, const char **s)
{
	const char *at = strrchr(*s, '@'), *colon;

	if (at == NULL)
		return NULL;
	colon = memchr(*s, ':', (size_t)(at - *s));
	if (colon == NULL)
		return "a password stands behind a colon: redis://:password@host";
	if (!decode(*s, colon, u->user, sizeof u->user) ||
	    !decode(colon + 1, at, u->password, sizeof u->password))
		return "user (64 bytes) or password (256 bytes) of Redis is too long, or has a % "
		    "without two hexadecimal digits";
	*s = at + 1;
	return NULL;
}

/* The digits behind a slash; none is 0. */
static const char *read_db(struct redis_url *u, const char *s)
{
	for (; *s >= '0' && *s <= '9' && u->db <= DB_MAX; s++)
		u->db = u->db * 10 + (uint32_t)(*s - '0');
	return *s == '\0' && u->db <= DB_MAX ? NULL : "the database of Redis is a number";
}

static const char *read_addr(struct redis_url *u, const char *s, const char *end, int flags,
    uint16_t port)
{
	struct redis_addr *a = &u->addr[u->naddr];

	if (u->naddr == REDIS_URL_ADDRS)
		return "at most 8 sentinels";
	u->naddr++;
	a->port = port;
	return conf_host_port_read(s, end, flags, a->host, sizeof a->host, &a->port);
}

static const char *read_path(struct redis_url *u, const char *path)
{
	const char *why = conf_socket_check(path);

	if (why == NULL)
		memcpy(u->path, path, strlen(path) + 1);
	return why;
}

static const char *read_name(struct redis_url *u, const char *s)
{
	size_t len = strcspn(s, "/");

	if (len == 0)
		return "the master's name is missing: sentinel://host:port,host:port;name";
	if (len >= sizeof u->name)
		return "the master's name is too long";
	memcpy(u->name, s, len);
	return s[len] == '/' ? read_db(u, s + len + 1) : NULL;
}

static const char *read_sentinels(struct redis_url *u, const char *s)
{
	const char *why = read_user(u, &s), *end, *name = s + strcspn(s, ";/");

	u->sentinel = true;
	if (why == NULL)
		why = read_name(u, *name != '\0' ? name + 1 : name);
	for (; why == NULL && s <= name; s = end + 1) {
		end = s + strcspn(s, ",;/");
		why = read_addr(u, s, end, 0, SENTINEL_PORT);
	}
	return why;
}

static const char *read_redis(struct redis_url *u, const char *s)
{
	const char *why = read_user(u, &s), *end = s + strcspn(s, "/");

	if (why == NULL && *end == '/')
		why = read_db(u, end + 1);
	return why != NULL ? why : read_addr(u, s, end, 0, REDIS_PORT);
}

const char *redis_url_read(struct redis_url *u, const char *text)
{
	memset(u, 0, sizeof *u);
	if (text[0] == '/' || begins(text, "./"))
		return read_path(u, text);
	if (begins(text, "unix:"))
		return read_path(u, text + (begins(text, "unix://") ? 7 : 5));
	if (begins(text, "sentinel://"))
		return read_sentinels(u, text + strlen("sentinel://"));
	if (begins(text, "rediss://"))
		return "TLS to Redis is not supported";
	if (begins(text, "redis://"))
		return read_redis(u, text + strlen("redis://"));
	if (strchr(text, '/') != NULL)
		return "redis is redis://:password@host:port/db, host:port, sentinel://... or a path";
	return read_addr(u, text, text + strlen(text), CONF_PORT_NEEDED, 0);
}
