"""The files and folders of another device, as a table."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QDateTime,
    QLocale,
    QModelIndex,
    QObject,
    Qt,
)

from demo_app.entry import Entry
from demo_app.meter import format_bytes
from demo_app.windows.icons import build_icon
from demo_app.windows.request_table import Index


class EntryModel(QAbstractTableModel):
    """One folder."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.entries: list[Entry] = []
        self.titles = (self.tr("Name"), self.tr("Size"), self.tr("Changed"))

    def show_entries(self, entries: list[Entry]) -> None:
        """Show another folder."""
        self.beginResetModel()
        self.entries = entries
        self.endResetModel()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """How many entries."""
        return 0 if parent.isValid() else len(self.entries)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """How many columns."""
        return 0 if parent.isValid() else len(self.titles)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """One cell."""
        entry, column = self.entries[index.row()], index.column()
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(entry, column)
        if role == Qt.ItemDataRole.ToolTipRole and column == 0:
            return entry.name
        if role == Qt.ItemDataRole.DecorationRole and column == 0:
            if entry.is_folder:
                return build_icon("folder", "accent")
            return build_icon("file", "muted")
        if role == Qt.ItemDataRole.TextAlignmentRole and column > 0:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def _text(self, entry: Entry, column: int) -> str:
        if column == 0:
            return entry.name
        if column == 1:
            return "" if entry.size is None else format_bytes(entry.size)
        changed = QDateTime.fromSecsSinceEpoch(entry.modified)
        return QLocale().toString(changed, QLocale.FormatType.ShortFormat)

    def headerData(
        self,
        section: int,
        orientation: Qt.Orientation,
        role: int = Qt.ItemDataRole.DisplayRole,
    ) -> Any:
        """The titles."""
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.titles[section]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignRight if section > 0 else None
            return (side or Qt.AlignmentFlag.AlignLeft) | Qt.AlignmentFlag.AlignVCenter
        return None
