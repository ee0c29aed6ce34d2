/*
 * place.h - the places where a server may be: names and ports, their addresses, their order.
 *
 * Scope   a list that keeps the order in which it was given; behind it what servers named while
 *         the program ran (learned, bounded: the oldest gives way). Names are looked up in the
 *         background, one lookup a place at a time; it goes on while its place is left alone,
 *         and its result is there when the turn comes round again.
 * Owner   struct places owns its strings and lookups; a struct place is valid until the next
 *         places_learn() or places_free().
 * Errors  a place without an address says why (place_look()).
 */
#ifndef PARLEY_CLIENT_PLACE_H
#define PARLEY_CLIENT_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define PLACE_ADDRS   16
#define PLACE_LEARNED 16		/* at most so many that nobody typed */
#define PLACE_HOST    256
#define PLACE_PORT    6

struct place_addr {
	struct sockaddr_storage sa;
	socklen_t len;
};

struct place {
	char *host, *port;		/* or */
	char *path;
	char *name;			/* "host:port", "[host]:port" or the path */
	bool learned;
	uint64_t bad_until_ms;		/* learned, and did not answer: passed over until then */
	struct lookup *lookup;		/* in flight */
	struct place_addr addr[PLACE_ADDRS];	/* as last known */
	size_t naddr;
};

enum place_rc { PLACE_KNOWN, PLACE_PENDING, PLACE_FAILED };

struct places;

/*
 * "host", "host:port", "[host]:port"; port_r is "" where there is none. -1: no host;
 * -2: no port.
 */
int place_split(const char *text, char host_r[PLACE_HOST], char port_r[PLACE_PORT]);

struct places *places_new(void);
void places_free(struct places *ps);
void places_add_host(struct places *ps, const char *host, const char *port);
void places_add_unix(struct places *ps, const char *path);
/* What a server named, "host:port": its index, known before or not; -1 where it is no such thing. */
int places_learn(struct places *ps, const char *text);
size_t places_count(const struct places *ps);
/* Those worth trying: all that were typed, and what was learned and has not failed lately. */
size_t places_good(const struct places *ps, uint64_t now_ms);
bool place_is_good(const struct place *p, uint64_t now_ms);
struct place *places_at(struct places *ps, size_t i);

/* Asks for the addresses: at once where it can be known, otherwise PLACE_PENDING. */
enum place_rc place_ask(struct place *p, const char **why_r);
/* How does the lookup that place_ask() began fare? */
enum place_rc place_look(struct place *p, const char **why_r);

#endif
