/*
 * title.h - what ps shows: the command line and the short name of a process.
 *
 * Scope   the title overwrites the memory of argv, the only place that the kernel shows without
 *         a privilege. A title longer than argv goes on into the environment's memory, whose
 *         strings are copied away first; one that fits leaves the environment as it was.
 * Rules   after title_init() nobody keeps a pointer into argv.
 */
#ifndef PARLEY_MASTER_TITLE_H
#define PARLEY_MASTER_TITLE_H

/* Once, first thing in main(). */
void title_init(int argc, char **argv);
/* TITLE for ps, COMM (15 bytes) as the short name. */
void title_set(const char *title, const char *comm);

#endif
