"""Colours, light and dark, and the style sheet made of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication, QStyleFactory


@dataclass(frozen=True)
class Colours:
    """What each colour is for."""

    window: str
    sidebar: str
    card: str
    border: str
    text: str
    muted: str
    accent: str
    on_accent: str
    hover: str
    chosen: str
    good: str
    warning: str
    bad: str
    received: str


LIGHT = Colours(
    window="#f4f5f7",
    sidebar="#e9ecf0",
    card="#ffffff",
    border="#dce0e6",
    text="#1c2330",
    muted="#5f6b7c",
    accent="#0b7a72",
    on_accent="#ffffff",
    hover="#eef1f4",
    chosen="#d5ebe8",
    good="#1a7f45",
    warning="#a85f00",
    bad="#c42b34",
    received="#6b52c8",
)
DARK = Colours(
    window="#171a20",
    sidebar="#111419",
    card="#1f242c",
    border="#313843",
    text="#e7eaf0",
    muted="#9aa5b5",
    accent="#34b3a4",
    on_accent="#06201d",
    hover="#2a303a",
    chosen="#1f3f3d",
    good="#4fc389",
    warning="#eaa64a",
    bad="#f1747a",
    received="#a08cf2",
)


class Scheme(StrEnum):
    """What the user chose."""

    SYSTEM = "system"
    LIGHT = "light"
    DARK = "dark"


class _Current:
    colours = LIGHT


def colours() -> Colours:
    """The colours that are in force."""
    return _Current.colours


def apply_theme(scheme: Scheme) -> None:
    """Dress the whole application."""
    app = QApplication.instance()
    assert isinstance(app, QApplication)
    _Current.colours = DARK if _is_dark(scheme) else LIGHT
    if app.style().name() != "fusion":
        app.setStyle(QStyleFactory.create("Fusion"))
    app.setPalette(build_palette(_Current.colours))
    app.setStyleSheet(build_style_sheet(_Current.colours))


def _is_dark(scheme: Scheme) -> bool:
    if scheme is not Scheme.SYSTEM:
        return scheme is Scheme.DARK
    return QGuiApplication.styleHints().colorScheme() == Qt.ColorScheme.Dark


def build_palette(c: Colours) -> QPalette:
    """What the Fusion style draws with."""
    palette = QPalette()
    role = QPalette.ColorRole
    for which, value in [
        (role.Window, c.window),
        (role.WindowText, c.text),
        (role.Base, c.card),
        (role.AlternateBase, c.hover),
        (role.Text, c.text),
        (role.Button, c.card),
        (role.ButtonText, c.text),
        (role.Highlight, c.accent),
        (role.HighlightedText, c.on_accent),
        (role.ToolTipBase, c.card),
        (role.ToolTipText, c.text),
        (role.PlaceholderText, c.muted),
        (role.Link, c.accent),
        (role.Mid, c.border),
    ]:
        palette.setColor(which, QColor(value))
    for which in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, which, QColor(c.muted))
    return palette


def build_style_sheet(c: Colours) -> str:
    """What goes beyond the palette."""
    return f"""
QToolTip {{ color: {c.text}; background: {c.card}; border: 1px solid {c.border};
    padding: 4px; }}
#sidebar {{ background: {c.sidebar}; border-right: 1px solid {c.border}; }}
#sidebar QListWidget {{ background: transparent; border: none; outline: none; }}
#sidebar QListWidget::item {{ border-radius: 7px; padding: 7px 8px; margin: 1px 8px;
    color: {c.text}; }}
#sidebar QListWidget::item:hover {{ background: {c.hover}; }}
#sidebar QListWidget::item:selected {{ background: {c.chosen}; color: {c.text}; }}
#sidebar QListWidget::item:focus {{ border: 1px solid {c.accent}; }}
#card {{ background: {c.card}; border: 1px solid {c.border}; border-radius: 10px; }}
#drop {{ border: 2px dashed {c.border}; border-radius: 8px; }}
#drop[over="true"] {{ border-color: {c.accent}; background: {c.chosen}; }}
#title {{ font-size: 19px; font-weight: 600; }}
#heading {{ font-size: 14px; font-weight: 600; }}
#section {{ color: {c.muted}; font-size: 11px; font-weight: 600; }}
#muted {{ color: {c.muted}; }}
#error {{ color: {c.bad}; }}
#good {{ color: {c.good}; font-weight: 600; }}
#code {{ font-size: 40px; font-weight: 600; letter-spacing: 4px; }}
QPushButton {{ background: {c.card}; color: {c.text}; border: 1px solid {c.border};
    border-radius: 7px; padding: 6px 12px; min-height: 18px; }}
