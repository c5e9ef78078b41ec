"""Shell completion: a script that knows every command, its flags and the words that a flag takes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ftjax.flags import Flag, flags_of

BASH = """_ftjax() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=
    if [ "$COMP_CWORD" = 1 ]; then
        words=%(commands)s
    else
        case "${COMP_WORDS[1]} $before" in
%(choices)s
        esac
        if [ -z "$words" ] && [ "${word#-}" != "$word" ]; then
            case ${COMP_WORDS[1]} in
%(flags)s
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _ftjax ftjax
"""
"""Where nothing of ours fits, files are completed."""


def completion(shell: str, commands: Mapping[str, type]) -> str:
    """The script for bash, zsh or fish."""
    flags = {name: [flag for flag in flags_of(command).values() if not flag.positional] for name, command in commands.items()}
    if shell == "fish":
        return "\n".join([f"complete -c ftjax -n __fish_use_subcommand -f -a {shlex.quote(' '.join(commands))}"] + [
            _fish(name, flag) for name, of in flags.items() for flag in of
        ]) + "\n"  # fmt: skip
    choices = [
        f"            {shlex.quote(f'{name} {flag.spelled}')}) words={shlex.quote(' '.join(flag.choices))} ;;"
        for name, of in flags.items()
        for flag in of
        if flag.choices
    ]
    spelled = [
        f"                {name}) words={shlex.quote(' '.join([*(f.spelled for f in of), '--help']))} ;;"
        for name, of in flags.items()
    ]
    parts = {"commands": shlex.quote(" ".join(commands)), "choices": "\n".join(choices), "flags": "\n".join(spelled)}
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + BASH % parts


def _fish(name: str, flag: Flag) -> str:
    takes = " -r" if flag.kind is not bool else ""
    words = f" -f -a {shlex.quote(' '.join(flag.choices))}" if flag.choices else ""
    about = shlex.quote(flag.about.split(". ")[0][:80])
    return f"complete -c ftjax -n '__fish_seen_subcommand_from {name}' -l {flag.spelled[2:]}{takes}{words} -d {about}"
