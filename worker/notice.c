/* notice.c - telling whoever serves a user that the store holds something. */
#include "worker/notice.h"

#include "worker/route.h"

void notice_send(uint32_t user, notice_fn *done, uint64_t tag, uint64_t tag2)
{
	route_notice(user);
	done(tag, tag2);
}
bool notice_pending(uint32_t user) { (void)user; return false; }
bool notice_idle(void) { return true; }
void notice_bus_up(void) { }
void notice_bus_down(void) { }
void notice_on_notice(struct host *from, const struct item *it) { (void)from; (void)it; }
void notice_on_noticed(struct host *from, const struct item *it) { (void)from; (void)it; }
