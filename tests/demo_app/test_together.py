"""Two devices and their windows in one process, without a screen."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QMessageBox

from demo_app.transfers import State
from demo_app.workers.server import ServerState


@pytest.fixture
def pair(make_application, folder, tmp_path, until):
    """Anna and Ben, each with a window and a server."""
    (tmp_path / "bens").mkdir()
    both = make_application("Anna", folder), make_application("Ben", tmp_path / "bens")
    until(lambda: all(a.share.server.state is ServerState.SERVING for a in both))
    return both


def invite(one, until) -> str:
    """Open the dialog; what it shows to be pasted."""
    one.window.add_device()
    dialog = one.window.dialog
    until(lambda: dialog.invite.text.toPlainText())
    return dialog.invite.text.toPlainText()


def join(other, text: str):
    """Paste or type it; the page on which that is done."""
    other.window.add_device()
    dialog = other.window.dialog
    dialog.tabs.setCurrentIndex(1)
    dialog.join.edit.setText(text)
    dialog.join.go.click()
    return dialog.join


def befriend(one, other, until) -> None:
    """By invitation."""
    join(other, invite(one, until))
    until(lambda: one.window.sidebar.list.count() == 2)
    until(lambda: other.window.sidebar.list.count() == 2)
    one.window.dialog.close()
    other.window.dialog.close()


def open_page(app, until):
    """The page of the one peer, as it shows its folder."""
    peer = app.share.device.others[0]
    app.window.sidebar.select(peer.fingerprint)
    page = app.window.pages[peer.fingerprint]
    until(lambda: page.state.text() == "Connected")
    return page


def test_an_invitation_makes_two_devices_trust_each_other(pair, until):
    """It is pasted, and both say who is trusted now; the sidebars show it."""
    anna, ben = pair
    page = join(ben, invite(anna, until))
    until(lambda: "Anna" in page.outcome.text())
    until(lambda: "Ben" in anna.window.dialog.invite.outcome.text())
    assert [peer.name for peer in anna.share.device.others] == ["Ben"]
    assert ben.window.sidebar.list.item(1).text() == "Anna"
    anna.window.dialog.close()
    ben.window.dialog.close()
    until(lambda: anna.window.inviter.pool.is_idle)
    assert anna.window.dialog is None


def test_codes_are_compared_where_an_address_was_typed(pair, until):
    """Both show the same six digits, and both have to say yes."""
    anna, ben = pair
    invite(anna, until)
    address = anna.window.dialog.invite.addresses.text().rpartition(" ")[2]
    page = join(ben, address)
    asked = anna.window.dialog.invite.question
    until(lambda: asked.isVisible() and page.question.isVisible())
    assert asked.code.text() == page.question.code.text()
    page.question.yes.click()
    assert ben.share.device.others == []
    asked.yes.click()
    until(lambda: anna.share.device.others and ben.share.device.others)
    until(lambda: "Anna" in page.outcome.text())


def test_a_no_makes_nobody_trusted(pair, until):
    """It is said on both sides, and the next device may try."""
    anna, ben = pair
    invite(anna, until)
    address = anna.window.dialog.invite.addresses.text().rpartition(" ")[2]
    page = join(ben, address)
    asked = anna.window.dialog.invite.question
    until(lambda: asked.isVisible() and page.question.isVisible())
    page.question.no.click()
    until(lambda: page.outcome.text())
    assert anna.share.device.others == []
    assert ben.share.device.others == []


@pytest.mark.parametrize("text", ["degu:1?at=", "nonsense", "[::1]:1"])
def test_what_is_no_invitation_is_said(make_application, folder, until, text):
    """Damaged, no address, or nobody there."""
    ben = make_application("Ben", folder, start=False)
    page = join(ben, text)
    until(lambda: page.outcome.text())
    assert page.outcome.objectName() == "error"
    assert page.go.isEnabled()


def test_a_folder_goes_across_and_a_file_comes_back(pair, folder, tmp_path, until):
    """Through the pages of both, with the requests shown on the other side."""
    anna, ben = pair
    befriend(anna, ben, until)
    page = open_page(ben, until)
    page.table.selectAll()
    assert page.download.text() == "Download (3)"
    page.download.click()
    until(lambda: ben.queue.transfers[0].state is State.DONE)
    got = ben.settings.downloads
    for path in folder.rglob("*"):
        if path.is_file():
            assert (got / path.relative_to(folder)).read_bytes() == path.read_bytes()
    until(lambda: anna.window.share_page.requests.rowCount() >= 3)
    assert anna.window.share_page.requests.index(0, 1).data() == "Ben"
    (tmp_path / "new.txt").write_text("new")
    page.put([tmp_path / "new.txt"])
    until(lambda: ben.queue.transfers[1].state is State.DONE)
    assert (folder / "new.txt").read_text() == "new"
    ben.window.transfers.clear.click()
    assert ben.window.transfers.rows == {}


def test_the_folders_of_a_device_are_walked(pair, qtbot, until):
    """Into them with Enter, out of them with Alt+Up; an empty one says so."""
    anna, ben = pair
    (anna.share.folder / "void").mkdir()
    befriend(anna, ben, until)
    page = open_page(ben, until)
    assert not page.up.isEnabled()
    page.table.activated.emit(page.model.index(0, 0))
    until(lambda: page.path.full == "/inner")
    assert [entry.name for entry in page.model.rows] == ["most"]
    page._go_up()
    until(lambda: page.path.full == "/")
    page.table.activated.emit(page.model.index(1, 0))
    until(lambda: page.notice.title.text() == "This folder is empty")


def test_a_device_that_is_off_is_said_and_found_again(pair, until):
    """With its last address to be mended, and a button to try."""
    anna, ben = pair
    befriend(anna, ben, until)
    anna.share.stop()
    until(lambda: anna.share.is_off)
    peer = ben.share.device.others[0]
    ben.window.sidebar.select(peer.fingerprint)
    page = ben.window.pages[peer.fingerprint]
    until(lambda: page.state.text() == "Not reached")
    assert page.notice.address.text() == f"[::1]:{anna.share.port}"
    page.notice.address.setText("no address")
    page.notice.button.click()
    assert "expected" in page.notice.reason.text()
    anna.share.server.start()
    until(lambda: anna.share.server.state is ServerState.SERVING)
    page.notice.address.setText(f"[::1]:{anna.share.server.address[1]}")
    page.notice.button.click()
    until(lambda: page.state.text() == "Connected")


def test_a_transfer_is_paused_and_goes_on_and_is_cancelled(pair, until):
    """With the buttons of its row; nothing is left of what was cancelled."""
    anna, ben = pair
    with (anna.share.folder / "big").open("wb") as file:
        file.truncate(400_000_000)
    befriend(anna, ben, until)
    page = open_page(ben, until)
    page.table.selectRow([e.name for e in page.model.rows].index("big"))
    page.fetch()
    transfer = ben.queue.transfers[0]
    row = ben.window.transfers.rows[transfer]
    until(lambda: transfer.done > 0)
    row.hold.click()
    until(lambda: transfer.state is State.PAUSED)
    done = transfer.done
    assert 0 < done < 400_000_000
    row.hold.click()
    until(lambda: transfer.done > done)
    assert str(transfer.state) == "running"
    row.end.click()
    until(lambda: transfer.state is State.CANCELLED)
    assert list(ben.settings.downloads.iterdir()) == []


def test_a_forgotten_device_is_let_in_no_more(pair, until, monkeypatch):
    """Its page is gone, and the other side is refused, and told so."""
    anna, ben = pair
    befriend(anna, ben, until)
    open_page(ben, until)
    open_page(anna, until)
    yes = QMessageBox.StandardButton.Yes
    monkeypatch.setattr(QMessageBox, "question", lambda *_: yes)
    anna.window.ask_forget(anna.share.device.others[0].fingerprint)
    until(lambda: anna.window.sidebar.list.count() == 1)
    page = open_page_again(ben)
    until(lambda: page.state.text() == "Not reached")
    model = anna.window.share_page.requests
    until(lambda: any(row.cells[3] == "refused" for row in model.rows))


def open_page_again(app):
    """The page of the one peer, that looks again."""
    page = next(iter(app.window.pages.values()))
    page._refresh()
    return page


def test_who_is_connected_is_marked(pair, until):
    """In the list at the left, as long as it lasts."""
    anna, ben = pair
    befriend(anna, ben, until)
    page = open_page(ben, until)
    with page.browser.remote.connect() as connection:
        connection.get("/files/").body.read()
        item = anna.window.sidebar.list.item
        until(lambda: "is connected" in item(1).toolTip())
    until(lambda: "not connected" in item(1).toolTip())
    role = Qt.ItemDataRole.AccessibleDescriptionRole
    assert item(1).data(role) == "is not connected"
