"""The disks that a running QEMU's guest writes to: which files they are in, and which can be put on an overlay.

::

    query-block        what is attached to which device, and in what format
    query-blockstats   the nodes behind it: image, the file below it, the backing image
    /proc/PID/fd       which file on this host such a name refers to

QEMU knows files by the names it was given. They may be relative to a folder that it has left, from another mount
namespace, or refer to another file by now. So a name only counts if from here it leads to a file that QEMU has open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parallel_fixedram.core.disks import Disk, DiskImage
from parallel_fixedram.host.files.open_files import OpenFiles
from parallel_fixedram.machines.qemu.discovery import children, listed
from parallel_fixedram.machines.qemu.monitor import Monitor

FORMATS = ("raw", "qcow2")
"""Image formats that an overlay can be on."""

LOCAL = ("file", "host_device")
"""Block drivers whose images are files or block devices of this host (QEMU block/file-posix.c)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A disk that the guest can write to.

    Attributes:
        disk: its name and its images, whose contents have not been examined yet.
        nodes: node-names of its images, in the same order.
        cache: QEMU's cache settings for its image, ``direct`` and ``no-flush``.
        shared: whether other guests may write to it at the same time (share-rw).
        why_not: why it cannot be put on an overlay, as the end of a sentence; empty if it can.
    """

    disk: Disk
    nodes: tuple[str, ...]
    cache: Mapping[str, bool]
    shared: bool
    why_not: str


class _Unsuitable(Exception):
    """Why an image cannot have an overlay, as the end of a sentence."""


def find_drives(monitor: Monitor, pid: int) -> list[Drive]:
    """Every disk that a device of the guest can write to, except removable media.

    Args:
        monitor: of the QEMU.
        pid: its process.

    Raises:
        MachineError: QEMU does not list its disks, or has ended.
        HostError: we lack the right to see which files it has open.
    """
    if not (attached := _attached(monitor)):
        return []
    graphs = {str(each.get("node-name")): each for each in listed(monitor, "query-blockstats")}
    nodes = {str(each.get("node-name")): each for each in listed(monitor, "query-named-block-nodes", {"flat": True})}
    files, found = OpenFiles(pid), list[Drive]()
    for each in attached:
        match each["inserted"]:
            case {"node-name": str(name), "image": {"virtual-size": int(size)}, "cache": {**cache}}:
                try:
                    chain, why_not = _images(graphs.get(name, {}), nodes, files)
                except (AttributeError, TypeError, ValueError) as error:  # something has an unexpected type
                    raise monitor.malformed("query-blockstats", error) from error
                found.append(
                    Drive(
                        disk=Disk(
                            device=_device(each), node=name, size=size, images=tuple(image for _, image in chain)
                        ),
                        nodes=tuple(node for node, _ in chain),
                        cache={key: bool(cache.get(key)) for key in ("direct", "no-flush")},
                        shared=_is_shared(monitor, str(each["qdev"])),
                        why_not=why_not,
                    )
                )
            case _:
                raise monitor.malformed("query-block", each)
    return [_alone(each, found) for each in found]


def disk_names(monitor: Monitor) -> list[str]:
    """Names of the disks that only this guest writes to.

    Raises:
        MachineError: QEMU does not list its disks, or has ended.
    """
    return [_device(each) for each in _attached(monitor) if not _is_shared(monitor, str(each["qdev"]))]


def nodes_in_use(monitor: Monitor) -> dict[str, str]:
    """The node-name of the image of each disk that the guest can write to, by the disk's name.

    Raises:
        MachineError: QEMU does not list its disks, or has ended.
    """
    return {_device(each): str(each["inserted"].get("node-name")) for each in _attached(monitor)}


def used_nodes(monitor: Monitor) -> set[str]:
    """Names of all nodes that are in use by a device, directly or below others.

    Raises:
        MachineError: QEMU does not list them.
    """
    graphs, names = listed(monitor, "query-blockstats"), set[str]()
    while graphs:
        graph = graphs.pop()
        names.add(str(graph.get("node-name")))
        graphs += [each for each in (graph.get("parent"), graph.get("backing")) if each]
    return names


def _alone(drive: Drive, drives: Sequence[Drive]) -> Drive:
    """The same disk, marked as unsuitable if another one writes to one of its images."""
    images = {each.path for each in drive.disk.images}
    for other in drives:
        if other is not drive and images & {each.path for each in other.disk.images[:1]}:
            return replace(drive, why_not=drive.why_not or f"disk {other.disk.device!r} writes to the same image")
    return drive


def _attached(monitor: Monitor) -> list[dict[str, Any]]:
    return [each for each in listed(monitor, "query-block") if _is_written(each)]


def _is_written(drive: Mapping[str, Any]) -> bool:
    match drive:
        case {"qdev": str(), "removable": False, "inserted": {"ro": False}}:
            return True
    return False


def _device(drive: Mapping[str, Any]) -> str:
    """The disk's name: the id of its device, or of its drive, or its path among QEMU's objects."""
    path = str(drive["qdev"])
    if not path.startswith("/"):
        return path
    head, _, name = path.removeprefix("/machine/").partition("/")
    return name.partition("/")[0] if head == "peripheral" else str(drive.get("device") or path)


def _is_shared(monitor: Monitor, path: str) -> bool:
    if "share-rw" not in dict(children(monitor, path, "bool")):
        return False
    return monitor.execute("qom-get", {"path": path, "property": "share-rw"}) is True


def _images(
    graph: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]], files: OpenFiles
) -> tuple[list[tuple[str, DiskImage]], str]:
    """Nodes and images of a disk, top first, as far as we can tell; and why they cannot have an overlay, or ""."""
    images: list[tuple[str, DiskImage]] = []
    try:
        images.extend(_chain(graph, nodes, files))
        return images, "" if images else "QEMU does not list its images"
    except _Unsuitable as reason:
        return images, str(reason)


def _chain(
    graph: Mapping[str, Any] | None, nodes: Mapping[str, Mapping[str, Any]], files: OpenFiles
) -> Iterator[tuple[str, DiskImage]]:
    while graph:
        node = nodes.get(str(graph.get("node-name")), {})
        below = nodes.get(str(graph.get("parent", {}).get("node-name")), {})
        kind = str(node.get("drv"))
        if kind in LOCAL and not below:  # no format node between device and file, so the format is raw
            kind, below = "raw", node
        if kind not in FORMATS:
            raise _Unsuitable(f"its format is {kind!r}, not {' or '.join(FORMATS)}")
        if (protocol := str(below.get("drv"))) not in LOCAL:
            raise _Unsuitable(f"it is accessed by {protocol!r}, and not in a file or block device of this host")
        _refuse_parts(node)
        name = str(below.get("file"))
        if (path := files.find(name)) is None:
            raise _Unsuitable(f"{name!r} does not lead from here to the file that QEMU has open")
        yield str(graph.get("node-name")), DiskImage(path=path, format=kind)
        graph = graph.get("backing")


def _refuse_parts(node: Mapping[str, Any]) -> None:
    """Refuse an image whose contents are not simply the contents of its file."""
    if node.get("encrypted"):
        raise _Unsuitable("it is encrypted, and its overlay would not be")
    name = str(node.get("file"))
    if name.startswith("json:") and node.get("drv") == "raw":
        options = json.loads(name.removeprefix("json:"))
        if isinstance(options, dict) and {"offset", "size"} & options.keys():
            raise _Unsuitable("it is only a part of its file (offset, size)")
    specific = node.get("image", {}).get("format-specific", {}).get("data", {})
    if isinstance(specific, dict) and "data-file" in specific:
        raise _Unsuitable(f"its contents are in another file ({os.fspath(specific['data-file'])!r})")
