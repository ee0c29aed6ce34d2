/*
 * title.c - what ps shows.
 *
 * The kernel shows argv's memory as it is while its last byte is NUL; otherwise it takes the
 * text for a title that ran on into the environment and shows it up to its first NUL
 * (fs/proc/base.c, get_mm_cmdline). So a short title is padded with NULs and a long one
 * must overwrite that last byte.
 */
#include "master/title.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static struct {
	char *start;
	size_t argv_len;		/* bytes of the argument strings */
	size_t len;			/* with the environment strings that follow them */
	int moved;			/* the environment's strings were copied away */
} area;

void title_init(int argc, char **argv)
{
	char *end;

	if (argc < 1 || argv[0] == NULL)
		return;
	area.start = end = argv[0];
	for (int i = 0; i < argc && argv[i] == end; i++)
		end += strlen(argv[i]) + 1;
	area.argv_len = (size_t)(end - area.start);
	for (char **e = environ; e != NULL && *e == end; e++)
		end += strlen(*e) + 1;
	area.len = (size_t)(end - area.start);
}

/* Moves the environment out of the way. Its copies live as long as the process. */
static int environment_move(void)
{
	if (area.moved)
		return 0;
	for (char **e = environ; e != NULL && *e != NULL; e++) {
		char *copy = strdup(*e);

		if (copy == NULL)
			return -1;
		*e = copy;
	}
	area.moved = 1;
	return 0;
}

void title_set(const char *title, const char *comm)
{
	size_t len = strlen(title), room = area.argv_len;

	(void)prctl(PR_SET_NAME, comm);
	if (area.start == NULL)
		return;
	if (len >= area.argv_len && environment_move() == 0)
		room = area.len;
	if (len >= room)
		len = room - 1;
	memcpy(area.start, title, len);
	memset(area.start + len, 0, room - len);
}
