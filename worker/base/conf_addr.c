#include "worker/base/conf_addr.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define OUT_OF_MEMORY "out of memory"

static bool begins(const char *s, const char *with)
{
	return strncmp(s, with, strlen(with)) == 0;
}

/* 1 to 65535, all of [s, end); 0 where it is none. */
static unsigned read_port(const char *s, const char *end)
{
	unsigned n = 0;

	if (s == end)
		return 0;
	for (; s < end; s++) {
		if (*s < '0' || *s > '9')
			return 0;
		n = n * 10 + (unsigned)(*s - '0');
		if (n > 65535)
			return 0;
	}
	return n;
}

const char *conf_socket_check(const char *path)
{
	if (path[0] == '\0')
		return "a path is missing";
	if (strlen(path) >= sizeof ((struct sockaddr_un *)0)->sun_path)
		return "the path is too long for a unix socket (107 bytes)";
	return NULL;
}

/* Puts the usual spelling of the address into l->host, so that equal ones compare equal. */
static const char *read_host(struct conf_listen *l, char *host)
{
	char text[INET6_ADDRSTRLEN];
	unsigned char addr[16];
	size_t len = strlen(host);
	const char *literal = host;
	int family = AF_INET;

	if (host[0] == '[' && host[len - 1] == ']') {
		host[len - 1] = '\0';
		literal++;
		family = AF_INET6;
	} else if (strcmp(host, "*") == 0) {
		literal = "0.0.0.0";
	} else if (strcmp(host, "localhost") == 0) {
		literal = "127.0.0.1";
	} else if (strchr(host, ':') != NULL) {
		return "an IPv6 address goes in brackets: [::1]:6000";
	}
	if (inet_pton(family, literal, addr) != 1)
		return family == AF_INET6 ? "not an IPv6 address" :
		    "a numeric address is needed (127.0.0.1, [::1], * or a path); names are not "
		    "looked up";
	l->host = strdup(inet_ntop(family, addr, text, sizeof text));
	return l->host != NULL ? NULL : OUT_OF_MEMORY;
}

static const char *read_address(struct conf_listen *l, const char *text)
{
	bool scheme = begins(text, "unix:");
	const char *why, *colon;
	char *host;

	if (scheme || text[0] == '/' || begins(text, "./")) {
		why = conf_socket_check(scheme ? text + 5 : text);
		if (why == NULL && (l->path = strdup(scheme ? text + 5 : text)) == NULL)
			why = OUT_OF_MEMORY;
		return why;
	}
	colon = strrchr(text, ':');
	if (colon == NULL || colon == text)
		return "ADDRESS:PORT or a path that begins with / is needed";
	l->port = (uint16_t)read_port(colon + 1, text + strlen(text));
	if (l->port == 0)
		return "the port is a number from 1 to 65535";
	host = strndup(text, (size_t)(colon - text));
	if (host == NULL)
		return OUT_OF_MEMORY;
	why = read_host(l, host);
	free(host);
	return why;
}

static const char *read_option(struct conf_listen *l, const char *word, size_t len)
{
	static const char classic[] = "dialect=classic", plain[] = "dialect=plain";

	if (len == sizeof classic - 1 && memcmp(word, classic, len) == 0) {
		l->dialect = CONF_CLASSIC;
		return NULL;
	}
	if (len == sizeof plain - 1 && memcmp(word, plain, len) == 0) {
		l->dialect = CONF_PLAIN;
		return NULL;
	}
	if (len == 5 && memcmp(word, "proxy", len) == 0)
		return "the PROXY protocol is not supported";
	return "the options are dialect=plain and dialect=classic";
}

/* Splits the address, which may be quoted, from the options. */
static const char *read_parts(struct conf_listen *l, const char *text)
{
	const char *why, *end;
	size_t len;

	if (text[0] == '"') {
		end = strchr(++text, '"');
		if (end == NULL || (end[1] != '\0' && strchr(" \t", end[1]) == NULL))
			return "the quotes do not match";
		len = (size_t)(end++ - text);
	} else {
		len = strcspn(text, " \t\"");
		end = text + len;
		if (*end == '"')
			return "the quotes do not match";
	}
	l->text = strndup(text, len);
	if (l->text == NULL)
		return OUT_OF_MEMORY;
	why = read_address(l, l->text);
	for (end += strspn(end, " \t"); why == NULL && *end != '\0'; end += strspn(end, " \t")) {
		len = strcspn(end, " \t");
		why = read_option(l, end, len);
		end += len;
	}
	return why;
}

