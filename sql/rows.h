/*
 * What messages.c and posts.c have in common. Inside of sql/ only.
 */
#ifndef SQL_ROWS_H
#define SQL_ROWS_H

#include "sql/engine.h"
#include "sql/messages.h"

struct rows_load {
	int limit;
	size_t limit_bytes;
	void (*cb)(void *arg, const struct db_message *m);
	void *arg;
	bool more;		/* out */
};

/* Steps ST, a select of (row, sender, mid, ts, body) of limit + 1 rows, and hands the rows out. */
int rows_give(struct db_stmt *st, struct rows_load *load) DB_MUST;

/*
 * Runs RUN over the rows [from, from + n). When the data is refused (DB_BAD, DB_CONFLICT), halves
 * until the row at fault is alone, and REFUSE is told of it. Halves run in order.
 */
int rows_bisect(struct db *db, size_t from, size_t n,
		int (*run)(struct db *db, void *ctx, size_t from, size_t n),
		void (*refuse)(void *ctx, size_t i, int rc), void *ctx) DB_MUST;

#endif
