"""A userfaultfd got from another process, which goes on unharmed whatever happens to whoever gets it."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.injections import at_call, got, kill_us
from support.machine_code import critical_registers, restartable_loop
from support.puppet import Puppet, nothing
from support.qemu_tools import missing
from support.scarce import with_descriptors
from support.seccomp import install, only
from support.watched import PAGE, Watched, kernel_write, require_userfaultfd
from support.watchful import ALL, EINTR, UNTIL_WOKEN, Looping, MaskedPolling, Reading, Watchful, handles

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.host import linux
from parallel_fixedram.host.injection import inject, injector, ptrace, stub
from parallel_fixedram.host.injection.inject import require_right, takes_injection, userfaultfd_of
from parallel_fixedram.host.injection.injector import InjectionRefused, Thread
from parallel_fixedram.host.memory import userfaultfd
from parallel_fixedram.host.memory.userfaultfd import PageFault

KILLS = int(os.environ.get("PARALLEL_FIXEDRAM_TEST_KILLS", "200"))
"""At random moments; more of them for a soak."""

HANDED_OVER = 77
"""A number that nothing else has."""

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(autouse=True)
def needed() -> None:
    require_userfaultfd()


class TestGot:
    def test_it_is_full_and_watches_the_memory_of_the_process(self) -> None:
        """Also what the kernel writes for it."""
        with Watched(lambda: mmap.mmap(-1, 16 * PAGE)) as process:
            process.uffd.close()
            process.uffd = userfaultfd_of(process.pid)
            process.uffd.enable()
            process.register()
            process.protect()
            process.begin(kernel_write, 2)
            assert process.message() == PageFault(process.page(2))
            process.uffd.unprotect(process.page(2), PAGE)
            process.end()

    def test_where_descriptors_run_out_that_is_said(self) -> None:
        require_right(os.getpid())  # imports what it imports late
        with Looping() as process:
            process.start()
            before = process.descriptors()
            for spare in itertools.count():
                try:
                    with_descriptors(spare, lambda: userfaultfd_of(process.pid)).close()
                    break
                except HostError as error:
                    assert "too many open files" in str(error), spare  # noqa: PT017 - the last try raises nothing
            assert spare > 2
            process.check()
            assert process.descriptors() == before

    @pytest.mark.parametrize("kind", ALL)
    def test_nothing_is_other_than_it_was(self, kind: type[Watchful]) -> None:
        with kind() as process:
            for _ in range(2):
                process.start()
                before = process.descriptors()
                assert got(process.pid)
                assert got(process.pid)
                process.check()
                assert process.descriptors() == before

    def test_the_code_is_gone_afterwards(self) -> None:
        with Looping() as process:
            process.start()
            place = inject._free_places(process.pid)[0]
            assert got(process.pid)
            assert not any(memory_of(process.pid, place))
            process.check()


def memory_of(pid: int, address: int) -> bytes:
    into = bytearray(stub.LENGTH)
    assert linux.process_vm_readv(pid, address, memoryview(into)) == stub.LENGTH
    return bytes(into)


@pytest.mark.slow
class TestKilled:
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_at_every_call_of_ptrace_the_process_goes_on_as_it_was(self, when: str) -> None:
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(kind()) for kind in UNTIL_WOKEN]
            for number in itertools.count():
                process = processes[number % len(processes)]
                process.start()
                descriptors = process.descriptors()
                with at_call(number, **{when: kill_us}):
                    done = got(process.pid)
                process.check()
                assert process.descriptors() == descriptors
                if done:
                    break
            assert number > 2 * stub.LENGTH // 8, "every word of the stub is a call, twice"

    def test_at_any_moment_the_process_goes_on_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen, limit = random.Random(1), 0.001

        class Mortal(Thread):
            def call(self, *arguments: object, **more: object) -> int:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, chosen.uniform(1e-6, limit))
                return super().call(*arguments, **more)

        monkeypatch.setattr(inject, "Thread", Mortal)
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(kind()) for kind in UNTIL_WOKEN]
            for number in range(KILLS):
                chosen.seed(number)
                process = processes[number % len(processes)]
                process.start()
                descriptors = process.descriptors()
                limit *= (
                    0.8 if got(process.pid) else 1.2
                )  # so that about half of them are killed, however slow this machine
                process.check()
                assert process.descriptors() == descriptors

    def test_code_that_is_left_behind_is_never_written_over(self) -> None:
        with Looping() as process:
            process.start()
            place = inject._free_places(process.pid)[0]
            with at_call(0, of=ptrace._POKEUSER, after=kill_us):
                assert not got(process.pid)
            left = memory_of(process.pid, place)
            assert any(left)
            assert got(process.pid)
            assert memory_of(process.pid, place) == left
            process.check()


class TestSignals:
    """One that comes while the process is stopped, or in the stub, does what it would have done without."""

    @pytest.mark.parametrize("killed", [False, True])
    def test_none_that_a_system_call_waits_for_is_lost(self, killed: bool) -> None:
        with MaskedPolling(first=handles(signal.SIGUSR1, blocked=True)) as process:

            def send() -> None:
                os.kill(process.pid, signal.SIGUSR1)
                if killed:
                    kill_us()

            for number in itertools.count():
                process.start()
                with at_call(number, but=ptrace._POKEDATA, before=send) as reached:
                    assert got(process.pid) or killed
                if not reached():
                    process.check()
                    break
                process.returned(EINTR)

    def test_a_call_that_starts_again_after_a_signal_does_so(self) -> None:
        with Reading(first=handles(signal.SIGUSR1, restarts=True)) as process:

            def send() -> None:
                os.kill(process.pid, signal.SIGUSR1)

            for number in itertools.count():
                process.start()
                with at_call(number, but=ptrace._POKEDATA, before=send) as reached:
                    assert got(process.pid)
                process.check()
                if not reached():
                    break

    @pytest.mark.slow
    def test_an_alarm_every_third_of_a_millisecond_changes_nothing(self) -> None:
        def alarms() -> None:
            handles(signal.SIGALRM)()
            signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)

        with Looping(first=alarms) as process:
            process.start()
            before = process.descriptors()
            for _ in range(20):
                assert got(process.pid)
            process.check()
            assert process.descriptors() == before

    def test_code_that_a_handler_may_come_back_to_stays(self) -> None:
        """A signal came while the stub ran, so that nobody can say when it is through."""
        with Looping(first=handles(signal.SIGUSR1)) as process:
            process.start()
            place = inject._free_places(process.pid)[0]
            with at_call(0, of=ptrace._POKEUSER, after=lambda: os.kill(process.pid, signal.SIGUSR1)):
                assert got(process.pid)
            assert any(memory_of(process.pid, place))
            process.check()


class TestCriticalSections:
    """Code that has to run in one go (rseq) is not left in the midst of it."""

    def test_a_thread_in_one_is_waited_for(self) -> None:
        code, waited = restartable_loop(), mmap.mmap(-1, 1)
        try:
            registers = critical_registers(code)
        except ValueError:
            pytest.skip("this C library has no rseq")

        def end_it() -> None:
            waited[0] = 1
            code.go()

        with Watchful(code, registers, nothing) as process:
            process.start()
            for _ in range(20):
                with at_call(0, of=ptrace._CONT, before=end_it):
                    assert got(process.pid)
                if waited[0]:
                    break
            assert waited[0]
            process.ended(rcx=1)


class TestRefused:
    def refused(self, pid: int, reason: str) -> None:
        said = takes_injection(pid)
        assert said is not None
        assert reason in said
        with pytest.raises(InjectionRefused) as caught:
            userfaultfd_of(pid)
        assert reason in caught.value.message

    def test_a_process_that_is_traced_already(self) -> None:
        with Looping() as process, Puppet(ptrace.seize) as tracer:
            process.start()
            tracer.call(process.pid)
            self.refused(process.pid, f"process {process.pid} is traced by {tracer.pid}")
            process.check()

    def test_one_that_comes_to_be_traced_meanwhile(self) -> None:
        with Looping() as process, Puppet(ptrace.seize) as tracer:
            process.start()
            with (
                at_call(0, before=lambda: tracer.call(process.pid)),
                pytest.raises(InjectionRefused, match=f"process {process.pid} is traced by {tracer.pid}"),
            ):
                userfaultfd_of(process.pid)
            process.check()

    def test_one_that_a_signal_has_stopped_stays_so(self) -> None:
        with Reading() as process:
            process.start()
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            self.refused(process.pid, "is stopped by a signal")
            assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
            os.kill(process.pid, signal.SIGCONT)
            process.check()

    @pytest.mark.parametrize("request_", [ptrace._SEIZE, ptrace._INTERRUPT, ptrace._GETREGS, ptrace._POKEUSER])
    def test_one_that_a_signal_stops_meanwhile_is_left_stopped_and_goes_on_later(self, request_: int) -> None:
        with Reading() as process:
            process.start()
            with (
                at_call(0, of=request_, before=lambda: os.kill(process.pid, signal.SIGSTOP)),
                pytest.raises(HostError, match="was stopped by SIGSTOP"),
            ):
                userfaultfd_of(process.pid)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            os.kill(process.pid, signal.SIGCONT)
            process.check()

    def test_one_that_does_not_stop(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It waits, deaf to everything, for what it has started to open a file: a pipe."""
        monkeypatch.setattr(inject, "_SECONDS", 0.05)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)

        def start() -> None:
            actions = [(os.POSIX_SPAWN_OPEN, 0, os.fspath(pipe), os.O_RDONLY, 0)]
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions), 0)

        with Puppet(start) as process:
            process.begin()
            while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "D":
                os.sched_yield()
            with pytest.raises(HostError, match=f"process {process.pid} does not stop"):
                userfaultfd_of(process.pid)
            os.close(os.open(pipe, os.O_WRONLY))
            process.end()

    def test_one_that_has_ended(self) -> None:
        with Looping() as process:
            os.kill(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            for ask in (takes_injection, userfaultfd_of):
                with pytest.raises(MachineError, match=f"process {process.pid} has ended"):
                    ask(process.pid)

    @pytest.mark.parametrize("request_", [ptrace._SEIZE, ptrace._GETREGS, ptrace._POKEUSER, ptrace._SYSCALL])
    def test_one_that_ends_meanwhile(self, request_: int) -> None:
        with Looping() as process:
            process.start()
            with (
                at_call(0, of=request_, before=lambda: os.kill(process.pid, signal.SIGKILL)),
                pytest.raises(MachineError, match=f"process {process.pid} has ended"),
            ):
                userfaultfd_of(process.pid)

    def test_a_host_of_another_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inject.platform, "machine", lambda: "aarch64")
        with Puppet(nothing) as process:
            self.refused(process.pid, "this host is aarch64")

    def test_a_kernel_that_cannot_protect_memory_as_it_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lacking = (userfaultfd.Feature.WP_UNPOPULATED,)
        monkeypatch.setattr(userfaultfd, "missing_features", lambda: lacking)
        with Puppet(nothing) as process:
            self.refused(process.pid, "this kernel has no UFFD_FEATURE_WP_UNPOPULATED")

    def test_one_without_room_for_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Looping() as process:
            process.start()
            with monkeypatch.context() as patch:
                patch.setattr(inject, "_free_places", lambda _: [process.code.address])
                with pytest.raises(InjectionRefused, match=f"has no room for {stub.LENGTH} bytes of code"):
                    userfaultfd_of(process.pid)
                patch.setattr(inject, "_free_places", lambda _: [])
                self.refused(process.pid, "has no 64-bit x86 code with free room after it")
            process.check()

    def test_one_that_runs_32_bit_code_at_that_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        registers = ptrace.registers
        monkeypatch.setattr(ptrace, "registers", lambda tid: registers(tid)._replace(cs=0x23))
        with Looping() as process:
            process.start()
            with pytest.raises(InjectionRefused, match="does not run 64-bit code"):
                userfaultfd_of(process.pid)
            process.check()

    @ROOT
    def test_somebody_elses(self) -> None:
        def as_nobody(pid: int) -> str | None:
            os.setresuid(65534, 65534, 65534)
            return takes_injection(pid)

        with Puppet(as_nobody) as nobody:
            said = nobody.call(os.getpid())
        assert f"process {os.getpid()} may not be traced: permission denied: it takes CAP_SYS_PTRACE" in said


