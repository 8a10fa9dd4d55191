"""Manual pages and tab completion, made from the command's own parser when the package is built.

A page for the command, one for each verb and one for each command of ``bench``; a completion for bash.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab
from argparse_manpage.manpage import Manpage

from parallel_fixedram.cli.main import PROGRAM, build_parser

FILES = {"FILE", "A", "B", "PATH", "SOCKET", "SCENARIO", "RESULT.json"}
"""What stands for a path in the help."""
FOLDERS = {"DIR", "FOLDER"}


def shared_files() -> dict[str, str]:
    """Contents by path below the prefix of an installation."""
    found = {f"share/man/man1/{name}.1": page for name, page in _pages()}
    found[f"share/bash-completion/completions/{PROGRAM}"] = _completion()
    return found


def verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Every parser below this one, and its summary."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {each.dest: each.help or "" for each in action._get_subactions()}
            for name, each in action.choices.items():
                yield each, summaries[name]
                yield from verbs(each)


def _pages() -> Iterator[tuple[str, str]]:
    found = [(build_parser(), "save guest RAM at fixed file offsets, and restore it"), *verbs(build_parser())]
    names = [_page_name(parser) for parser, _ in found]
    for name, (parser, summary) in zip(names, found, strict=True):
        yield name, _page(parser, name, summary, [f"{other}(1)" for other in names if _related(other, name)])


def _page_name(parser: argparse.ArgumentParser) -> str:
    return parser.prog.replace(" ", "-")


def _related(other: str, name: str) -> bool:
    """Whether one of the pages is right above or below the other."""
    return other.rpartition("-")[0] == name or name.rpartition("-")[0] == other


def _page(parser: argparse.ArgumentParser, name: str, summary: str, others: list[str]) -> str:
    """The page by argparse-manpage, but for what it fills that people copy, and for what has pages of its own."""
    title, _, examples = (parser.epilog or "").partition(":\n")
    if title == "examples":
        parser.epilog = None
    page = str(Manpage(parser, {"prog": name, "description": summary, "project_name": PROGRAM}))
    _, *sections = page.replace(".SH\nPOSITIONAL", ".SH POSITIONAL").rstrip().split("\n.SH ")
    kept = [f'.TH {_literal(name.upper())} 1 "" {PROGRAM} "User Commands"']
    for section in sections:
        head = section.partition("\n")[0]
        if head == "NAME":
            kept.append(f"NAME\n{_literal(f'{name} - {summary}')}")
        elif head == "SYNOPSIS":
            usage = parser.format_usage().replace("usage: ", "       ", 1)
            kept.append(f"SYNOPSIS\n{_unfilled(usage.replace('       ', ''))}")
        elif "\\fI" not in head:  # else of a verb, which has a page of its own
            kept.append(section.replace("COMMENTS\n", "NOTES\n", 1))
    if title == "examples":
        kept.append(f"EXAMPLES\n{_unfilled(examples)}")
    kept.append(f"SEE ALSO\n{_literal(', '.join(others))}\n")
    return "\n.SH ".join(kept)


def _unfilled(text: str) -> str:
    return "\n".join([".nf", *map(_literal, text.splitlines()), ".fi"])


def _literal(line: str) -> str:
    text = line.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def _completion() -> str:
    parser = build_parser()
    for each in [parser, *(verb for verb, _ in verbs(parser))]:
        for action in each._actions:
            if action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
            elif action.metavar in FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, "bash"))
