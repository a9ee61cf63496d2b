"""Downloads and uploads, without Qt: whole, broken off, gone on with, refused."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from degu.errors import PeerError
from degu.files import PART_SUFFIX
from degu.server import SSLServer
from demo_app import share
from demo_app.download import Download
from demo_app.entry import ROOT, Entry
from demo_app.remote import Remote, RemoteError, build_uri, is_broken_line, parse_entry
from demo_app.transfers import Interrupted, State, Transfer
from demo_app.upload import Upload
from tests.demo_app.conftest import befriend

SIZE = 8_000_000


@pytest.fixture
def server(anna, folder, monkeypatch):
    """Anna's share, in a thread."""
    monkeypatch.setattr(share, "send_event", lambda event: None)
    app = share.build_drop_app("name", str(folder), anna.store.directory, True)
    config = anna.store.server_sslconfig(anna.identity)
    server = SSLServer(config, ("::1", 0, 0, 0), app)
    with server.running(grace=0.2):
        yield server


@pytest.fixture
def remote(anna, ben, server) -> Remote:
    """Ben's way to it."""
    befriend(anna, ben, server.address)
    return Remote(ben, ben.others[0])


def build_transfer(kind: str = "download") -> Transfer:
    return Transfer(kind, "title", "Anna", b"f" * 32)


