#include "sql/url.h"

#include <stdlib.h>
#include <string.h>

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %XX in place; a zero byte would cut the string, so it is refused. */
static bool percent_decode(char *s)
{
	char *out = s;

	for (; *s != '\0'; s++) {
		if (*s == '%') {
			int hi = hex_digit(s[1]), lo = hi < 0 ? -1 : hex_digit(s[2]);

			if (lo < 0 || hi * 16 + lo == 0)
				return false;
			*out++ = (char)(hi * 16 + lo);
			s += 2;
		} else {
			*out++ = *s;
		}
	}
	*out = '\0';
	return true;
}

/* Cuts S at the first (or last) C and returns what follows, NULL where there is none. */
static char *cut(char *s, int c, bool last)
{
	char *p = last ? strrchr(s, c) : strchr(s, c);

	if (p != NULL)
		*p++ = '\0';
	return p;
}

static bool port_read(const char *s, unsigned *port_r)
{
	char *end;
	unsigned long v = strtoul(s, &end, 10);

	if (*s < '0' || *s > '9' || *end != '\0' || v < 1 || v > 65535)
		return false;
	*port_r = (unsigned)v;
	return true;
}

/* host, host:port, [v6], [v6]:port, or a percent-encoded path. NULL or what is wrong. */
static const char *host_read(char *host, struct db_url *u)
{
	char *port;

	if (host[0] == '[') {
		port = cut(++host, ']', false);
		if (port == NULL || (*port != '\0' && *port != ':'))
			return "an IPv6 host is written [address] or [address]:port";
		port = *port == ':' ? port + 1 : NULL;
	} else {
		port = cut(host, ':', true);
		if (strchr(host, ':') != NULL)
			return "an IPv6 host goes in brackets";
	}
	if (port != NULL && !port_read(port, &u->port))
		return "the port is a number from 1 to 65535";
	if (!percent_decode(host))
		return "% must be followed by two hex digits";
	if (host[0] == '/')
		u->path = host;
	else
		u->host = host[0] != '\0' ? host : "localhost";
	return NULL;
}

static const char *mysql_read(char *rest, struct db_url *u)
{
	char *query = cut(rest, '?', false), *database = cut(rest, '/', true);
	char *host = cut(rest, '@', true), *password;
	const char *why;

	if (host == NULL)
		return "a user is missing: mysql://user:password@host:port/database";
	if (database == NULL || *database == '\0')
		return "a database name is missing: mysql://user:password@host:port/database";
	password = cut(rest, ':', false);
	why = host_read(host, u);
	if (why != NULL)
		return why;
	if (!percent_decode(rest) || !percent_decode(database) ||
	    (password != NULL && !percent_decode(password)))
		return "% must be followed by two hex digits";
	if (*rest == '\0')
		return "the user is empty";
	if (strchr(database, '`') != NULL || strlen(database) > 64)
		return "not a database name";
	u->user = rest;
	u->password = password != NULL ? password : "";
	u->database = database;
	if (query != NULL) {
		if (strncmp(query, "socket=", 7) != 0 || query[7] == '\0' ||
		    strchr(query, '&') != NULL)
			return "only ?socket=PATH may follow the database";
		if (!percent_decode(query))
			return "% must be followed by two hex digits";
		u->path = query + 7;
	}
	return NULL;
}

int url_parse(const char *text, struct db_url *url_r, const struct db_engine **eng_r,
	      const char **why_r)
{
	static const char lite[] = "sqlite:", my[] = "mysql://";
	struct db_url u = { .buf = strdup(text) };
	const char *why = NULL;

	if (u.buf == NULL) {
		why = "out of memory";
	} else if (strncmp(text, lite, sizeof lite - 1) == 0) {
		*eng_r = &db_engine_sqlite;
		u.path = u.buf + sizeof lite - 1;
		if (u.path[0] == '\0')
			why = "a path is missing: sqlite:PATH";
		else if (u.path[0] == ':')
			why = "the path of a file is needed: all workers share it";
	} else if (strncmp(text, my, sizeof my - 1) == 0) {
		*eng_r = &db_engine_mysql;
		why = mysql_read(u.buf + sizeof my - 1, &u);
	} else {
		why = "a store is sqlite:PATH or mysql://user:password@host:port/database";
	}
	if (why != NULL) {
		free(u.buf);
		*why_r = why;
		return DB_BAD;
	}
	*url_r = u;
	return DB_OK;
}

bool url_password(struct db_url *url, const char *password)
{
	if (url->password == NULL || url->password[0] != '\0')
		return true;			/* SQLite, or said in the text */
	url->given = strdup(password);
	url->password = url->given != NULL ? url->given : "";
	return url->given != NULL;
}

void url_fini(struct db_url *url)
{
	if (url->password != NULL && url->password[0] != '\0')
		explicit_bzero((char *)(uintptr_t)url->password, strlen(url->password));
	free(url->given);
	free(url->buf);
	*url = (struct db_url){ 0 };
}
