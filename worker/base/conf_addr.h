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
/* "", or what redis_url.h reads. */
const char *conf_redis_check(const char *url);
/* "" or HOST:PORT, a name or an address, as others are to write it. */
const char *conf_advertise_check(const char *text);
/*
 * host, host:port, [v6] or [v6]:port in [s, end): the host without brackets into HOST of CAP bytes,
 * the port into *PORT_R, which is left alone where there is none and none is needed.
 */
enum { CONF_HOST_MAY_LACK = 1, CONF_PORT_NEEDED = 2 };
const char *conf_host_port_read(const char *s, const char *end, int flags, char *host, size_t cap,
    uint16_t *port_r);
/* A path that fits a unix socket's address. */
const char *conf_socket_check(const char *path);

#endif
