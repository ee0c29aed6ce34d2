/*
 * SQLite, version 1 of the schema: a list of statements, each of which may be run again.
 * Included by sqlite.c only. A change of the schema is a new file with the next number.
 *
 * AUTOINCREMENT: an id is never given twice, not even after its row is gone.
 */
"CREATE TABLE IF NOT EXISTS Meta ("
"	name TEXT NOT NULL PRIMARY KEY,"
"	value BLOB NOT NULL"
") WITHOUT ROWID",

/* name_key: the name with ASCII case folded. password: an encoded hash, or '*' for none. */
"CREATE TABLE IF NOT EXISTS User ("
"	id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 2147483647),"
"	name TEXT NOT NULL,"
"	name_key TEXT NOT NULL UNIQUE,"
"	password TEXT NOT NULL,"
"	epoch INTEGER NOT NULL DEFAULT 0,"
"	created INTEGER NOT NULL"
")",

"CREATE TABLE IF NOT EXISTS Friend ("
"	userid INTEGER NOT NULL REFERENCES User (id),"
"	friendid INTEGER NOT NULL REFERENCES User (id),"
"	PRIMARY KEY (userid, friendid)"
") WITHOUT ROWID",
"CREATE INDEX IF NOT EXISTS Friend_friendid ON Friend (friendid)",

/* head: the number of the last message. A dissolved group gives its name free (name_key NULL). */
"CREATE TABLE IF NOT EXISTS AllGroup ("
"	id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 2147483647),"
"	groupname TEXT NOT NULL,"
"	name_key TEXT UNIQUE,"
"	groupdesc TEXT NOT NULL,"
"	creator INTEGER NOT NULL,"
"	members INTEGER NOT NULL DEFAULT 0,"
"	head INTEGER NOT NULL DEFAULT 0,"
"	created INTEGER NOT NULL,"
"	dissolved_at INTEGER"
")",
"CREATE INDEX IF NOT EXISTS AllGroup_dissolved ON AllGroup (dissolved_at)"
"	WHERE dissolved_at IS NOT NULL",

/*
 * term 0: a member now. Who leaves with messages still to come keeps a row with term =
 * left_head + 1, so that joining again and leaving again never mixes two stays up.
 */
"CREATE TABLE IF NOT EXISTS GroupUser ("
"	groupid INTEGER NOT NULL REFERENCES AllGroup (id),"
"	userid INTEGER NOT NULL REFERENCES User (id),"
"	term INTEGER NOT NULL DEFAULT 0,"
"	role TEXT NOT NULL CHECK (role IN ('creator', 'normal')),"
"	cursor INTEGER NOT NULL,"
"	left_at INTEGER,"
"	left_head INTEGER,"
"	PRIMARY KEY (groupid, userid, term)"
") WITHOUT ROWID",
"CREATE INDEX IF NOT EXISTS GroupUser_userid ON GroupUser (userid, groupid)",
"CREATE INDEX IF NOT EXISTS GroupUser_left ON GroupUser (left_at) WHERE left_at IS NOT NULL",

/* No foreign key: one unknown recipient must not undo a batch. */
"CREATE TABLE IF NOT EXISTS OfflineMessage ("
"	id INTEGER PRIMARY KEY AUTOINCREMENT,"
"	userid INTEGER NOT NULL,"
"	senderid INTEGER NOT NULL,"
"	mid BLOB NOT NULL CHECK (length(mid) = 16),"
"	ts INTEGER NOT NULL,"
"	body BLOB NOT NULL,"
"	UNIQUE (userid, mid)"
")",
"CREATE INDEX IF NOT EXISTS OfflineMessage_userid ON OfflineMessage (userid, id)",

"CREATE TABLE IF NOT EXISTS GroupMessage ("
"	groupid INTEGER NOT NULL REFERENCES AllGroup (id),"
"	number INTEGER NOT NULL,"
"	senderid INTEGER NOT NULL,"
"	mid BLOB NOT NULL CHECK (length(mid) = 16),"
"	ts INTEGER NOT NULL,"
"	body BLOB NOT NULL,"
"	PRIMARY KEY (groupid, number),"
"	UNIQUE (groupid, mid)"
")",
