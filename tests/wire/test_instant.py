"""What the events of the time in which a guest was held say about what was read of it."""

import pytest

from parallel_fixedram.machines.qemu.instant import HARMLESS, Held, look_back


def event(name: str, **data: object) -> dict[str, object]:
    return {"event": name, "timestamp": {"seconds": 1, "microseconds": 0}, "data": data}


def test_a_guest_that_was_left_alone_was_read_at_one_instant_and_goes_on() -> None:
    assert look_back([], "paused", ours=True) == Held(ours=True)
    assert look_back([], "paused", ours=False) == Held(ours=False)


@pytest.mark.parametrize("status", ["shutdown", "guest-panicked", "postmigrate", "prelaunch", "io-error", "watchdog"])
def test_one_that_stood_still_for_another_reason_stays_so(status: str) -> None:
    assert look_back([], status, ours=False) == Held(ours=False)


@pytest.mark.parametrize("events", [[event("RESUME")], []])
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("status", ["running", "suspended"])
def test_one_that_runs_again_is_somebody_elses(events: list[dict[str, object]], ours: bool, status: str) -> None:
    """The event may be late, or the state, but not both."""
    assert look_back(events, status, ours=ours) == Held(torn="somebody let the guest go on", ours=False)


def test_one_that_was_let_go_on_and_stopped_again_is_torn_and_stays_stopped() -> None:
    held = look_back([event("RESUME"), event("STOP")], "paused", ours=True)
    assert held == Held(torn="somebody let the guest go on", ours=False)


def test_a_reset_tears_it_and_it_goes_on_from_there() -> None:
    held = look_back([event("RESET", guest=False, reason="host-qmp-system-reset")], "prelaunch", ours=True)
    assert held == Held(torn="somebody reset the guest", ours=True)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (event("SHUTDOWN", guest=True, reason="guest-shutdown"), "the guest was shut down (guest-shutdown)"),
        (event("SHUTDOWN"), "the guest was shut down (no reason given)"),
        *((event("GUEST_PANICKED", action=action), "the guest panicked") for action in ("pause", "poweroff")),
        *(
            (event("WATCHDOG", action=action), "the guest's watchdog expired")
            for action in ("pause", "poweroff", "shutdown")
        ),
    ],
)
def test_a_guest_that_came_to_its_end_stays_as_it_is(told: dict[str, object], said: str) -> None:
    assert look_back([told], "paused", ours=True) == Held(torn=said, ours=False, over=True)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (event("GUEST_PANICKED", action="run"), "QEMU reported GUEST_PANICKED"),
        (event("WATCHDOG", action="none"), "QEMU reported WATCHDOG"),
        (event("DEVICE_DELETED", device="nic"), "QEMU reported DEVICE_DELETED"),
        (event("MEMORY_DEVICE_SIZE_CHANGE"), "QEMU reported MEMORY_DEVICE_SIZE_CHANGE"),
        (event("MEMORY_FAILURE"), "QEMU reported MEMORY_FAILURE"),
        (event("MIGRATION", status="setup"), "QEMU reported MIGRATION"),
        (event("JOB_STATUS_CHANGE", id="load", status="created"), "somebody started a job"),
        (event("SOMETHING_NEW"), "QEMU reported SOMETHING_NEW"),
    ],
)
def test_what_may_have_changed_memory_or_devices_tears_it(told: dict[str, object], said: str) -> None:
    assert look_back([told], "paused", ours=True) == Held(torn=said, ours=True)


@pytest.mark.parametrize("status", ["running", "paused", "standby", "ready", "concluded", "null"])
def test_a_job_that_was_there_before_tears_nothing(status: str) -> None:
    """A stop itself has jobs pause and go on."""
    assert look_back([event("JOB_STATUS_CHANGE", id="mirror", status=status)], "paused", ours=True) == Held(ours=True)


@pytest.mark.parametrize("status", ["finish-migrate", "postmigrate", "save-vm", "restore-vm", "colo", "io-error"])
def test_a_state_that_our_stop_does_not_lead_to_is_not_ours_to_end(status: str) -> None:
    held = look_back([event("MIGRATION", status="completed")], status, ours=True)
    assert held == Held(torn=f"the guest's run state became {status!r}", ours=False, over=True)


@pytest.mark.parametrize("status", ["finish-migrate", "save-vm", "restore-vm", "inmigrate"])
def test_somebody_elses_operation_tears_also_what_we_did_not_stop(status: str) -> None:
    assert look_back([], status, ours=False).over


def test_events_that_got_lost_might_have_been_any() -> None:
    assert look_back([], "paused", ours=True, complete=False).torn == "more events arrived than could be kept"


def test_nothing_that_stops_starts_or_replaces_a_guest_counts_as_harmless() -> None:
    known = {"RESUME", "STOP", "RESET", "SHUTDOWN", "GUEST_PANICKED", "WATCHDOG", "MIGRATION", "WAKEUP", "COLO_EXIT"}
    assert not HARMLESS & (known | {"DEVICE_DELETED", "MEMORY_DEVICE_SIZE_CHANGE", "MEMORY_FAILURE"})
