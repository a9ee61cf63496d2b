"""Where this device is found, and how it is known."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHBoxLayout, QLabel, QVBoxLayout

from demo_app.windows.qr_code import QrCode
from demo_app.windows.widgets import SPACE, Card, CopyRow, build_label
from demo_app.workers.share import Share

QR_SIZE = 148
SHOWN_URLS = 3


class AddressCard(Card):
    """Addresses and fingerprint of a `Share`, as text and as a QR code."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share
        self.add_heading(self.tr("This device"))
        self.qr = QrCode(QR_SIZE)
        words = self.tr("Copy this address")
        self.urls = [CopyRow(words) for _ in range(SHOWN_URLS)]
        right = QVBoxLayout()
        right.setSpacing(4)
        right.addWidget(build_label(self.tr("ADDRESSES"), "section"))
        for row in self.urls:
            right.addWidget(row)
        right.addSpacing(4)
        right.addWidget(build_label(self.tr("FINGERPRINT"), "section"))
        right.addWidget(self._build_fingerprint())
        right.addStretch()
        middle = QHBoxLayout()
        middle.setSpacing(SPACE + 4)
        middle.addWidget(self.qr, 0, Qt.AlignmentFlag.AlignTop)
        middle.addLayout(right, 1)
        self.body.addLayout(middle, 1)

    def _build_fingerprint(self) -> QLabel:
        groups = self.share.device.identity.id.split("-")
        lines = ["-".join(groups[i : i + 2]) for i in range(0, len(groups), 2)]
        label = build_label("\n".join(lines))
        label.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
            | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        label.setStyleSheet("font-family: monospace")
        label.setAccessibleName(self.tr("Fingerprint of the certificate"))
        return label

    def refresh(self) -> None:
        """Show where it is now; nothing while it is nowhere."""
        urls = self.share.urls
        for number, row in enumerate(self.urls):
            row.setVisible(number < len(urls) or number == 0)
            row.show_text(urls[number] if number < len(urls) else "…")
            row.button.setEnabled(number < len(urls))
        words = self.tr("QR code of the address and the fingerprint")
        self.qr.show_text(self.share.qr_text, words)
