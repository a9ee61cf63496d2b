"""Icons, drawn from strokes, in the colours of the theme and sharp at any density."""

from __future__ import annotations

from functools import lru_cache

from PySide6.QtCore import QByteArray, Qt
from PySide6.QtGui import QAction, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer
from PySide6.QtWidgets import QAbstractButton, QWidget

from demo_app.windows.theme import colours

STROKES = {
    "bolt": "M13 3 5 14h6l-1 7 8-11h-6z",
    "check": "M5 12.5 9.5 17 19 7.5",
    "clock": "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 7.5V12l3 2",
    "computer": "M5 5h14v10H5zM2.5 19h19",
    "copy": "M9 9h11v11H9zM5.5 15H4V4h11v1.5",
    "cross": "M6.5 6.5l11 11M17.5 6.5l-11 11",
    "download": "M12 4v11M7.5 11l4.5 4.5 4.5-4.5M5 19.5h14",
    "file": "M6.5 3.5h7.5l4 4v13H6.5zM14 3.5v4h4",
    "folder": "M3.5 7A1.5 1.5 0 0 1 5 5.5h4.2l2 2.3H19A1.5 1.5 0 0 1 20.5 9.3V17a1.5 "
    "1.5 0 0 1-1.5 1.5H5A1.5 1.5 0 0 1 3.5 17z",
    "globe": "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM3 12h18M12 3c-4 4-4 14 0 18M12 3c4 "
    "4 4 14 0 18",
    "more": "M5.5 12h.1M12 12h.1M18.5 12h.1",
    "pause": "M9 6v12M15 6v12",
    "play": "M8.5 5.5 18 12l-9.5 6.5z",
    "plus": "M12 5.5v13M5.5 12h13",
    "refresh": "M19.5 12a7.5 7.5 0 1 1-2.3-5.4M19.7 3.8v4h-4",
    "settings": "M4 7h9M17.5 7H20M4 17h2.5M11 17h9M15 4.8v4.4M8.8 14.8v4.4",
    "share": "M8.5 12 16 7.5M8.5 12l7.5 4.5M6.5 9.7a2.3 2.3 0 1 0 0 4.6 2.3 2.3 0 0 0 "
    "0-4.6zM17.8 4.2a2.3 2.3 0 1 0 0 4.6 2.3 2.3 0 0 0 0-4.6zM17.8 15.2a2.3 2.3 0 1 0 "
    "0 4.6 2.3 2.3 0 0 0 0-4.6z",
    "stop": "M7 7h10v10H7z",
    "trash": "M5 7h14M9.5 7V4.5h5V7M7 7l.8 12.5h8.4L17 7M10.3 10.5v5.5M13.7 10.5v5.5",
    "up": "M12 19V6M6.5 11 12 5.5l5.5 5.5",
    "upload": "M12 15.5v-11M7.5 8.5 12 4l4.5 4.5M5 19.5h14",
    "warning": "M12 4.5 3 19.5h18zM12 10.5v4M12 17.2v.1",
}

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="{path}" '
    'fill="none" stroke="{colour}" stroke-width="{width}" stroke-linecap="round" '
    'stroke-linejoin="round"/></svg>'
)

SIZES = (16, 20, 24, 32, 48, 64, 96)


@lru_cache(maxsize=256)
def build_pixmap(name: str, colour: str, size: int) -> QPixmap:
    """One icon in one colour, `size` pixels wide."""
    width = 3 if name == "more" else 1.8
    text = SVG.format(path=STROKES[name], colour=colour, width=width)
    renderer = QSvgRenderer(QByteArray(text.encode()))
    pixmap = QPixmap(size, size)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    renderer.render(painter)
    painter.end()
    return pixmap


@lru_cache(maxsize=256)
def _build_icon(name: str, colour: str, disabled: str) -> QIcon:
    icon = QIcon()
    for size in SIZES:
        icon.addPixmap(build_pixmap(name, colour, size))
        icon.addPixmap(build_pixmap(name, disabled, size), QIcon.Mode.Disabled)
    return icon


def build_icon(name: str, role: str = "text") -> QIcon:
    """An icon in the colour of the theme that `role` names, as ``accent``."""
    c = colours()
    return _build_icon(name, getattr(c, role), c.muted)


def set_icon(target: QAbstractButton | QAction, name: str, role: str = "text") -> None:
    """Give a button or action an icon that follows the theme."""
    target.setProperty("iconName", f"{name} {role}")
    target.setIcon(build_icon(name, role))


def refresh_icons(root: QWidget) -> None:
    """Draw the icons of `root` anew, in the colours of the theme."""
    buttons = list(root.findChildren(QAbstractButton))
    actions = list(root.findChildren(QAction))
    targets: list[QAbstractButton | QAction] = [*buttons, *actions]
    for target in targets:
        words = target.property("iconName")
        if words:
            set_icon(target, *words.split())
