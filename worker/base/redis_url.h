/*
 * redis_url.h - where Redis is, read from how the configuration writes it.
 *
 * Scope   pure: no name is looked up and nothing is opened. Understood are
 *
 *           redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]
 *           HOST:PORT
 *           a path that begins with / or ./, or unix:PATH
 *           sentinel://[[USER]:PASSWORD@]HOST[:PORT],HOST[:PORT]...;NAME[/DB], or /NAME for ;NAME
 *
 *         An IPv6 address stands in brackets. %XX in USER and PASSWORD is the byte XX.
 * Errors  NULL, or a constant sentence for the person who wrote it; it repeats nothing, because the
 *         text may hold a password.
 */
#ifndef PARLEY_BASE_REDIS_URL_H
#define PARLEY_BASE_REDIS_URL_H

#include <stdbool.h>
#include <stdint.h>

#define REDIS_URL_ADDRS 8		/* sentinels at most */

struct redis_url {
	bool sentinel;			/* addr[] are sentinels, name is their master's */
	unsigned naddr;
	struct redis_addr {
		char host[254];		/* a name or an address, without brackets */
		uint16_t port;
	} addr[REDIS_URL_ADDRS];
	char path[108];			/* of a unix socket; "" for TCP, where naddr is at least 1 */
	char user[65], password[257];	/* "" = none */
	char name[65];
	uint32_t db;
};

const char *redis_url_read(struct redis_url *u, const char *text);

#endif
