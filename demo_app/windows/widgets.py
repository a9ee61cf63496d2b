"""Small parts that the windows are made of."""

from __future__ import annotations

from PySide6.QtCore import QRect, QSize, Qt
from PySide6.QtGui import QColor, QGuiApplication, QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from demo_app.windows.icons import build_pixmap, set_icon
from demo_app.windows.theme import colours

SPACE = 12
"""Pixels between things, at 96 dpi."""


class Card(QFrame):
    """A box with a heading; its `body` is a vertical layout."""

    def __init__(self, heading: str = "") -> None:
        super().__init__()
        self.setObjectName("card")
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(SPACE + 2, SPACE, SPACE + 2, SPACE)
        self.body.setSpacing(8)
        self.top = QHBoxLayout()
        if heading:
            self.add_heading(heading)

    def add_heading(self, heading: str) -> None:
        """Begin with a heading; more can be added to `top`, at its right."""
        self.top.addWidget(build_label(heading, "heading"))
        self.top.addStretch()
        self.body.addLayout(self.top)


def build_label(text: str, name: str = "", wrap: bool = False) -> QLabel:
    """A label; `name` is its part in the style sheet."""
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(wrap)
    if name:
        label.setObjectName(name)
    return label


def build_button(text: str, icon: str = "", kind: str = "") -> QPushButton:
    """A button; `kind` is ``primary`` or ``danger``, or nothing."""
    button = QPushButton(text)
    button.setAutoDefault(False)
    if kind:
        button.setProperty("kind", kind)
    if icon:
        role = {"primary": "on_accent", "danger": "bad"}.get(kind, "text")
        set_icon(button, icon, role)
    return button


def build_tool(icon: str, text: str) -> QToolButton:
    """A button with an icon alone; `text` is its tool tip and what is read out."""
    button = QToolButton()
    set_icon(button, icon)
    button.setToolTip(text)
    button.setAccessibleName(text)
    button.setIconSize(QSize(18, 18))
    button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    return button


class Pill(QLabel):
    """A word with a coloured dot before it."""

    def __init__(self) -> None:
        super().__init__()
        self.role = "muted"

    def show_state(self, text: str, role: str) -> None:
        """Show `text` after a dot in the colour that `role` names."""
        self.role = role
        self.setText(text)
        self.setContentsMargins(16, 0, 0, 0)
        self.setAccessibleName(text)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the dot."""
        super().paintEvent(event)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(getattr(colours(), self.role)))
        painter.drawEllipse(QRect(2, (self.height() - 9) // 2, 9, 9))
        painter.end()


class Check(QCheckBox):
    """A check box that can be seen in the dark as well."""

    BOX = 16

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the box in the colours of the theme, the text after it."""
        c = colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        box = QRect(2, (self.height() - self.BOX) // 2, self.BOX, self.BOX)
        edge = c.accent if self.isChecked() or self.hasFocus() else c.muted
        painter.setPen(QColor(edge))
        painter.setBrush(QColor(c.accent if self.isChecked() else c.card))
        painter.drawRoundedRect(box, 4, 4)
        if self.isChecked():
            size = round(self.BOX * self.devicePixelRatioF())
            painter.drawPixmap(box, build_pixmap("check", c.on_accent, size))
        painter.setPen(QColor(c.text))
        text = self.rect().adjusted(self.BOX + 10, 0, 0, 0)
        flags = Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextShowMnemonic
        painter.drawText(text, int(flags), self.text())
        painter.end()

    def sizeHint(self) -> QSize:
        """The box, the text, and room."""
        width = self.fontMetrics().horizontalAdvance(self.text())
        return QSize(self.BOX + 14 + width, super().sizeHint().height())


class Elided(QLabel):
    """A label that gives way: its text is cut in the middle."""

    def __init__(self, name: str = "", *, centred: bool = False) -> None:
        super().__init__()
        self.full = ""
        side = Qt.AlignmentFlag.AlignHCenter if centred else Qt.AlignmentFlag.AlignLeft
        self.setAlignment(side | Qt.AlignmentFlag.AlignVCenter)
        self.setObjectName(name)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)

    def show_text(self, text: str) -> None:
        """Show `text`, and all of it as tool tip."""
        self.full = text
        self.setToolTip(text)
        self.setAccessibleName(text)
        self.setText(text)  # for its height
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw what there is room for."""
        painter = QPainter(self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        shown = self.fontMetrics().elidedText(
            self.full, Qt.TextElideMode.ElideMiddle, self.width()
        )
        painter.drawText(self.rect(), int(self.alignment()), shown)
        painter.end()


class CopyRow(QWidget):
    """A line of text with a button that copies it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.label = Elided()
        self.button = build_tool("copy", what)
        self.button.clicked.connect(self._copy)
        layout.addWidget(self.label, 1)
        layout.addWidget(self.button)

    def show_text(self, text: str) -> None:
        """Show `text`."""
        self.label.show_text(text)

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.label.full)
