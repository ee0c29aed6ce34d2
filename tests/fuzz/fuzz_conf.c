/*
 * Fuzz target: the configuration file.
 *
 * Any bytes give errors or values, never a crash; what was read without an error can be written
 * by conf_dump() and reads back to the same values.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/conf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define must(cond) do { if (!(cond)) { \
	fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); abort(); } } while (0)

static void count(void *arg, const char *file, int line, const char *text)
{
	must(file == NULL || line > 0);
	must(text[0] != '\0');
	++*(int *)arg;
}

static char *dump(const struct conf *c)
{
	size_t len = conf_dump(c, NULL, 0);
	char *text = malloc(len + 1);

	must(text != NULL);
	must(conf_dump(c, text, len + 1) == len && strlen(text) == len);
	return text;
}

static void check_dump(const struct conf *c)
{
	char *one = dump(c), *two;
	struct conf again;
	int told = 0;

	conf_init(&again);
	must(conf_read_text(&again, "dump", one, strlen(one), count, &told) == 0);
	must(conf_finish(&again, count, &told) == 0);
	must(conf_diff(c, &again, count, &told) == 0);
	two = dump(&again);
	must(strcmp(one, two) == 0);
	conf_free(&again);
	free(one);
	free(two);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct conf c;
	int told = 0, errors;

	conf_init(&c);
	errors = conf_read_text(&c, "fuzz", (const char *)data, size, count, &told);
	errors += conf_finish(&c, count, &told);
	must(errors == told);
	if (errors == 0)
		check_dump(&c);
	conf_free(&c);
	return 0;
}
