# make            build snapmerge: a C compiler and libc are all it takes
# make help       what else there is
VERSION = 1.0

DESTDIR =
PREFIX  = /usr/local
SBINDIR = $(PREFIX)/sbin
MANDIR  = $(PREFIX)/share/man
BASHDIR = $(PREFIX)/share/bash-completion/completions

# The user's flags: from the environment or the command line, used last.
CFLAGS   ?= -O2 -g
CPPFLAGS ?=
LDFLAGS  ?=

WARN = -Wall -Wextra -Wpedantic -Wshadow -Wundef -Wvla \
       -Wstrict-prototypes -Wmissing-prototypes -Wwrite-strings \
       -Wcast-qual -Wimplicit-fallthrough -Wconversion

# Fortification needs an optimiser, sanitizers do better, and a level that the
# user has chosen stands.
OPTIMISED = $(filter-out -O0,$(filter -O%,$(CFLAGS)))
FORTIFIED = $(findstring FORTIFY_SOURCE,$(CPPFLAGS) $(CFLAGS))
SANITIZED = $(findstring -fsanitize,$(CFLAGS))
FORTIFY   = $(if $(OPTIMISED),$(if $(FORTIFIED)$(SANITIZED),,\
            -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2))
PIE       = $(if $(findstring -static,$(LDFLAGS)),,-pie)

ALL_CPPFLAGS = -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(FORTIFY) \
               -DSNAPMERGE_VERSION='"$(VERSION)"' $(CPPFLAGS)
ALL_CFLAGS   = -std=c11 -pthread $(WARN) -fPIE -fstack-protector-strong \
               $(CFLAGS)
ALL_LDFLAGS  = $(PIE) -Wl,-z,relro,-z,now $(LDFLAGS)
LINK         = $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $(filter %.o,$^)

#: all             build snapmerge (the default)
all: snapmerge

# Every program of the tree and all that it is linked from. A test gets its own
# layer and those below, so that a dependency upwards does not link.
image    = build/image.o
cowstore = build/cowstore.o build/verify.o $(image)
copier   = build/copier.o build/engine.o build/transfer.o $(cowstore)
builder  = build/builder.o
UNITS    = build/test_image build/test_cowstore build/test_copier
LOGS     = $(patsubst %,build/log/%.log,$(notdir $(UNITS)) cli crash-slice kill)

snapmerge: build/snapmerge.o build/options.o build/report.o $(copier)
build/mkstore: build/mkstore.o $(builder)
build/crash: build/crash.o build/trace.o $(builder) $(copier)
build/test_image: build/test_image.o $(image)
build/test_cowstore: build/test_cowstore.o $(builder) $(cowstore)
build/test_copier: build/test_copier.o build/trace.o $(builder) $(copier)

# Memory and threads can be made scarce for the copier.
build/test_copier: private ALL_LDFLAGS += -Wl,--wrap=malloc,--wrap=calloc \
	-Wl,--wrap=aligned_alloc,--wrap=pthread_create

snapmerge build/mkstore build/crash:
	$(LINK)

$(UNITS):
	$(LINK) $$(pkg-config --libs check)

build/%.o: %.c build/flags
	$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

build/%.o: test/%.c build/flags
	$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# Other flags than last time, or another compiler: everything is built anew.
build/flags: export FLAGS = $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(ALL_LDFLAGS)
build/flags: FORCE
	@mkdir -p build
	@printf '%s\n' "$$FLAGS" | cmp -s - $@ || printf '%s\n' "$$FLAGS" > $@

