# parley: one Makefile, no configure step. `make help` explains the targets.
#
#   make run      install what is missing, build, start a server on 127.0.0.1:6000
#   make check    install what is missing, build, run every test (under 15 minutes)

BUILD   ?= release
CC      ?= gcc
VERSION := 0.1.0

# The release build lives in build/ itself; every other kind in a folder of its own below it.
O := $(if $(filter release,$(BUILD)),build,build/$(BUILD))

CPPFLAGS_release :=
CFLAGS_release   := -O2 -g
CFLAGS_debug     := -O0 -g3
CFLAGS_asan      := -O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
LDFLAGS_asan     := -fsanitize=address,undefined
CFLAGS_tsan      := -O1 -g -fsanitize=thread
LDFLAGS_tsan     := -fsanitize=thread
CFLAGS_cov       := -O0 -g --coverage
LDFLAGS_cov      := --coverage
CFLAGS_faults    := -O1 -g
CPPFLAGS_faults  := -DPARLEY_FAULTS

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef -Wformat=2 \
        -Wpointer-arith -Wwrite-strings
WERROR ?= $(if $(CI),-Werror)

# Debian's libmysqlclient is MariaDB's connector; mysql_config is the fallback for others.
MYSQL_CFLAGS := $(shell pkg-config --cflags libmariadb 2>/dev/null || mysql_config --cflags 2>/dev/null)
MYSQL_LIBS   := $(shell pkg-config --libs libmariadb 2>/dev/null || mysql_config --libs 2>/dev/null)

ALL_CPPFLAGS = -D_GNU_SOURCE -DPARLEY_VERSION='"$(VERSION)"' -I. $(CPPFLAGS_$(BUILD)) $(CPPFLAGS)
ALL_CFLAGS   = -std=gnu11 $(WARN) $(WERROR) $(CFLAGS_$(BUILD)) -fno-common -pthread -MMD -MP $(CFLAGS)
ALL_LDFLAGS  = $(LDFLAGS_$(BUILD)) -pthread $(LDFLAGS)

DAEMON_LIBS = $(MYSQL_LIBS) -lsqlite3 -lhiredis -lsodium
CLIENT_LIBS = -ledit -lsodium

# Everything but the files that hold a main() goes into one archive: a program, or a unit
# test, links just the modules it reaches.
MAINS   := master/main.c client/main.c client/ctl.c
LIB_SRC := $(filter-out $(MAINS),$(wildcard master/*.c worker/*.c worker/base/*.c shm/*.c sql/*.c client/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(O)/obj/%.o)
LIB     := $(O)/obj/libparley.a
MAIN_OBJ := $(MAINS:%.c=$(O)/obj/%.o)
FAULT_OBJ := $(if $(filter faults,$(BUILD)),$(O)/obj/tests/fault.o)

Q = $(if $(V),,@)

all: $(O)/parleyd $(O)/parley $(O)/parleyctl	## build the three programs (BUILD=release|debug|asan|tsan|cov|faults)

$(O)/parleyd: $(O)/obj/master/main.o $(FAULT_OBJ) $(LIB)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(DAEMON_LIBS)

$(O)/parley: $(O)/obj/client/main.o $(LIB)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(CLIENT_LIBS)

$(O)/parleyctl: $(O)/obj/client/ctl.o $(LIB)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^

$(LIB): $(LIB_OBJ)
	$(Q)rm -f $@ && ar rcs $@ $^

$(O)/obj/%.o: %.c $(O)/obj/.flags
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC    $<")
	$(Q)$(CC) $(ALL_CPPFLAGS) $(CPPFLAGS_FILE) $(ALL_CFLAGS) -c -o $@ $<

# Only the file that wraps a library sees its headers.
$(O)/obj/sql/mysql.o: CPPFLAGS_FILE = $(MYSQL_CFLAGS)

# Changed flags rebuild everything; unchanged ones nothing.
FLAGS_NOW := $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(ALL_LDFLAGS)
$(O)/obj/.flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(FLAGS_NOW))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(FLAGS_NOW))' > $@

FORCE:
.PHONY: all FORCE clean help

clean:	## remove everything that was built
	rm -rf build

help:	## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST) | sed 's/\t//'

-include $(LIB_OBJ:.o=.d) $(MAIN_OBJ:.o=.d)
