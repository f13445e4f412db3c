"""Completion for bash (and zsh, by bashcompinit) out of argparse and the option table.

python -m tools.completion > pyerofs
"""

from __future__ import annotations

import argparse
import sys

from pyerofs.cli.main import make_parser
from pyerofs.config.options import ROWS
from tools.man import walk

# What a positional argument of this name is.
_KINDS = {
    "TARGET": "mounts", "TARGET|DEVICE": "mounts", "DEVICE": "mounts", "SOURCE": "images", "IMAGE": "images",
    "DEST": "images", "DIGEST": "blobs",
}  # fmt: skip
_FRAME = r"""# bash completion for pyerofs, made by tools/completion.py
# zsh: autoload -U +X bashcompinit && bashcompinit, then source this file.

_pyerofs_mounts() { findmnt -rno SOURCE,TARGET -t erofs,overlay 2>/dev/null | sed -n '/^overlay /!s/^[^ ]* //p'; }

# Names of images that the cache has heard of: converted ones, and those whose manifests it keeps.
_pyerofs_images() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/pyerofs
    [[ $EUID -eq 0 ]] && cache=/var/cache/pyerofs
    sed -ns '1s/.*"name": "\([^"]*\)".*/\1/p' "$cache"/converted/*/image 2>/dev/null
    sed -ns '1{s/.*"image": "\([^" ]*\)", "reference": "\([^":]*\)".*/\1:\2/p}' "$cache"/manifests/* 2>/dev/null
}

_pyerofs_blobs() { pyerofs cache ls 2>/dev/null | sed -n 's/^\(sha[0-9a-z+]*:[0-9a-f]*\) .*/\1/p'; }

_pyerofs() {
    local current=${COMP_WORDS[COMP_CWORD]} line word command="" options="" kinds="" count=0 skip=0 index
    if declare -F _get_comp_words_by_ref >/dev/null; then
        local words cword
        _get_comp_words_by_ref -n := -c current -w words -i cword
    else
        local words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
    fi
    for ((index = 1; index < cword; index++)); do
        word=${words[index]}
        if ((skip)); then skip=0; continue; fi
        case $word in
            -o | -t | --options | --types | --offset | --length | --unix | --tcp | --output | --listen) skip=1 ;;
            -*) ;;
            *)
                case "$command $word" in
@GROUPS@
                    *) if [[ -z $command ]]; then command=$word; else ((count++)); fi ;;
                esac ;;
        esac
    done
    case ${words[cword - 1]} in
        -o | --options)
            local before=${current%"${current##*,}"}
            COMPREPLY=($(compgen -P "$before" -W "@OPTIONS@" -- "${current##*,}"))
            compopt -o nospace 2>/dev/null
            return ;;
        -t | --types) COMPREPLY=($(compgen -W "erofs erofs.nbd erofs.local erofs.fuse" -- "$current")); return ;;
        --progress) COMPREPLY=($(compgen -W "plain bar none json" -- "$current")); return ;;
        --output) COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    case $command in
        "") COMPREPLY=($(compgen -W "@COMMANDS@ --help --version" -- "$current")); return ;;
@CASES@
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
        return
    fi
    kinds=($kinds)
    ((count >= ${#kinds[@]})) && ((count = ${#kinds[@]} - 1))
    local IFS=$'\n'
    case ${kinds[count]:-files} in
        mounts) COMPREPLY=($(compgen -W "$(_pyerofs_mounts)" -- "$current")) ;;
        directories) COMPREPLY=($(compgen -d -- "$current")) ;;
        images) COMPREPLY=($(compgen -W "$(_pyerofs_images)" -- "$current") $(compgen -f -- "$current")) ;;
        blobs) COMPREPLY=($(compgen -W "$(_pyerofs_blobs)" -- "$current")) ;;
        *) COMPREPLY=($(compgen -f -- "$current")) ;;
    esac
    declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$current"
}

complete -o filenames -F _pyerofs pyerofs
"""


def script() -> str:
    """Return the completion script."""
    commands = {name: parser for name, parser in walk(make_parser()) if name}
    groups = sorted({name.partition(" ")[0] for name in commands if " " in name})
    group_rows = [
        f"                    {name!r}) command={name!r} ;;".replace("'", '"') for name in commands if " " in name
    ]
    cases = []
    for name, parser in commands.items():
        flags = [flag for action in parser._actions for flag in action.option_strings]
        cases.append(f'        "{name}") options="{" ".join(flags)}" kinds="{" ".join(_kinds(name, parser))}" ;;')
    for group in groups:
        actions = " ".join(name.partition(" ")[2] for name in commands if name.startswith(f"{group} "))
        cases.append(f'        "{group}") COMPREPLY=($(compgen -W "{actions}" -- "$current")); return ;;')
    top = " ".join(dict.fromkeys(name.partition(" ")[0] for name in commands))
    names = " ".join(row.name + ("=" if row.argument.startswith("=") else "") for row in ROWS)
    parts = {"GROUPS": "\n".join(group_rows), "OPTIONS": names, "COMMANDS": top, "CASES": "\n".join(cases)}
    text = _FRAME
    for part, value in parts.items():
        text = text.replace(f"@{part}@", value)
    return text


def _kinds(name: str, parser: argparse.ArgumentParser) -> list[str]:
    positional = [str(action.metavar or action.dest) for action in parser._actions if not action.option_strings]
    kinds = [_KINDS.get(metavar, "files") for metavar in positional]
    if name == "mount":
        kinds[1:] = ["directories"]
    return kinds


def main() -> None:
    """Print it."""
    sys.stdout.write(script())


if __name__ == "__main__":
    main()