-include $(wildcard build/*.d)

#: static          the same as one static program, with musl-gcc if there is one
static: CC := $(or $(shell command -v musl-gcc),$(CC))
static:
	@$(MAKE) --no-print-directory CC='$(CC)' LDFLAGS='$(LDFLAGS) -static' all

#: install         put it, its manual and the completion for bash under DESTDIR
#:                 and PREFIX (/usr/local)
# Installs what was built last, whatever its flags were.
install: $(if $(wildcard snapmerge),,all)
	install -d '$(DESTDIR)$(SBINDIR)' '$(DESTDIR)$(MANDIR)/man8' \
		'$(DESTDIR)$(BASHDIR)'
	install -m 755 snapmerge '$(DESTDIR)$(SBINDIR)'
	install -m 644 man/snapmerge.8 '$(DESTDIR)$(MANDIR)/man8'
	install -m 644 man/snapmerge.bash '$(DESTDIR)$(BASHDIR)/snapmerge'

#: uninstall       remove what install put there
# Directories that install may have made go as well, if nobody else uses them.
uninstall:
	rm -f '$(DESTDIR)$(SBINDIR)/snapmerge'
	rm -f '$(DESTDIR)$(MANDIR)/man8/snapmerge.8'
	rm -f '$(DESTDIR)$(BASHDIR)/snapmerge'
	-@rmdir '$(DESTDIR)$(MANDIR)/man8' '$(DESTDIR)$(BASHDIR)' \
		'$(DESTDIR)$(PREFIX)/share/bash-completion' 2> /dev/null || :

#: dist            the sources of the commit that is checked out, as
#:                 build/snapmerge-VERSION.tar.gz; the same bytes everywhere
# All files have the time of the commit. What a user has set for git or gzip
# does not count.
DIST = snapmerge-$(VERSION)
dist:
	@mkdir -p build
	git -c tar.umask=0022 -c core.autocrlf=false archive --format=tar \
		--prefix=$(DIST)/ -o build/$(DIST).tar HEAD
	env -u GZIP gzip -n -9 -f build/$(DIST).tar

#: demo            merge a sample, interrupted and resumed, and prove it right
demo: snapmerge build/mkstore
	@test/demo

#: check           the default tests: all of the next four, below 3 minutes
check: check-tools
	@rm -rf build/log && mkdir -p build/log
	@touch $(LOGS)
	@$(MAKE) -k -j2 --output-sync=target --no-print-directory \
		check-cli check-units check-crash-slice check-kill; \
	code=$$?; test/summary $(LOGS) && exit $$code

# $(call run,NAME,COMMAND): its output in a log for test/summary, its exit
# status in the log's last line and as that of the recipe.
run = @mkdir -p build/log; \
      ($(2); echo "$(1): exit $$?") 2>&1 | tee build/log/$(1).log; \
      tail -n 1 build/log/$(1).log | grep -qx '$(1): exit 0'

#: check-units     each layer, linked with nothing but those below it
check-units: check-tools $(UNITS:build/%=check-%)

$(UNITS:build/%=check-%): check-%: build/%
	$(call run,$*,$<)

#: check-cli       the command line, as a user sees it
CLI = test/cli
check-cli: check-tools snapmerge build/mkstore
	$(call run,cli,bats --tap $(CLI))

# Stores that a kernel has written, unpacked.
FIXTURES = $(patsubst test/%.tar.xz,build/%,$(wildcard test/fixtures/*.tar.xz))

build/fixtures/%: test/fixtures/%.tar.xz
	@mkdir -p $@
	tar -xJf $< -C $@

#: check-crash-slice  the quick part of check-crash
check-crash-slice: build/crash $(FIXTURES)
	$(call run,crash-slice,build/crash $(FIXTURES))

#: check-kill      killed at a random moment and run again, 200 times
check-kill: snapmerge build/mkstore
	$(call run,kill,test/kill)

#: check-crash     simulated power cuts: 10000 states or more of each store
check-crash: build/crash $(FIXTURES)
	$(call run,crash,build/crash --long $(ARGS) $(FIXTURES))

#: check-mutants   deliberate faults, each of which the tests must find
check-mutants: check-tools
	$(call run,mutants,test/mutants/run $(ARGS))

#: check-kernel    against the real kernel and LVM, in a virtual machine
check-kernel: snapmerge
	$(call run,kernel,test/kernel/run $(ARGS))

#: check-fuzz      any bytes as a store, and merges of them, for FUZZ seconds each
FUZZ = 60
check-fuzz: build/fuzz_verify build/fuzz_merge
	$(call run,fuzz,for f in $^; do mkdir -p $$f.corpus && \
		$$f -max_len=4096 -max_total_time=$(FUZZ) -print_final_stats=1 \
			-artifact_prefix=$$f. $$f.corpus 2>&1 | tail -n 20 && \
		! ls $$f.crash-* $$f.timeout-* 2>/dev/null && \
		echo "$$f: 1 passed$(,) 0 failed$(,) 0 skipped" || exit 1; done)
, := ,

build/fuzz_%: test/fuzz/fuzz_%.c test/builder.c image.c cowstore.c verify.c \
		copier.c engine.c transfer.c build/flags
	clang $(ALL_CPPFLAGS) -std=c11 -O1 -g -pthread -o $@ $(filter %.c,$^) \
		-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all

#: check-s390x     kernel-written and nasty stores on a big-endian machine (QEMU)
S390X = build/s390x
check-s390x:
	@$(MAKE) --no-print-directory CC=s390x-linux-gnu-gcc \
		LDFLAGS='$(LDFLAGS) -static' snapmerge build/mkstore
	@mkdir -p $(S390X) && cp snapmerge build/mkstore $(S390X)
	@for p in snapmerge mkstore; do \
		printf '#!/bin/sh\nexec qemu-s390x-static %s "$$@"\n' \
			'$(CURDIR)'/$(S390X)/$$p > $(S390X)/run-$$p && \
		chmod +x $(S390X)/run-$$p || exit; done
	$(call run,s390x,SNAPMERGE=$(S390X)/run-snapmerge \
		MKSTORE=$(S390X)/run-mkstore \
		bats --tap test/cli/fixtures.bats test/cli/nasty.bats)

#: check-valgrind  the lower layers and whole merges under valgrind
# The tests' programs fork for each test; a leak of a test's own is not ours.
VALGRIND = valgrind --quiet --error-exitcode=99 --leak-check=full \
	   --errors-for-leak-kinds=definite,indirect,possible
check-valgrind: snapmerge build/mkstore build/test_cowstore
	@printf '#!/bin/sh\nexec %s %s "$$@"\n' '$(VALGRIND)' \
		'$(CURDIR)/snapmerge' > build/run-valgrind
	@chmod +x build/run-valgrind
	$(call run,valgrind,$(VALGRIND) --leak-check=no build/test_cowstore && \
		SNAPMERGE=build/run-valgrind bats --tap \
			test/cli/fixtures.bats test/cli/nasty.bats \
			test/cli/merge.bats)

#: bench           how fast it is
bench: snapmerge build/mkstore
	test/bench/run $(ARGS)

check-tools:
	@missing=; \
	for tool in bats pkg-config xz; do \
		command -v $$tool > /dev/null || missing="$$missing $$tool"; \
	done; \
	! command -v pkg-config > /dev/null || pkg-config --exists check || \
		missing="$$missing check"; \
	test -z "$$missing" || { \
		echo "The tests need what is not here:$$missing. Run:"; \
		echo "    apt-get install bats check pkg-config xz-utils"; \
		exit 1; \
	} >&2

#: clean           remove all that was built
clean:
	rm -rf build snapmerge

#: help            this list
help:
	@sed -n 's/^#: //p' Makefile

FORCE:

.PHONY: all static install uninstall dist demo check check-units check-cli \
	check-crash-slice check-kill check-crash check-mutants check-kernel \
	check-fuzz check-s390x check-valgrind bench check-tools clean help \
	FORCE $(UNITS:build/%=check-%)
.DELETE_ON_ERROR:
