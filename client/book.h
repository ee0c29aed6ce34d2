/*
 * book.h - who and what this account knows: friends, groups, and people seen.
 *
 * Scope   the client's memory of names and ids, so that a person can use either and completion
 *         has something to offer. Bounded: past its limits the book forgets the oldest person
 *         seen, and takes no more friends or groups.
 * Owner   the book owns its strings; a pointer is valid until the next call that changes it.
 */
#ifndef PARLEY_CLIENT_BOOK_H
#define PARLEY_CLIENT_BOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct book_friend { int64_t id; char *name; bool online; };
struct book_group { int64_t id; char *name, *desc; int64_t members; };

struct book;

struct book *book_new(void);
void book_free(struct book *b);
/* Another account, or everything anew. */
void book_clear(struct book *b);

void book_set_friend(struct book *b, int64_t id, const char *name, bool online);
void book_drop_friend(struct book *b, int64_t id);
void book_clear_friends(struct book *b);
/* NULL past the end, or where ID is no friend. */
struct book_friend *book_friend_at(struct book *b, size_t i);
struct book_friend *book_friend(struct book *b, int64_t id);

void book_set_group(struct book *b, int64_t id, const char *name, const char *desc,
    int64_t members);
void book_drop_group(struct book *b, int64_t id);
void book_clear_groups(struct book *b);
struct book_group *book_group_at(struct book *b, size_t i);
struct book_group *book_group(struct book *b, int64_t id);

/* Somebody was seen: a sender, a member. */
void book_see(struct book *b, int64_t id, const char *name);
const char *book_person_at(struct book *b, size_t i);

/* The id that a name stands for, 0 where it is unknown. */
int64_t book_find_person(struct book *b, const char *name);
int64_t book_find_group(struct book *b, const char *name);
/* The name of a user (friend or seen) or group, "" where it is unknown. */
const char *book_name(struct book *b, int64_t id, bool group);

#endif
