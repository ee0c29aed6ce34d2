/*
 * ctl_print.h - what the daemon answered, for people or for programs.
 *
 * Scope   as text: tables and sentences on standard output, errors on standard error, everything
 *         that users may have named made safe for a terminal. As JSON: the daemon's objects, one
 *         a line; its last line only where there was no other or the code is not 0.
 * Owner   a struct print is used for one command and ended by print_fini().
 */
#ifndef PARLEY_CLIENT_CTL_PRINT_H
#define PARLEY_CLIENT_CTL_PRINT_H

#include <stdbool.h>
#include <stddef.h>

#include "client/text.h"
#include "worker/base/json.h"

enum print_as {
	PRINT_PLAIN,		/* errors, otherwise "key value" */
	PRINT_STATUS, PRINT_SESSIONS, PRINT_WHO, PRINT_METRICS, PRINT_TOKEN, PRINT_TOKEN_ONLY,
	PRINT_USER,
	PRINT_HOSTS,		/* JSON only; ctl_hosts.h has the table */
	PRINT_MESSAGE		/* as text only the closing sentence */
};

struct print {
	enum print_as as;
	bool json;
	bool quiet;		/* no closing sentence */
	unsigned lines;		/* of data, so far */
	struct json *parser;
	struct text text;	/* metrics, collected for --json */
	char message[1600];	/* of the last line */
};

void print_init(struct print *p, enum print_as as, bool json);
void print_line(struct print *p, const char *line, size_t len, bool done);
/* After the answer: what is to be said about its code. */
void print_end(struct print *p, int code);
void print_fini(struct print *p);

#endif
