#include "client/command.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/book.h"
#include "client/line.h"
#include "client/shell.h"
#include "client/show.h"
#include "client/talk.h"
#include "client/text.h"

enum takes { TAKES_NOTHING, TAKES_TEXT, TAKES_PERSON, TAKES_GROUP, TAKES_EITHER, TAKES_COMMAND };

struct command {
	const char *name;		/* "/msg" */
	const char *other;		/* another slash form, or NULL */
	const char *old;		/* form of the old documents, with its colon, or NULL */
	enum takes takes;		/* for completion */
	const char *args, *help;
	int (*run)(struct shell *sh, char *args, char sep);
};

static const struct command *find_command(const char *word);
static const struct command commands[];

/* ---- arguments ----------------------------------------------------------------------------- */

static int complain(struct shell *sh, const char *text)
{
	show_error(shell_show(sh), 0, NULL, 0, "%s", text);
	return -1;
}

static char *skip_blanks(char *p)
{
	return p + strspn(p, " \t");
}

static void trim_end(char *p)
{
	size_t len = strlen(p);

	while (len > 0 && (p[len - 1] == ' ' || p[len - 1] == '\t'))
		p[--len] = '\0';
}

/* Reads "..." with \" and \\ in place; *P moves behind it. NULL: no closing quote. */
static char *take_quoted(char **p)
{
	char *from = *p + 1, *to = from, *s = from;

	for (; *s != '\0' && *s != '"'; s++) {
		if (*s == '\\' && (s[1] == '"' || s[1] == '\\'))
			s++;
		*to++ = *s;
	}
	if (*s == '\0')
		return NULL;
	*p = s + 1;
	*to = '\0';
	return from;
}

/*
 * One name: quoted, or up to SEP (0: all that is left). *P moves behind it and its separator.
 * The result is marked with '@' where it was quoted, so that "12" is a name and 12 an id.
 */
static char *take_name(char **p, char sep)
{
	char *name, *s = skip_blanks(*p);

	if (*s == '"') {
		char *first = s;

		name = take_quoted(&s);
		if (name == NULL)
			return NULL;
		*first = '@';			/* stands where the quote stood */
		name = first;
	} else {
		name = s;
		s += sep == 0 ? strlen(s) : sep == ' ' ? strcspn(s, " \t") : strcspn(s, ":");
	}
	if (*s != '\0') {
		char *end = s;

		if (sep != 0)
			s++;
		*end = '\0';
	}
	if (name[0] != '@')
		trim_end(name);
	*p = sep == ' ' ? skip_blanks(s) : s;
	return name;
}

/* A person or, after a #, a group. GROUP: it is a group anyway. */
static int take_target(struct shell *sh, char **p, char sep, bool group, bool either,
    struct talk_target *target_r)
{
	char *s = skip_blanks(*p), *name;

	if (*s == '#' && (group || either) && s[1] != '\0') {
		group = true;
		s++;
	}
	*p = s;
	name = take_name(p, sep);
	if (name == NULL)
		return complain(sh, "a closing quote is missing");
	if (name[0] == '\0' || strcmp(name, "@") == 0)
		return complain(sh, group ? "which group?" : "who? a name or an id is missing");
	if (talk_resolve(shell_talk(sh), name, group, target_r) != 0)
		return complain(sh, "a name has 1 to 50 characters");
	return 0;
}

/* ---- the commands -------------------------------------------------------------------------- */

static int run_ask(struct shell *sh, char *args, enum proto_msg msg, bool group)
{
	struct talk_target who;

	if (take_target(sh, &args, 0, group, false, &who) != 0)
		return -1;
	return talk_ask(shell_talk(sh), msg, &who, NULL);
}

static int run_msg(struct shell *sh, char *args, char sep)
{
	struct talk_target to;

	if (take_target(sh, &args, sep, false, sep == ' ', &to) != 0)
		return -1;
	return talk_chat(shell_talk(sh), &to, args);
}

static int run_group(struct shell *sh, char *args, char sep)
{
	struct talk_target to;

	if (take_target(sh, &args, sep, true, false, &to) != 0)
		return -1;
	return talk_chat(shell_talk(sh), &to, args);
}

static int run_say(struct shell *sh, char *args, char sep)
{
	struct talk_target *to = shell_to(sh);

	(void)sep;
	if (to->id == 0 && to->name[0] == '\0')
		return complain(sh, "no conversation is open: /to NAME or /msg NAME TEXT");
	return talk_chat(shell_talk(sh), to, args);
}

static int run_reply(struct shell *sh, char *args, char sep)
{
	struct talk_target to = { .id = talk_last_writer(shell_talk(sh)) };

	(void)sep;
	if (to.id == 0)
		return complain(sh, "nobody has written to you yet");
	return talk_chat(shell_talk(sh), &to, args);
}

