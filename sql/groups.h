/*
 * Groups and who is in them. What is said in them is in posts.h.
 *
 * A stay in a group begins at its head: what was posted before it is not delivered. Leaving and
 * dissolving keep what was posted during the stay and not yet received; see db_backlog().
 *
 * Units   head and cursor are message numbers: the group's last one, and the last one that the
 *         member has received. Numbers begin at 1 and have no gap.
 * Errors  as in db.h. A dissolved group is DB_GONE.
 * Locks   in MySQL the group's row is locked first, groups in the order of ids, then the rest.
 */
#ifndef SQL_GROUPS_H
#define SQL_GROUPS_H

#include "sql/db.h"

struct group_row {
	int32_t id, creator, members;
	int64_t head;
	char name[DB_NAME], desc[DB_DESC];
};

struct group_mine {			/* a group as one of its members sees it */
	struct group_row group;
	int64_t cursor;
	bool is_creator;
};

/*
 * DB_CONFLICT: the name is taken (after DB_UNSURE perhaps by ourselves). DB_GONE: no such user.
 * DB_FULL: the user is in MAX_JOINED groups (0 for no limit).
 */
int db_group_create(struct db *db, int32_t creator, const char *name, const char *desc,
		    int max_joined, int32_t *id_r) DB_MUST;
/*
 * DB_CONFLICT: is a member already, then *mine_r is filled as well. DB_FULL: the user is in
 * MAX_JOINED groups, or the group has MAX_MEMBERS. mine_r may be NULL.
 */
int db_group_join(struct db *db, int32_t group, int32_t user, int max_joined, int max_members,
		  struct group_mine *mine_r) DB_MUST;
/*
 * Ends the membership; where USER is the creator the group is dissolved, which *dissolved_r says.
 * DB_DENIED: not a member.
 */
int db_group_leave(struct db *db, int32_t group, int32_t user, bool *dissolved_r) DB_MUST;
/* DB_DENIED: USER is not the creator. */
int db_group_dissolve(struct db *db, int32_t group, int32_t user) DB_MUST;

int db_group_by_id(struct db *db, int32_t id, struct group_row *row_r) DB_MUST;
int db_group_by_name(struct db *db, const char *name, struct group_row *row_r) DB_MUST;
/* DB_OK: is a member, *creator_r (may be NULL) says of which role. DB_DENIED: is not. */
int db_group_is_member(struct db *db, int32_t group, int32_t user, bool *creator_r) DB_MUST;
/* GROUP as USER sees it. *member_r false: is no member, cursor and is_creator are 0. */
int db_group_view(struct db *db, int32_t group, int32_t user, struct group_mine *mine_r,
		  bool *member_r) DB_MUST;
/* The groups of USER in the order of ids, after AFTER, at most LIMIT. */
int db_group_list(struct db *db, int32_t user, int32_t after, int limit,
		  void (*cb)(void *arg, const struct group_mine *g), void *arg) DB_MUST;
/* The members of GROUP in the order of ids, after AFTER, at most LIMIT. */
int db_group_members(struct db *db, int32_t group, int32_t after, int limit,
		     void (*cb)(void *arg, int32_t id, const char *name, bool is_creator),
		     void *arg) DB_MUST;

#endif
