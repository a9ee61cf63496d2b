"""The dialog of preferences."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QWidget,
)

from degu.pairing import MAX_NAME_LENGTH
from demo_app.windows.settings import Settings
from demo_app.windows.theme import Scheme
from demo_app.windows.widgets import SPACE, build_button, build_label


class Preferences(QDialog):
    """Changes `Settings` when it is accepted."""

    def __init__(self, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.settings = settings
        self.setWindowTitle(self.tr("Preferences"))
        self.setMinimumWidth(480)
        form = QFormLayout(self)
        form.setContentsMargins(SPACE + 6, SPACE + 6, SPACE + 6, SPACE + 4)
        form.setVerticalSpacing(SPACE)
        self.name = QLineEdit(settings.name)
        self.name.setMaxLength(MAX_NAME_LENGTH)
        form.addRow(self.tr("&Name of this device"), self.name)
        form.addRow(
            "", build_label(self.tr("Others see it from the next start on."), "muted")
        )
        self.downloads = QLineEdit(str(settings.downloads))
        choose = build_button(self.tr("Choose…"), "folder")
        choose.clicked.connect(self._choose)
        row = QHBoxLayout()
        row.addWidget(self.downloads, 1)
        row.addWidget(choose)
        form.addRow(self.tr("&Downloads go to"), row)
        self.scheme = QComboBox()
        for scheme, words in (
            (Scheme.SYSTEM, self.tr("As the system")),
            (Scheme.LIGHT, self.tr("Light")),
            (Scheme.DARK, self.tr("Dark")),
        ):
            self.scheme.addItem(words, scheme)
        self.scheme.setCurrentIndex(self.scheme.findData(settings.scheme))
        form.addRow(self.tr("&Appearance"), self.scheme)
        self.buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel
        )
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        form.addRow(self.buttons)

    def _choose(self) -> None:
        name = QFileDialog.getExistingDirectory(
            self, self.tr("Downloads go to"), self.downloads.text()
        )
        if name:
            self.downloads.setText(name)

    def accept(self) -> None:
        """Keep what was entered."""
        name = "".join(c for c in self.name.text() if c.isprintable()).strip()
        if name:
            self.settings.name = name
        if self.downloads.text().strip():
            self.settings.downloads = Path(self.downloads.text().strip())
        self.settings.scheme = self.scheme.currentData()
        super().accept()
