/*
 * fault.c - what the fault points of a fault build do.
 *
 * Armed from the environment before main(), so that the count of passes lies in a page that all
 * processes forked later share: the N-th pass is one of the daemon, whoever makes it.
 */
#ifndef PARLEY_FAULTS
#define PARLEY_FAULTS		/* linked into the fault build only, yet checked with all the rest */
#endif
#include "shm/fault.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_ARMED 16

struct armed {
	char name[48];
	enum fault_act act;
	unsigned long pass;		/* acts at this one; 0: at each */
	int slot;			/* -1: in any process */
};

static struct armed armed[MAX_ARMED];
static unsigned narmed;
static _Atomic unsigned long *passes;	/* of armed[i]; shared */
static int my_slot = -1;

static const char *own_name;		/* fault_arm() */
static enum fault_act own_act;

/* The linker's bounds of what FAULT() puts into the section. */
extern const char *const __start_parley_faults[] __attribute__((weak));
extern const char *const __stop_parley_faults[] __attribute__((weak));

const char *fault_name(unsigned i)
{
	size_t n = (size_t)(__stop_parley_faults - __start_parley_faults);

	return i < n ? __start_parley_faults[i] : NULL;
}

void fault_slot(int slot)
{
	my_slot = slot;
}

void fault_arm(const char *name, enum fault_act act)
{
	own_name = name;
	own_act = act;
}

static void act_now(enum fault_act act)
{
	if (act == FAULT_KILL)
		kill(getpid(), SIGKILL);
	else if (act == FAULT_STOP)
		kill(getpid(), SIGSTOP);
	else if (act == FAULT_SPIN)
		for (;;)
			;
}

void fault_hit(const char *name)
{
	if (own_name != NULL && strcmp(own_name, name) == 0)
		act_now(own_act);
	for (unsigned i = 0; i < narmed; i++) {
		unsigned long pass;

		if (strcmp(armed[i].name, name) != 0 || (armed[i].slot >= 0 && armed[i].slot != my_slot))
			continue;
		pass = atomic_fetch_add(&passes[i], 1) + 1;
		if (armed[i].pass == 0 || armed[i].pass == pass)
			act_now(armed[i].act);
	}
}

/* One "name=act[:N][:slot]". A word that is none ends the program: a test would wait in vain. */
static void parse(char *word)
{
	static const char *const acts[] = { "", "kill", "stop", "spin" };
	struct armed *a = &armed[narmed++];
	char *act = strchr(word, '='), *n = NULL, *slot = NULL;

	if (act != NULL) {
		*act++ = '\0';
		if ((n = strchr(act, ':')) != NULL) {
			*n++ = '\0';
			if ((slot = strchr(n, ':')) != NULL)
				*slot++ = '\0';
		}
		for (unsigned k = 1; k < 4; k++) {
			if (strcmp(act, acts[k]) == 0)
				a->act = (enum fault_act)k;
		}
	}
	if (a->act == FAULT_NONE || strlen(word) >= sizeof(a->name)) {
		fprintf(stderr, "PARLEY_FAULT: '%s' is no name=kill|stop|spin[:N][:slot]\n", word);
		_exit(2);
	}
	strcpy(a->name, word);
	a->pass = n != NULL && *n != '\0' ? strtoul(n, NULL, 10) : 1;
	a->slot = slot != NULL ? atoi(slot) : -1;
}

__attribute__((constructor)) static void arm_from_environment(void)
{
	const char *env = getenv("PARLEY_FAULT");
	char text[MAX_ARMED * 64], *save = NULL;

	if (env == NULL || strlen(env) >= sizeof(text))
		return;
	passes = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (passes == MAP_FAILED)
		_exit(2);
	strcpy(text, env);
	for (char *w = strtok_r(text, ",", &save); w != NULL && narmed < MAX_ARMED;
	    w = strtok_r(NULL, ",", &save))
		parse(w);
}