static int run_to(struct shell *sh, char *args, char sep)
{
	struct talk_target to;
	struct text label = { 0 };

	(void)sep;
	if (*skip_blanks(args) == '\0') {
		memset(shell_to(sh), 0, sizeof to);
		show_note(shell_show(sh), "no conversation is open now");
		return 0;
	}
	if (take_target(sh, &args, 0, false, true, &to) != 0)
		return -1;
	*shell_to(sh) = to;
	talk_label(shell_talk(sh), &to, &label);
	show_note(shell_show(sh), "what you type goes to %s now", label.s);
	text_fini(&label);
	return 0;
}

static int run_friend(struct shell *sh, char *args, char sep)
{
	(void)sep;
	return run_ask(sh, args, MSG_ADD_FRIEND, false);
}

static int run_unfriend(struct shell *sh, char *args, char sep)
{
	(void)sep;
	return run_ask(sh, args, MSG_DEL_FRIEND, false);
}

static int run_join(struct shell *sh, char *args, char sep)
{
	(void)sep;
	return run_ask(sh, args, MSG_JOIN_GROUP, true);
}

static int run_leave(struct shell *sh, char *args, char sep)
{
	(void)sep;
	return run_ask(sh, args, MSG_DEL_GROUP, true);
}

static int run_friends(struct shell *sh, char *args, char sep)
{
	(void)args;
	(void)sep;
	return talk_ask(shell_talk(sh), MSG_FRIEND_LIST, NULL, NULL);
}

static int run_groups(struct shell *sh, char *args, char sep)
{
	(void)args;
	(void)sep;
	return talk_ask(shell_talk(sh), MSG_GROUP_LIST, NULL, NULL);
}

static int run_create(struct shell *sh, char *args, char sep)
{
	struct talk_target group = { .group = true };
	char *name;

	args = skip_blanks(args);
	if (*args == '#' && args[1] != '\0')
		args++;
	name = take_name(&args, sep);
	if (name == NULL)
		return complain(sh, "a closing quote is missing");
	if (name[0] == '@')
		name++;
	if (name[0] == '\0')
		return complain(sh, "what is the group's name?");
	if (strlen(name) > PROTO_NAME_BYTES)
		return complain(sh, "a name has 1 to 50 characters");
	if (strlen(args) > PROTO_DESC_BYTES)
		return complain(sh, "a description has 200 characters at most");
	memcpy(group.name, name, strlen(name) + 1);
	return talk_ask(shell_talk(sh), MSG_CREATE_GROUP, &group, args);
}

static int run_who(struct shell *sh, char *args, char sep)
{
	struct talk_target group = *shell_to(sh);

	(void)sep;
	if (*skip_blanks(args) != '\0') {
		if (take_target(sh, &args, 0, true, false, &group) != 0)
			return -1;
	} else if (!group.group) {
		return talk_ask(shell_talk(sh), MSG_FRIEND_LIST, NULL, "online");
	}
	return talk_ask(shell_talk(sh), MSG_GROUP_LIST, &group, NULL);
}

static int run_login(struct shell *sh, char *args, char sep)
{
	char *name = NULL;

	(void)sep;
	if (*skip_blanks(args) != '\0') {
		name = take_name(&args, ' ');
		if (name == NULL)
			return complain(sh, "a closing quote is missing");
	}
	return shell_login(sh, name, name != NULL && *args != '\0' ? args : NULL);
}

static int run_register(struct shell *sh, char *args, char sep)
{
	char *name = NULL;

	(void)sep;
	if (*skip_blanks(args) != '\0') {
		name = take_name(&args, ' ');
		if (name == NULL)
			return complain(sh, "a closing quote is missing");
		if (name[0] == '@')
			name++;
	}
	return shell_register(sh, name, name != NULL && *args != '\0' ? args : NULL);
}

static int run_logout(struct shell *sh, char *args, char sep)
{
	(void)args;
	(void)sep;
	return talk_ask(shell_talk(sh), MSG_LOGOUT, NULL, NULL);
}

static int run_status(struct shell *sh, char *args, char sep)
{
	(void)args;
	(void)sep;
	talk_show_status(shell_talk(sh));
	return 0;
}

static int run_ping(struct shell *sh, char *args, char sep)
{
	(void)args;
	(void)sep;
	return talk_ask(shell_talk(sh), MSG_PING, NULL, NULL);
}

static int run_quit(struct shell *sh, char *args, char sep)
{
	(void)args;
	(void)sep;
	shell_quit(sh);
	return 0;
}

static void help_line(struct shell *sh, const struct command *c)
{
	struct text t = { 0 };

	text_printf(&t, "%s%s%s", c->name, c->args[0] != '\0' ? " " : "", c->args);
	show_line(shell_show(sh), "  %-26s %s%s%s", t.s, c->help, c->old != NULL ? "  | " : "",
	    c->old != NULL ? c->old : "");
	text_fini(&t);
}

