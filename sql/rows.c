#include "sql/rows.h"

#include <string.h>

int rows_give(struct db_stmt *st, struct rows_load *load)
{
	size_t bytes = 0;
	int given = 0, rc;

	load->more = false;
	while ((rc = db_step(st)) == DB_ROW) {
		struct db_message m;
		const void *mid;
		size_t len;

		if (given == load->limit || (given > 0 && bytes >= load->limit_bytes)) {
			load->more = true;
			return DB_OK;
		}
		m.row = db_int(st, 0);
		m.sender = (int32_t)db_int(st, 1);
		mid = db_blob(st, 2, &len);
		memset(m.mid, 0, DB_MID);
		if (len > 0)
			memcpy(m.mid, mid, len < DB_MID ? len : DB_MID);
		m.ts = db_int(st, 3);
		m.body = db_blob(st, 4, &m.len);
		load->cb(load->arg, &m);
		bytes += m.len;
		given++;
	}
	return rc;
}

int rows_bisect(struct db *db, size_t from, size_t n,
		int (*run)(struct db *db, void *ctx, size_t from, size_t n),
		void (*refuse)(void *ctx, size_t i, int rc), void *ctx)
{
	int rc = run(db, ctx, from, n);

	/* A connection that had to go means a file or a server at fault, not a row. */
	if ((rc != DB_BAD && rc != DB_CONFLICT) || !db_connected(db))
		return rc;
	if (n == 1) {
		refuse(ctx, from, rc);
		return DB_OK;
	}
	rc = rows_bisect(db, from, n / 2, run, refuse, ctx);
	if (rc == DB_OK)
		rc = rows_bisect(db, from + n / 2, n - n / 2, run, refuse, ctx);
	return rc;
}