class TestFiltered:
    @pytest.mark.parametrize(("number", "action"), [(323, 0x80000000), (323, 0x50001), (3, 0x80000000), (3, 0x30000)])
    def test_a_filter_that_does_not_allow_it_is_not_tried_out(self, number: int, action: int) -> None:
        def first() -> None:
            install(only(16, 0x50001))
            install(only(number, action))

        with Looping(first=first) as process:
            process.start()
            with pytest.raises(InjectionRefused, match=f"a seccomp filter of process {process.pid} does not allow it"):
                userfaultfd_of(process.pid)
            process.check()

    def test_strict_mode_is_refused_whatever_is_known(self) -> None:
        """A process that it would kill, and so one whose mode is only said to be that."""
        with Looping(first=lambda: install(only(16, 0x50001))) as process, pytest.MonkeyPatch.context() as patch:
            process.start()
            patch.setattr(injector, "_STRICT", "2")
            with pytest.raises(InjectionRefused, match="strict mode"):
                userfaultfd_of(process.pid, filters_are_known=True)
            process.check()

    def test_filters_that_allow_it_are_no_obstacle(self) -> None:
        with Looping(first=lambda: install(only(16, 0x50001))) as process:
            process.start()
            assert takes_injection(process.pid) is None
            assert got(process.pid)
            process.check()

    def test_one_that_cannot_be_read_is_refused_unless_it_is_known(self) -> None:
        """Who has a filter may not read those of others."""

        def ask(pid: int, filters_are_known: bool) -> str | None:
            if said := takes_injection(pid, filters_are_known=filters_are_known):
                return said
            userfaultfd_of(pid, filters_are_known=filters_are_known).close()
            return None

        with (
            Looping(first=lambda: install(only(16, 0x50001))) as process,
            Puppet(ask, first=lambda: install(only(1000, 0x50001))) as other,
        ):
            process.start()
            assert other.call(process.pid, False) == (
                f"process {process.pid} has a seccomp filter, which takes CAP_SYS_ADMIN to read"
            )
            assert other.call(process.pid, True) is None
            process.check()


