/* bench_report.c - what is printed: text for people, or a JSON object a line. */
#include "tests/bench/bench.h"

#include <stdio.h>

static struct tally sum;

static void add_up(void)
{
	int64_t first = 0, last = 0;

	sum = (struct tally){ 0 };
	for (uint32_t p = 0; p < opt.procs; p++) {
		const struct tally *t = &board->tally[p];

		sum.sent += t->sent;
		sum.received += t->received;
		sum.acked += t->acked;
		sum.logins += t->logins;
		sum.bytes_in += t->bytes_in;
		sum.sent_all += t->sent_all;
		sum.received_all += t->received_all;
		sum.acked_all += t->acked_all;
		sum.refused += t->refused;
		sum.disordered += t->disordered;
		sum.lost += t->lost;
		if (t->measured_ns > sum.measured_ns)
			sum.measured_ns = t->measured_ns;
		if (t->max_gap_ns > sum.max_gap_ns)
			sum.max_gap_ns = t->max_gap_ns;
		if (t->first_connect_ns != 0 && (first == 0 || t->first_connect_ns < first))
			first = t->first_connect_ns;
		if (t->last_ready_ns > last)
			last = t->last_ready_ns;
		hist_merge(&sum.hist, &t->hist);
		hist_merge(&sum.ack_hist, &t->ack_hist);
		hist_merge(&sum.late_hist, &t->late_hist);
	}
	sum.first_connect_ns = first;
	sum.last_ready_ns = last;
}

static double connects_per_second(void)
{
	double s = (double)(sum.last_ready_ns - sum.first_connect_ns) / 1e9;

	return s > 0 ? opt.conns / s : 0;
}

static double per_session(const struct outcome *o)
{
	return o->memory_after > 0 ? ((double)o->memory_after - (double)o->memory_before) / opt.conns : 0;
}

/* What the rate of a mode counts. */
static uint64_t done(void)
{
	return opt.mode == MODE_LOGIN || opt.mode == MODE_REGISTER ? sum.logins :
	    opt.mode == MODE_STORE ? sum.acked : sum.received;
}

void report_interval(double at, double seconds)
{
	static uint64_t received, logins;

	add_up();
	if (opt.json)
		printf("{\"at\":%.2f,\"per_second\":%.1f,\"logins_per_second\":%.1f,\"lost\":%llu}\n", at,
		    (double)(sum.received_all - received) / seconds,
		    (double)(sum.logins - logins) / seconds, (unsigned long long)sum.lost);
	else
		printf("%8.1f s  %12.0f messages/s  %10.0f logins/s\n", at,
		    (double)(sum.received_all - received) / seconds, (double)(sum.logins - logins) / seconds);
	fflush(stdout);
	received = sum.received_all;
	logins = sum.logins;
}

void report_ready(const struct outcome *o)
{
	add_up();
	if (opt.json)
		printf("{\"ready\":%u,\"connects_per_second\":%.1f,\"memory_before\":%llu,"
		    "\"memory_after\":%llu,\"bytes_per_session\":%.1f,\"server_cpu_us\":%.2f,"
		    "\"load_cpu_us\":%.2f}\n", opt.conns, connects_per_second(),
		    (unsigned long long)o->memory_before, (unsigned long long)o->memory_after,
		    per_session(o), o->cpu_seconds * 1e6 / opt.conns, o->load_seconds * 1e6 / opt.conns);
	else
		printf("%u sessions, %.0f a second; %.1f us of CPU each here, %.1f us at the server\n",
		    opt.conns, connects_per_second(), o->load_seconds * 1e6 / opt.conns,
		    o->cpu_seconds * 1e6 / opt.conns);
	fflush(stdout);
}

/* --- text --- */

static const char *human(uint64_t ns)
{
	static char buf[4][32];
	static int i;
	char *p = buf[i++ & 3];
	double us = (double)ns / 1e3;

	snprintf(p, sizeof *buf, us < 10 ? "%.2f us" : us < 1e4 ? "%.0f us" : us < 1e7 ? "%.1f ms" :
	    "%.2f s", us < 1e4 ? us : us < 1e7 ? us / 1e3 : us / 1e6);
	return p;
}

static void text_hist(const char *what, const struct hist *h)
{
	if (h->count == 0)
		return;
	printf("%-16s50 %% %s, 90 %% %s, ", what, human(hist_quantile(h, 0.5)),
	    human(hist_quantile(h, 0.9)));
	printf("99 %% %s, 99.9 %% %s, ", human(hist_quantile(h, 0.99)), human(hist_quantile(h, 0.999)));
	printf("worst %s\n", human(h->max));
}

