"""Every window and state, without a screen."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QGuiApplication, QImage
from PySide6.QtWidgets import QAbstractButton, QMessageBox, QPushButton, QWidget

from demo_app.entry import Entry
from demo_app.meter import History
from demo_app.transfers import State, Transfer
from demo_app.windows import theme
from demo_app.windows.code_question import CodeQuestion
from demo_app.windows.entry_table import EntryModel
from demo_app.windows.plot import Plot, choose_top
from demo_app.windows.preferences import Preferences
from demo_app.windows.qr_code import QrCode
from demo_app.windows.request_table import MAX_ROWS, RequestModel
from demo_app.windows.settings import Settings
from demo_app.windows.theme import Scheme, apply_theme
from demo_app.windows.transfer_panel import TransferRow
from demo_app.windows.widgets import Check, CopyRow
from demo_app.workers.server import ServerState

ROW = {
    "id": 1,
    "peer": "Ben",
    "method": "GET",
    "path": "/files/x",
    "status": 200,
    "bytes": 5,
    "seconds": 0.25,
    "running": False,
    "broken": False,
}


def build_event(**fields) -> dict:
    event = {"kind": "tick", "server": "s", "sent": 0, "received": 0, "requests": []}
    return {**event, "skipped": 0, "refused": [], "peers": {}, **fields}


def texts(model, row: int) -> list[str]:
    return [model.index(row, column).data() for column in range(model.columnCount())]


def grab(widget: QWidget) -> QImage:
    return widget.grab().toImage()


def count_colours(image: QImage) -> int:
    points = [(x, y) for x in range(0, image.width(), 3) for y in range(image.height())]
    return len({image.pixel(x, y) for x, y in points})


@pytest.fixture
def app(make_application, folder):
    """A device whose server is not started."""
    application = make_application("Anna", folder, start=False)
    application.window.show()
    return application


# --- the page of this computer


@pytest.mark.parametrize("state", list(ServerState))
def test_each_state_of_the_server_is_shown(app, state):
    """In words, with a colour of its own, and with the buttons that make sense."""
    page = app.window.share_page
    app.share.server.address = ("::1", 5, 0, 0)
    app.share.server._change(state)
    shown = page.state.text()
    assert shown
    assert page.state.accessibleName() == shown
    is_off = state in (ServerState.STOPPED, ServerState.FAILED)
    assert page.switch.text() == ("Share" if is_off else "Stop sharing")
    assert page.browse.isEnabled() is not is_off
    in_between = state in (ServerState.STARTING, ServerState.STOPPING)
    assert page.switch.isEnabled() is not in_between
    app.share.server._change(ServerState.STOPPED)
    assert (page.state.text() == shown) is (state is ServerState.STOPPED)


def test_a_failed_start_says_why(app, tmp_path, until):
    """A folder that is gone is an error in the window, not a crash."""
    app.share.folder = tmp_path / "gone"
    app.share.server.start()
    until(lambda: app.share.server.state is ServerState.FAILED)
    assert "No such file" in app.window.share_page.note.full


def test_the_address_and_its_qr_code_are_there_while_it_serves(app, until):
    """With the fingerprint, and gone when it has stopped."""
    page = app.window.share_page
    assert page.addresses.urls[0].label.full == "…"
    app.share.server.start()
    until(lambda: app.share.server.state is ServerState.SERVING)
    port = app.share.server.address[1]
    assert page.addresses.urls[0].label.full == f"https://[::1]:{port}/"
    assert app.share.qr_text.endswith("#" + app.share.device.identity.id)
    assert page.addresses.qr.rows
    page.switch.click()
    until(lambda: app.share.is_off)
    assert page.addresses.qr.rows == []


def test_a_crash_is_shown_and_healed_on_the_same_port(app, until):
    """The button kills, the page says so, another process serves at the address."""
    server, states = app.share.server, []
    app.start()
    until(lambda: server.state is ServerState.SERVING and server.pid)
    pid, address = server.pid, server.address
    server.changed.connect(lambda: states.append(server.state))
    app.window.bar.kill_server.click()
    until(lambda: ServerState.CRASHED in states and server.pid not in (None, pid))
    assert server.state is ServerState.SERVING
    assert server.address == address
    assert "after a crash" in app.window.share_page.note.full
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_even_the_watching_process_is_replaced(app, until):
    """Who kills the supervisor sees the server come back as well."""
    server = app.share.server
    app.start()
    until(lambda: server.state is ServerState.SERVING and server.pid)
    port, watcher = server.address[1], server._server.pid
    os.kill(watcher, 9)
    until(lambda: server.restarts == 1 and server.state is ServerState.SERVING)
    assert server.address[1] == port
    assert server._server.pid != watcher


def test_another_folder_is_served_at_the_same_port(app, tmp_path, until):
    """And kept in the settings."""
    app.start()
    server = app.share.server
    until(lambda: server.state is ServerState.SERVING)
    port = server.address[1]
    (tmp_path / "other").mkdir()
    app.window.share_folder(tmp_path / "other")
    until(lambda: server.state is ServerState.STOPPING)
    until(lambda: server.state is ServerState.SERVING)
    assert server.address[1] == port
    assert app.settings.shared == tmp_path / "other"


def drop_on(widget: QWidget, *paths: Path) -> bool:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    both = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    action = Qt.DropAction.CopyAction
    with warnings.catch_warnings():
        # The newest Qt has another way, which the ones before do not have.
        warnings.simplefilter("ignore", DeprecationWarning)
        enter = QDragEnterEvent(QPoint(5, 5), action, data, *both)
    enter.ignore()
    widget.dragEnterEvent(enter)
    if enter.isAccepted():
        widget.dropEvent(QDropEvent(QPointF(5, 5), action, data, *both))
    return enter.isAccepted()


def test_a_folder_can_be_dropped_but_a_file_can_not(app, folder):
    """It is then what is shared."""
    page = app.window.share_page
    assert not drop_on(page, folder / "hello.txt")
    assert drop_on(page, folder / "inner")
    assert app.share.folder == folder / "inner"
    assert page.path.full.endswith("inner")


def test_whether_devices_may_add_files_is_kept(app):
    """The settings say so the next time."""
    assert app.settings.writable
    app.window.share_page.writable.setChecked(False)
    assert not app.settings.writable
    assert not app.share.writable


def test_the_link_for_the_browser_is_fresh_each_time(app, until):
    """It starts the servers where they do not run."""
    links: list[str] = []
    app.share.linked.disconnect()
    app.share.linked.connect(links.append)
    app.window.share_page.share.open_link()
    until(lambda: links)
    app.share.open_link()
    until(lambda: len(links) == 2)
    assert links[0].startswith("http://127.0.0.1:")
    assert links[0] != links[1]


# --- tables


def test_requests_are_shown_newest_first():
    """One that goes on is one line, and is brought up to date."""
    model = RequestModel()
    running = {**ROW, "running": True, "bytes": 1}
    model.add_event(build_event(requests=[running]))
    assert texts(model, 0)[1:] == ["Ben", "GET /files/x", "running", "1 B", "250 ms"]
    model.add_event(build_event(requests=[ROW, {**ROW, "id": 2, "status": 404}]))
    assert model.rowCount() == 2
    assert texts(model, 0)[3] == "404"
    assert texts(model, 1)[3:] == ["200", "5 B", "250 ms"]
    foreground = Qt.ItemDataRole.ForegroundRole
    assert model.index(0, 3).data(foreground).name() == theme.colours().bad


def test_refusals_and_breaks_are_shown():
    """With the reason, in their colours."""
    model = RequestModel()
    refused = [["192.0.2.9", "this side refused the certificate"]]
    model.add_event(build_event(refused=refused, requests=[{**ROW, "broken": True}]))
    assert texts(model, 0)[1:4] == ["192.0.2.9", refused[0][1], "refused"]
    assert texts(model, 1)[3] == "broken off"


def test_a_new_servers_requests_are_not_taken_for_old_ones():
    """After a crash its numbers begin anew."""
    model = RequestModel()
    model.add_event(build_event(requests=[ROW]))
    model.forget_numbers()
    model.add_event(build_event(requests=[ROW]))
    assert model.rowCount() == 2


def test_the_table_does_not_grow_for_ever():
    """The oldest go."""
    model = RequestModel()
    for start in range(0, 2 * MAX_ROWS, 20):
        rows = [{**ROW, "id": start + n, "path": f"/{start + n}"} for n in range(20)]
        model.add_event(build_event(requests=rows))
    assert model.rowCount() == MAX_ROWS
    assert texts(model, 0)[2] == f"GET /{2 * MAX_ROWS - 1}"


def test_models_keep_the_rules_of_qt(qtmodeltester):
    """Qt's own tester finds nothing."""
    requests, entries = RequestModel(), EntryModel()
    requests.add_event(build_event(requests=[ROW]))
    entries.show_entries([Entry("x", "/files/x", False, 5, 0)])
    for model in (requests, entries):
        qtmodeltester.check(model, force_py=True)


