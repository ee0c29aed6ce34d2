# parley: one Makefile, no configure step. `make help` explains the targets.
#
#   make run      install what is missing, build, start a server on 127.0.0.1:6000
#   make check    install what is missing, build, run every test (under 15 minutes)

BUILD   ?= release
ifeq ($(origin CC),default)
CC := gcc
endif
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
CFLAGS_fuzz      := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
LDFLAGS_fuzz     := -fsanitize=fuzzer,address,undefined

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
FAULT_OBJ := $(if $(filter faults,$(BUILD)),$(patsubst %.c,$(O)/obj/%.o,$(wildcard tests/fault.c)))

Q = $(if $(V),,@)

all: $(O)/parleyd $(O)/parley $(O)/parleyctl $(O)/parley-bench	## build the programs (BUILD=release|debug|asan|tsan|cov|faults)

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

# --- Running and installing -------------------------------------------------------------------

run:	## install what is missing, build, and serve on 127.0.0.1:6000 until Ctrl-C
	@tests/run-packages.sh build
	@$(MAKE) --no-print-directory all
	@tests/run-server.sh

deps:	## only install what building and testing need (Debian packages)
	@tests/run-packages.sh check

PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR    ?= $(if $(filter /usr,$(PREFIX)),/lib/systemd/system,/etc/systemd/system)
MANDIR     ?= $(PREFIX)/share/man
DOCDIR     ?= $(PREFIX)/share/doc/parley
D = $(DESTDIR)
# The service files name the paths of PREFIX=/usr; installing elsewhere rewrites them.
PLACE = sed -e 's,/usr/sbin/parley,$(PREFIX)/sbin/parley,g' -e 's,/etc/parleyd\.conf,$(SYSCONFDIR)/parleyd.conf,g'

install: all	## install programs, man pages, sample configuration and service files (DESTDIR, PREFIX)
	install -d $(D)$(PREFIX)/bin $(D)$(PREFIX)/sbin $(D)$(SYSCONFDIR) $(D)$(UNITDIR) $(D)$(DOCDIR) \
		$(D)$(MANDIR)/man1 $(D)$(MANDIR)/man5 $(D)$(MANDIR)/man8 $(D)/etc/init.d $(D)/etc/logrotate.d
	install -m 755 $(O)/parley $(O)/parley-bench $(D)$(PREFIX)/bin/
	install -m 755 $(O)/parleyd $(O)/parleyctl $(D)$(PREFIX)/sbin/
	install -m 644 etc/parleyd.conf etc/nginx.conf etc/cluster.md etc/lvs.md README.md LICENSE worker/PROTOCOL.md \
		$(D)$(DOCDIR)/
	test -e $(D)$(SYSCONFDIR)/parleyd.conf || install -m 640 $(D)$(DOCDIR)/parleyd.conf $(D)$(SYSCONFDIR)/
	$(PLACE) etc/parleyd.service > $(D)$(UNITDIR)/parleyd.service
	$(PLACE) etc/parleyd.init > $(D)/etc/init.d/parleyd
	chmod 755 $(D)/etc/init.d/parleyd
	$(PLACE) etc/parleyd.logrotate > $(D)/etc/logrotate.d/parleyd
	for s in 1 5 8; do install -m 644 etc/man/*.$$s $(D)$(MANDIR)/man$$s/ || exit 1; done

uninstall:	## remove what install put there; a configuration that was changed stays
	rm -f $(D)$(PREFIX)/bin/parley $(D)$(PREFIX)/bin/parley-bench $(D)$(PREFIX)/sbin/parleyd $(D)$(PREFIX)/sbin/parleyctl \
		$(D)$(UNITDIR)/parleyd.service $(D)/etc/init.d/parleyd $(D)/etc/logrotate.d/parleyd
	for s in 1 5 8; do for f in etc/man/*.$$s; do rm -f $(D)$(MANDIR)/man$$s/$${f##*/}; done; done
	! cmp -s $(D)$(DOCDIR)/parleyd.conf $(D)$(SYSCONFDIR)/parleyd.conf || rm -f $(D)$(SYSCONFDIR)/parleyd.conf
	rm -rf $(D)$(DOCDIR)

# --- Tests ------------------------------------------------------------------------------------

SUITE = CC='$(CC)' CI='$(CI)' MAKE='$(MAKE)' tests/run.sh
STAGES ?= includes docs clang unit unit:asan corpus fault chaos int int:asan

check: deps	## install what is missing, build, run every test; the last line is "N passed, N failed"
	@$(SUITE) $(STAGES)

check-unit:	## the unit tests, optimised and under the sanitizers
	@$(SUITE) unit unit:asan

check-int:	## the integration tests (PYTEST_ARGS="-k NAME -x" picks some)
	@$(SUITE) int

check-fault:	## kill processes at every fault point
	@$(SUITE) fault

CHAOS_SECONDS ?= 60
chaos:	## kill everything under traffic, on SQLite, MariaDB, several hosts and with fault points (CHAOS_SECONDS, CHAOS_ARGS="--seed N")
	@tests/run-packages.sh check
	@$(MAKE) --no-print-directory all
	@$(MAKE) --no-print-directory BUILD=faults all
	@for v in "sqlite --build release" "mysql --build release" "sqlite --build faults" "mysql --build faults" \
		"mysql --hosts 2" "mysql --hosts 3" "mysql --hosts 2 --build faults"; do \
		tests/fault/chaos.py --seconds $(CHAOS_SECONDS) --store $$v $(CHAOS_ARGS) || exit 1; done

check-long:	## what is too slow for check
	@$(SUITE) long

check-deps:	## who includes whom
	@$(SUITE) includes

check-docs:	## does the documentation list what the code has
	@$(SUITE) docs

