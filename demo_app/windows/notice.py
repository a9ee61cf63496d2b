"""What a page says where it has nothing to show."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QVBoxLayout, QWidget

from demo_app.windows.widgets import SPACE, build_button, build_label


class Notice(QWidget):
    """A title and a reason, and where that helps an address to be mended."""

    connect_asked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.title = build_label("", "heading")
        self.reason = build_label("", "muted", wrap=True)
        for label in (self.title, self.reason):
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.address = QLineEdit()
        self.address.setPlaceholderText("192.168.1.7:40001")
        self.address.setAccessibleName(self.tr("Address of this device"))
        self.address.setMaximumWidth(260)
        self.address.returnPressed.connect(self._ask)
        self.button = build_button(self.tr("Connect"), "refresh", "primary")
        self.button.clicked.connect(self._ask)
        row = QHBoxLayout()
        row.addStretch()
        row.addWidget(self.address)
        row.addWidget(self.button)
        row.addStretch()
        layout = QVBoxLayout(self)
        layout.addStretch()
        layout.addWidget(self.title)
        layout.addWidget(self.reason)
        layout.addSpacing(SPACE)
        layout.addLayout(row)
        layout.addStretch()

    def show_texts(self, title: str, reason: str, address: str | None) -> None:
        """Show these; None for no address. What was typed before stays."""
        self.title.setText(title)
        self.reason.setText(reason)
        self.address.setVisible(address is not None)
        self.button.setVisible(address is not None)
        if address is not None and not self.address.text():
            self.address.setText(address)

    def _ask(self) -> None:
        self.connect_asked.emit(self.address.text())
