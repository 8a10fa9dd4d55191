"""The README's commands for a QEMU guest, run as they stand."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    block = re.search(r"<!-- run as they stand.*?```console\n(.*?)```", README.read_text(), re.DOTALL)
    assert block
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def test_five_commands_lead_from_a_command_line_to_a_saved_checked_and_cloned_guest(qemu_binary, tmp_path):
    start, *ours = commands()
    assert len(ours) == 4
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with ExitStack() as stack:
        qemu = subprocess.Popen(shlex.split(start.removesuffix(" &")), cwd=tmp_path, stderr=subprocess.PIPE)
        stack.callback(qemu.wait)
        stack.callback(qemu.kill)
        stack.callback(qemu.stderr.close)
        wait_for_socket(tmp_path / "vm.qmp", qemu)
        said = []
        for command in ours:
            done = subprocess.run(
                shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            for pid in re.findall(r"pid (\d+)", done.stdout):
                stack.callback(os.kill, int(pid), signal.SIGKILL)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
    assert "guest stopped for" in said[0]
    assert said[2].startswith("guest 0: running")
    assert len(re.findall(r"^guest \d: running", said[3], re.MULTILINE)) == 4


def wait_for_socket(path: Path, qemu: subprocess.Popen[bytes]) -> None:
    """Until QEMU answers there; it makes its socket while it starts."""
    while qemu.poll() is None:
        probe = [sys.executable, "-m", "parallel_fixedram", "inspect", "--qmp", str(path), "--json"]
        done = subprocess.run(probe, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            assert json.loads(done.stdout)["status"] == "running"
            return
        assert "no such file" in done.stderr or "connection refused" in done.stderr, done.stderr
    raise AssertionError(qemu.stderr.read())
