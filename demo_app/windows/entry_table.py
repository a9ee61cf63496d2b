"""The files and folders of another device, as a table."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QDateTime, QLocale, QObject, Qt

from demo_app.entry import Entry
from demo_app.meter import format_bytes
from demo_app.windows.icons import build_icon
from demo_app.windows.table import TableModel


class EntryModel(TableModel):
    """One folder."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.rows: list[Entry] = []
        self.titles = (self.tr("Name"), self.tr("Size"), self.tr("Changed"))
        self.right = {1, 2}

    def show_entries(self, entries: list[Entry]) -> None:
        """Show another folder."""
        self.beginResetModel()
        self.rows = entries
        self.endResetModel()

    def show_cell(self, row: Entry, column: int, role: int) -> Any:
        """Name, size or time; an icon, and the whole name where it was cut."""
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(row, column)
        if role == Qt.ItemDataRole.ToolTipRole and column == 0:
            return row.name
        if role == Qt.ItemDataRole.DecorationRole and column == 0:
            if row.is_folder:
                return build_icon("folder", "accent")
            return build_icon("file", "muted")
        return None

    def _text(self, entry: Entry, column: int) -> str:
        if column == 0:
            return entry.name
        if column == 1:
            return "" if entry.size is None else format_bytes(entry.size)
        changed = QDateTime.fromSecsSinceEpoch(entry.modified)
        return QLocale().toString(changed, QLocale.FormatType.ShortFormat)
