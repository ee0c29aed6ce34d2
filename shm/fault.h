/*
 * fault.h - named points at which the fault build can be told to die, stop or wait.
 *
 * Scope   FAULT("sess.bind.1") is nothing in a release build. In the fault build it calls
 *         fault_hit() (tests/fault.c), which reads what is armed: by fault_arm() in a unit test,
 *         or from the environment PARLEY_FAULT="name=kill[:N][:slot]" (kill, stop, spin; at the
 *         N-th pass; in that worker slot only) in a daemon. Makes no system call unless armed.
 */
#ifndef PARLEY_SHM_FAULT_H
#define PARLEY_SHM_FAULT_H

#ifdef PARLEY_FAULTS
enum fault_act { FAULT_NONE, FAULT_KILL, FAULT_STOP, FAULT_SPIN };
void fault_arm(const char *name, enum fault_act act);	/* NULL disarms */
void fault_slot(int slot);				/* which worker this process is */
void fault_hit(const char *name);
#define FAULT(name) fault_hit(name)
#else
#define FAULT(name) ((void)0)
#endif

#endif
