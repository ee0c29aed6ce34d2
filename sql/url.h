/*
 * Reads a store URL: which engine, and where. Inside of sql/ only. Pure, no system calls.
 * Errors  DB_OK or DB_BAD, then *why_r is a constant sentence for the person who wrote the URL.
 * Owner   url_r owns its strings until url_fini().
 */
#ifndef SQL_URL_H
#define SQL_URL_H

#include "sql/engine.h"

int url_parse(const char *text, struct db_url *url_r, const struct db_engine **eng_r,
	      const char **why_r) DB_MUST;
/* Sets the password where the text had none. False: out of memory. */
bool url_password(struct db_url *url, const char *password);
void url_fini(struct db_url *url);	/* wipes the password */

#endif