def digests(folder) -> dict[str, str]:
    """The digest of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def break_after(transfer: Transfer, most: int) -> None:
    """Have the line break when so many bytes came through."""
    move, start = transfer.move, transfer.done

    def counted(count: int) -> None:
        was_broken = transfer.done - start >= most
        move(count)
        if was_broken:  # what the kernel has of it already could be read on
            raise PeerError("the line broke")
        if transfer.done - start >= most and transfer.close is not None:
            transfer.close()

    transfer.move = counted  # type: ignore[method-assign]


def test_a_folder_is_listed(remote):
    """Folders first, names as they are."""
    entries = remote.list_folder()
    assert [(entry.name, entry.is_folder) for entry in entries] == [
        ("inner", True),
        ("empty", False),
        ("hello.txt", False),
    ]
    assert remote.list_folder(entries[0].uri + "most/")[0].name == "naïve name?.bin"


def test_what_is_not_there_is_said(remote):
    """A folder that went away is an error with a status."""
    with pytest.raises(RemoteError, match="not there"):
        remote.list_folder(ROOT + "gone/")


def test_a_device_without_an_address_is_said(ben, anna):
    """And so is one that does not answer."""
    befriend(anna, ben)
    with pytest.raises(ConnectionError, match="no address"):
        Remote(ben, ben.others[0]).connect()


def test_the_address_that_answers_is_tried_first_the_next_time(anna, ben, server):
    """A dead address costs time only once."""
    befriend(anna, ben, server.address)
    remote = Remote(ben, ben.others[0])
    remote.addresses.insert(0, ("127.0.0.1", 1))
    remote.connect().close()
    assert remote.addresses[0][1] == server.address[1]


@pytest.mark.parametrize(
    "href", ["./..", "./.", "./", "./a%2Fb", "./a%00", "./%2e%2e/"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(href):
    """Whatever a device says, it is written where the user wanted."""
    with pytest.raises(RemoteError, match="can't be"):
        parse_entry(ROOT, {"href": href, "type": "file", "size": 1})


def test_the_uri_of_any_name_can_be_built():
    """What means something in a URI is encoded."""
    assert build_uri(ROOT, ["a b", "50%?#", "ü"]) == "/files/a%20b/50%25%3F%23/%C3%BC"


def test_a_whole_folder_comes_over(remote, folder, tmp_path):
    """Every file with its name, its place and its bytes."""
    transfer = build_transfer()
    Download(transfer, remote, remote.list_folder(), tmp_path / "got").run()
    assert digests(tmp_path / "got") == digests(folder)
    assert transfer.done == transfer.total
    assert (transfer.files, transfer.files_done) == (3, 3)


def test_a_download_goes_on_where_it_broke(remote, folder, tmp_path):
    """Only what was missing is sent again, and the digest is right."""
    (folder / "big").write_bytes(os.urandom(SIZE))
    transfer = build_transfer()
    entries = [entry for entry in remote.list_folder() if entry.name == "big"]
    job = Download(transfer, remote, entries, tmp_path / "got")
    break_after(transfer, SIZE // 2)
    with pytest.raises(PeerError):
        job.run()
    del transfer.move
    reached = transfer.done
    assert SIZE // 2 <= reached < SIZE
    assert list((tmp_path / "got").iterdir()) == []
    job.run()
    assert transfer.done == SIZE
    assert digests(tmp_path / "got")["big"] == digests(folder)["big"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(remote, folder, tmp_path):
    """Two halves of different files never make one."""
    (folder / "big").write_bytes(os.urandom(SIZE))
    transfer = build_transfer()
    entries = [entry for entry in remote.list_folder() if entry.name == "big"]
    job = Download(transfer, remote, entries, tmp_path / "got")
    break_after(transfer, SIZE // 2)
    with pytest.raises(PeerError):
        job.run()
    del transfer.move
    (folder / "big").write_bytes(os.urandom(SIZE))
    job.run()
    assert digests(tmp_path / "got")["big"] == digests(folder)["big"]


def test_a_download_that_is_given_up_leaves_nothing(remote, folder, tmp_path):
    """Neither the file nor a part of it."""
    (folder / "big").write_bytes(os.urandom(SIZE))
    transfer = build_transfer()
    entries = [entry for entry in remote.list_folder() if entry.name == "big"]
    job = Download(transfer, remote, entries, tmp_path / "got")
    wait = threading.Timer(0.01, lambda: transfer.interrupt(State.CANCELLED))
    wait.start()

    def run_for_ever() -> None:
        while True:
            job.run()
            job.files = None

    with pytest.raises((Interrupted, PeerError)):
        run_for_ever()
    wait.join()
    job.close()
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_files_and_folders_go_over(remote, folder, tmp_path):
    """Every file with its name, its place and its bytes; links are left out."""
    source = tmp_path / "mine"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "ä.txt").write_text("ä")
    (source / "nothing").touch()
    (source / "link").symlink_to("/etc/passwd")
    transfer = build_transfer("upload")
    Upload(transfer, remote, [source], ROOT).run()
    assert digests(folder / "mine") == {
        name: digest for name, digest in digests(source).items() if name != "link"
    }
    assert transfer.files_done == 2


def test_an_upload_replaces_nothing(remote, folder, tmp_path):
    """It gets a number, with its ending kept."""
    path = tmp_path / "hello.txt"
    path.write_text("mine")
    Upload(build_transfer("upload"), remote, [path], ROOT).run()
    assert (folder / "hello.txt").read_text() == "Hello!\n"
    assert (folder / "hello (2).txt").read_text() == "mine"


def test_an_upload_goes_on_where_it_broke(remote, folder, tmp_path):
    """The other device kept what came, and what it has in the end is whole."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(SIZE))
    transfer = build_transfer("upload")
    job = Upload(transfer, remote, [path], ROOT)
    break_after(transfer, SIZE // 2)
    with pytest.raises(PeerError):
        job.run()
    del transfer.move
    assert not (folder / "big").exists()
    kept = sum(p.stat().st_size for p in folder.glob(f".big*{PART_SUFFIX}"))
    assert 0 < kept < SIZE
    for _ in range(50):
        try:
            job.run()
            break
        except RemoteError as error:
            if not is_broken_line(error):  # it still holds the part
                raise
    assert digests(folder)["big"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not list(folder.glob(f".*{PART_SUFFIX}"))


def test_a_folder_that_takes_nothing_says_so(anna, ben, folder, tmp_path, monkeypatch):
    """And it is not tried again by itself."""
    monkeypatch.setattr(share, "send_event", lambda event: None)
    app = share.build_drop_app("name", str(folder), anna.store.directory, False)
    config = anna.store.server_sslconfig(anna.identity)
    server = SSLServer(config, ("::1", 0, 0, 0), app)
    (tmp_path / "x").write_text("x")
    with server.running(grace=0.2):
        befriend(anna, ben, server.address)
        remote = Remote(ben, ben.others[0])
        job = Upload(build_transfer("upload"), remote, [tmp_path / "x"], ROOT)
        with pytest.raises(RemoteError, match="takes no files") as caught:
            job.run()
    assert not is_broken_line(caught.value)


def test_it_is_told_apart_what_may_work_later():
    """A broken line may, a full disk does not."""
    assert is_broken_line(PeerError("gone"))
    assert is_broken_line(ConnectionRefusedError())
    assert is_broken_line(OSError(113, "no route"))
    assert not is_broken_line(OSError(28, "no space"))
    assert not is_broken_line(RemoteError(404, "gone"))


def test_an_entry_is_a_value():
    """It says what a listing says."""
    fields: dict[str, object] = {
        "href": "./a%20b/",
        "type": "folder",
        "size": None,
        "modified": 5,
    }
    assert parse_entry("/files/", fields) == Entry(
        "a b", "/files/a%20b/", True, None, 5
    )