QPushButton:hover {{ background: {c.hover}; }}
QPushButton:focus, QLineEdit:focus, QPlainTextEdit:focus {{
    border: 1px solid {c.accent}; }}
QPushButton:disabled {{ color: {c.muted}; background: {c.window}; }}
QPushButton[kind="primary"] {{ background: {c.accent}; color: {c.on_accent};
    border-color: {c.accent}; font-weight: 600; }}
QPushButton[kind="primary"]:focus {{ border-color: {c.text}; }}
QPushButton[kind="primary"]:disabled {{ background: {c.border}; color: {c.muted};
    border-color: {c.border}; }}
QPushButton[kind="danger"] {{ color: {c.bad}; padding: 2px 10px; }}
QToolButton {{ border: 1px solid transparent; border-radius: 6px; padding: 4px; }}
QToolButton:hover {{ background: {c.hover}; }}
QToolButton:focus {{ border-color: {c.accent}; }}
QToolButton::menu-indicator {{ image: none; }}
QLineEdit, QPlainTextEdit, QComboBox {{ background: {c.card}; color: {c.text};
    border: 1px solid {c.border}; border-radius: 7px; padding: 5px 8px;
    selection-background-color: {c.accent}; selection-color: {c.on_accent}; }}
QTableView {{ background: transparent; border: none; outline: none;
    selection-background-color: {c.chosen}; selection-color: {c.text}; }}
QTableView::item {{ padding: 0 6px; border-bottom: 1px solid {c.hover}; }}
QTableView::item:selected {{ background: {c.chosen}; color: {c.text}; }}
QHeaderView {{ background: transparent; border: none; }}
QHeaderView::section {{ background: transparent; color: {c.muted}; border: none;
    border-bottom: 1px solid {c.border}; padding: 4px 9px; font-weight: 600; }}
QProgressBar {{ background: {c.border}; border: none; border-radius: 3px;
    max-height: 6px; min-height: 6px; }}
QProgressBar::chunk {{ background: {c.accent}; border-radius: 3px; }}
QProgressBar[state="failed"]::chunk {{ background: {c.bad}; }}
QProgressBar[state="paused"]::chunk, QProgressBar[state="retrying"]::chunk {{
    background: {c.warning}; }}
QProgressBar[state="done"]::chunk {{ background: {c.good}; }}
QScrollArea, #plain {{ background: transparent; border: none; }}
QSplitter::handle {{ background: {c.border}; }}
QStatusBar {{ background: {c.sidebar}; border-top: 1px solid {c.border}; }}
QStatusBar::item {{ border: none; }}
QMenuBar {{ background: {c.sidebar}; color: {c.text}; }}
QMenuBar::item {{ padding: 5px 9px; background: transparent; border-radius: 5px; }}
QMenuBar::item:selected, QMenu::item:selected {{ background: {c.chosen};
    color: {c.text}; }}
QMenu {{ background: {c.card}; color: {c.text}; border: 1px solid {c.border};
    padding: 4px; }}
QMenu::item {{ padding: 5px 24px 5px 10px; border-radius: 5px; }}
QMenu::icon {{ padding-left: 8px; }}
QMenu::separator {{ height: 1px; background: {c.border}; margin: 4px 6px; }}
QTabWidget::pane {{ border: none; border-top: 1px solid {c.border}; }}
QTabBar::tab {{ background: transparent; color: {c.muted}; padding: 8px 14px;
    border-bottom: 2px solid transparent; font-weight: 600; }}
QTabBar::tab:selected {{ color: {c.text}; border-bottom-color: {c.accent}; }}
QScrollBar:vertical {{ background: transparent; width: 10px; margin: 0; }}
QScrollBar::handle:vertical {{ background: {c.border}; border-radius: 4px;
    min-height: 28px; margin: 1px; }}
QScrollBar:horizontal {{ background: transparent; height: 10px; margin: 0; }}
QScrollBar::handle:horizontal {{ background: {c.border}; border-radius: 4px;
    min-width: 28px; margin: 1px; }}
QScrollBar::add-line, QScrollBar::sub-line {{ width: 0; height: 0; }}
QScrollBar::add-page, QScrollBar::sub-page {{ background: transparent; }}
"""
