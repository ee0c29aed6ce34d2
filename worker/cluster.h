/*
 * cluster.h - this host as one of several: who leads, what happens when Redis comes and goes.
 *
 * Scope   the conductor of bus, hosts, link, claim and call; without conf.redis all of it is idle, and every
 *         function here says so at once.
 * Lead    one worker reads the host's channel and writes its registry entry: the one that a word of the
 *         segment names. It keeps that until it ends, hangs, or has no connection to Redis while another
 *         has one; whoever sees that (each looks every tick) takes over by compare-and-swap, so that there
 *         are never two, and has everybody look into the store for what nobody read meanwhile.
 * Order   when the connection to Redis is back: subscribe; claim the users of this worker again; send the
 *         notices that were kept; read the store for its own sessions; then new traffic.
 */
#ifndef PARLEY_CLUSTER_H
#define PARLEY_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/base/conf.h"

int cluster_init(void);
/* Nobody is let in yet: is the first connection made, and does the cluster know this life of the host? */
bool cluster_ready(void);
bool cluster_on(void);			/* configured */
bool cluster_up(void);			/* and Redis answers */
/* Redis has answered, and no host has died, for so long that claims are there again, and that all have
 * looked into the store for what the dead had no time to tell. */
bool cluster_settled(void);
bool cluster_leads(void);		/* this worker reads the channel */
/* Messages to this host may have been lost: every session of the host looks into the store (all workers). */
void cluster_missed(void);
/* The same on this worker alone: a sibling said so. */
void cluster_look_again(void);
/*
 * Something of another host is about to be written to a session: if there is reason to look into the store
 * and it has not yet, it does so first, because what was stored is older.
 */
struct conn;
void cluster_look_first(struct conn *c);
/* A login: its claim is made, now it reads all that the store has. */
void cluster_looking(struct conn *c);
void cluster_turn_end(void);
/* The worker ends in order; its loop does not run any more. */
void cluster_stop(void);

/*
 * Draining: the host takes no more logins, is left out of nginx's upstream, and its sessions are sent
 * away ("moved") over drain_seconds. The state is in the segment, so that it outlives workers.
 */
void cluster_drain(bool on);
bool cluster_draining(void);

/*
 * In the child that prepares the store, before any worker: is another host with our id alive? 0, or
 * WORKER_CONFIG with the reason logged. Redis that does not answer is a warning.
 */
int cluster_check_start(const struct conf *conf, const char *host_id);

#endif
