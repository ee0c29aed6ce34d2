/* hosts.c - the registry. */
#include "worker/hosts.h"

struct host *hosts_find(uint64_t key) { (void)key; return NULL; }
struct host *hosts_self(void) { return NULL; }
struct host *hosts_at(unsigned i) { (void)i; return NULL; }
bool hosts_alive(uint64_t key, uint64_t epoch) { (void)key; (void)epoch; return false; }
void hosts_put_try(struct json_out *w) { (void)w; }
