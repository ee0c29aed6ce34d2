/*
 * Steps on groups for use inside a transaction of another file of sql/. Inside of sql/ only.
 */
#ifndef SQL_GROUPS_TX_H
#define SQL_GROUPS_TX_H

#include "sql/engine.h"

/* Ends all memberships of USER without keeping anything and dissolves the groups it created. */
int group_tx_drop_user(struct db *db, int64_t user, int64_t now_ms) DB_MUST;

#endif