def test_entries_show_name_size_and_date():
    """A folder has no size."""
    model = EntryModel()
    model.show_entries(
        [
            Entry("in", "/files/in/", True, None, 0),
            Entry("x", "/files/x", False, 1500, 0),
        ]
    )
    assert texts(model, 0)[:2] == ["in", ""]
    assert texts(model, 1)[:2] == ["x", "1.5 kB"]
    assert "70" in texts(model, 1)[2] or "69" in texts(model, 1)[2]


# --- transfers


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.WAITING, "Waiting"),
        (State.RUNNING, "1.0 kB of 4.0 kB"),
        (State.RETRYING, "trying again"),
        (State.PAUSED, "Paused"),
        (State.FAILED, "no room"),
        (State.CANCELLED, "Cancelled"),
        (State.DONE, "Done"),
    ],
)
def test_each_state_of_a_transfer_is_shown(qtbot, state, words):
    """In words, by the bar, and by the buttons that make sense."""
    transfer = Transfer("download", "film", "Ben", b"f" * 32)
    transfer.done, transfer.total, transfer.state = 1000, 4000, state
    transfer.error = "no room"
    row = TransferRow(transfer)
    qtbot.addWidget(row)
    row.show()
    assert words in row.status.full
    assert row.bar.value() == (1000 if state is State.DONE else 250)
    assert row.hold.isVisible() is (state not in (State.DONE, State.CANCELLED))
    assert "film" in row.accessibleName()
    assert "Ben" in row.accessibleName()


