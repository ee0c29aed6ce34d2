/*
 * What is said in groups: one row a message, however many members; each member has a cursor.
 *
 * A number is taken with the group's row locked by the transaction that inserts: numbers of a
 * group have no gap, and none becomes visible before a lower one.
 *
 * Units   numbers begin at 1; a cursor is the last number received, 0 for none.
 * Owner   as in messages.h.
 * Errors  as in db.h.
 * Locks   in MySQL the groups of a batch are locked in the order of ids.
 */
#ifndef SQL_POSTS_H
#define SQL_POSTS_H

#include "sql/db.h"
#include "sql/groups.h"
#include "sql/messages.h"

struct db_post {
	int32_t group, sender;
	unsigned char mid[DB_MID];
	int64_t ts;
	const void *body;
	size_t len;
	int rc;				/* out: DB_OK, DB_GONE (no such group), DB_DENIED (the sender
					 * is no member), DB_BAD */
	int64_t number;			/* out, with DB_OK */
	bool fresh;			/* out: stored now; false: it had been, under that number */
};

struct db_cursor { int32_t group, user; int64_t number; };

struct db_backlog {			/* one stay in a group that has something to receive */
	struct group_mine mine;
	int64_t upto;			/* receive what is in (mine.cursor, upto] */
	bool left;			/* the stay is over: left, or dissolved */
};

/* Stores N messages in one transaction; those of one group keep their order. As db_offline_add(). */
int db_post_add(struct db *db, struct db_post *rows, size_t n) DB_MUST;
/*
 * The posts of GROUP with numbers in (AFTER, UPTO], in order; limits and *more_r as in
 * db_offline_load(). The caller has checked that the reader may have them.
 */
int db_post_load(struct db *db, int32_t group, int64_t after, int64_t upto, int limit,
		 size_t limit_bytes, void (*cb)(void *arg, const struct db_message *m), void *arg,
		 bool *more_r) DB_MUST;
/*
 * Moves cursors forward, never back, in one transaction. A stay that is over moves only by
 * numbers that belong to it. What names no stay is ignored. The array is sorted in passing.
 */
int db_cursor_set(struct db *db, struct db_cursor *cursors, size_t n) DB_MUST;
/*
 * What USER has yet to receive: stays with cursor < upto, by group, older stays first, at most
 * LIMIT; those that ended before LEFT_SINCE (ms since the epoch) are not shown any more.
 */
int db_backlog(struct db *db, int32_t user, int64_t left_since, int limit,
	       void (*cb)(void *arg, const struct db_backlog *b), void *arg) DB_MUST;
/* Calls CB with the head of each of the groups that exists, in any order. */
int db_group_heads(struct db *db, const int32_t *groups, size_t n,
		   void (*cb)(void *arg, int32_t group, int64_t head), void *arg) DB_MUST;

struct db_purge {
	int64_t left_before;	/* ms since the epoch: stays that ended before it are forgotten */
	int64_t stored_before;	/* ms: younger posts stay, so that a late resend finds its number */
	int limit;		/* posts, and stays, that one call deletes at most */
	int32_t from;		/* in and out: the group to go on with; begin with 0 */
};

/*
 * Deletes posts that every member has received, stays that are over and done, and dissolved groups
 * that nobody waits for, a piece of work at a time. *more_r: call again with the same struct.
 */
int db_post_purge(struct db *db, struct db_purge *p, bool *more_r) DB_MUST;

#endif
