/*
 * conf_addr.h - addresses and URLs as the configuration writes them: their syntax.
 *
 * Scope   for conf.c. Pure: no name is looked up and nothing is opened. What a store URL means
 *         is read by sql/; here it is only looked over, so that `parleyd -t` finds the slip.
 * Owner   a struct conf_listen that was read owns its strings until conf_listen_fini().
 * Errors  NULL, or a constant sentence for the person who wrote the value. No sentence repeats
 *         the value: URLs hold passwords.
 */
#ifndef PARLEY_BASE_CONF_ADDR_H
#define PARLEY_BASE_CONF_ADDR_H

#include "worker/base/conf.h"

/*
 * ADDRESS:PORT [dialect=plain|classic], or a path. ADDRESS is IPv4, [IPv6], * (every IPv4
 * address) or localhost (127.0.0.1); a path begins with / or ./ or unix: and may be quoted.
 */
const char *conf_listen_read(struct conf_listen *l, const char *text);
void conf_listen_fini(struct conf_listen *l);
/* Do two name the same socket? */
bool conf_listen_same(const struct conf_listen *a, const struct conf_listen *b);

/* sqlite:PATH, or mysql://user[:password]@[host][:port]/database[?socket=PATH]. */
const char *conf_store_check(const char *url);
/* "", redis://[[user]:password@]host[:port][/db], host:port, sentinel://host:port,.../name,
 * or a path. */
const char *conf_redis_check(const char *url);
/* A path that fits a unix socket's address. */
const char *conf_socket_check(const char *path);

#endif