def test_a_transfer_is_held_and_ended_by_the_keyboard(qtbot):
    """Space pauses and goes on, Delete cancels."""
    transfer = Transfer("upload", "film", "Ben", b"f" * 32)
    row = TransferRow(transfer)
    qtbot.addWidget(row)
    row.show()
    with qtbot.waitSignal(row.pause_asked):
        qtbot.keyClick(row, Qt.Key.Key_Space)
    transfer.state = State.PAUSED
    with qtbot.waitSignal(row.resume_asked):
        qtbot.keyClick(row, Qt.Key.Key_Space)
    with qtbot.waitSignal(row.cancel_asked):
        qtbot.keyClick(row, Qt.Key.Key_Delete)


# --- small parts


def test_a_qr_code_is_drawn_and_taken_away(qtbot):
    """Black on white in any theme; it is read out by its name."""
    code = QrCode(120)
    qtbot.addWidget(code)
    empty = grab(code)
    code.show_text("degu:1?at=x", "QR code")
    assert grab(code) != empty
    assert code.accessibleName() == "QR code"
    code.show_text("", "nothing")
    assert grab(code) == empty


def test_an_address_is_copied(qtbot):
    """Whole, even where it is cut on the screen."""
    row = CopyRow("Copy")
    qtbot.addWidget(row)
    row.show_text("https://" + "x" * 300)
    row.resize(80, 20)
    row.button.click()
    assert QGuiApplication.clipboard().text() == "https://" + "x" * 300


