/*
 * Feeds files to a fuzz target without libFuzzer: the corpus, on every `make check`.
 *
 * Each argument is a file or a directory of files. No input at all is an error, so that a corpus
 * that went missing is noticed.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t fed;

static void feed_file(const char *path)
{
	FILE *f = fopen(path, "rb");
	uint8_t *data = NULL;
	size_t len = 0, room = 0, n;

	if (f == NULL) {
		perror(path);
		exit(1);
	}
	do {
		if (len == room)
			data = realloc(data, room = room * 2 + 4096);
		if (data == NULL)
			abort();
		n = fread(data + len, 1, room - len, f);
		len += n;
	} while (n > 0);
	fclose(f);
	/* An exact copy, so that the sanitizer sees a read beyond its end. */
	uint8_t *exact = malloc(len > 0 ? len : 1);

	if (exact == NULL)
		abort();
	memcpy(exact, data, len);
	free(data);
	printf("%s (%zu bytes)\n", path, len);
	fflush(stdout);		/* if it crashes, the last line says on what */
	LLVMFuzzerTestOneInput(exact, len);
	free(exact);
	fed++;
}

static void feed(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char name[4096];

	if (d == NULL) {
		feed_file(path);
		return;
	}
	while ((e = readdir(d)) != NULL) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(name, sizeof name, "%s/%s", path, e->d_name);
		feed_file(name);
	}
	closedir(d);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		feed(argv[i]);
	printf("%zu inputs\n", fed);
	return fed > 0 ? 0 : 1;
}
