/*
 * Messages to a person who was not there: stored once, deleted when received.
 *
 * Units   ts is the server's clock, ms since the epoch; row is the order of storing, per user
 *         ascending and never given twice. A mid is stored once a recipient.
 * Owner   bodies given in are lent for the call; bodies given to a callback for the callback.
 * Errors  as in db.h. Whoever writes for one recipient over several connections at once has no
 *         order between them, and a reader may see a higher row before a lower one.
 */
#ifndef SQL_MESSAGES_H
#define SQL_MESSAGES_H

#include "sql/db.h"

struct db_offline {
	int32_t user, sender;		/* user is the recipient; that it exists is not checked */
	unsigned char mid[DB_MID];
	int64_t ts;
	const void *body;
	size_t len;
	int rc;				/* out: DB_OK (stored now or before), DB_FULL, DB_BAD */
};

struct db_message {
	int64_t row;			/* of a post: its number */
	int32_t sender;
	unsigned char mid[DB_MID];
	int64_t ts;
	const void *body;
	size_t len;
};

struct db_offline_key { int32_t user; int64_t row; };
struct db_offline_mid { int32_t user; unsigned char mid[DB_MID]; };

/*
 * Stores N messages in one transaction; those of one recipient keep their order. QUOTA is how
 * many may wait for a recipient (0 for no limit; several writers at once may exceed it by their
 * batches). DB_OK: every row has its own rc. Otherwise no row is known to be stored, all have
 * that rc. A row that cannot be stored does not hold back the others.
 */
int db_offline_add(struct db *db, struct db_offline *rows, size_t n, int quota) DB_MUST;
/*
 * What waits for USER after row AFTER, in order: at most LIMIT messages, and no further one when
 * their bodies have reached LIMIT_BYTES (so at least one). *more_r: there are more.
 */
int db_offline_load(struct db *db, int32_t user, int64_t after, int limit, size_t limit_bytes,
		    void (*cb)(void *arg, const struct db_message *m), void *arg,
		    bool *more_r) DB_MUST;
/* Both delete what is there of N keys, in one transaction; what is not there is fine. */
int db_offline_del(struct db *db, const struct db_offline_key *keys, size_t n) DB_MUST;
int db_offline_del_mid(struct db *db, const struct db_offline_mid *keys, size_t n) DB_MUST;

#endif