@pytest.mark.parametrize("same", [True, False])
def test_a_code_is_answered_once(qtbot, same):
    """Both buttons are off after that."""
    question = CodeQuestion()
    qtbot.addWidget(question)
    question.ask("123456", "Ben")
    assert question.code.text() == "123 456"
    assert "Ben" in question.question.text()
    answers: list[bool] = []
    question.answered.connect(answers.append)
    button = question.yes if same else question.no
    button.click()
    button.click()
    assert answers == [same]


def test_a_check_box_shows_what_it_is(qtbot):
    """On looks different from off."""
    check = Check("Text")
    qtbot.addWidget(check)
    off = grab(check)
    check.setChecked(True)
    assert grab(check) != off


def test_the_plot_draws_both_lines(qtbot):
    """An empty one has fewer colours."""
    history = History(("sent", "received"), 20, 0.5)
    plot = Plot(history)
    qtbot.addWidget(plot)
    plot.resize(300, 120)
    empty = count_colours(grab(plot))
    for number in range(20):
        history.add(sent=number * 500_000, received=number * number * 30_000)
    assert count_colours(grab(plot)) > empty


@pytest.mark.parametrize(
    ("rate", "top"), [(0, 1e5), (1e5, 1e5), (1.1e5, 2e5), (3e5, 5e5), (7e5, 1e6)]
)
def test_the_plot_ends_at_a_round_figure(rate, top):
    """1, 2 or 5 and zeros."""
    assert choose_top(rate) == top


# --- light and dark, settings, names


def test_light_and_dark_look_different(app):
    """Window, text and icons change, at once and both ways."""
    images = []
    for scheme in (Scheme.LIGHT, Scheme.DARK, Scheme.LIGHT):
        app.settings.scheme = scheme
        app.window.refresh_theme()
        images.append(grab(app.window))
    assert images[0].pixelColor(400, 60).lightness() > 200
    assert images[1].pixelColor(400, 60).lightness() < 60
    assert images[0].pixelColor(400, 60) == images[2].pixelColor(400, 60)


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_text_can_be_read(colours):
    """Each colour of text has a contrast of 4.5 to 1 on its ground (WCAG)."""
    pairs = [
        (colours.text, colours.window),
        (colours.text, colours.card),
        (colours.text, colours.chosen),
        (colours.muted, colours.card),
        (colours.muted, colours.window),
        (colours.on_accent, colours.accent),
        (colours.bad, colours.card),
        (colours.warning, colours.card),
        (colours.good, colours.card),
        (colours.accent, colours.card),
    ]
    for text, ground in pairs:
        assert find_contrast(text, ground) >= 4.5, (text, ground)


