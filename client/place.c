#include "client/place.h"

#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "client/text.h"

/* One block, so that a lookup that outlives our interest in it keeps all that it reads. */
struct lookup {
	struct gaicb cb;
	struct addrinfo hints;
	char text[];
};

struct places {
	struct place *p;
	size_t n;
};

/* ---- the list ------------------------------------------------------------------------------ */

static bool is_port(const char *s)
{
	int64_t n = text_id(s);

	return strlen(s) < PLACE_PORT && n >= 1 && n <= 65535;
}

/* What may stand in a name or an address: the rest is for terminals and shells to trip over. */
static bool is_host(const char *s)
{
	for (const char *c = s; *c != '\0'; c++)
		if (*c <= ' ' || *c > '~' || strchr("[]/\\\"',;", *c) != NULL)
			return false;
	return *s != '\0';
}

int place_split(const char *text, char host_r[PLACE_HOST], char port_r[PLACE_PORT])
{
	const char *colon = strrchr(text, ':'), *close = NULL;
	const char *from = text, *end;
	size_t len;

	if (text[0] == '[') {
		close = strchr(text, ']');
		if (close == NULL || (close[1] != '\0' && close[1] != ':'))
			return -1;
		colon = close[1] == ':' ? close + 1 : NULL;
		from = text + 1;
	} else if (colon != strchr(text, ':')) {
		colon = NULL;		/* an IPv6 address alone has more than one */
	}
	end = close != NULL ? close : colon != NULL ? colon : text + strlen(text);
	len = (size_t)(end - from);
	if (len >= PLACE_HOST)
		return -1;
	if (colon != NULL && !is_port(colon + 1))
		return -2;
	memcpy(host_r, from, len);
	host_r[len] = '\0';
	strcpy(port_r, colon != NULL ? colon + 1 : "");
	return is_host(host_r) ? 0 : -1;
}

struct places *places_new(void)
{
	return text_alloc(sizeof(struct places));
}

/* One that still runs writes into its request: that memory is then left to it. */
static void drop_lookup(struct place *p)
{
	if (p->lookup == NULL)
		return;
	if (gai_cancel(&p->lookup->cb) != EAI_NOTCANCELED &&
	    gai_error(&p->lookup->cb) != EAI_INPROGRESS) {
		if (p->lookup->cb.ar_result != NULL)
			freeaddrinfo(p->lookup->cb.ar_result);
		free(p->lookup);
	}
	p->lookup = NULL;
}

static void fini(struct place *p)
{
	drop_lookup(p);
	free(p->host);
	free(p->port);
	free(p->path);
	free(p->name);
}

void places_free(struct places *ps)
{
	if (ps == NULL)
		return;
	for (size_t i = 0; i < ps->n; i++)
		fini(&ps->p[i]);
	free(ps->p);
	free(ps);
}

static struct place *add(struct places *ps)
{
	ps->p = text_resize(ps->p, (ps->n + 1) * sizeof ps->p[0]);
	memset(&ps->p[ps->n], 0, sizeof ps->p[0]);
	return &ps->p[ps->n++];
}

