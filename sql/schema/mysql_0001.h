/*
 * MySQL, version 1 of the schema: a list of statements, each of which may be run again (every
 * one commits by itself). Included by mysql.c only. A change of the schema is a new file with the
 * next number. What the columns mean is said in sqlite_0001.h.
 *
 * VARBINARY keys: names are compared byte by byte, without the padding of text collations.
 */
"CREATE TABLE IF NOT EXISTS Meta ("
"	name VARBINARY(64) NOT NULL PRIMARY KEY,"
"	value VARBINARY(4096) NOT NULL"
") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",

"CREATE TABLE IF NOT EXISTS User ("
"	id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,"
"	name VARCHAR(50) NOT NULL,"
"	name_key VARBINARY(200) NOT NULL,"
"	password VARCHAR(159) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,"
"	epoch INT NOT NULL DEFAULT 0,"
"	created BIGINT NOT NULL,"
"	UNIQUE KEY name_key (name_key)"
") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",

"CREATE TABLE IF NOT EXISTS Friend ("
"	userid INT NOT NULL,"
"	friendid INT NOT NULL,"
"	PRIMARY KEY (userid, friendid),"
"	KEY friendid (friendid),"
"	CONSTRAINT Friend_userid FOREIGN KEY (userid) REFERENCES User (id),"
"	CONSTRAINT Friend_friendid FOREIGN KEY (friendid) REFERENCES User (id)"
") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",

"CREATE TABLE IF NOT EXISTS AllGroup ("
"	id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,"
"	groupname VARCHAR(50) NOT NULL,"
"	name_key VARBINARY(200) NULL,"
"	groupdesc VARCHAR(200) NOT NULL,"
"	creator INT NOT NULL,"
"	members INT NOT NULL DEFAULT 0,"
"	head BIGINT NOT NULL DEFAULT 0,"
"	created BIGINT NOT NULL,"
"	dissolved_at BIGINT NULL,"
"	UNIQUE KEY name_key (name_key),"
"	KEY dissolved_at (dissolved_at)"
") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",

"CREATE TABLE IF NOT EXISTS GroupUser ("
"	groupid INT NOT NULL,"
"	userid INT NOT NULL,"
"	term BIGINT NOT NULL DEFAULT 0,"
"	role ENUM('creator', 'normal') NOT NULL,"
"	`cursor` BIGINT NOT NULL,"
"	left_at BIGINT NULL,"
"	left_head BIGINT NULL,"
"	PRIMARY KEY (groupid, userid, term),"
"	KEY userid (userid, groupid),"
"	KEY left_at (left_at),"
"	CONSTRAINT GroupUser_groupid FOREIGN KEY (groupid) REFERENCES AllGroup (id),"
"	CONSTRAINT GroupUser_userid FOREIGN KEY (userid) REFERENCES User (id)"
") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",

"CREATE TABLE IF NOT EXISTS OfflineMessage ("
"	id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,"
"	userid INT NOT NULL,"
"	senderid INT NOT NULL,"
"	mid BINARY(16) NOT NULL,"
"	ts BIGINT NOT NULL,"
"	body MEDIUMBLOB NOT NULL,"
"	UNIQUE KEY userid_mid (userid, mid),"
"	KEY userid (userid, id)"
") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",

"CREATE TABLE IF NOT EXISTS GroupMessage ("
"	groupid INT NOT NULL,"
"	number BIGINT NOT NULL,"
"	senderid INT NOT NULL,"
"	mid BINARY(16) NOT NULL,"
"	ts BIGINT NOT NULL,"
"	body MEDIUMBLOB NOT NULL,"
"	PRIMARY KEY (groupid, number),"
"	UNIQUE KEY groupid_mid (groupid, mid),"
"	CONSTRAINT GroupMessage_groupid FOREIGN KEY (groupid) REFERENCES AllGroup (id)"
") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