def find_contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [
            c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_settings_are_kept(tmp_path):
    """What was set is there in another object; what was not has a default."""
    settings = Settings(tmp_path)
    assert settings.name
    assert settings.port == 0
    settings.name, settings.port, settings.scheme = "Anna", 4711, Scheme.DARK
    settings.downloads = tmp_path / "d"
    settings.store.sync()
    again = Settings(tmp_path)
    assert (again.name, again.port, again.scheme) == ("Anna", 4711, Scheme.DARK)
    assert again.downloads == tmp_path / "d"


def test_a_shared_folder_that_is_gone_is_not_kept(tmp_path):
    """Another one is shared then, instead of an error at each start."""
    settings = Settings(tmp_path)
    settings.shared = tmp_path / "gone"
    assert settings.shared != tmp_path / "gone"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home with nothing in it yet."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_new_user_has_a_folder_to_share(home, tmp_path):
    """The folder for downloads is made where there is none."""
    shared = Settings(tmp_path).shared
    assert shared.is_dir()
    assert shared.parent == home


def test_where_the_folder_cannot_be_made_another_is_shared(home, tmp_path):
    """A file in its place is left alone; what is shared lies with the settings."""
    (home / "Downloads").touch()
    shared = Settings(tmp_path).shared
    assert shared == tmp_path / "shared"
    assert shared.is_dir()
    assert (home / "Downloads").is_file()


def test_the_window_fits_on_its_screen(app):
    """The bar at its bottom can be reached on a small one, too."""
    assert app.window.height() < app.window.screen().availableSize().height()


def test_preferences_are_changed(qtbot, tmp_path):
    """OK keeps them, Cancel does not; an empty name is none."""
    settings = Settings(tmp_path)
    settings.name = "Anna"
    dialog = Preferences(settings)
    qtbot.addWidget(dialog)
    dialog.name.setText("Ben")
    dialog.scheme.setCurrentIndex(dialog.scheme.findData(Scheme.DARK))
    dialog.reject()
    assert settings.name == "Anna"
    dialog.downloads.setText(str(tmp_path))
    dialog.accept()
    assert (settings.name, settings.scheme) == ("Ben", Scheme.DARK)
    assert settings.downloads == tmp_path
    dialog.name.setText("  ")
    dialog.accept()
    assert settings.name == "Ben"


def test_everything_has_a_name_to_be_read_out(app, until):
    """Each button says what it does, also where it shows an icon alone."""
    app.window.add_device()
    for root in (app.window, app.window.dialog):
        for button in root.findChildren(QAbstractButton):
            ours = isinstance(button, QPushButton) or button.property("iconName")
            assert button.text() or button.accessibleName() or not ours, button
    app.window.dialog.close()


def test_every_text_can_be_translated(app, qapp):
    """A translator that puts all in quotes finds every text of the window."""
    from PySide6.QtCore import QTranslator

    class Quoter(QTranslator):
        def translate(self, context, text, disambiguation=None, n=-1):
            return f"<{text}>"

        def isEmpty(self):
            return False

    quoter = Quoter()
    qapp.installTranslator(quoter)
    try:
        app.share.server._change(ServerState.CRASHED)
        assert app.window.share_page.state.text() == "<Crashed, starting again…>"
    finally:
        qapp.removeTranslator(quoter)
        app.share.server._change(ServerState.STOPPED)


def test_the_keyboard_reaches_everything(app):
    """Whatever can be clicked takes the focus, and menus have their keys."""
    app.window.add_device()
    for button in app.window.findChildren(QAbstractButton):
        if button.isVisible() and not button.objectName().startswith("qt_"):
            focus = button.focusPolicy()
            assert focus & Qt.FocusPolicy.TabFocus or not button.isEnabled(), button
    keys = [
        action.shortcut().toString()
        for menu in app.window.menuBar().actions()
        for action in menu.menu().actions()
    ]
    for key in ("Ctrl+O", "Ctrl+B", "Ctrl+N", "Ctrl+Q", "Ctrl+,"):
        assert key in keys
    app.window.dialog.close()


def test_the_app_asks_before_it_is_killed(app, monkeypatch):
    """Who says no lives on."""
    monkeypatch.setattr(
        QMessageBox, "warning", lambda *_: QMessageBox.StandardButton.Cancel
    )
    app.window.bar.kill_app.click()


def test_a_change_of_the_systems_scheme_is_followed(app):
    """The window is dressed anew by the signal of the system."""
    apply_theme(Scheme.DARK)
    assert theme.colours() is theme.DARK
    app.settings.scheme = Scheme.LIGHT
    hints = QGuiApplication.styleHints()
    hints.colorSchemeChanged.emit(Qt.ColorScheme.Light)
    assert theme.colours() is theme.LIGHT


def test_nothing_is_left_when_the_window_closes(app, until):
    """Servers stop, threads end, and the port is kept for the next time."""
    app.start()
    until(lambda: app.share.browser.state is ServerState.SERVING)
    pid, port = app.share.server.pid, app.share.server.address[1]
    app.window.close()
    until(lambda: app.is_over)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert app.settings.port == port
