/*
 * Friend lists. One-way: A's list holding B says nothing about B's list.
 *
 * Errors  as in db.h.
 */
#ifndef SQL_FRIENDS_H
#define SQL_FRIENDS_H

#include "sql/db.h"

/*
 * DB_CONFLICT: is on the list already. DB_GONE: one of the two does not exist. DB_FULL: the list
 * has MAX friends (0 for no limit). After DB_UNSURE a retry may find its own row in conflict.
 */
int db_friend_add(struct db *db, int32_t user, int32_t friend, int max) DB_MUST;
/* DB_GONE: was not on the list. */
int db_friend_del(struct db *db, int32_t user, int32_t friend) DB_MUST;
/* The friends of USER in the order of ids, after AFTER, at most LIMIT. */
int db_friend_list(struct db *db, int32_t user, int32_t after, int limit,
		   void (*cb)(void *arg, int32_t id, const char *name), void *arg) DB_MUST;

#endif
