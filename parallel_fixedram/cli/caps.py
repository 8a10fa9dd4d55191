"""``caps``: shows the capability gate, or what it says to a combination of capabilities."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from parallel_fixedram.cli import common, options, output
from parallel_fixedram.cli.folding import print_folded, print_hanging
from parallel_fixedram.core.capabilities import Capabilities
from parallel_fixedram.core.errors import CapabilityError
from parallel_fixedram.core.profiles import FIXED_RAM, MAPPED_RAM, TABLES, Profile, Rule
from parallel_fixedram.core.schemas import stamped

_EXAMPLES = """  parallel-fixedram caps fixed-ram=on events=on
  parallel-fixedram caps fixed-ram multifd --experimental-multifd"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "caps",
        summary="the capability gate: the table, or the verdict on a combination",
        about="Without names: the capabilities of a profile, and its rules in the order of checking.\n"
        "With names: whether these capabilities may be on together; exit code 2 if not.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "changes",
        nargs="*",
        type=options.parse_change,
        metavar="NAME[=on|off]",
        help="switch a capability on or off; all are off to begin with, and a name alone means on",
    )
    options.add_rule_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code.

    Raises:
        CapabilityError: the profile has no capability of such a name.
    """
    profile = Profile(args.profile)
    if args.changes:
        return _judge(profile, dict(args.changes), experimental=args.experimental_multifd, as_json=args.json)
    if args.json:
        output.print_json(stamped("caps_table", _table_json(profile)))
    else:
        _print_table(profile)
    return 0


def _judge(profile: Profile, changes: dict[str, bool], *, experimental: bool, as_json: bool) -> int:
    """Print the verdict, which is an answer and no error; returns the exit code."""
    _check_names(profile, changes)
    capabilities = Capabilities(profile, experimental=experimental)
    answer: dict[str, object] = {
        "verb": "caps",
        "profile": profile,
        "experimental_multifd": experimental,
        "capabilities": changes,
    }
    refusal: CapabilityError | None = None
    try:
        capabilities.set(changes)
    except CapabilityError as error:
        refusal = error
    if as_json:
        message, hint = (refusal.message, refusal.hint) if refusal else ("", "")
        answer |= {"accepted": refusal is None, "message": message, "hint": hint}
        output.print_json(stamped("caps_verdict", answer))
    elif refusal:
        print_folded(f"refused by profile {profile}: {refusal.message}")
        if refusal.hint:
            print_folded(f"hint: {refusal.hint}")
    else:
        print_folded(f"accepted by profile {profile}: {', '.join(capabilities.on) or 'everything off'}")
    return refusal.exit_code if refusal else 0


def _check_names(profile: Profile, names: Iterable[str]) -> None:
    """Refuse a name that the profile has not, in QEMU's words, and say which may have been meant."""
    known = [entry.name for entry in TABLES[profile].capabilities]
    for name in names:
        if TABLES[profile].canonical(name) is None:
            raise CapabilityError(
                f"Parameter 'capability' does not accept value '{name}'", hint=common.did_you_mean(name, known)
            )


def _table_json(profile: Profile) -> dict[str, object]:
    table = TABLES[profile]
    return {
        "verb": "caps",
        "profile": profile,
        "table": [
            {"name": entry.name, "property": entry.property, "since": entry.since, "doc": entry.doc}
            for entry in table.capabilities
        ],
        "rules": [
            {
                "capability": rule.capability,
                "conflicts": rule.conflicts,
                "requires": rule.requires,
                "message": rule.message,
                "experimental": rule.experimental,
            }
            for rule in table.rules
        ],
    }


def _print_table(profile: Profile) -> None:
    table = TABLES[profile]
    other = MAPPED_RAM if table.fixed_ram == FIXED_RAM else FIXED_RAM
    print_hanging("", f"capabilities of profile {profile} ({other} is accepted as another name of {table.fixed_ram}):")
    print()
    print_hanging(f"  {'name':<24}{'since':<7}{'property':<23}", "meaning")
    for entry in table.capabilities:
        print_hanging(f"  {entry.name:<24}{entry.since:<7}{entry.property or '-':<23}", entry.doc)
    print("\nrules, the first that refuses wins:\n")
    for rule in table.rules:
        print_hanging("  ", _condition(rule))
        print_hanging("      ", rule.message)


def _condition(rule: Rule) -> str:
    """When a rule refuses, in words."""
    reasons = [f"without {name}" for name in rule.requires] + [f"with {name}" for name in rule.conflicts]
    lifted = " (unless --experimental-multifd)" if rule.experimental else ""
    return f"{rule.capability} {' or '.join(reasons)}{lifted}"
