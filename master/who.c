/*
 * who.c - whom the daemon's children run as.
 */
#include "master/who.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <unistd.h>

int who_find(struct who *w, const struct conf *conf, char *why, size_t cap)
{
	const struct passwd *pw;
	const struct group *gr;

	*w = (struct who){ .uid = (uid_t)-1, .gid = (gid_t)-1, .ngroups = WHO_GROUPS };
	if (conf->user[0] == '\0' || geteuid() != 0)
		return 0;
	pw = getpwnam(conf->user);
	if (pw == NULL) {
		snprintf(why, cap, "user %s: there is no such user", conf->user);
		return -1;
	}
	w->uid = pw->pw_uid;
	w->gid = pw->pw_gid;
	if (conf->group[0] != '\0') {
		gr = getgrnam(conf->group);
		if (gr == NULL) {
			snprintf(why, cap, "group %s: there is no such group", conf->group);
			return -1;
		}
		w->gid = gr->gr_gid;
	}
	if (getgrouplist(conf->user, w->gid, w->groups, &w->ngroups) < 0)
		w->ngroups = WHO_GROUPS;	/* more than there is room for: the first ones */
	w->drop = true;
	return 0;
}

int who_become(const struct who *w)
{
	if (!w->drop)
		return 0;
	if (setgroups((size_t)w->ngroups, w->groups) < 0 ||
	    setresgid(w->gid, w->gid, w->gid) < 0 || setresuid(w->uid, w->uid, w->uid) < 0)
		return -errno;
	if (w->uid != 0 && setuid(0) == 0)	/* it must not be possible to go back */
		return -EPERM;
	return 0;
}
