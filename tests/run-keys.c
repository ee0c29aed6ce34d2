/* Prints the table of configuration keys, for tests/run-docs.py: name, default, reloadable. */
#include <stdio.h>

#include "worker/base/conf.h"

int main(void)
{
	const struct conf_key *k;

	for (size_t i = 0; (k = conf_key_at(i)) != NULL; i++)
		printf("%s\t%s\t%s\n", k->name, k->dflt, k->reloadable ? "reload" : "restart");
	return 0;
}