static int run_help(struct shell *sh, char *args, char sep)
{
	(void)sep;
	args = skip_blanks(args);
	trim_end(args);
	if (*args != '\0') {
		struct text slashed = { 0 };
		const struct command *c;

		text_printf(&slashed, "%s%s", args[0] == '/' ? "" : "/", args);
		c = find_command(slashed.s);
		text_fini(&slashed);
		if (c == NULL)
			return complain(sh, "there is no such command: /help");
		help_line(sh, c);
		return 0;
	}
	for (const struct command *c = commands; c->name != NULL; c++)
		help_line(sh, c);
	show_line(shell_show(sh), "A line without a slash goes to the open conversation (/to). "
	    "//text sends \"/text\".");
	show_line(shell_show(sh), "Names work as well as ids; write \"a name\" with blanks or "
	    "colons in quotes, #name for a group.");
	return 0;
}

static const struct command commands[] = {
	{ "/help", "/?", "help", TAKES_COMMAND, "[COMMAND]", "what can be typed", run_help },
	{ "/msg", "/m", "chat:ID:TEXT", TAKES_EITHER, "NAME TEXT", "send a message", run_msg },
	{ "/r", "/reply", NULL, TAKES_TEXT, "TEXT", "answer who wrote to you last", run_reply },
	{ "/to", NULL, NULL, TAKES_EITHER, "[NAME|#GROUP]",
	    "open a conversation: plain lines go there", run_to },
	{ "/say", NULL, NULL, TAKES_TEXT, "TEXT", "send to the open conversation", run_say },
	{ "/friend", NULL, "addfriend:ID", TAKES_PERSON, "NAME", "add to your friends",
	    run_friend },
	{ "/unfriend", NULL, "delfriend:ID", TAKES_PERSON, "NAME", "remove from your friends",
	    run_unfriend },
	{ "/friends", NULL, "showfriendlist", TAKES_NOTHING, "", "list your friends", run_friends },
	{ "/create", NULL, "creategroup:NAME:DESC", TAKES_TEXT, "NAME [DESCRIPTION]",
	    "create a group", run_create },
	{ "/join", NULL, "addgroup:ID", TAKES_GROUP, "GROUP", "join a group", run_join },
	{ "/leave", NULL, "delgroup:ID", TAKES_GROUP, "GROUP",
	    "leave a group (its creator dissolves it)", run_leave },
	{ "/groups", NULL, "showgrouplist", TAKES_NOTHING, "", "list your groups", run_groups },
	{ "/group", "/g", "groupchat:ID:TEXT", TAKES_GROUP, "GROUP TEXT", "send to a group",
	    run_group },
	{ "/who", NULL, NULL, TAKES_GROUP, "[GROUP]",
	    "friends who are online, or a group's members", run_who },
	{ "/login", NULL, NULL, TAKES_NOTHING, "[NAME [PASSWORD]]", "log in", run_login },
	{ "/register", NULL, NULL, TAKES_NOTHING, "[NAME [PASSWORD]]", "make an account",
	    run_register },
	{ "/logout", NULL, "loginout", TAKES_NOTHING, "", "log out and stay", run_logout },
	{ "/status", NULL, NULL, TAKES_NOTHING, "", "connection, account, unconfirmed messages",
	    run_status },
	{ "/ping", NULL, NULL, TAKES_NOTHING, "", "ask whether the server answers", run_ping },
	{ "/quit", "/exit", NULL, TAKES_NOTHING, "", "leave", run_quit },
	{ NULL, NULL, NULL, TAKES_NOTHING, NULL, NULL, NULL },
};

/* ---- from a line to a command -------------------------------------------------------------- */

static const struct command *find_command(const char *word)
{
	for (const struct command *c = commands; c->name != NULL; c++)
		if (strcasecmp(c->name, word) == 0 ||
		    (c->other != NULL && strcasecmp(c->other, word) == 0))
			return c;
	return NULL;
}

/* The old form that LINE begins with; *ARGS_R is where its arguments start. */
static const struct command *find_old(const char *line, size_t *args_r)
{
	for (const struct command *c = commands; c->name != NULL; c++) {
		size_t len;

		if (c->old == NULL)
			continue;
		len = strcspn(c->old, ":");
		if (strncmp(line, c->old, len) != 0)
			continue;
		if (c->old[len] == ':' ? line[len] == ':' :
		    line[len + strspn(line + len, " ")] == '\0') {
			*args_r = len + (c->old[len] == ':');
			return c;
		}
	}
	return NULL;
}

int command_run(struct shell *sh, char *line)
{
	const struct command *c;
	size_t at = 0;
	char *args;

	c = find_old(line, &at);
	if (c != NULL)
		return c->run(sh, line + at, ':');
	if (line[0] == '/' && line[1] == '/')
		return run_say(sh, line + 1, ' ');
	if (line[0] != '/') {
		const struct talk_target *to = shell_to(sh);

		if (to->id == 0 && to->name[0] == '\0' && (strcmp(line, "quit") == 0 ||
		    strcmp(line, "exit") == 0))
			return run_quit(sh, line, ' ');
		return run_say(sh, line, ' ');
	}
	at = strcspn(line, " \t");
	args = line + at + (line[at] != '\0');
	line[at] = '\0';
	c = find_command(line);
	if (c == NULL) {
		struct text name = { 0 };

		text_clean(&name, TEXT_SHOWN, line, at);
		show_error(shell_show(sh), 0, NULL, 0, "%s is no command: /help lists them",
		    name.s);
		text_fini(&name);
		return -1;
	}
	return c->run(sh, args, ' ');
}

bool command_is_secret(const char *line)
{
	size_t len = strcspn(line, " \t");

	return (len == 6 && strncasecmp(line, "/login", len) == 0) ||
	    (len == 9 && strncasecmp(line, "/register", len) == 0);
}

/* ---- completion ---------------------------------------------------------------------------- */

static void offer(struct line *l, const char *word, const char *after, const char *typed,
    size_t len)
{
	struct text t = { 0 };

	text_printf(&t, "%s%s", word, after);
	if (strncasecmp(word, typed, len) == 0)
		line_offer(l, t.s);
	text_fini(&t);
}

/* A name as it has to be written; it fits whether or not its quote was typed. */
static void offer_name(struct line *l, const char *mark, const char *name, const char *after,
    const char *typed, size_t len)
{
	struct text quoted = { 0 }, plain = { 0 };

	text_puts(&quoted, mark);
	text_name(&quoted, name);
	text_printf(&plain, "%s%s", mark, name);
	if (strncasecmp(quoted.s, typed, len) == 0 || strncasecmp(plain.s, typed, len) == 0) {
		text_puts(&quoted, after);
		line_offer(l, quoted.s);
	}
	text_fini(&quoted);
	text_fini(&plain);
}

static void offer_names(struct shell *sh, struct line *l, enum takes takes, const char *after,
    const char *typed, size_t len)
{
	struct book *b = talk_book(shell_talk(sh));
	const char *mark = takes == TAKES_EITHER || (len > 0 && typed[0] == '#') ? "#" : "";
	const char *name;

	if (takes == TAKES_PERSON || takes == TAKES_EITHER) {
		for (size_t i = 0; book_friend_at(b, i) != NULL; i++)
			offer_name(l, "", book_friend_at(b, i)->name, after, typed, len);
		for (size_t i = 0; (name = book_person_at(b, i)) != NULL; i++)
			offer_name(l, "", name, after, typed, len);
	}
	if (takes == TAKES_GROUP || takes == TAKES_EITHER)
		for (size_t i = 0; book_group_at(b, i) != NULL; i++)
			offer_name(l, mark, book_group_at(b, i)->name, after, typed, len);
}

size_t command_complete(struct shell *sh, struct line *l, const char *typed, size_t len)
{
	struct text line = { 0 };
	const struct command *c = NULL;
	size_t from = 0, at = 0;

	text_add(&line, typed, len);
	at = strcspn(line.s, " ");
	if (at == len && strchr(line.s, ':') == NULL) {		/* the command itself */
		for (c = commands; c->name != NULL; c++) {
			offer(l, c->name, "", line.s, len);
			if (c->old != NULL && len > 0) {
				struct text old = { 0 };

				text_add(&old, c->old, strcspn(c->old, ":"));
				offer(l, old.s, strchr(c->old, ':') != NULL ? ":" : "", line.s,
				    len);
				text_fini(&old);
			}
		}
	} else if (line.s[0] == '/') {
		char *word = line.s;

		from = at + strspn(line.s + at, " ");
		line.s[at] = '\0';
		c = find_command(word);
		if (c != NULL && c->takes == TAKES_COMMAND)
			for (const struct command *d = commands; d->name != NULL; d++)
				offer(l, d->name, "", typed + from, len - from);
		else if (c != NULL)
			offer_names(sh, l, c->takes, "", line.s + from, len - from);
	} else if ((c = find_old(line.s, &from)) != NULL && strchr(line.s + from, ':') == NULL) {
		bool more = strchr(c->old, ':') != strrchr(c->old, ':');

		offer_names(sh, l, c->takes == TAKES_EITHER ? TAKES_PERSON : c->takes,
		    more ? ":" : "", line.s + from, len - from);
	}
	text_fini(&line);
	return from;
}
