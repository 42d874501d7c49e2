# Completion of snapmerge's command line for bash. It proposes what options.c
# accepts; a test holds the two lists together.

_snapmerge()
{
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
	local options='--origin --cow --dry-run --check --info --list --output
		--batch-size --rate-limit --max-time --reflink --undo --verify
		--discard --skip-identical --accept-invalid --accept-changed
		--json --progress --quiet --verbose --help --version'

	# The shell splits --option=value at the sign.
	if [[ $before == = && $COMP_CWORD -gt 1 ]]; then
		before=${COMP_WORDS[COMP_CWORD - 2]}
	elif [[ $word == = ]]; then
		word=
	fi
	COMPREPLY=()
	case $before in
	-o | --origin | -c | --cow | --output | --undo)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		;;
	--reflink)
		mapfile -t COMPREPLY < <(
			compgen -W 'auto always never' -- "$word")
		;;
	-b | --batch-size)
		mapfile -t COMPREPLY < <(
			compgen -W '4M 16M 64M 256M 1G' -- "$word")
		;;
	--rate-limit | --max-time)
		;;
	*)
		mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
		;;
	esac
}

complete -F _snapmerge snapmerge
