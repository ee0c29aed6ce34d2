#include "worker/base/conf_addr.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "worker/base/redis_url.h"

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
	if (len == 5 && memcmp(word, "proxy", len) == 0) {
		l->proxy = true;
		return NULL;
	}
	return "the options are dialect=plain, dialect=classic and proxy";
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

const char *conf_host_port_read(const char *s, const char *end, int flags, char *host, size_t cap,
    uint16_t *port_r)
{
	const char *colon = memrchr(s, ':', (size_t)(end - s)), *host_end;
	unsigned port;

	if (s < end && *s == '[') {
		s++;
		host_end = memchr(s, ']', (size_t)(end - s));
		if (host_end == NULL || (host_end + 1 < end && host_end[1] != ':'))
			return "an IPv6 host is written [address] or [address]:port";
		colon = host_end + 1 < end ? host_end + 1 : NULL;
	} else {
		host_end = colon != NULL ? colon : end;
		if (memchr(s, ':', (size_t)(host_end - s)) != NULL)
			return "an IPv6 host goes in brackets";
	}
	if (host_end == s && (flags & CONF_HOST_MAY_LACK) == 0)
		return "a host is missing";
	if ((size_t)(host_end - s) >= cap)
		return "the host's name is too long";
	memcpy(host, s, (size_t)(host_end - s));
	host[host_end - s] = '\0';
	if (colon == NULL)
		return (flags & CONF_PORT_NEEDED) != 0 ? "a port is missing" : NULL;
	port = read_port(colon + 1, end);
	if (port == 0)
		return "the port is a number from 1 to 65535";
	*port_r = (uint16_t)port;
	return NULL;
}

const char *conf_advertise_check(const char *text)
{
	char host[128];
	uint16_t port = 0;

	if (text[0] == '\0')
		return NULL;
	if (strlen(text) > 127)
		return "at most 127 characters";
	if (strpbrk(text, " \t/@,;\"\\") != NULL)
		return "HOST:PORT is needed";
	return conf_host_port_read(text, text + strlen(text), CONF_PORT_NEEDED, host, sizeof host,
	    &port);
}

const char *conf_store_check(const char *url)
{
	static const char usage[] =
	    "a store is sqlite:PATH or mysql://user:password@host:port/database";
	const char *end, *slash, *at;
	char host[1024];
	uint16_t port;

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
	return conf_host_port_read(at + 1, slash, CONF_HOST_MAY_LACK, host, sizeof host, &port);
}

const char *conf_redis_check(const char *url)
{
	struct redis_url u;
	const char *why = url[0] != '\0' ? redis_url_read(&u, url) : NULL;

	explicit_bzero(&u, sizeof u);
	return why;
}
