/*
 * line.h - the line that a person types: editing, history, completion, prompts.
 *
 * Scope   libedit behind one door. Keys come from a function of the caller, which waits for them
 *         in the program's one loop; while it waits, the caller may print: line_hide() takes the
 *         line being typed off the screen, line_redraw() puts it back as it was.
 * Units   text is UTF-8.
 * Owner   struct line owns the terminal's settings while a line is read. Lines returned are valid
 *         until the next call.
 */
#ifndef PARLEY_CLIENT_LINE_H
#define PARLEY_CLIENT_LINE_H

#include <stdbool.h>
#include <stddef.h>

struct text;

struct line_ops {
	/* Waits for one byte of input: 0..255, LINE_END at the end of input, LINE_CANCEL for ^C. */
	int (*key)(void *arg);
	/*
	 * Completes the LEN bytes typed up to the cursor: calls line_offer() for each whole word
	 * that could stand in place of what begins at FROM; returns FROM.
	 */
	size_t (*complete)(void *arg, const char *typed, size_t len);
};

enum { LINE_END = -1, LINE_CANCEL = -2 };

enum line_rc { LINE_OK, LINE_EOF, LINE_CANCELLED };

struct line;

struct line *line_new(const struct line_ops *ops, void *arg);
void line_free(struct line *l);

/* What stands before the line; visible columns are what is not between \1 and \1. */
void line_prompt(struct line *l, const char *prompt);
/* Reads a line with editing. */
enum line_rc line_read(struct line *l, const char **text_r);
/* Asks a question; SECRET: nothing is echoed. The caller wipes what it copies of a secret. */
enum line_rc line_ask(struct line *l, const char *question, bool secret, struct text *answer_r);

/* Takes the line being typed off the screen; nothing while none is read. */
void line_hide(struct line *l);
void line_redraw(struct line *l);
/* The window changed its size. */
void line_resize(struct line *l);
/* The terminal goes to somebody else (^Z) and comes back. */
void line_suspend(struct line *l);
void line_resume(struct line *l);

/* History: kept in PATH (0600) from now on; what is there is read. */
void line_history(struct line *l, const char *path);
void line_remember(struct line *l, const char *text);

/* Only from line_ops.complete. WORD is copied. */
void line_offer(struct line *l, const char *word);

#endif