const char *conf_listen_read(struct conf_listen *l, const char *text)
{
	const char *why;

	memset(l, 0, sizeof *l);
	why = read_parts(l, text);
	if (why != NULL)
		conf_listen_fini(l);
	return why;
}

void conf_listen_fini(struct conf_listen *l)
{
	free(l->text);
	free(l->host);
	free(l->path);
	memset(l, 0, sizeof *l);
}

bool conf_listen_same(const struct conf_listen *a, const struct conf_listen *b)
{
	if (a->path != NULL || b->path != NULL)
		return a->path != NULL && b->path != NULL && strcmp(a->path, b->path) == 0;
	return a->port == b->port && strcmp(a->host, b->host) == 0;
}

/* host, host:port, [v6] or [v6]:port in [s, end). Is the host allowed to be left out? */
static const char *check_host_port(const char *s, const char *end, bool may_lack, bool need_port)
{
	const char *colon = memrchr(s, ':', (size_t)(end - s)), *host_end;

	if (s < end && *s == '[') {
		host_end = memchr(s, ']', (size_t)(end - s));
		if (host_end == NULL || (++host_end < end && *host_end != ':'))
			return "an IPv6 host is written [address] or [address]:port";
		colon = host_end < end ? host_end : NULL;
	} else {
		host_end = colon != NULL ? colon : end;
		if (memchr(s, ':', (size_t)(host_end - s)) != NULL)
			return "an IPv6 host goes in brackets";
	}
	if (host_end == s && !may_lack)
		return "a host is missing";
	if (colon == NULL)
		return need_port ? "a port is missing" : NULL;
	return read_port(colon + 1, end) != 0 ? NULL : "the port is a number from 1 to 65535";
}

const char *conf_store_check(const char *url)
{
	static const char usage[] =
	    "a store is sqlite:PATH or mysql://user:password@host:port/database";
	const char *end, *slash, *at;

	if (begins(url, "sqlite:")) {
		if (url[7] == '\0')
			return "a path is missing: sqlite:PATH";
		return url[7] == ':' ? "the path of a file is needed: all workers share it" : NULL;
	}
	if (!begins(url, "mysql://"))
		return usage;
	url += strlen("mysql://");
	end = url + strcspn(url, "?");
	slash = memrchr(url, '/', (size_t)(end - url));
	at = slash != NULL ? memrchr(url, '@', (size_t)(slash - url)) : NULL;
	if (slash == NULL || slash + 1 == end)
		return "a database name is missing: mysql://user:password@host:port/database";
	if (at == NULL || at == url || *url == ':')
		return "a user is missing: mysql://user:password@host:port/database";
	if (*end == '?' && !begins(end, "?socket="))
		return "only ?socket=PATH may follow the database";
	return check_host_port(at + 1, slash, true, false);
}

static const char *check_sentinel(const char *s)
{
	const char *name = strrchr(s, '/'), *end, *why = NULL;
	const char *at = strrchr(s, '@');

	if (name == NULL || name[1] == '\0')
		return "the master's name is missing: sentinel://host:port,host:port/name";
	if (at != NULL && at < name)
		s = at + 1;
	for (; why == NULL && s <= name; s = end + 1) {
		end = s + strcspn(s, ",/");
		why = check_host_port(s, end, false, false);
	}
	return why;
}

const char *conf_redis_check(const char *url)
{
	const char *end, *at;

	if (url[0] == '\0')
		return NULL;
	if (url[0] == '/' || begins(url, "./"))
		return conf_socket_check(url);
	if (begins(url, "unix:"))
		return conf_socket_check(url + (begins(url, "unix://") ? 7 : 5));
	if (begins(url, "sentinel://"))
		return check_sentinel(url + strlen("sentinel://"));
	if (begins(url, "rediss://"))
		return "TLS to Redis is not supported";
	if (!begins(url, "redis://"))
		return strstr(url, "://") != NULL || strchr(url, '/') != NULL ?
		    "redis is redis://:password@host:port/db, host:port, sentinel://... or a path" :
		    check_host_port(url, url + strlen(url), false, true);
	url += strlen("redis://");
	at = strrchr(url, '@');
	if (at != NULL && memchr(url, ':', (size_t)(at - url)) == NULL)
		return "a password stands behind a colon: redis://:password@host";
	url = at != NULL ? at + 1 : url;
	end = url + strcspn(url, "/");
	if (*end == '/' && end[1] != '\0' && end[1 + strspn(end + 1, "0123456789")] != '\0')
		return "the database of Redis is a number";
	return check_host_port(url, end, false, false);
}
