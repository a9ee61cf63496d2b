"""The throughput of the last minute, as two lines."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import (
    QColor,
    QLinearGradient,
    QPainter,
    QPaintEvent,
    QPen,
    QPolygonF,
)
from PySide6.QtWidgets import QSizePolicy, QWidget

from demo_app.meter import History, format_rate
from demo_app.windows.theme import colours

LEAST_TOP = 100_000.0
"""Bytes per second at the top of an empty plot."""
MARGIN = 64.0
LINES = 4


def choose_top(rate: float) -> float:
    """The next round figure above `rate`: 1, 2 or 5 and zeros."""
    top = LEAST_TOP
    factors = (2.0, 2.5, 2.0)
    step = 0
    while top < rate:
        top *= factors[step % 3]
        step += 1
    return top


class Plot(QWidget):
    """Draws a `History`; `update()` when it has grown."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history
        self.setMinimumHeight(96)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName(self.tr("Throughput of the last minute"))

    def sizeHint(self) -> QSize:
        """As large as it is useful."""
        return QSize(400, 120)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the grid and the lines."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(MARGIN, 8, self.width() - MARGIN - 4, self.height() - 16)
        top = choose_top(self.history.top)
        self._draw_grid(painter, area, top)
        c = colours()
        for name, colour in (("sent", c.accent), ("received", c.received)):
            self._draw_line(painter, area, top, self.history.rates[name], colour)
        painter.end()

    def _draw_grid(self, painter: QPainter, area: QRectF, top: float) -> None:
        c = colours()
        font = painter.font()
        font.setPointSizeF(font.pointSizeF() * 0.85)
        painter.setFont(font)
        for number in range(LINES + 1):
            y = area.bottom() - area.height() * number / LINES
            painter.setPen(QPen(QColor(c.border), 1))
            painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
            if number % 2 == 0:
                painter.setPen(QColor(c.muted))
                box = QRectF(0, y - 8, MARGIN - 8, 16)
                flags = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                text = format_rate(top * number / LINES) if number else "0"
                painter.drawText(box, int(flags), text)

    def _draw_line(
        self,
        painter: QPainter,
        area: QRectF,
        top: float,
        rates: Sequence[float],
        colour: str,
    ) -> None:
        step = area.width() / max(1, len(rates) - 1)
        points = [
            QPointF(area.left() + i * step, area.bottom() - area.height() * rate / top)
            for i, rate in enumerate(rates)
        ]
        fill = QLinearGradient(0, area.top(), 0, area.bottom())
        strong, faint = QColor(colour), QColor(colour)
        strong.setAlpha(90)
        faint.setAlpha(8)
        fill.setColorAt(0, strong)
        fill.setColorAt(1, faint)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        corners = [area.bottomLeft(), *points, area.bottomRight()]
        painter.drawPolygon(QPolygonF(corners))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(QColor(colour), 1.8))
        painter.drawPolyline(QPolygonF(points))
