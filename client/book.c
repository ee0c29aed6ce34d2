#include "client/book.h"

#include <stdlib.h>
#include <string.h>

#include "client/text.h"

#define FRIENDS_MAX 20000
#define GROUPS_MAX  5000
#define PEOPLE_MAX  1024

struct person { int64_t id; char *name; };

struct book {
	struct book_friend *friend;
	struct book_group *group;
	struct person people[PEOPLE_MAX];	/* a ring once it is full */
	size_t nfriends, ngroups, npeople, next;
};

struct book *book_new(void)
{
	return text_alloc(sizeof(struct book));
}

void book_clear_friends(struct book *b)
{
	for (size_t i = 0; i < b->nfriends; i++)
		free(b->friend[i].name);
	b->nfriends = 0;
}

void book_clear_groups(struct book *b)
{
	for (size_t i = 0; i < b->ngroups; i++) {
		free(b->group[i].name);
		free(b->group[i].desc);
	}
	b->ngroups = 0;
}

void book_clear(struct book *b)
{
	book_clear_friends(b);
	book_clear_groups(b);
	for (size_t i = 0; i < b->npeople; i++)
		free(b->people[i].name);
	b->npeople = b->next = 0;
}

void book_free(struct book *b)
{
	if (b == NULL)
		return;
	book_clear(b);
	free(b->friend);
	free(b->group);
	free(b);
}

static void set_string(char **p, const char *s)
{
	if (*p != NULL && strcmp(*p, s) == 0)
		return;
	free(*p);
	*p = text_copy(s);
}

struct book_friend *book_friend(struct book *b, int64_t id)
{
	for (size_t i = 0; i < b->nfriends; i++)
		if (b->friend[i].id == id)
			return &b->friend[i];
	return NULL;
}

struct book_friend *book_friend_at(struct book *b, size_t i)
{
	return i < b->nfriends ? &b->friend[i] : NULL;
}

void book_set_friend(struct book *b, int64_t id, const char *name, bool online)
{
	struct book_friend *f = book_friend(b, id);

	if (f == NULL) {
		if (b->nfriends >= FRIENDS_MAX)
			return;
		b->friend = text_resize(b->friend, (b->nfriends + 1) * sizeof *f);
		f = &b->friend[b->nfriends++];
		*f = (struct book_friend){ .id = id };
	}
	set_string(&f->name, name);
	f->online = online;
}

void book_drop_friend(struct book *b, int64_t id)
{
	struct book_friend *f = book_friend(b, id);

	if (f == NULL)
		return;
	book_see(b, id, f->name);
	free(f->name);
	memmove(f, f + 1, (size_t)(&b->friend[b->nfriends] - (f + 1)) * sizeof *f);
	b->nfriends--;
}

struct book_group *book_group(struct book *b, int64_t id)
{
	for (size_t i = 0; i < b->ngroups; i++)
		if (b->group[i].id == id)
			return &b->group[i];
	return NULL;
}

struct book_group *book_group_at(struct book *b, size_t i)
{
	return i < b->ngroups ? &b->group[i] : NULL;
}

void book_set_group(struct book *b, int64_t id, const char *name, const char *desc,
    int64_t members)
{
	struct book_group *g = book_group(b, id);

	if (g == NULL) {
		if (b->ngroups >= GROUPS_MAX)
			return;
		b->group = text_resize(b->group, (b->ngroups + 1) * sizeof *g);
		g = &b->group[b->ngroups++];
		*g = (struct book_group){ .id = id };
	}
	set_string(&g->name, name);
	set_string(&g->desc, desc);
	g->members = members;
}

void book_drop_group(struct book *b, int64_t id)
{
	struct book_group *g = book_group(b, id);

	if (g == NULL)
		return;
	free(g->name);
	free(g->desc);
	memmove(g, g + 1, (size_t)(&b->group[b->ngroups] - (g + 1)) * sizeof *g);
	b->ngroups--;
}

void book_see(struct book *b, int64_t id, const char *name)
{
	struct person *p;

	for (size_t i = 0; i < b->npeople; i++)
		if (b->people[i].id == id) {
			set_string(&b->people[i].name, name);
			return;
		}
	p = &b->people[b->next];
	b->next = (b->next + 1) % PEOPLE_MAX;
	if (b->npeople < PEOPLE_MAX)
		b->npeople++;
	else
		free(p->name);
	*p = (struct person){ .id = id, .name = text_copy(name) };
}

const char *book_person_at(struct book *b, size_t i)
{
	return i < b->npeople ? b->people[i].name : NULL;
}

int64_t book_find_person(struct book *b, const char *name)
{
	for (size_t i = 0; i < b->nfriends; i++)
		if (text_same_name(b->friend[i].name, name))
			return b->friend[i].id;
	for (size_t i = 0; i < b->npeople; i++)
		if (text_same_name(b->people[i].name, name))
			return b->people[i].id;
	return 0;
}

int64_t book_find_group(struct book *b, const char *name)
{
	for (size_t i = 0; i < b->ngroups; i++)
		if (text_same_name(b->group[i].name, name))
			return b->group[i].id;
	return 0;
}

const char *book_name(struct book *b, int64_t id, bool group)
{
	if (group) {
		struct book_group *g = book_group(b, id);

		return g != NULL ? g->name : "";
	}
	for (size_t i = 0; i < b->nfriends; i++)
		if (b->friend[i].id == id)
			return b->friend[i].name;
	for (size_t i = 0; i < b->npeople; i++)
		if (b->people[i].id == id)
			return b->people[i].name;
	return "";
}