# A program a file; tests/unit/X_*.c are fakes and helpers of test_X.c, and test_X.flags holds
# what it wants the linker to be told (-Wl,--wrap=...). Only the modules that it reaches are linked.
UNIT   := $(basename $(notdir $(wildcard tests/unit/test_*.c)))
FAULTS := $(basename $(notdir $(wildcard tests/fault/test_*.c)))
FUZZ   := $(basename $(notdir $(wildcard tests/fuzz/fuzz_*.c)))

unit-programs: $(UNIT:%=$(O)/tests/%)
fault-programs: $(FAULTS:%=$(O)/tests/%)
corpus-programs fuzz-programs: $(FUZZ:%=$(O)/tests/%)

objects = $(patsubst %.c,$(O)/obj/%.o,$(wildcard $(1)))
define test_rule
$(O)/tests/$(2): $(call objects,tests/$(1)/$(2).c) $(call objects,tests/$(1)/$(2:test_%=%)_*.c)
endef
$(foreach t,$(UNIT),$(eval $(call test_rule,unit,$(t))))
$(foreach t,$(FAULTS),$(eval $(call test_rule,fault,$(t))))
$(foreach t,$(FUZZ),$(eval $(O)/tests/$(t): $(call objects,tests/fuzz/$(t).c) \
	$(if $(filter fuzz,$(BUILD)),,$(call objects,tests/fuzz/replay.c))))

$(O)/tests/test_bench_hist: $(call objects,tests/bench/bench_hist.c tests/bench/bench_frame.c)

$(O)/tests/%: $(FAULT_OBJ) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $(filter %.o,$^) $(LIB) $(if $(filter fuzz_%,$*),,-lcmocka) \
		$(DAEMON_LIBS) -ledit $(shell cat tests/*/$*.flags 2>/dev/null)

$(O)/tests/run-keys: $(call objects,tests/run-keys.c) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^

FUZZ_SECONDS ?= 180
fuzz:	## let libFuzzer look for new trouble for FUZZ_SECONDS (180) in all
	@tests/run-packages.sh fuzz
	@$(MAKE) --no-print-directory BUILD=fuzz CC=clang fuzz-programs
	@for f in $(FUZZ); do mkdir -p build/fuzz/corpus/$$f; \
		build/fuzz/tests/$$f -max_total_time=$$(($(FUZZ_SECONDS) / $(words $(FUZZ)))) -timeout=5 \
		-max_len=70000 -print_final_stats=1 -artifact_prefix=build/fuzz/$$f- \
		$$(test ! -f tests/fuzz/$${f#fuzz_}.dict || echo -dict=tests/fuzz/$${f#fuzz_}.dict) \
		build/fuzz/corpus/$$f tests/fuzz/corpus/$${f#fuzz_} || exit 1; done

TEST_SRC := $(wildcard tests/*.c tests/*/*.c)
ALL_SRC  := $(LIB_SRC) $(MAINS) $(TEST_SRC)

HEADERS  := $(wildcard master/*.h worker/*.h worker/base/*.h shm/*.h sql/*.h client/*.h)

syntax:	## only look for warnings, with CC: in every source, and in every header by itself
	@check="xargs -P $$(nproc) -n 1 $(CC) -fsyntax-only"; \
	flags="$(filter-out -MMD -MP -DPARLEY_VERSION=%,$(ALL_CPPFLAGS) $(MYSQL_CFLAGS) $(ALL_CFLAGS))"; \
	printf '%s\n' $(wildcard $(ALL_SRC)) | $$check -D'PARLEY_VERSION="$(VERSION)"' $$flags && \
	printf '%s\n' $(HEADERS) | $$check -x c $$flags -Wno-unused-function

lint:	## cppcheck and clang-tidy
	@tests/run-packages.sh lint
	cppcheck -q -j 2 --std=c11 --enable=warning,performance,portability --inline-suppr \
		--error-exitcode=1 -D_GNU_SOURCE -D'PARLEY_VERSION="0"' -I. $(wildcard $(LIB_SRC) $(MAINS))
	@printf '%s\n' $(wildcard $(LIB_SRC) $(MAINS)) | xargs -P $$(nproc) -I{} clang-tidy --quiet {} -- \
		-std=gnu11 $(ALL_CPPFLAGS) $(MYSQL_CFLAGS)

valgrind:	## the unit tests under valgrind
	@tests/run-packages.sh valgrind
	@WRAP='valgrind -q --error-exitcode=9 --leak-check=full --child-silent-after-fork=yes' \
		LIMIT=900 $(SUITE) unit:debug

# --- Measurements -----------------------------------------------------------------------------

BENCH := $(O)/parley-bench $(O)/parley-relay

$(O)/parley-bench: $(call objects,tests/bench/bench_*.c)
$(O)/parley-relay: $(call objects,tests/bench/relay.c)
$(BENCH):
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^

bench:	## measure speed and memory; the report is build/bench/report.md (BENCH_ARGS picks scenarios)
	@tests/run-packages.sh bench
	@$(MAKE) --no-print-directory all $(O)/parley-relay
	@python3 tests/bench/run.py $(BENCH_ARGS)

FORCE:
.PHONY: all run deps install uninstall check check-unit check-int check-fault chaos check-long check-deps check-docs \
	unit-programs fault-programs corpus-programs fuzz-programs fuzz syntax lint valgrind bench \
	FORCE clean help

clean:	## remove everything that was built
	rm -rf build

help:	## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST) | sed 's/\t//'

-include $(LIB_OBJ:.o=.d) $(MAIN_OBJ:.o=.d) $(wildcard $(O)/obj/tests/*/*.d $(O)/obj/tests/*.d)
