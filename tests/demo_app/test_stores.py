"""What is kept and counted, without HTTP and without Qt."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from demo_app import meter, transfers
from demo_app.device import build_name, open_device
from demo_app.partfile import PartFile
from demo_app.transfers import Interrupted, State, Transfer


def build_transfer() -> Transfer:
    return Transfer("download", "title", "Ben", b"f" * 32)


# --- device


def test_a_device_is_the_same_the_next_time(tmp_path):
    """The identity is made once; the control is another folder."""
    first = open_device(tmp_path / "a", "Anna")
    assert open_device(tmp_path / "a", "Anna").identity == first.identity
    assert open_device(tmp_path / "b", "Anna").identity != first.identity


def test_the_private_key_is_the_users_own(tmp_path):
    """The file with the key has mode 0600."""
    device = open_device(tmp_path, "Anna")
    assert stat.S_IMODE(os.stat(device.identity.path).st_mode) == 0o600


def test_a_device_is_its_own_peer_but_not_among_the_others(tmp_path):
    """The browser's proxy gets in by this; the list of devices does not show it."""
    device = open_device(tmp_path, "Anna")
    assert device.find(device.identity.fingerprint) is not None
    assert device.others == []


def test_a_new_name_is_kept(tmp_path):
    """Who renames the device is found under the new name."""
    open_device(tmp_path, "Anna")
    device = open_device(tmp_path, "Anna's other")
    peer = device.find(device.identity.fingerprint)
    assert peer is not None
    assert peer.name == "Anna's other"


def test_the_other_devices_are_sorted_by_name(tmp_path):
    """Upper and lower case make no difference."""
    device = open_device(tmp_path / "a", "Anna")
    for name in ("zoe", "Ben"):
        other = open_device(tmp_path / name, name)
        device.store.add(other.identity.build_peer(name))
    assert [peer.name for peer in device.others] == ["Ben", "zoe"]


def test_there_is_a_name_without_anybody_giving_one():
    """It can be told to others."""
    assert 0 < len(build_name()) <= 64
    assert build_name().isprintable()


# --- part files


def test_a_part_file_has_no_name_before_it_is_whole(tmp_path):
    """A process that dies leaves nothing; afterwards all of it is there."""
    part = PartFile(tmp_path / "deep" / "file.bin")
    part.file.write(b"half")
    assert list((tmp_path / "deep").iterdir()) == []
    assert part.size == 4
    part.file.write(b" and half")
    assert part.publish() == tmp_path / "deep" / "file.bin"
    assert (tmp_path / "deep" / "file.bin").read_bytes() == b"half and half"


def test_a_part_file_replaces_nothing(tmp_path):
    """What has the name already stays, and the new one gets a number."""
    names = []
    for text in (b"1", b"2", b"3"):
        with PartFile(tmp_path / "a.txt") as part:
            part.file.write(text)
            names.append(part.publish().name)
    assert names == ["a.txt", "a (2).txt", "a (3).txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"1"


def test_a_closed_part_file_is_gone(tmp_path):
    """Nothing is left without `publish`."""
    with PartFile(tmp_path / "a.txt") as part:
        part.file.write(b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_part_file_works_where_files_need_names(tmp_path, monkeypatch):
    """Where the system has no nameless files it is a hidden one, and is removed."""
    monkeypatch.delattr(os, "O_TMPFILE")
    with PartFile(tmp_path / "a.txt") as part:
        part.file.write(b"1")
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
        part.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_part_file_begins_anew(tmp_path):
    """What was there is forgotten."""
    with PartFile(tmp_path / "a.txt") as part:
        part.file.write(b"wrong")
        part.restart()
        part.file.write(b"new")
        assert part.publish().read_bytes() == b"new"


# --- speeds


def test_the_speed_is_that_of_the_last_seconds():
    """What was long ago does not count; a meter without points says 0."""
    speed = meter.Meter(seconds=3.0)
    assert speed.speed == 0.0
    for second in range(10):
        speed.note(second, 1000 * second if second < 5 else 5000)
    assert speed.speed == 0.0
    speed.note(10, 8000)
    assert speed.speed == pytest.approx(1000)
    speed.clear()
    assert speed.speed == 0.0


def test_a_history_counts_what_grew():
    """A total that falls is a new beginning, not a negative rate."""
    history = meter.History(("sent",), 4, 0.5)
    for total in (100, 200, 50, 50):
        history.add(sent=total)
    assert list(history.rates["sent"]) == [0.0, 200.0, 100.0, 0.0]
    assert history.top == 200.0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "1000 kB"),
        (1_500_000, "1.5 MB"),
        (64 * 2**20, "67.1 MB"),
        (2**30, "1.1 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_are_written_for_people(size, text):
    """In powers of 1000, with one digit where it matters."""
    assert meter.format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (179, "3 min"), (7500, "2 h 5 min")],
)
def test_times_are_written_for_people(seconds, text):
    """No more precise than anybody can know."""
    assert meter.format_seconds(seconds) == text


# --- transfers


def test_a_wish_stops_the_thread_that_moves():
    """The next byte that comes through is the last; without a wish it goes on."""
    transfer = build_transfer()
    transfer.move(5)
    transfer.interrupt(State.PAUSED)
    with pytest.raises(Interrupted):
        transfer.move(5)
    assert transfer.done == 10


def test_a_wish_breaks_off_what_the_thread_waits_for():
    """`interrupt` calls what `hold` was given, from its own thread."""
    transfer = build_transfer()
    called = threading.Event()
    transfer.hold(called.set)
    transfer.interrupt(State.CANCELLED)
    assert called.is_set()


def test_who_comes_with_a_connection_too_late_is_told():
    """A wish from before is not forgotten."""
    transfer = build_transfer()
    transfer.interrupt(State.CANCELLED)
    with pytest.raises(Interrupted):
        transfer.hold(lambda: None)


def test_a_transfer_tells_how_far_it_is():
    """The fraction and the time left, and that nothing is known at first."""
    transfer = build_transfer()
    assert transfer.fraction is None
    assert transfer.seconds_left is None
    transfer.total, transfer.done = 200, 50
    assert transfer.fraction == 0.25
    transfer.meter.note(1.0, 0)
    transfer.meter.note(2.0, 50)
    assert transfer.seconds_left == pytest.approx(3.0)
    transfer.state = State.DONE
    assert transfer.fraction == 1.0


def test_transfers_are_told_apart_by_numbers():
    """Two with the same title are two."""
    assert build_transfer().number != build_transfer().number
    assert build_transfer() != build_transfer()


def test_no_state_is_both_busy_and_final():
    """Every state but two is one or the other."""
    assert not transfers.BUSY & transfers.FINAL
    assert set(State) - transfers.BUSY - transfers.FINAL == {State.PAUSED, State.FAILED}


def test_a_part_file_needs_no_folder_before(tmp_path: Path):
    """The folders on the way are made."""
    with PartFile(tmp_path / "x" / "y" / "z") as part:
        assert part.publish() == tmp_path / "x" / "y" / "z"
