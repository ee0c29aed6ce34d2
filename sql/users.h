/*
 * Users: accounts, names, password hashes.
 *
 * Units   an id is positive and below 2^31, given in sequence from 1, never twice.
 * Owner   callers' memory in, callers' memory out.
 * Errors  as in db.h. DB_BAD also for a name that is empty or longer than DB_NAME allows.
 */
#ifndef SQL_USERS_H
#define SQL_USERS_H

#include "sql/db.h"

struct user_row {
	int32_t id;
	int32_t epoch;			/* of the password: grows with each change, voids tokens */
	char name[DB_NAME];		/* as it was registered */
	char hash[DB_HASH];		/* encoded argon2id, or "*": no password opens it */
};

struct user_import {
	const char *name, *hash;	/* in */
	int rc;				/* out: DB_OK, DB_CONFLICT (the name is taken) or DB_BAD */
	int32_t id;			/* out, with DB_OK */
};

/* DB_CONFLICT: the name is taken. After DB_UNSURE a retry may say so of our own row. */
int db_user_add(struct db *db, const char *name, const char *hash, int32_t *id_r) DB_MUST;
/* Adds N users in one transaction. On an error all rows have that rc, and none was added. */
int db_user_import(struct db *db, struct user_import *rows, size_t n) DB_MUST;
int db_user_by_id(struct db *db, int32_t id, struct user_row *row_r) DB_MUST;
/* Names are found whatever their ASCII case. */
int db_user_by_name(struct db *db, const char *name, struct user_row *row_r) DB_MUST;
/* Also begins a new epoch, which is given back. After DB_UNSURE a retry may raise it twice. */
int db_user_set_password(struct db *db, int32_t id, const char *hash, int32_t *epoch_r) DB_MUST;
/*
 * Removes a user with its friendships both ways, its memberships and its waiting messages, and
 * dissolves the groups that it created. What it had sent stays.
 */
int db_user_del(struct db *db, int32_t id) DB_MUST;
/* Calls CB for each of the ids that exists, in any order. */
int db_user_names(struct db *db, const int32_t *ids, size_t n,
		  void (*cb)(void *arg, int32_t id, const char *name), void *arg) DB_MUST;
/* Users in the order of ids, after AFTER, at most LIMIT. */
int db_user_list(struct db *db, int32_t after, int limit,
		 void (*cb)(void *arg, int32_t id, const char *name), void *arg) DB_MUST;

#endif
