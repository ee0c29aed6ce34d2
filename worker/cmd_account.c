/* cmd_account.c - LOGINOUT: the reply comes when everything of the session is settled. */
#include "worker/cmd.h"
#include "worker/session.h"

void cmd_logout(struct conn *c, const struct req *rq)
{
	session_logout(c, rq->echo);
}
