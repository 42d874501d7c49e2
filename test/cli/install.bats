#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# make install, uninstall and dist, on a copy of the tree.
load helpers

# sources: those of this tree, in the directory tree.
sources() {
	local root=$BATS_TEST_DIRNAME/../..

	need make
	unset MAKEFLAGS MAKELEVEL MFLAGS DESTDIR PREFIX
	mkdir tree
	cp -r "$root"/{Makefile,README,LICENSE,man,.gitignore} "$root"/*.[ch] \
		tree
	cp "$SNAPMERGE" tree/snapmerge
}

listing() {
	(cd "$1" && find . -printf '%p %y %m\n' | sort)
}

@test "install: the program, its manual and the completion, usable" {
	sources
	make -C tree install DESTDIR="$PWD/dest" > make.log
	diff - <(cd dest && find . -type f -printf '%P %m\n' | sort) <<- END
		usr/local/sbin/snapmerge 755
		usr/local/share/bash-completion/completions/snapmerge 644
		usr/local/share/man/man8/snapmerge.8 644
	END
	store
	dest/usr/local/sbin/snapmerge -q -o origin -c cow
	cmp origin merged
	cmp tree/man/snapmerge.8 dest/usr/local/share/man/man8/snapmerge.8
	# shellcheck disable=SC2016 # bash -c expands them
	bash -c 'source dest/usr/local/share/bash-completion/completions/snapmerge
		complete -p snapmerge' > complete.log
}

@test "install: PREFIX and DESTDIR with blanks" {
	sources
	make -C tree install DESTDIR="$PWD/de st" PREFIX='/opt/a b' > make.log
	[ -x 'de st/opt/a b/sbin/snapmerge' ]
	[ -e 'de st/opt/a b/share/bash-completion/completions/snapmerge' ]
	make -C tree uninstall DESTDIR="$PWD/de st" PREFIX='/opt/a b' > make.log
	[ -z "$(find 'de st' -type f)" ]
}

@test "uninstall: leaves no trace, and what belongs to others" {
	sources
	mkdir -p dest/usr/local/{sbin,share/man}
	listing dest > before
	make -C tree install DESTDIR="$PWD/dest" > make.log
	store
	dest/usr/local/sbin/snapmerge -q -o origin -c cow
	make -C tree uninstall DESTDIR="$PWD/dest" > make.log
	diff before <(listing dest)
	# and with nothing there
	make -C tree uninstall DESTDIR="$PWD/dest" > make.log
	diff before <(listing dest)
	mkdir -p dest/usr/local/share/bash-completion/completions
	: > dest/usr/local/share/bash-completion/completions/other
	listing dest > before
	make -C tree install DESTDIR="$PWD/dest" > make.log
	make -C tree uninstall DESTDIR="$PWD/dest" > make.log
	diff before <(listing dest)
}

@test "dist: the same bytes from two checkouts of one commit" {
	local version

	need git
	sources
	export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
	git -C tree init -q
	git -C tree -c core.excludesFile= add .
	git -C tree -c user.name=x -c user.email=x@x commit -q -m x
	git clone -q tree one
	(umask 077 && git clone -q tree 'other two')
	echo "unsaved" >> one/README
	make -C one dist > make.log
	sleep 1.1
	(umask 077 && TZ=Pacific/Apia GZIP=-1 make -C 'other two' dist > make.log)
	version=$(sed -n 's/^VERSION = //p' tree/Makefile)
	cmp "one/build/snapmerge-$version.tar.gz" \
		"other two/build/snapmerge-$version.tar.gz"
	mkdir unpacked
	tar -xzf "one/build/snapmerge-$version.tar.gz" -C unpacked
	[ "$(ls unpacked)" = "snapmerge-$version" ]
	diff <(git -C tree ls-files | sort) \
		<(cd "unpacked/snapmerge-$version" && find . -type f -printf '%P\n' | sort)
	run ! grep unsaved "unpacked/snapmerge-$version/README"
}
