#include "client/line.h"

#include <errno.h>
#include <histedit.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "client/text.h"

#define HISTORY_LINES 1000
#define OFFERS_MAX    256

enum line_mode { MODE_NONE, MODE_EDIT, MODE_ASK };

struct line {
	struct line_ops ops;
	void *arg;
	EditLine *el;
	History *hist;
	char *hist_path;
	enum line_mode mode;
	bool hidden, cancelled, ansi;
	char *prompt;			/* on the screen, or about to be */
	struct text typed;		/* the last line read */
	const char *question;
	char *offer[OFFERS_MAX];
	size_t noffers;
	struct termios original, saved;
};

/* ---- the terminal -------------------------------------------------------------------------- */

static size_t columns(void)
{
	struct winsize ws;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) != 0 || ws.ws_col == 0)
		return 80;
	return ws.ws_col;
}

/* Moves (row, col) over text as libedit lays it out: a wide character never straddles the edge. */
static void walk(const char *s, size_t len, size_t cols, size_t *row, size_t *col)
{
	while (len > 0) {
		int32_t cp;
		size_t n = text_next(s, len, &cp), w = text_width(s, n);

		if (cp >= 0 && (cp < 0x20 || cp == 0x7f))
			w = 2;			/* shown as ^X */
		if (*col + w > cols) {
			(*row)++;
			*col = 0;
		}
		*col += w;
		if (*col >= cols) {
			(*row)++;
			*col = 0;
		}
		s += n;
		len -= n;
	}
}

static void walk_prompt(const char *p, size_t cols, size_t *row, size_t *col)
{
	while (*p != '\0') {
		size_t n = strcspn(p, "\1");

		walk(p, n, cols, row, col);
		p += n;
		if (*p == '\1') {
			p += 1 + strcspn(p + 1, "\1");
			p += *p == '\1';
		}
	}
}

void line_hide(struct line *l)
{
	size_t row = 0, col = 0, cols = columns();

	if (l->mode == MODE_NONE || l->hidden)
		return;
	l->hidden = true;
	if (l->mode == MODE_EDIT) {
		const LineInfo *li = el_line(l->el);

		walk_prompt(l->prompt, cols, &row, &col);
		walk(li->buffer, (size_t)(li->cursor - li->buffer), cols, &row, &col);
	}
	if (!l->ansi) {
		fputs("\n", stdout);
	} else {
		fputs("\r", stdout);
		if (row > 0)
			fprintf(stdout, "\033[%zuA", row);
		fputs("\033[J", stdout);
	}
	fflush(stdout);
}

void line_redraw(struct line *l)
{
	if (l->mode == MODE_NONE || !l->hidden)
		return;
	l->hidden = false;
	if (l->mode == MODE_EDIT)
		el_set(l->el, EL_REFRESH);
	else
		fputs(l->question, stdout);
	fflush(stdout);
}

void line_resize(struct line *l)
{
	el_resize(l->el);
}

void line_suspend(struct line *l)
{
	if (l->mode == MODE_NONE)
		return;
	line_hide(l);
	if (l->mode == MODE_EDIT)
		el_set(l->el, EL_PREP_TERM, 0);
	tcsetattr(STDIN_FILENO, TCSADRAIN, &l->original);
}

void line_resume(struct line *l)
{
	struct termios t;

	if (l->mode == MODE_EDIT) {
		el_set(l->el, EL_PREP_TERM, 1);
	} else if (l->mode == MODE_ASK && tcgetattr(STDIN_FILENO, &t) == 0) {
		t.c_lflag &= ~(tcflag_t)ECHO;		/* rather too little echo than too much */
		tcsetattr(STDIN_FILENO, TCSADRAIN, &t);
	}
	line_redraw(l);
}

/* ---- libedit's callbacks ------------------------------------------------------------------- */

static struct line *line_of(EditLine *el)
{
	struct line *l = NULL;

	el_get(el, EL_CLIENTDATA, &l);
	return l;
}

static char *prompt_cb(EditLine *el)
{
	return line_of(el)->prompt;
}

/* One character for libedit: bytes until they make one. */
static int getc_cb(EditLine *el, wchar_t *wc)
{
	struct line *l = line_of(el);
	char buf[4];
	size_t len = 0;

	for (;;) {
		int c = l->ops.key(l->arg);
		int32_t cp;

		if (c == LINE_CANCEL) {
			l->cancelled = true;
			*wc = L'\n';
			return 1;
		}
		if (c == LINE_END)
			return 0;
		buf[len++] = (char)c;
		if (text_next(buf, len, &cp) == len && cp >= 0) {
			*wc = (wchar_t)cp;
			return 1;
		}
		/* hopeless, and not only unfinished: start over with the newest byte */
		if (len == sizeof buf || (c & 0xc0) != 0x80) {
			buf[0] = (char)c;
			len = (c & 0xc0) == 0xc0 ? 1 : 0;
		}
	}
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void drop_offers(struct line *l)
{
	while (l->noffers > 0)
		free(l->offer[--l->noffers]);
}

void line_offer(struct line *l, const char *word)
{
	for (size_t i = 0; i < l->noffers; i++)
		if (strcmp(l->offer[i], word) == 0)
			return;
	if (l->noffers < OFFERS_MAX)
		l->offer[l->noffers++] = text_copy(word);
}

/* The bytes that all offers begin with (ASCII case folded, cut at a character's border). */
static size_t common_length(const struct line *l)
{
	size_t n = strlen(l->offer[0]);

	for (size_t i = 1; i < l->noffers; i++) {
		size_t k = 0;

		while (k < n && l->offer[i][k] == l->offer[0][k])
			k++;
		n = k;
	}
	while (n > 0 && ((unsigned char)l->offer[0][n] & 0xc0) == 0x80)
		n--;
	return n;
}

static void list_offers(struct line *l)
{
	struct text t = { 0 };

	qsort(l->offer, l->noffers, sizeof l->offer[0], by_name);
	line_hide(l);
	for (size_t i = 0; i < l->noffers; i++) {
		text_clean(&t, TEXT_SHOWN, l->offer[i], strlen(l->offer[i]));
		text_puts(&t, i + 1 < l->noffers ? "  " : "\n");
	}
	fputs(t.s, stdout);
	text_fini(&t);
	line_redraw(l);
}

static unsigned char complete_cb(EditLine *el, int ch)
{
	struct line *l = line_of(el);
	const LineInfo *li = el_line(el);
	size_t len = (size_t)(li->cursor - li->buffer), from, common;
	struct text word = { 0 };
	unsigned char rc = CC_REFRESH;

	(void)ch;
	drop_offers(l);
	from = l->ops.complete(l->arg, li->buffer, len);
	if (l->noffers == 0 || from > len)
		return CC_REFRESH_BEEP;
	common = common_length(l);
	text_add(&word, l->offer[0], common);
	if (l->noffers == 1 && word.len > 0 && word.s[word.len - 1] != ':')
		text_puts(&word, " ");
	if (l->noffers > 1 && common <= len - from) {
		list_offers(l);
	} else {
		/* el_deletestr() counts characters, not bytes */
		size_t chars = 0;

		for (size_t i = from; i < len; i++)
			chars += ((unsigned char)li->buffer[i] & 0xc0) != 0x80;
		el_deletestr(el, (int)chars);
		if (el_insertstr(el, word.s) != 0)
			rc = CC_REFRESH_BEEP;
	}
	text_fini(&word);
	drop_offers(l);
	return rc;
}

/* ---- life ---------------------------------------------------------------------------------- */

struct line *line_new(const struct line_ops *ops, void *arg)
{
	struct line *l = text_alloc(sizeof *l);
	const char *term = getenv("TERM");
	HistEvent ev;

	l->ops = *ops;
	l->arg = arg;
	l->prompt = text_copy("> ");
	tcgetattr(STDIN_FILENO, &l->original);
	l->ansi = term != NULL && term[0] != '\0' && strcmp(term, "dumb") != 0;
	l->el = el_init("parley", stdin, stdout, stderr);
	l->hist = history_init();
	if (l->el == NULL || l->hist == NULL) {
		fputs("parley: the line editor cannot be set up\n", stderr);
		exit(1);
	}
	history(l->hist, &ev, H_SETSIZE, HISTORY_LINES);
	history(l->hist, &ev, H_SETUNIQUE, 1);
	el_set(l->el, EL_CLIENTDATA, l);
	el_set(l->el, EL_PROMPT_ESC, prompt_cb, '\1');
	el_set(l->el, EL_EDITOR, "emacs");
	el_set(l->el, EL_SIGNAL, 0);
	/* what is typed between two lines shows when the next one is edited, and only then */
	el_set(l->el, EL_SETTY, "-x", "-echo", NULL);
	el_set(l->el, EL_HIST, history, l->hist);
	el_set(l->el, EL_GETCFN, getc_cb);
	/* the wide form: the other one copies the names and never frees them */
	el_wset(l->el, EL_ADDFN, L"parley-complete", L"complete commands and names", complete_cb);
	el_set(l->el, EL_BIND, "^I", "parley-complete", NULL);
	el_set(l->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
	el_source(l->el, NULL);
	return l;
}

void line_free(struct line *l)
{
	if (l == NULL)
		return;
	drop_offers(l);
	el_end(l->el);
	history_end(l->hist);
	free(l->hist_path);
	free(l->prompt);
	text_fini(&l->typed);
	free(l);
}

void line_prompt(struct line *l, const char *prompt)
{
	bool shown = l->mode == MODE_EDIT && !l->hidden;

	if (strcmp(l->prompt, prompt) == 0)
		return;
	if (shown)
		line_hide(l);		/* while the old one's width is still known */
	free(l->prompt);
	l->prompt = text_copy(prompt);
	if (shown)
		line_redraw(l);
}

enum line_rc line_read(struct line *l, const char **text_r)
{
	const char *got;
	int n = 0;

	l->mode = MODE_EDIT;
	l->hidden = l->cancelled = false;
	el_set(l->el, EL_PREP_TERM, 1);		/* before the prompt invites to type */
	got = el_gets(l->el, &n);
	l->mode = MODE_NONE;
	text_clear(&l->typed);
	if (got != NULL && n > 0)
		text_add(&l->typed, got, (size_t)n);
	while (l->typed.len > 0 && strchr("\r\n", l->typed.s[l->typed.len - 1]) != NULL)
		l->typed.s[--l->typed.len] = '\0';
	text_reserve(&l->typed, 0);
	*text_r = l->typed.s;
	if (l->cancelled)
		return LINE_CANCELLED;
	return got == NULL || n <= 0 ? LINE_EOF : LINE_OK;
}

enum line_rc line_ask(struct line *l, const char *question, bool secret, struct text *answer_r)
{
	enum line_rc rc = LINE_OK;
	struct termios t;
	bool tty = tcgetattr(STDIN_FILENO, &l->saved) == 0;

	t = l->saved;
	if (secret)
		t.c_lflag &= ~(tcflag_t)ECHO;
	else
		t.c_lflag |= ECHO;
	t.c_lflag |= ICANON | ISIG;
	t.c_iflag |= ICRNL;
	if (tty)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &t);
	l->mode = MODE_ASK;
	l->question = question;
	l->hidden = true;
	line_redraw(l);
	for (;;) {
		int c = l->ops.key(l->arg);
		char byte = (char)c;

		if (c < 0 || c == 4) {
			rc = c == LINE_CANCEL ? LINE_CANCELLED : LINE_EOF;
			break;
		}
		if (c == '\n' || c == '\r')
			break;
		if (answer_r->len < 1024)
			text_add(answer_r, &byte, 1);
	}
	text_reserve(answer_r, 0);
	l->mode = MODE_NONE;
	if (tty)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &l->saved);
	if (secret || rc != LINE_OK)
		fputs("\n", stdout);
	fflush(stdout);
	return rc;
}

void line_history(struct line *l, const char *path)
{
	HistEvent ev;

	free(l->hist_path);
	l->hist_path = text_copy(path);
	history(l->hist, &ev, H_LOAD, path);
}

void line_remember(struct line *l, const char *text)
{
	HistEvent ev;
	struct text t = { 0 };

	text_printf(&t, "%s\n", text);
	history(l->hist, &ev, H_ENTER, t.s);
	text_fini(&t);
	if (l->hist_path != NULL && history(l->hist, &ev, H_SAVE, l->hist_path) >= 0)
		chmod(l->hist_path, 0600);
}
