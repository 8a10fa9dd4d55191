"""``clone``: guests copy-on-write, straight from a file."""

from __future__ import annotations

import argparse
from typing import Any

from parallel_fixedram.cli import boot, common
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.clone_options import Identity
from parallel_fixedram.core.errors import RequestError

_EXAMPLES = """  parallel-fixedram clone /tmp/vm.mr --count 4 -- \\
      qemu-system-x86_64 -m 1G -display none -serial file:/tmp/clone-{n}.log"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "clone",
        summary="start guests copy-on-write, their RAM mapped from a file",
        about="Start N guests from FILE, each within a fraction of a second however much RAM it has: RAM is mapped\n"
        "from FILE, and only what a guest writes is copied. Never write into FILE while they run: write a new file\n"
        "and rename it. Stale bytes behind zero pages, and changes before the guests run, are noticed; later changes\n"
        "are not.\n\n"
        "After -- comes the QEMU command line that the guest was saved from. Its memory backends are replaced, and\n"
        "the disks that FILE records become overlays on their images. {n} is the clone's number, for what two QEMUs\n"
        "cannot share: sockets, ports and other disks.\n\n"
        "Each clone gets a GUID of its own for its vmgenid device, if the saved machine has one: its guest then\n"
        "renews its random numbers. It finds its number, an id and the digest of FILE in fw_cfg, in\n"
        "opt/parallel_fixedram/clone. Its guest agent sets its clock forward, if the command line has a socket for\n"
        "the agent. MAC addresses, machine ids and keys are in the guest's memory: they stay equal until\n"
        "--run-in-clone or the guest changes them. Guests with vhost-user or VFIO devices cannot be cloned.",
        examples=_EXAMPLES,
    )
    parser.usage = "%(prog)s FILE [options] -- QEMU [argument ...]"
    parser.add_argument("file", metavar="FILE", help="a mapped-ram file with device state, by QEMU or by us")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument(
        "--identity",
        choices=[str(identity) for identity in Identity],
        default=str(Identity.NEW),
        help="new (default): clones differ in whatever can be changed from outside, see above; same: in nothing",
    )
    parser.add_argument(
        "--run-in-clone",
        default="",
        metavar="COMMAND",
        help="have the guest agent of each clone run COMMAND (/bin/sh -c) before this command ends; {n} is the clone's "
        "number. If it fails in one clone, all of them are ended",
    )
    parser.add_argument("--verify", action="store_true", help="first check everything in FILE against its digests")
    boot.add_boot_options(parser)
    parser.add_argument(
        "--punch",
        action="store_true",
        help="first make holes of the stale bytes that QEMU leaves behind zero pages when it saves a running guest, "
        "and that tools which skip zeros leave when they write over a file",
    )
    parser.add_argument(
        "--add-clone-stream",
        action="store_true",
        help="first add digests and a clone stream to a FILE written by QEMU, which loads it as before",
    )
    parser.set_defaults(run=run, verb="clone")


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.clone import clone, plan_clone

    if args.command is None:
        raise RequestError("a QEMU command line is needed after --", hint="see parallel-fixedram clone --help")
    disks = boot.disk_choice(args)
    identity = Identity(args.identity)
    if args.print:
        if args.punch or args.add_clone_stream:
            raise RequestError("--print cannot be combined with --punch or --add-clone-stream: it changes nothing")
        boot.refuse_verify(args)
        if args.run_in_clone:
            raise RequestError("--print cannot be combined with --run-in-clone: it starts nothing")
        plan = plan_clone(
            args.file,
            args.command,
            count=args.count,
            identity=identity,
            paused=args.paused,
            disks=disks,
            folder=args.run_dir,
        )
        boot.show_plan(args, plan)
        return 0
    with shown() as progress:
        report = clone(
            args.file,
            args.command,
            count=args.count,
            identity=identity,
            run_in_clone=args.run_in_clone,
            punch=args.punch,
            add_clone_stream=args.add_clone_stream,
            paused=args.paused,
            check_digests=args.verify,
            disks=disks,
            folder=args.run_dir,
            observer=progress,
        )
    boot.show(args, report)
    return 0
