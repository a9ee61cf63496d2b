"""The requests that peers made, the newest on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QModelIndex, QObject, Qt, QTime
from PySide6.QtGui import QColor

from demo_app.meter import format_bytes
from demo_app.windows.table import TableModel
from demo_app.windows.theme import colours

MAX_ROWS = 300


@dataclass
class Row:
    """One line; `role` names its colour."""

    key: Any
    cells: tuple[str, ...]
    role: str = "text"


class RequestModel(TableModel):
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
        self.right = {4, 5}

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

    def show_cell(self, row: Row, column: int, role: int) -> Any:
        """The text, and the colour that goes with the result."""
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return row.cells[column]
        if role == Qt.ItemDataRole.ForegroundRole:
            plain = row.role == "text" and column in (0, 4, 5)
            return QColor(getattr(colours(), "muted" if plain else row.role))
        return None
