"""A QR code, drawn."""

from __future__ import annotations

import segno
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QWidget

from demo_app.windows.theme import colours


class QrCode(QWidget):
    """A QR code, black on white in any theme, as cameras want it."""

    QUIET = 3

    def __init__(self, size: int) -> None:
        super().__init__()
        self.text = ""
        self.rows: list[bytes] = []
        self.setFixedSize(size, size)

    def show_text(self, text: str, name: str) -> None:
        """Show `text`; `name` is read out instead of it."""
        self.setAccessibleName(name)
        if text == self.text:
            return
        self.text = text
        self.rows = []
        if text:
            code = segno.make(text, error="l", micro=False, boost_error=False)
            self.rows = [bytes(row) for row in code.matrix]
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the squares, each of whole pixels of the screen."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(
            Qt.GlobalColor.white if self.rows else QColor(colours().window)
        )
        painter.drawRoundedRect(self.rect(), 6, 6)
        if self.rows:
            painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
            self._draw(painter)
        painter.end()

    def _draw(self, painter: QPainter) -> None:
        count = len(self.rows) + 2 * self.QUIET
        ratio = self.devicePixelRatioF()
        step = max(1, int(self.width() * ratio / count)) / ratio
        start = (self.width() - step * len(self.rows)) / 2
        painter.translate(start, start)
        painter.scale(step, step)
        for y, row in enumerate(self.rows):
            for x, dark in enumerate(row):
                if dark:
                    painter.fillRect(x, y, 1, 1, Qt.GlobalColor.black)
