"""``caps``: shows the capability gate, or what it says to a combination of capabilities."""

from __future__ import annotations

import argparse
import json
from typing import Any

from parallel_fixedram.core.capabilities import FIXED_RAM, MAPPED_RAM, TABLES, Capabilities, Profile, Rule
from parallel_fixedram.core.errors import CapabilityError

_EXAMPLE = """example:
  parallel-fixedram caps fixed-ram=on events=on
  parallel-fixedram caps fixed-ram multifd --experimental-multifd"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "caps",
        help="the capability gate: the table, or the verdict on a combination",
        description="Without names: the capabilities of a profile, and its rules in the order of checking.\n"
        "With names: whether these capabilities may be on together; exit code 2 if not.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "changes",
        nargs="*",
        type=parse_change,
        metavar="NAME[=on|off]",
        help="switch a capability on or off; all are off to begin with, and a name alone means on",
    )
    parser.add_argument(
        "--profile",
        choices=[str(profile) for profile in Profile],
        default=str(Profile.FIXED_RAM),
        help="whose rules: QEMU 8.2 with the fixed-ram patch (default), or QEMU 10.0",
    )
    parser.add_argument(
        "--experimental-multifd", action="store_true", help="lift the rule against fixed-ram with multifd, no other"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def parse_change(text: str) -> tuple[str, bool]:
    """A capability's name and whether it is to be on, from ``NAME``, ``NAME=on`` or ``NAME=off``.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    name, equals, value = text.partition("=")
    if not name or (equals and value not in ("on", "off")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME, NAME=on or NAME=off")
    return name, value != "off"


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code.

    Raises:
        CapabilityError: the combination is refused.
    """
    profile = Profile(args.profile)
    if args.changes:
        _judge(profile, dict(args.changes), experimental=args.experimental_multifd, as_json=args.json)
    elif args.json:
        print(json.dumps(_table_json(profile)))
    else:
        _print_table(profile)
    return 0


def _judge(profile: Profile, changes: dict[str, bool], *, experimental: bool, as_json: bool) -> None:
    capabilities = Capabilities(profile, experimental=experimental)
    answer: dict[str, object] = {
        "verb": "caps",
        "profile": profile,
        "experimental_multifd": experimental,
        "capabilities": changes,
    }
    try:
        capabilities.set(changes)
    except CapabilityError as error:
        if as_json:
            print(json.dumps(answer | {"accepted": False, "message": error.message, "hint": error.hint}))
        raise
    if as_json:
        print(json.dumps(answer | {"accepted": True, "message": "", "hint": ""}))
    else:
        print(f"accepted by profile {profile}: {', '.join(capabilities.on) or 'everything off'}")


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
    print(f"capabilities of profile {profile} ({other} is accepted as another name of {table.fixed_ram}):\n")
    print(f"  {'name':<24}{'since':<7}{'property':<23}meaning")
    for entry in table.capabilities:
        print(f"  {entry.name:<24}{entry.since:<7}{entry.property or '-':<23}{entry.doc}")
    print("\nrules, the first that refuses wins:\n")
    for rule in table.rules:
        print(f"  {_condition(rule)}\n      {rule.message}")


def _condition(rule: Rule) -> str:
    """When a rule refuses, in words."""
    reasons = [f"without {name}" for name in rule.requires] + [f"with {name}" for name in rule.conflicts]
    lifted = " (unless --experimental-multifd)" if rule.experimental else ""
    return f"{rule.capability} {' or '.join(reasons)}{lifted}"
