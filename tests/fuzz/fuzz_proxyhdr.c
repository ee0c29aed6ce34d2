/*
 * Fuzz target: the PROXY protocol header.
 *
 * Cut anywhere, the verdict is the same and never taken back; a header is no longer than it may
 * be, and what is not decided by then is bad; bytes behind it change nothing.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/proxyhdr.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define must(cond) do { if (!(cond)) { \
	fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); abort(); } } while (0)

/* In memory of its own size, so that the sanitizer sees a look beyond it. */
static enum proxyhdr_rc look(const uint8_t *data, size_t size, struct proxyhdr *h)
{
	uint8_t *exact = malloc(size + 1);
	const char *why = NULL;
	enum proxyhdr_rc rc;

	must(exact != NULL);
	memcpy(exact + 1, data, size);
	rc = proxyhdr_read(exact + 1, size, h, &why);
	must((rc == PROXYHDR_BAD) == (why != NULL));
	free(exact);
	return rc;
}

static void check_good(const struct proxyhdr *h, size_t n)
{
	static const uint8_t none[16];

	must(h->len == n && n <= PROXYHDR_MAX);
	must(h->known == (memcmp(h->addr, none, 16) != 0) || !h->known);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum proxyhdr_rc rc = PROXYHDR_MORE;
	struct proxyhdr h, whole;
	size_t n = 0;

	for (; n <= size && (rc = look(data, n, &h)) == PROXYHDR_MORE; n++)
		must(n < PROXYHDR_MAX);
	must(look(data, size, &whole) == rc);
	if (rc == PROXYHDR_OK) {
		check_good(&h, n);
		check_good(&whole, n);
		must(h.known == whole.known && h.port == whole.port);
		must(memcmp(h.addr, whole.addr, 16) == 0);
	}
	return 0;
}
