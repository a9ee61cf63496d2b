"""Six digits that two people compare."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from demo_app.windows.widgets import SPACE, build_button, build_label


class CodeQuestion(QWidget):
    """Six digits, and whether the other device shows the same."""

    answered = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, SPACE, 0, 0)
        self.question = build_label("", wrap=True)
        self.code = build_label("", "code")
        self.code.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.yes = build_button(self.tr("They are the same"), "check", "primary")
        self.no = build_button(self.tr("They differ"), "cross")
        buttons = QHBoxLayout()
        buttons.addStretch()
        buttons.addWidget(self.no)
        buttons.addWidget(self.yes)
        buttons.addStretch()
        layout.addWidget(self.question)
        layout.addWidget(self.code)
        layout.addLayout(buttons)
        self.yes.clicked.connect(lambda: self._answer(True))
        self.no.clicked.connect(lambda: self._answer(False))
        self.hide()

    def ask(self, code: str, name: str) -> None:
        """Show the code of a device that calls itself `name`."""
        text = self.tr("“{name}” wants to be trusted. Does it show the same code?")
        self.question.setText(text.format(name=name))
        self.code.setText(f"{code[:3]} {code[3:]}")
        self.code.setAccessibleName(" ".join(code))
        self.yes.setEnabled(True)
        self.no.setEnabled(True)
        self.show()
        self.yes.setFocus()

    def _answer(self, same: bool) -> None:
        self.yes.setEnabled(False)
        self.no.setEnabled(False)
        self.answered.emit(same)
