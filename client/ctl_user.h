/*
 * ctl_user.h - passwords and lists of users, as administrators hand them over.
 *
 * Scope   a password comes from a prompt without echo (asked twice), from a file's first line, or
 *         from the first line of standard input where that is no terminal; never from the
 *         command line, which everybody sees in ps.
 * Import  a file of lines NAME<tab>PASSWORD or NAME:PASSWORD; a password that begins with
 *         $argon2id$ is a hash as the daemon makes them, and * is none (login by token only). Empty lines and
 *         lines that begin with # are left out. It is sent as it is read.
 * Errors  false with a sentence on standard error.
 */
#ifndef PARLEY_CLIENT_CTL_USER_H
#define PARLEY_CLIENT_CTL_USER_H

#include <stdbool.h>
#include <stdio.h>

#include "client/text.h"

/* The password into OUT. FILE NULL: ask, or standard input. The caller wipes it. */
bool user_password(const char *file, struct text *out);
void user_wipe(struct text *t);

struct user_import {
	FILE *f;
	bool ended, failed;
	unsigned line, sent;
	char *buf;
	size_t cap;
};

/* PATH "-" is standard input. */
bool user_import_open(struct user_import *u, const char *path);
/* For call_run(): appends the next lines of the request. */
bool user_import_more(void *arg, struct text *out);
void user_import_close(struct user_import *u);

#endif
