"""The inner loops, one by one: `make bench-micro`. No assertion here is about time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallel_fixedram import RamFile, open_image, open_ram, save
from parallel_fixedram.core.bitmap import PageBitmap, runs_of_ones
from parallel_fixedram.core.cost import Work
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.shards import WINDOW_PAGES, plan_shards
from parallel_fixedram.core.units import GIB, KIB, MIB
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.window import merge_runs, nonzero_pages
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.direct_channel import DirectChannel
from parallel_fixedram.host.memory.anonymous import anonymous_memory

Benchmark = Any
PAGES = 16 * MIB // 4096


@pytest.fixture(scope="module")
def zero_pages() -> np.ndarray:
    return np.frombuffer(anonymous_memory(PAGES * 4096), np.uint64).reshape(PAGES, 512)  # aligned


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FileChannel]:
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR, 0o600)
    yield FileChannel(fd, "file")
    os.close(fd)


def windows(pages: np.ndarray) -> Iterator[np.ndarray]:
    return (pages[first : first + WINDOW_PAGES] for first in range(0, len(pages), WINDOW_PAGES))


def test_zero_scan_of_16_mib(benchmark: Benchmark, zero_pages: np.ndarray) -> None:
    benchmark(lambda: [nonzero_pages(window) for window in windows(zero_pages)])


def test_digests_of_16_mib(benchmark: Benchmark, zero_pages: np.ndarray) -> None:
    ones = np.ones(WINDOW_PAGES, np.uint8)
    benchmark(lambda: [page_digests(window, ones) for window in windows(zero_pages)])


def test_hashes_of_16_mib(benchmark: Benchmark, zero_pages: np.ndarray) -> None:
    hashes, every = Hashes([]), np.arange(WINDOW_PAGES)
    benchmark(lambda: [hashes.hashes_of(window, every) for window in windows(zero_pages)])


def test_unpacking_and_packing_the_bits_of_1_gib(benchmark: Benchmark) -> None:
    bitmap = PageBitmap(GIB // 4096)
    benchmark(lambda: bitmap.put_bits(0, bitmap.bits(0, len(bitmap.words))))


@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_work_of_1_gib(benchmark: Benchmark, fraction: float) -> None:
    bitmap = PageBitmap(GIB // 4096)
    bitmap.put_bits(0, (np.random.default_rng(0).random(bitmap.pages) < fraction).astype(np.uint8))
    benchmark(lambda: Work.of([bitmap], 4096).merged(8, WINDOW_PAGES))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 1.0])
def test_runs_of_a_window(benchmark: Benchmark, fraction: float) -> None:
    bits = (np.random.default_rng(0).random(WINDOW_PAGES) < fraction).astype(np.uint8)
    benchmark(lambda: merge_runs(runs_of_ones(bits), 16))


@pytest.mark.parametrize("size", [GIB, 1024 * GIB], ids=["1 GiB", "1 TiB"])
def test_plan_of_one_percent_dirty(benchmark: Benchmark, size: int) -> None:
    bitmap = PageBitmap(size // 4096)
    bitmap.set_pages(np.random.default_rng(0).integers(0, bitmap.pages, bitmap.pages // 100))
    assert sum(shard.pages for shard in benchmark(lambda: plan_shards([bitmap], workers=4))) == bitmap.count()


def test_layout_of_64_blocks(benchmark: Benchmark) -> None:
    blocks = [RAMBlock(idstr=f"block{number}", used_length=MIB) for number in range(64)]
    benchmark(lambda: FileLayout.plan("machine", blocks).head_pieces())


def test_opening_a_file_of_64_blocks(benchmark: Benchmark, tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(64 * 4096))
    files = [RamFile(idstr=f"block{n}", path=str(ram), offset=n * 4096, length=4096) for n in range(64)]
    with open_ram(files) as machine:
        save(machine, str(tmp_path / "file"))
    benchmark(lambda: open_image(str(tmp_path / "file")).close())


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_direct_rewrite_of_16_mib_one_page_of_some(
    benchmark: Benchmark, file: FileChannel, zero_pages: np.ndarray, stride: int
) -> None:
    os.ftruncate(file.fd, zero_pages.nbytes)
    channel = DirectChannel(os.open(f"/proc/self/fd/{file.fd}", os.O_RDWR | os.O_DIRECT), "file")
    firsts = np.arange(0, WINDOW_PAGES, stride)
    runs = np.array([(0, WINDOW_PAGES)]) if stride == 1 else np.stack((firsts, np.ones_like(firsts)), axis=1)
    readable = np.ones(WINDOW_PAGES, np.uint8)

    def rewrite() -> None:
        for first, window in zip(range(0, PAGES, WINDOW_PAGES), windows(zero_pages), strict=True):
            channel.write_runs(first * 4096, window, runs, readable)
        channel.settle()

    benchmark(rewrite)
    os.close(channel.fd)


@pytest.mark.parametrize("piece", [4 * KIB, 64 * KIB, MIB, 4 * MIB], ids=["4 KiB", "64 KiB", "1 MiB", "4 MiB"])
def test_rewrite_of_16_mib_in_pieces(benchmark: Benchmark, file: FileChannel, piece: int) -> None:
    data = memoryview(bytes(piece))
    benchmark(lambda: [file.write(offset, data) for offset in range(0, 16 * MIB, piece)])