static void text_end(const struct outcome *o, double secs)
{
	static const char *const things[MODES] = {
		"messages", "deliveries", "logins", "accounts", "messages", "messages stored", "messages",
		"notices",
	};
	double rate = secs > 0 ? (double)done() / secs : 0;

	if (opt.mode == MODE_IDLE)
		printf("%u sessions, %.0f a second, %llu lost\n", opt.conns, connects_per_second(),
		    (unsigned long long)sum.lost);
	else
		printf("%-16s%llu in %.2f s, %.0f a second\n", things[opt.mode],
		    (unsigned long long)done(), secs, rate);
	if (sum.acked > 0 && secs > 0 && opt.mode != MODE_STORE)
		printf("%-16s%llu, %.0f a second\n", "confirmed", (unsigned long long)sum.acked,
		    (double)sum.acked / secs);
	text_hist(opt.mode == MODE_LOGIN ? "login" : "on the way", &sum.hist);
	text_hist("confirmed after", &sum.ack_hist);
	text_hist("sent late by", &sum.late_hist);
	if (opt.nwatch > 0 && opt.mode != MODE_IDLE && done() > 0)
		printf("%-16s%.0f %%, %.2f us each\n", "server's CPU", secs > 0 ? o->cpu_seconds / secs *
		    100 : 0, o->cpu_seconds * 1e6 / (double)done());
	if (opt.mode != MODE_IDLE && secs > 0 && o->load_seconds > 0)
		printf("%-16s%.0f %%\n", "the load's CPU", o->load_seconds / secs * 100);
	if (opt.mode == MODE_IDLE && o->memory_after > 0)
		printf("%-16s%.1f MiB before, %.1f MiB with them, %.0f bytes each\n", "server's memory",
		    (double)o->memory_before / 1048576, (double)o->memory_after / 1048576, per_session(o));
	if (sum.refused + sum.lost + sum.disordered > 0)
		printf("%-16s%llu refused, %llu connections lost, %llu messages out of order\n", "trouble",
		    (unsigned long long)sum.refused, (unsigned long long)sum.lost,
		    (unsigned long long)sum.disordered);
	if (opt.mode == MODE_PAIRS && sum.received_all < sum.sent_all)
		printf("%-16s%llu of %llu messages did not arrive\n", "missing",
		    (unsigned long long)(sum.sent_all - sum.received_all),
		    (unsigned long long)sum.sent_all);
}

/* --- JSON --- */

static void json_hist(const char *prefix, const struct hist *h)
{
	printf(",\"%smean_us\":%.2f,\"%sp50_us\":%.2f,\"%sp90_us\":%.2f,\"%sp99_us\":%.2f,"
	    "\"%sp999_us\":%.2f,\"%smax_us\":%.2f", prefix,
	    h->count > 0 ? (double)h->sum / (double)h->count / 1e3 : 0, prefix,
	    (double)hist_quantile(h, 0.5) / 1e3, prefix, (double)hist_quantile(h, 0.9) / 1e3, prefix,
	    (double)hist_quantile(h, 0.99) / 1e3, prefix, (double)hist_quantile(h, 0.999) / 1e3, prefix,
	    (double)h->max / 1e3);
}

static void json_number(const char *name, uint64_t v)
{
	printf(",\"%s\":%llu", name, (unsigned long long)v);
}

static void json_end(const struct outcome *o, double secs)
{
	printf("{\"mode\":\"%s\",\"protocol\":\"%s\",\"ack\":%s,\"conns\":%u,\"procs\":%u,"
	    "\"window\":%u,\"size\":%u,\"offered\":%.0f,\"seconds\":%.3f", mode_names[opt.mode],
	    opt.driver->name, opt.ack || opt.qos > 0 ? "true" : "false", opt.conns, opt.procs, opt.window,
	    opt.size, opt.rate, secs);
	json_number("sent", sum.sent);
	json_number("received", sum.received);
	json_number("acked", sum.acked);
	json_number("logins", sum.logins);
	json_number("sent_all", sum.sent_all);
	json_number("received_all", sum.received_all);
	json_number("acked_all", sum.acked_all);
	json_number("refused", sum.refused);
	json_number("disordered", sum.disordered);
	json_number("lost", sum.lost);
	json_number("group", atomic_load(&board->group));
	json_number("bytes_in", sum.bytes_in);
	printf(",\"per_second\":%.1f,\"acked_per_second\":%.1f,\"logins_per_second\":%.1f,"
	    "\"connects_per_second\":%.1f", secs > 0 ? (double)sum.received / secs : 0,
	    secs > 0 ? (double)sum.acked / secs : 0, secs > 0 ? (double)sum.logins / secs : 0,
	    connects_per_second());
	printf(",\"server_cpu_us\":%.4f,\"server_cpu_share\":%.3f,\"load_cpu_share\":%.3f",
	    done() > 0 ? o->cpu_seconds * 1e6 / (double)done() : 0, secs > 0 ? o->cpu_seconds / secs : 0,
	    secs > 0 ? o->load_seconds / secs : 0);
	printf(",\"memory_before\":%llu,\"memory_after\":%llu,\"bytes_per_session\":%.1f",
	    (unsigned long long)o->memory_before, (unsigned long long)o->memory_after, per_session(o));
	json_hist("", &sum.hist);
	json_hist("ack_", &sum.ack_hist);
	json_hist("late_", &sum.late_hist);
	printf(",\"gap_us\":%.1f}\n", (double)sum.max_gap_ns / 1e3);
}

void report_end(const struct outcome *o)
{
	double secs;

	add_up();
	secs = (double)sum.measured_ns / 1e9;
	if (opt.json)
		json_end(o, secs);
	else
		text_end(o, secs);
}