void places_add_host(struct places *ps, const char *host, const char *port)
{
	struct place *p = add(ps);
	struct text name = { 0 };

	p->host = text_copy(host);
	p->port = text_copy(port);
	text_printf(&name, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s", host, port);
	p->name = name.s;
}

void places_add_unix(struct places *ps, const char *path)
{
	struct place *p = add(ps);

	p->path = text_copy(path);
	p->name = text_copy(path);
}

static int find(const struct places *ps, const char *host, const char *port)
{
	for (size_t i = 0; i < ps->n; i++)
		if (ps->p[i].host != NULL && text_same_name(ps->p[i].host, host) &&
		    strcmp(ps->p[i].port, port) == 0)
			return (int)i;
	return -1;
}

int places_learn(struct places *ps, const char *text)
{
	char host[PLACE_HOST], port[PLACE_PORT];
	size_t learned = 0, oldest = 0;
	int known;

	if (place_split(text, host, port) != 0 || port[0] == '\0')
		return -1;
	known = find(ps, host, port);
	if (known >= 0)
		return known;
	for (size_t i = ps->n; i-- > 0;)
		if (ps->p[i].learned) {
			learned++;
			oldest = i;
		}
	if (learned >= PLACE_LEARNED) {
		fini(&ps->p[oldest]);
		memmove(&ps->p[oldest], &ps->p[oldest + 1],
		    (ps->n - oldest - 1) * sizeof ps->p[0]);
		ps->n--;
	}
	places_add_host(ps, host, port);
	ps->p[ps->n - 1].learned = true;
	return (int)ps->n - 1;
}

size_t places_count(const struct places *ps)
{
	return ps->n;
}

bool place_is_good(const struct place *p, uint64_t now_ms)
{
	return now_ms >= p->bad_until_ms;
}

size_t places_good(const struct places *ps, uint64_t now_ms)
{
	size_t count = 0;

	for (size_t i = 0; i < ps->n; i++)
		count += place_is_good(&ps->p[i], now_ms);
	return count;
}

struct place *places_at(struct places *ps, size_t i)
{
	return &ps->p[i];
}

/* ---- addresses ----------------------------------------------------------------------------- */

static enum place_rc take(struct place *p, const struct addrinfo *ai, const char **why_r)
{
	p->naddr = 0;
	for (; ai != NULL && p->naddr < PLACE_ADDRS; ai = ai->ai_next) {
		struct place_addr *a = &p->addr[p->naddr];

		if (ai->ai_addrlen > sizeof a->sa)
			continue;
		memcpy(&a->sa, ai->ai_addr, ai->ai_addrlen);
		a->len = ai->ai_addrlen;
		p->naddr++;
	}
	*why_r = "the name has no address";
	return p->naddr > 0 ? PLACE_KNOWN : PLACE_FAILED;
}

static enum place_rc take_path(struct place *p, const char **why_r)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&p->addr[0].sa;

	*why_r = "the path is too long";
	if (strlen(p->path) >= sizeof un->sun_path)
		return PLACE_FAILED;
	memset(un, 0, sizeof *un);
	un->sun_family = AF_UNIX;
	strcpy(un->sun_path, p->path);
	p->addr[0].len = sizeof *un;
	p->naddr = 1;
	return PLACE_KNOWN;
}

static enum place_rc start(struct place *p, const char **why_r)
{
	struct lookup *l = text_alloc(sizeof *l + strlen(p->host) + strlen(p->port) + 2);
	char *host = l->text, *port = host + strlen(p->host) + 1;
	struct gaicb *list[1] = { &l->cb };

	l->hints = (struct addrinfo){ .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };
	strcpy(host, p->host);
	strcpy(port, p->port);
	l->cb.ar_name = host;
	l->cb.ar_service = port;
	l->cb.ar_request = &l->hints;
	if (getaddrinfo_a(GAI_NOWAIT, list, 1, NULL) != 0) {
		free(l);
		*why_r = "the name cannot be looked up";
		return PLACE_FAILED;
	}
	p->lookup = l;
	return PLACE_PENDING;
}

enum place_rc place_ask(struct place *p, const char **why_r)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
	    .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV }, *ai = NULL;
	enum place_rc rc;

	if (p->path != NULL)
		return take_path(p, why_r);
	if (p->lookup != NULL) {
		rc = place_look(p, why_r);
		if (rc != PLACE_FAILED)		/* that may have been long ago */
			return rc;
	}
	if (getaddrinfo(p->host, p->port, &hints, &ai) != 0)
		return start(p, why_r);
	rc = take(p, ai, why_r);
	freeaddrinfo(ai);
	return rc;
}

enum place_rc place_look(struct place *p, const char **why_r)
{
	int rc = gai_error(&p->lookup->cb);
	struct addrinfo *ai;
	enum place_rc out;

	if (rc == EAI_INPROGRESS)
		return PLACE_PENDING;
	ai = p->lookup->cb.ar_result;
	free(p->lookup);
	p->lookup = NULL;
	/* a name server that is out of reach takes no server away that was there */
	if (p->naddr > 0 && (rc == EAI_AGAIN || rc == EAI_FAIL || rc == EAI_SYSTEM))
		return PLACE_KNOWN;
	if (rc != 0) {
		*why_r = gai_strerror(rc);
		return PLACE_FAILED;
	}
	out = take(p, ai, why_r);
	freeaddrinfo(ai);
	return out;
}
