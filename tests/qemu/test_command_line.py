"""Rewritten command lines: a stock QEMU starts with the same blocks, in the file, at their offsets."""

from __future__ import annotations

import re
import subprocess
from itertools import cycle, product
from pathlib import Path

import pytest
from support.examples import unless_thorough
from support.qemu import QemuProcess

from parallel_fixedram.boot.command_line import CommandLine, MemoryFile

MIB = 1 << 20
FIRST = 3 * MIB + 4096
"""Where the first block starts in the file, bytes."""
BETWEEN = 4096
MARKER = b"marked"
TWO_NODES = [
    *("-object", "memory-backend-ram,id=n0,size=32M", "-object", "memory-backend-memfd,id=n1,size=32M,share=on"),
    *("-smp", "2", "-numa", "node,cpus=0,memdev=n0", "-numa", "node,cpus=1,memdev=n1"),
]
MAIN = ("-machine", "q35,memory-backend=m", "-m", "64M", "-object")
LINES: dict[str, list[str]] = {
    "plain": ["-m", "64M"],
    "M": ["-M", "pc", "-m", "64M"],
    "type": ["-machine", "type=q35,smm=off", "-m", "64M"],
    "twice": ["-machine", "q35", "-M", "smm=off", "-m", "64M"],
    "mem-path": ["-m", "64M", "-mem-path", "/dev/shm", "-mem-prealloc"],
    "ram": [*MAIN, "memory-backend-ram,id=m,size=64M,merge=off,dump=off,prealloc=on"],
    "memfd": [*MAIN, "memory-backend-memfd,id=m,size=64M,share=on"],
    "file": [*MAIN, "memory-backend-file,id=m,size=64M,mem-path=ra,,m,share=on"],
    "shm": [*MAIN, "memory-backend-shm,id=m,size=64M"],
    "policy": [*MAIN, "memory-backend-ram,id=m,size=64M,host-nodes=0,policy=bind"],
    "json": [
        *MAIN,
        '{"qom-type":"memory-backend-ram","id":"m","size":67108864,"merge":false,"host-nodes":[0],"policy":"bind"}',
    ],
    "old": ["-machine", "q35", *MAIN, "memory-backend-ram,id=m,size=64M,x-use-canonical-path-for-ramblock-id=on"],
    "dimm": [
        *("-m", "size=64M,slots=2,maxmem=1G", "-object", "memory-backend-ram,id=d0,size=128M"),
        *("-device", "pc-dimm,memdev=d0"),
    ],
    "nodes": ["-m", "64M", *TWO_NODES],
}
NAMES = {"dimm": {"pc.ram", "d0"}, "nodes": {"n0", "n1"}, "old": {"/objects/m"}}


class RawQemu(QemuProcess):
    """A QEMU whose machine and memory are all in its arguments."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments, ram=None, paused=True)

    def _base(self, monitor_fd: int) -> list[str]:
        base = super()._base(monitor_fd)
        machine = base.index("-machine")
        return base[:machine] + base[machine + 2 :]

    def lengths(self) -> dict[str, int]:
        return {block.name: block.used for block in self.ramblocks()}

    def mapped(self, hva: int) -> tuple[str, int, str]:
        """Permissions, file offset and path of the mapping that starts at ``hva``."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        found = re.search(rf"^{hva:x}-\w+ (\S+) (\w+) \S+ \d+ *(.*)$", maps, re.M)
        assert found, maps
        return found[1], int(found[2], 16), found[3]


def lay_out(path: Path, lengths: dict[str, int], *, shared: bool) -> dict[str, MemoryFile]:
    """A sparse file with a place for every block, and the block's name in the first and the last page of each."""
    files, offset = {}, FIRST
    with path.open("wb") as file:
        for name, length in lengths.items():
            files[name] = MemoryFile(path=str(path), offset=offset, size=length, shared=shared)
            for place in (0, length - 4096):
                file.seek(offset + place)
                file.write(MARKER + name.encode())
            offset += length + BETWEEN
        file.truncate(offset)
    return files


@pytest.mark.parametrize(
    ("line", "shared"), unless_thorough(zip(LINES, cycle([False, True])), product(LINES, [False, True]))
)
def test_blocks_keep_names_and_lengths_and_are_in_the_file(line: str, shared: bool, tmp_path: Path) -> None:
    arguments = LINES[line]
    with RawQemu(*arguments) as before:
        lengths = before.lengths()
    command = CommandLine.parse(["qemu", *arguments])
    main = command.main_blocks(list(lengths.items()))
    assert set(main) == NAMES.get(line, {"m"} if "-object" in arguments else {"pc.ram"})
    path = tmp_path / "a file, with a comma"
    files = lay_out(path, {name: lengths[name] for name in main}, shared=shared)
    with RawQemu(*command.with_memory(files).arguments[1:]) as guest:
        assert guest.lengths() == lengths
        devices = {each["id"]: each for each in guest.qmp("query-memdev")}
        assert set(devices) == {name.removeprefix("/objects/") for name in main}
        assert not any(each["prealloc"] or each["share"] != shared for each in devices.values())
        for block in guest.ramblocks():
            if block.name in files:
                assert guest.mapped(block.hva) == ("rw-s" if shared else "rw-p", files[block.name].offset, str(path))
                contents = guest.read_block(block.name)
                for place in (0, block.used - 4096):
                    assert contents[place:].startswith(MARKER + block.name.encode())
        assert guest.complaints() == []


@pytest.mark.parametrize("shared", [False, True], ids=["clone", "shared"])
def test_what_a_guest_writes_reaches_the_file_only_if_it_is_shared(
    shared: bool, ticker: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "ram"
    files = lay_out(path, {"pc.ram": 64 * MIB}, shared=shared)
    image = path.read_bytes()
    command = CommandLine.parse(["qemu", "-M", "q35", "-m", "64M", *ticker])
    with RawQemu(*command.with_memory(files).arguments[1:]) as guest:
        guest.cont()
        guest.wait_serial("[A-Z]{3}")
        guest.stop()
        written = guest.read_block("pc.ram")
        assert written != image[FIRST : FIRST + 64 * MIB]
        assert path.read_bytes()[FIRST : FIRST + 64 * MIB] == (written if shared else image[FIRST : FIRST + 64 * MIB])


def test_options_that_take_no_value_are_those_of_qemu(qemu_binary: str) -> None:
    said = subprocess.run([qemu_binary, "-help"], capture_output=True, text=True, check=True).stdout
    names = {name for pair in re.findall(r"^--?([\w-]+)(?:/-([\w-]+))?", said, re.M) for name in pair if name}
    assert {"S", "append", "hdd", "object", "preconfig"} <= names
    refused = {"incoming", "loadvm", "daemonize", "preconfig"}
    for name in sorted(names | {"help", "M"}):
        # QEMU looks at all options before it does anything, and stops at the first that it does not know.
        qemu = subprocess.run([qemu_binary, f"-{name}", "-bad-1", "-bad-2"], capture_output=True, text=True)
        takes_value = "-bad-2: invalid option" in qemu.stderr
        assert takes_value or "-bad-1: invalid option" in qemu.stderr, qemu.stderr
        if name not in refused:
            option = CommandLine.parse(["qemu", f"-{name}", "-bad-1", "-bad-2", "value"]).options[0]
            assert (option.value == "-bad-1") == takes_value, name
