/*
 * What the tests of sql/ stand on: a fresh database for each test on either engine, a private
 * MariaDB server, and a proxy that cuts the link at a chosen moment.
 */
#ifndef TESTS_SQL_ENV_H
#define TESTS_SQL_ENV_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

#include "sql/db.h"

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

extern char env_url[512];		/* of the present test's database */
extern char env_dir[128];		/* a temporary folder of this run */

void env_init(void);
void env_fini(void);

/* Group and test fixtures (cmocka). */
int env_mysql_start(void **state);	/* starts the server, or takes PARLEY_TEST_MYSQL */
int env_mysql_stop(void **state);
int env_fresh_sqlite(void **state);	/* sets env_url, migrates, *state is an open struct db */
int env_fresh_mysql(void **state);
int env_done(void **state);

/* A further connection to the database of the test. */
struct db *env_open(const struct db_options *opt);

/* The private server, for tests that hurt it; false where it is not ours to hurt. */
bool env_server_mine(void);
pid_t env_server_pid(void);
void env_server_kill(void);
void env_server_again(void);
/* Runs one statement as the server's administrator, on a connection of its own. */
void env_sql(const char *sql);

/*
 * Starts a process that relays one unix socket to the server's and, the first time that the client
 * says COMMIT, cuts the client's link: before handing it on, after, or holding it back, while the
 * server's end of the link lives on. Later links are left alone. url_r is the test's URL through it.
 */
enum env_proxy { PROXY_CUT_BEFORE, PROXY_CUT_AFTER, PROXY_HOLD };
pid_t env_proxy_start(enum env_proxy how, char *url_r, size_t size);
/* While a link is up: now the server gets what was held back. True: it executed that. */
bool env_proxy_release(void);
void env_proxy_stop(pid_t pid);

/* Runs FN in COUNT processes and waits for them; each must return 0. */
void env_fork(int count, int (*fn)(int me));

#endif
