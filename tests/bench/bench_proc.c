/* bench_proc.c - the server's processes: CPU time and memory, as /proc has them. */
#include "tests/bench/bench.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_PIDS 2048

static uint32_t pids[MAX_PIDS], npids;

static void add_pid(uint32_t pid)
{
	for (uint32_t i = 0; i < npids; i++)
		if (pids[i] == pid)
			return;
	if (npids < MAX_PIDS)
		pids[npids++] = pid;
}

/* The children of all threads of pids[I]. */
static void add_children(uint32_t i)
{
	char path[300];
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%u/task", pids[i]);
	d = opendir(path);
	while (d != NULL && (e = readdir(d)) != NULL) {
		FILE *f;
		uint32_t pid;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/%u/task/%.20s/children", pids[i], e->d_name);
		f = fopen(path, "r");
		while (f != NULL && fscanf(f, "%u", &pid) == 1)
			add_pid(pid);
		if (f != NULL)
			fclose(f);
	}
	if (d != NULL)
		closedir(d);
}

void proc_find(void)
{
	npids = 0;
	for (uint32_t i = 0; i < opt.nwatch; i++)
		add_pid(opt.watch[i]);
	for (uint32_t i = 0; i < npids; i++)
		add_children(i);
}

static size_t proc_read(uint32_t pid, const char *name, char *buf, size_t cap)
{
	char path[64];
	size_t n = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%u/%s", pid, name);
	f = fopen(path, "r");
	if (f != NULL) {
		n = fread(buf, 1, cap - 1, f);
		fclose(f);
	}
	buf[n] = '\0';
	return n;
}

static double cpu_of(uint32_t pid)
{
	char text[1024];
	unsigned long user, sys;
	const char *p;

	proc_read(pid, "stat", text, sizeof text);
	p = strrchr(text, ')');
	if (p == NULL || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
	    &sys) != 2)
		return 0;
	return (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
}

double proc_cpu(void)
{
	double sum = 0;

	for (uint32_t i = 0; i < npids; i++)
		sum += cpu_of(pids[i]);
	return sum;
}

double proc_cpu_load(void)
{
	char text[MAX_PROCS * 12], path[40], *p = text;
	double sum = 0;

	snprintf(path, sizeof path, "task/%d/children", (int)getpid());
	proc_read((uint32_t)getpid(), path, text, sizeof text);
	for (char *end; ; p = end) {
		unsigned long pid = strtoul(p, &end, 10);

		if (end == p)
			return sum;
		sum += cpu_of((uint32_t)pid);
	}
}

uint64_t proc_memory(void)
{
	char text[4096];
	uint64_t sum = 0;

	for (uint32_t i = 0; i < npids; i++) {
		unsigned long kib;
		const char *p;

		proc_read(pids[i], "smaps_rollup", text, sizeof text);
		p = strstr(text, "\nPss:");
		if (p != NULL && sscanf(p + 5, "%lu", &kib) == 1)
			sum += (uint64_t)kib * 1024;
	}
	return sum;
}
