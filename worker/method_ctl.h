/*
 * method_ctl.h - the method "ctl": an admin request of another host, carried out on this one.
 *
 * Scope   the arguments are the request object that parleyctl would send. The worker that answers
 *         connects to its own master's admin socket, as parleyctl would, and sends the lines of the
 *         reply back as they come, {"done":...} included. The request goes on marked "ctl", so that
 *         nobody forwards it again.
 * Trust   what makes or changes accounts and login tokens is refused: the store is one for all hosts,
 *         so it is done where it is asked for, and no password or token goes through Redis.
 * Bounds  METHOD_CTL_MAX requests at a time; each ends with its call.
 */
#ifndef PARLEY_METHOD_CTL_H
#define PARLEY_METHOD_CTL_H

#include "worker/call.h"

#define METHOD_CTL_MAX 8

void method_ctl(struct call *c, struct json *j, const struct json_val *args);
/* Is that command carried out where it is asked for, whatever host is named? */
bool method_ctl_anywhere(const char *cmd);

#endif
