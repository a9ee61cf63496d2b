"""The requests that peers made, the newest on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    Qt,
    QTime,
)
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView

from demo_app.meter import format_bytes
from demo_app.windows.theme import colours

MAX_ROWS = 300

Index = QModelIndex | QPersistentModelIndex


@dataclass
class Row:
    """One line; `role` names its colour."""

    key: Any
    cells: tuple[str, ...]
    role: str = "text"


class RequestModel(QAbstractTableModel):
    """Rows by the number of the request."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.rows: list[Row] = []
        self.titles = (
            self.tr("Time"),
            self.tr("Device"),
            self.tr("Request"),
            self.tr("Result"),
            self.tr("Size"),
            self.tr("Took"),
        )

    def add_event(self, event: dict[str, Any]) -> None:
        """Show the news of one event."""
        known = {row.key: number for number, row in enumerate(self.rows)}
        fresh = []
        for fields in event["requests"]:
            row = self._build_row(event["server"], fields)
            number = known.get(row.key)
            if number is None:
                fresh.append(row)
            else:
                row.cells = (self.rows[number].cells[0], *row.cells[1:])
                self.rows[number] = row
                last = len(self.titles) - 1
                self.dataChanged.emit(self.index(number, 0), self.index(number, last))
        for address, why in event["refused"]:
            fresh.append(self._build_refusal(address, why))
        self._add(fresh)

    def forget_numbers(self) -> None:
        """The server began anew, and so do its numbers."""
        for row in self.rows:
            row.key = None

    def _add(self, rows: list[Row]) -> None:
        if not rows:
            return
        self.beginInsertRows(QModelIndex(), 0, len(rows) - 1)
        self.rows[:0] = reversed(rows)
        self.endInsertRows()
        if len(self.rows) > MAX_ROWS:
            self.beginRemoveRows(QModelIndex(), MAX_ROWS, len(self.rows) - 1)
            del self.rows[MAX_ROWS:]
            self.endRemoveRows()

    def _build_row(self, server: str, fields: dict[str, Any]) -> Row:
        status = fields["status"]
        result, role = str(status), "text"
        if fields["running"]:
            result, role = self.tr("running"), "accent"
        elif fields["broken"]:
            result, role = self.tr("broken off"), "warning"
        elif status >= 400:
            role = "bad"
        cells = (
            QTime.currentTime().toString("HH:mm:ss"),
            fields["peer"],
            f"{fields['method']} {fields['path']}",
            result,
            format_bytes(fields["bytes"]),
            f"{fields['seconds'] * 1000:.0f} ms"
            if fields["seconds"] < 1
            else f"{fields['seconds']:.1f} s",
        )
        return Row(fields["id"], cells, role)

    def _build_refusal(self, address: str, why: str) -> Row:
        now = QTime.currentTime().toString("HH:mm:ss")
        return Row(None, (now, address, why, self.tr("refused"), "", ""), "bad")

    # What Qt asks for.

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """How many requests."""
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """How many columns."""
        return 0 if parent.isValid() else len(self.titles)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """One cell."""
        row, column = self.rows[index.row()], index.column()
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return row.cells[column]
        if role == Qt.ItemDataRole.ForegroundRole:
            plain = row.role == "text" and column in (0, 4, 5)
            return QColor(getattr(colours(), "muted" if plain else row.role))
        if role == Qt.ItemDataRole.TextAlignmentRole and column >= 4:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

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
            side = Qt.AlignmentFlag.AlignRight if section >= 4 else None
            return (side or Qt.AlignmentFlag.AlignLeft) | Qt.AlignmentFlag.AlignVCenter
        return None


def dress_table(table: QTableView, widths: dict[int, int], wide: int) -> None:
    """What all tables here have in common."""
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setShowGrid(False)
    table.setWordWrap(False)
    table.setTabKeyNavigation(False)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    table.verticalHeader().hide()
    table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
    table.verticalHeader().setDefaultSectionSize(table.fontMetrics().height() + 12)
    header = table.horizontalHeader()
    header.setHighlightSections(False)
    header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
    header.setSectionResizeMode(wide, QHeaderView.ResizeMode.Stretch)
    for column, width in widths.items():
        header.resizeSection(column, width)
