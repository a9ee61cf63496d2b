"""The transfers, a row each: how far, how fast, and what can be done about it."""

from __future__ import annotations

from PySide6.QtCore import QLocale, Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from demo_app.meter import format_bytes, format_rate, format_seconds
from demo_app.transfers import BUSY, FINAL, State, Transfer
from demo_app.windows.icons import build_pixmap, set_icon
from demo_app.windows.theme import colours
from demo_app.windows.widgets import (
    SPACE,
    Elided,
    build_button,
    build_label,
    build_tool,
)
from demo_app.workers.queue import TransferQueue

STEPS = 1000


class TransferRow(QFrame):
    """One transfer."""

    pause_asked = Signal()
    resume_asked = Signal()
    cancel_asked = Signal()

    def __init__(self, transfer: Transfer) -> None:
        super().__init__()
        self.transfer = transfer
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.picture = QLabel()
        self.title = Elided()
        self.status = Elided("muted")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setRange(0, STEPS)
        self.hold = build_tool("pause", self.tr("Pause"))
        self.hold.clicked.connect(self._hold)
        policy = self.hold.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.hold.setSizePolicy(policy)
        self.end = build_tool("cross", self.tr("Cancel"))
        self.end.clicked.connect(self.cancel_asked)
        layout = QGridLayout(self)
        layout.setContentsMargins(SPACE + 6, 4, SPACE + 6, 4)
        layout.setHorizontalSpacing(SPACE)
        layout.setVerticalSpacing(3)
        layout.addWidget(self.picture, 0, 0, 2, 1)
        layout.addWidget(self.title, 0, 1)
        layout.addWidget(self.status, 0, 2)
        layout.addWidget(self.bar, 1, 1, 1, 2)
        layout.addWidget(self.hold, 0, 3, 2, 1)
        layout.addWidget(self.end, 0, 4, 2, 1)
        layout.setColumnStretch(1, 2)
        layout.setColumnStretch(2, 3)
        self.show_all()

    def show_all(self) -> None:
        """Show the state and the numbers."""
        transfer = self.transfer
        way = self.tr("from") if transfer.kind == "download" else self.tr("to")
        self.title.show_text(f"{transfer.title}  {way} {transfer.peer}")
        self.setAccessibleName(self.title.full)
        self.bar.setAccessibleName(self.title.full)
        busy = transfer.state in BUSY
        set_icon(self.hold, "pause" if busy else "play")
        words = self.tr("Pause (Space)") if busy else self.tr("Go on (Space)")
        self.hold.setToolTip(words)
        self.hold.setAccessibleName(words)
        self.hold.setVisible(transfer.state not in FINAL)
        over = transfer.state in FINAL
        self.end.setToolTip(self.tr("Remove") if over else self.tr("Cancel (Delete)"))
        self.bar.setProperty("state", str(transfer.state))
        self.bar.style().polish(self.bar)
        self.refresh_theme()
        self.show_numbers()

    def refresh_theme(self) -> None:
        """Draw the icon in the colours of the theme."""
        ratio = self.devicePixelRatioF()
        name = {State.DONE: "check", State.FAILED: "warning"}.get(
            self.transfer.state, self.transfer.kind
        )
        role = {State.DONE: "good", State.FAILED: "bad"}.get(
            self.transfer.state, "muted"
        )
        pixmap = build_pixmap(name, getattr(colours(), role), round(22 * ratio))
        pixmap.setDevicePixelRatio(ratio)
        self.picture.setPixmap(pixmap)

    def show_numbers(self) -> None:
        """Show how far it is."""
        fraction = self.transfer.fraction
        self.bar.setRange(0, STEPS if fraction is not None else 0)
        if fraction is not None:
            self.bar.setValue(int(fraction * STEPS))
        self.status.show_text("  ·  ".join(filter(None, self._build_status())))

    def _build_status(self) -> list[str]:
        transfer = self.transfer
        amount = format_bytes(transfer.done)
        if transfer.total is not None and transfer.state is not State.DONE:
            amount = self.tr("{done} of {total}").format(
                done=amount, total=format_bytes(transfer.total)
            )
        files = ""
        if transfer.files > 1:
            files = self.tr("{done} of {total} files").format(
                done=QLocale().toString(transfer.files_done),
                total=QLocale().toString(transfer.files),
            )
        left = transfer.seconds_left
        match transfer.state:
            case State.WAITING:
                return [self.tr("Waiting"), amount if transfer.done else ""]
            case State.RUNNING:
                wait = self.tr("{time} left").format(time=format_seconds(left or 0))
                rate = format_rate(transfer.meter.speed)
                return [amount, files, rate, wait if left is not None else ""]
            case State.RETRYING:
                return [self.tr("Interrupted, trying again"), amount, transfer.error]
            case State.PAUSED:
                return [self.tr("Paused"), amount, files]
            case State.FAILED:
                return [self.tr("Failed"), transfer.error]
            case State.CANCELLED:
                return [self.tr("Cancelled")]
        return [self.tr("Done"), amount, files]

    def _hold(self) -> None:
        if self.transfer.state in BUSY:
            self.pause_asked.emit()
        else:
            self.resume_asked.emit()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Space pauses and goes on, Delete cancels."""
        if event.key() == Qt.Key.Key_Space and self.hold.isVisible():
            self._hold()
        elif event.key() == Qt.Key.Key_Delete:
            self.cancel_asked.emit()
        else:
            super().keyPressEvent(event)


class TransferPanel(QWidget):
    """All transfers, the newest on top."""

    def __init__(self, queue: TransferQueue) -> None:
        super().__init__()
        self.queue = queue
        self.rows: dict[Transfer, TransferRow] = {}
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.setSpacing(2)
        top = QHBoxLayout()
        top.setContentsMargins(SPACE + 6, 0, SPACE + 6, 0)
        self.heading = build_label(self.tr("Transfers"), "heading")
        self.clear = build_button(self.tr("Clear finished"))
        self.clear.clicked.connect(queue.clear)
        top.addWidget(self.heading)
        top.addStretch()
        top.addWidget(self.clear)
        layout.addLayout(top)
        self.empty = build_label(
            self.tr("Nothing yet: open a device and download, or drop files on it."),
            "muted",
        )
        self.empty.setContentsMargins(SPACE + 6, 2, 0, 0)
        layout.addWidget(self.empty)
        layout.addWidget(self._build_list(), 1)
        queue.added.connect(self._add)
        queue.changed.connect(self._change)
        queue.removed.connect(self._remove)
        queue.ticked.connect(self._tick)
        self._count()

    def _build_list(self) -> QScrollArea:
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        inner = QWidget()
        inner.setObjectName("plain")
        self.list = QVBoxLayout(inner)
        self.list.setContentsMargins(0, 0, 0, 4)
        self.list.setSpacing(0)
        self.list.addStretch()
        area.setWidget(inner)
        return area

    def _add(self, transfer: Transfer) -> None:
        row = TransferRow(transfer)
        row.pause_asked.connect(lambda: self.queue.pause(transfer))
        row.resume_asked.connect(lambda: self.queue.resume(transfer))
        row.cancel_asked.connect(lambda: self.queue.cancel(transfer))
        self.rows[transfer] = row
        self.list.insertWidget(0, row)
        self._count()

    def _change(self, transfer: Transfer) -> None:
        if transfer in self.rows:
            self.rows[transfer].show_all()
        self._count()

    def _remove(self, transfer: Transfer) -> None:
        row = self.rows.pop(transfer)
        self.list.removeWidget(row)
        row.deleteLater()
        self._count()

    def _tick(self) -> None:
        for transfer, row in self.rows.items():
            if transfer.state is State.RUNNING:
                row.show_numbers()

    def _count(self) -> None:
        self.empty.setVisible(not self.rows)
        over = [transfer for transfer in self.rows if transfer.state in FINAL]
        self.clear.setVisible(bool(over))
