/*
 * fault.h - named points at which the fault build can be told to die, stop or wait.
 *
 * Scope   FAULT("sess.bind.1") is nothing in a release build. In the fault build it calls
 *         fault_hit() (tests/fault.c), which does what is armed: by fault_arm() in a unit test,
 *         or in a daemon by the environment, PARLEY_FAULT="name=kill[:N][:slot],..." (kill, stop,
 *         spin; at the N-th pass, 1 by default, 0 for every; in that worker slot only). Passes are
 *         counted over all processes of the daemon, so that the successor of the killed one lives.
 *         Makes no system call unless it acts.
 * Names   of all points linked into a program are at hand as fault_name(): a test that kills at
 *         each cannot forget one.
 */
#ifndef PARLEY_SHM_FAULT_H
#define PARLEY_SHM_FAULT_H

#ifdef PARLEY_FAULTS
enum fault_act { FAULT_NONE, FAULT_KILL, FAULT_STOP, FAULT_SPIN };
void fault_arm(const char *name, enum fault_act act);	/* this process; NULL disarms */
void fault_slot(int slot);				/* which worker this process is */
void fault_hit(const char *name);
const char *fault_name(unsigned i);			/* NULL past the end; may repeat */
#define FAULT(name) do { \
		static const char *const fault_point \
		    __attribute__((section("parley_faults"), used)) = (name); \
		fault_hit(fault_point); \
	} while (0)
#else
#define FAULT(name) ((void)0)
#endif

#endif