class TestHandedOver:
    """A process that may not have a userfaultfd is handed the device to ask."""

    @pytest.fixture
    def process(self) -> Iterator[Looping]:
        if os.geteuid() or Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() != "0\n":
            pytest.skip("this takes root, and vm.unprivileged_userfaultfd to be 0")
        if not os.path.exists(userfaultfd.DEVICE):
            missing(f"there is no {userfaultfd.DEVICE}: it takes Linux 6.1")

        def become_nobody() -> None:
            os.dup2(os.open(userfaultfd.DEVICE, os.O_RDWR), HANDED_OVER)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)

        with Looping(first=become_nobody) as process:
            process.start()
            before = process.descriptors()
            yield process
            process.check()
            assert process.descriptors() == before

    def test_then_it_is_as_full_as_any(self, process: Looping) -> None:
        devices = []

        def hand_over(device: int) -> int:
            devices.append(os.readlink(f"/proc/self/fd/{device}"))
            return HANDED_OVER

        found = userfaultfd_of(process.pid, hand_over=hand_over)
        found.enable()
        found.close()
        assert devices == [userfaultfd.DEVICE]

    def test_without_it_the_right_is_named(self, process: Looping) -> None:
        with pytest.raises(HostError, match="may not have a full userfaultfd: operation not permitted") as caught:
            userfaultfd_of(process.pid)
        assert "CAP_SYS_PTRACE" in caught.value.hint

    def test_a_number_that_means_something_else_there_is_not_used(self, process: Looping) -> None:
        with pytest.raises(HostError, match="has no /dev/userfaultfd as its descriptor 0"):
            userfaultfd_of(process.pid, hand_over=lambda _: 0)
        with pytest.raises(HostError, match="has no /dev/userfaultfd as its descriptor 999"):
            userfaultfd_of(process.pid, hand_over=lambda _: 999)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_lacks_the_right_is_known_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may have a userfaultfd; somebody else only if the host lets everybody, or is handed the device."""

    def refuse() -> int:
        raise HostError("no device")

    monkeypatch.setattr(userfaultfd, "open_device", refuse)
    lets_everybody = [False]
    monkeypatch.setattr(userfaultfd, "is_for_everybody", lambda: lets_everybody[0])
    require_right(os.getpid())
    with Puppet(os.getpid, first=lambda: os.setresuid(65534, 65534, 65534)) as other:
        other.call()
        with pytest.raises(HostError, match="no device"):
            require_right(other.pid)
        lets_everybody[0] = True
        require_right(other.pid)
