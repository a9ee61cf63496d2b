"""The list at the left: this computer, and the devices that are trusted."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
)

from demo_app.device import Device
from demo_app.windows.icons import build_icon, build_pixmap
from demo_app.windows.theme import colours
from demo_app.windows.widgets import SPACE, build_button, build_label

WIDTH = 224
FINGERPRINT = Qt.ItemDataRole.UserRole
LOGO_SIZE = 26


class Sidebar(QFrame):
    """Emits what was chosen: a fingerprint, or None for this computer."""

    chosen = Signal(object)
    add_asked = Signal()

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.connected: dict[str, int] = {}
        self.setObjectName("sidebar")
        self.setFixedWidth(WIDTH)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, SPACE, 0, SPACE)
        layout.setSpacing(6)
        self.logo = QLabel()
        top = QHBoxLayout()
        top.setContentsMargins(SPACE + 2, 0, SPACE, 4)
        top.addWidget(self.logo)
        top.addWidget(build_label("Degu Drop", "title"))
        top.addStretch()
        layout.addLayout(top)
        self.list = QListWidget()
        self.list.setAccessibleName(self.tr("Devices"))
        self.list.setIconSize(QSize(20, 20))
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.currentItemChanged.connect(self._choose)
        layout.addWidget(self.list, 1)
        self.add = build_button(self.tr("Add a device…"), "plus", "primary")
        self.add.clicked.connect(self.add_asked)
        row = QHBoxLayout()
        row.setContentsMargins(SPACE, 0, SPACE, 0)
        row.addWidget(self.add)
        layout.addLayout(row)
        self.refresh()

    def refresh(self) -> None:
        """Show the devices that are trusted now."""
        current = self.current
        self.list.blockSignals(True)
        self.list.clear()
        self._add_item(self.tr("This computer"), None, True)
        for peer in self.device.others:
            hex_ = peer.fingerprint.hex()
            self._add_item(peer.name, peer.fingerprint, bool(self.connected.get(hex_)))
        self.list.blockSignals(False)
        self.select(current)
        c = colours()
        ratio = self.devicePixelRatioF()
        pixmap = build_pixmap("share", c.accent, round(LOGO_SIZE * ratio))
        pixmap.setDevicePixelRatio(ratio)
        self.logo.setPixmap(pixmap)

    def _add_item(self, name: str, fingerprint: bytes | None, active: bool) -> None:
        icon = "share" if fingerprint is None else "computer"
        item = QListWidgetItem(build_icon(icon, "accent" if active else "muted"), name)
        item.setData(FINGERPRINT, fingerprint)
        if fingerprint is not None:
            words = self.tr("is connected") if active else self.tr("is not connected")
            item.setToolTip(f"{name} {words}")
            item.setData(Qt.ItemDataRole.AccessibleDescriptionRole, words)
        self.list.addItem(item)

    def show_connected(self, peers: dict[str, int]) -> None:
        """Mark who is connected to us; connections by fingerprint in hex."""
        if peers != self.connected:
            self.connected = peers
            self.refresh()

    @property
    def current(self) -> bytes | None:
        """Whose page is shown."""
        item = self.list.currentItem()
        fingerprint: bytes | None = None if item is None else item.data(FINGERPRINT)
        return fingerprint

    def select(self, fingerprint: bytes | None) -> None:
        """Show the page of a device; of this one if it is not there."""
        for number in range(self.list.count()):
            if self.list.item(number).data(FINGERPRINT) == fingerprint:
                self.list.setCurrentRow(number)
                return
        self.list.setCurrentRow(0)

    def _choose(self) -> None:
        self.chosen.emit(self.current)
