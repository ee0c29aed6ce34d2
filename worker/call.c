/* call.c - calls between hosts. */
#include "worker/call.h"

void call_host(struct host *h, const char *method, const char *args, size_t len, uint32_t wait_ms,
    call_done_fn *done, void *arg, uint64_t tag)
{
	(void)h; (void)method; (void)args; (void)len; (void)wait_ms;
	done(arg, tag, CALL_ABSENT, "", 0);
}
void call_on_call(struct host *from, const struct item *it) { (void)from; (void)it; }
void call_on_reply(struct host *from, const struct item *it) { (void)from; (void)it; }
void call_host_gone(struct host *h, uint64_t epoch) { (void)h; (void)epoch; }
