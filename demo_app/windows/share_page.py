"""The page of this computer: what is shared, where, and what goes on."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Qt, QTimer, QUrl, Signal
from PySide6.QtGui import QDesktopServices, QDragEnterEvent, QDragLeaveEvent, QDropEvent
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from demo_app.meter import History, format_rate
from demo_app.windows.address_card import AddressCard
from demo_app.windows.dropping import find_folder, shorten
from demo_app.windows.icons import build_pixmap, set_icon
from demo_app.windows.plot import Plot
from demo_app.windows.request_table import RequestModel
from demo_app.windows.table import dress_table
from demo_app.windows.theme import colours
from demo_app.windows.widgets import (
    SPACE,
    Card,
    Check,
    Elided,
    Pill,
    build_button,
    build_label,
)
from demo_app.workers.queue import TransferQueue
from demo_app.workers.server import ServerState
from demo_app.workers.share import Share

STEP_SECONDS = 0.5
STEPS = 120


class SharePage(QWidget):
    """Shows a `Share`; asks the window to choose folders."""

    folder_dropped = Signal(object)
    choose_asked = Signal()

    def __init__(self, share: Share, queue: TransferQueue) -> None:
        super().__init__()
        self.share = share
        self.queue = queue
        self.totals = {"sent": 0, "received": 0}
        self.history = History(("sent", "received"), STEPS, STEP_SECONDS)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE + 6, SPACE, SPACE + 6, SPACE)
        layout.setSpacing(SPACE)
        layout.addLayout(self._build_header())
        cards = QGridLayout()
        cards.setSpacing(SPACE)
        cards.addWidget(self._build_folder_card(), 0, 0)
        self.addresses = AddressCard(self.share)
        cards.addWidget(self.addresses, 0, 1)
        cards.setColumnStretch(0, 1)
        cards.setColumnStretch(1, 1)
        layout.addLayout(cards)
        layout.addWidget(self._build_plot_card(), 1)
        layout.addWidget(self._build_request_card(), 2)
        self.setAcceptDrops(True)
        self.timer = QTimer(self)
        self.timer.setInterval(int(STEP_SECONDS * 1000))
        self.timer.timeout.connect(self._step)
        self.timer.start()
        share.server.changed.connect(self.show_state)
        share.reported.connect(self._report)
        self.show_state()

    # --- parts

    def _build_header(self) -> QHBoxLayout:
        self.title = build_label(self.share.device.name, "title")
        self.state = Pill()
        self.note = Elided("muted")
        self.browse = build_button(self.tr("Open in browser"), "globe")
        self.switch = build_button(self.tr("Stop sharing"), "stop")
        self.browse.clicked.connect(self.share.open_link)
        self.switch.clicked.connect(self._switch)
        layout = QHBoxLayout()
        layout.setSpacing(SPACE)
        layout.addWidget(self.title)
        layout.addWidget(self.state)
        layout.addWidget(self.note, 1)
        layout.addWidget(self.browse)
        layout.addWidget(self.switch)
        return layout

    def _build_folder_card(self) -> Card:
        card = Card(self.tr("Shared folder"))
        self.drop = QFrame()
        self.drop.setObjectName("drop")
        inner = QVBoxLayout(self.drop)
        self.picture = QLabel()
        self.picture.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.path = Elided(centred=True)
        self.path.setAccessibleName(self.tr("Path of the shared folder"))
        hint = build_label(self.tr("Drop another folder here to share it"), "muted")
        hint.setAlignment(Qt.AlignmentFlag.AlignCenter)
        inner.addStretch()
        inner.addWidget(self.picture)
        inner.addWidget(self.path)
        inner.addWidget(hint)
        inner.addStretch()
        self.choose = build_button(self.tr("Choose…"), "folder")
        self.choose.clicked.connect(self.choose_asked)
        self.look = build_button(self.tr("Show files"))
        self.look.clicked.connect(self._look)
        self.writable = Check(self.tr("Devices may add files"))
        self.writable.setChecked(self.share.writable)
        self.writable.toggled.connect(self._set_writable)
        buttons = QHBoxLayout()
        buttons.addWidget(self.choose)
        buttons.addWidget(self.look)
        buttons.addStretch()
        buttons.addWidget(self.writable)
        card.body.addWidget(self.drop, 1)
        card.body.addLayout(buttons)
        return card

    def _build_plot_card(self) -> Card:
        card = Card(self.tr("Throughput"))
        self.rates = {"sent": Pill(), "received": Pill()}
        for pill in self.rates.values():
            pill.setMinimumWidth(pill.fontMetrics().averageCharWidth() * 19)
            card.top.addWidget(pill)
        self.plot = Plot(self.history)
        card.body.addWidget(self.plot, 1)
        self._show_rates()
        return card

    def _build_request_card(self) -> Card:
        card = Card(self.tr("Requests"))
        self.requests = RequestModel(self)
        self.table = QTableView()
        self.table.setAccessibleName(self.tr("Requests of other devices"))
        self.table.setModel(self.requests)
        dress_table(self.table, {0: 76, 1: 150, 3: 90, 4: 84, 5: 84}, 2)
        self.nothing = build_label(
            self.tr("No device has asked for anything."), "muted"
        )
        self.nothing.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.requests.rowsInserted.connect(self.nothing.hide)
        self.requests.rowsInserted.connect(self.table.show)
        self.table.hide()
        card.body.addWidget(self.nothing, 1)
        card.body.addWidget(self.table, 1)
        return card

    # --- what happens

    def show_state(self) -> None:
        """Show the state of the server."""
        server = self.share.server
        words = {
            ServerState.STOPPED: (self.tr("Not shared"), "muted"),
            ServerState.STARTING: (self.tr("Starting…"), "warning"),
            ServerState.SERVING: (self.tr("Serving"), "good"),
            ServerState.CRASHED: (self.tr("Crashed, starting again…"), "bad"),
            ServerState.STOPPING: (self.tr("Stopping…"), "warning"),
            ServerState.FAILED: (self.tr("Could not start"), "bad"),
        }
        self.state.show_state(*words[server.state])
        note = server.error if server.state is ServerState.FAILED else ""
        if server.restarts and server.state is ServerState.SERVING:
            text = self.tr("back after a crash, on the same port (restarts: {count})")
            note = text.format(count=server.restarts)
        self.note.show_text(note)
        if server.state is ServerState.CRASHED:
            self.requests.forget_numbers()
        on = not server.is_off
        self.switch.setText(self.tr("Stop sharing") if on else self.tr("Share"))
        set_icon(self.switch, "stop" if on else "play")
        self.switch.setEnabled(
            server.state not in (ServerState.STARTING, ServerState.STOPPING)
        )
        self.browse.setEnabled(on)
        self.path.show_text(shorten(self.share.folder))
        self.addresses.refresh()
        self.refresh_theme()

    def refresh_theme(self) -> None:
        """Draw what has colours of its own."""
        size = 44
        pixmap = build_pixmap(
            "folder", colours().accent, round(size * self.devicePixelRatioF())
        )
        pixmap.setDevicePixelRatio(self.devicePixelRatioF())
        self.picture.setPixmap(pixmap)
        self.plot.update()

    def _switch(self) -> None:
        if self.share.server.is_off:
            self.share.server.start()
        else:
            self.share.stop()

    def _set_writable(self, writable: bool) -> None:
        self.share.writable = writable
        if not self.share.server.is_off:
            self.share.server.restart()

    def _look(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.share.folder)))

    def _report(self, event: dict[str, Any]) -> None:
        self.totals = {name: event[name] for name in self.totals}
        self.requests.add_event(event)

    def _step(self) -> None:
        moved = self.queue.count()
        sent = self.totals["sent"] + moved["upload"]
        received = self.totals["received"] + moved["download"]
        self.history.add(sent=sent, received=received)
        self._show_rates()
        if self.isVisible():
            self.plot.update()

    def _show_rates(self) -> None:
        for name, words, role in (
            ("sent", self.tr("Sent"), "accent"),
            ("received", self.tr("Received"), "received"),
        ):
            rate = format_rate(self.history.rates[name][-1])
            self.rates[name].show_state(f"{words} {rate}", role)

    # --- drag and drop

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take one folder."""
        if find_folder(event) is not None:
            event.acceptProposedAction()
            self._mark(True)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:
        """It went elsewhere."""
        self._mark(False)

    def dropEvent(self, event: QDropEvent) -> None:
        """Share it."""
        self._mark(False)
        folder = find_folder(event)
        if folder is not None:
            event.acceptProposedAction()
            self.folder_dropped.emit(folder)

    def _mark(self, over: bool) -> None:
        self.drop.setProperty("over", over)
        self.drop.style().polish(self.drop)
