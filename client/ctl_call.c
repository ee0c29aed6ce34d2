/*
 * ctl_call.c - one request to the daemon over its admin socket.
 */
#include "client/ctl_call.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/text.h"
#include "worker/base/json.h"

#define CHUNK      65536
#define SEND_AHEAD (256u << 10)

static char why[300];

const char *call_why(void)
{
	return why;
}

static int connect_to(const char *path)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof sun.sun_path) {
		snprintf(why, sizeof why, "%.200s: the path is too long for a socket", path);
		return -1;
	}
	memcpy(sun.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	/* A full backlog makes connect() wait, which is what we want; only then non-blocking. */
	if (fd < 0 || connect(fd, (struct sockaddr *)&sun, sizeof sun) < 0 ||
	    fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		snprintf(why, sizeof why, "%.200s: %s", path, errno == ENOENT || errno == ECONNREFUSED ?
		    "no daemon serves this socket" : strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

/* Is it the last line? Its code, then. */
static int is_last(struct json *j, const char *line, size_t len, bool *done_r, int *code_r)
{
	struct json_val root, v;
	int64_t code = 1;
	bool done = false;

	if (json_parse(j, line, len) != JSON_OK)
		return -1;
	root = json_root(j);
	if (json_get(j, &root, "done", &v))
		(void)json_bool(&v, &done);
	if (done && json_get(j, &root, "code", &v))
		(void)json_int(&v, &code);
	*done_r = done;
	*code_r = (int)code;
	return 0;
}

struct io {
	const struct call *c;
	struct json *json;
	struct text in, out;
	bool more, done;
	int fd, code;
};

static int take_lines(struct io *io)
{
	size_t from = 0;
	char *nl;

	while (!io->done && io->in.len > from &&
	    (nl = memchr(io->in.s + from, '\n', io->in.len - from)) != NULL) {
		const char *line = io->in.s + from;
		size_t len = (size_t)(nl - line);

		from += len + 1;
		if (len == 0)
			continue;
		/* Only the last line has to be understood here; a report may be larger than our parser. */
		if (is_last(io->json, line, len, &io->done, &io->code) < 0 && line[0] != '{') {
			snprintf(why, sizeof why, "the answer is no JSON");
			return -1;
		}
		io->c->line(io->c->arg, line, len, io->done);
	}
	text_drop(&io->in, from);
	return 0;
}

static int receive(struct io *io)
{
	ssize_t n;

	text_reserve(&io->in, CHUNK);
	n = recv(io->fd, io->in.s + io->in.len, CHUNK, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		snprintf(why, sizeof why, "the daemon closed the connection before its answer was complete");
		return -1;
	}
	io->in.len += (size_t)n;
	io->in.s[io->in.len] = '\0';
	return take_lines(io);
}

static void transmit(struct io *io)
{
	ssize_t n;

	while (io->more && io->out.len < SEND_AHEAD)
		io->more = io->c->more(io->c->arg, &io->out);
	if (io->out.len == 0)
		return;
	n = send(io->fd, io->out.s, io->out.len, MSG_NOSIGNAL);
	if (n > 0) {
		text_drop(&io->out, (size_t)n);
	} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
		/* It does not want more; what it has to say about that is still to be read. */
		io->more = false;
		text_clear(&io->out);
	}
}

static enum call_rc exchange(struct io *io)
{
	int timeout = io->c->timeout_ms > 0 ? io->c->timeout_ms : -1;

	while (!io->done) {
		struct pollfd p = { .fd = io->fd, .events = POLLIN };
		int n;

		if (io->more || io->out.len > 0)
			p.events |= POLLOUT;
		n = poll(&p, 1, timeout);
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0) {
			snprintf(why, sizeof why, "no answer within %d s", timeout / 1000);
			return CALL_BROKEN;
		}
		if ((p.revents & POLLOUT) != 0)
			transmit(io);
		if ((p.revents & (POLLIN | POLLHUP | POLLERR)) != 0 && receive(io) < 0)
			return CALL_BROKEN;
	}
	return CALL_OK;
}

enum call_rc call_run(const struct call *c, const char *request, size_t len, int *code_r)
{
	struct io io = { .c = c, .more = c->more != NULL };
	enum call_rc rc;

	io.fd = connect_to(c->path);
	if (io.fd < 0)
		return CALL_UNREACHABLE;
	io.json = json_new(JSON_UNTRUSTED | JSON_LARGE);
	if (io.json == NULL) {
		close(io.fd);
		snprintf(why, sizeof why, "out of memory");
		return CALL_BROKEN;
	}
	text_add(&io.out, request, len);
	text_add(&io.out, "\n", 1);
	rc = exchange(&io);
	if (rc == CALL_OK)
		*code_r = io.code;
	explicit_bzero(io.out.s, io.out.cap);	/* there may be passwords in it */
	text_fini(&io.in);
	text_fini(&io.out);
	json_free(io.json);
	close(io.fd);
	return rc;
}
