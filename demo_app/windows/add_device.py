"""The dialog by which two devices come to trust each other."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QDialog,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from demo_app.windows.code_question import CodeQuestion
from demo_app.windows.qr_code import QrCode
from demo_app.windows.widgets import (
    SPACE,
    build_button,
    build_label,
)
from demo_app.workers.trust import Inviter, Joiner

QR_SIZE = 224


class InvitePage(QWidget):
    """This device is the one that the other one comes to."""

    def __init__(self, inviter: Inviter) -> None:
        super().__init__()
        self.inviter = inviter
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, SPACE + 4, 0, 0)
        layout.setSpacing(SPACE * 2)
        self.qr = QrCode(QR_SIZE)
        layout.addWidget(self.qr, 0, Qt.AlignmentFlag.AlignTop)
        right = QVBoxLayout()
        layout.addLayout(right, 1)
        self.offer = self._build_offer()
        self.question = CodeQuestion()
        self.question.answered.connect(inviter.answer)
        self.outcome = build_label("", wrap=True)
        self.again = build_button(self.tr("Let a device try again"), "refresh")
        self.again.clicked.connect(self._reopen)
        self.again.hide()
        right.addWidget(self.offer, 1)
        right.addWidget(self.question)
        right.addWidget(self.outcome)
        right.addWidget(self.again, 0, Qt.AlignmentFlag.AlignLeft)
        right.addStretch()
        inviter.opened.connect(self._show)
        inviter.asked.connect(self._ask)
        inviter.paired.connect(self._succeed)
        inviter.failed.connect(self._fail)

    def _build_offer(self) -> QWidget:
        offer = QWidget()
        layout = QVBoxLayout(offer)
        layout.setContentsMargins(0, 0, 0, 0)
        words = self.tr(
            "Scan this on the other device, or paste this invitation there. It is good "
            "for one device, as long as this window is open. Whoever has it is let in."
        )
        self.text = QPlainTextEdit()
        self.text.setReadOnly(True)
        self.text.setTabChangesFocus(True)
        self.text.setAccessibleName(self.tr("Invitation"))
        self.text.setStyleSheet("font-family: monospace; font-size: 11px")
        self.copy = build_button(self.tr("Copy invitation"), "copy", "primary")
        self.copy.clicked.connect(self._copy)
        self.copy.setEnabled(False)
        self.addresses = build_label("", "muted", wrap=True)
        self.addresses.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
        )
        layout.addWidget(build_label(words, wrap=True))
        layout.addWidget(self.text, 1)
        layout.addWidget(self.copy, 0, Qt.AlignmentFlag.AlignLeft)
        layout.addWidget(self.addresses)
        return offer

    def _show(self, invitation: str, addresses: list[str]) -> None:
        self.qr.show_text(invitation.upper(), self.tr("QR code of the invitation"))
        self.text.setPlainText(invitation)
        self.copy.setEnabled(True)
        self.copy.setFocus()
        words = self.tr("Or type an address there, and compare codes: {addresses}")
        self.addresses.setText(words.format(addresses=", ".join(addresses[:3])))

    def _show_offer(self, there: bool) -> None:
        self.offer.setVisible(there)
        self.qr.setVisible(there)

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.text.toPlainText())
        self.copy.setText(self.tr("Copied"))

    def _ask(self, code: str, name: str) -> None:
        self.outcome.clear()
        self._show_offer(False)
        self.question.ask(code, name)

    def _succeed(self, name: str) -> None:
        self.question.hide()
        self._show_offer(False)
        tell(self.outcome, self.tr("“{name}” is trusted now.").format(name=name), True)

    def _fail(self, why: str) -> None:
        self.question.hide()
        self.again.show()
        tell(self.outcome, why, False)

    def _reopen(self) -> None:
        self.again.hide()
        self.outcome.clear()
        self._show_offer(True)
        self.inviter.reopen()


class JoinPage(QWidget):
    """This device is the one that comes."""

    def __init__(self, joiner: Joiner) -> None:
        super().__init__()
        self.joiner = joiner
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, SPACE + 4, 0, 0)
        text = self.tr(
            "On the other device choose “Add a device”. Paste its invitation here, or "
            "type the address that it shows; then both of you compare a code."
        )
        layout.addWidget(build_label(text, wrap=True))
        self.edit = QLineEdit()
        self.edit.setPlaceholderText("degu:1?…   ·   192.168.1.7:40001")
        self.edit.setAccessibleName(self.tr("Invitation or address"))
        self.edit.setClearButtonEnabled(True)
        self.edit.returnPressed.connect(self._join)
        self.edit.textChanged.connect(self._edited)
        self.go = build_button(self.tr("Connect"), "check", "primary")
        self.go.clicked.connect(self._join)
        row = QHBoxLayout()
        row.addWidget(self.edit, 1)
        row.addWidget(self.go)
        layout.addSpacing(4)
        layout.addLayout(row)
        self.busy = QProgressBar()
        self.busy.setRange(0, 0)
        self.busy.setTextVisible(False)
        self.busy.setAccessibleName(self.tr("Connecting"))
        self.busy.hide()
        layout.addWidget(self.busy)
        self.question = CodeQuestion()
        self.question.answered.connect(self._answer)
        layout.addWidget(self.question)
        self.outcome = build_label("", wrap=True)
        layout.addWidget(self.outcome)
        layout.addStretch()
        joiner.asked.connect(self._ask)
        joiner.paired.connect(self._succeed)
        joiner.failed.connect(self._fail)
        self._edited("")

    def _edited(self, text: str) -> None:
        self.go.setEnabled(bool(text.strip()))

    def _join(self) -> None:
        if self.go.isEnabled():
            self.outcome.clear()
            self._set_busy(True)
            self.joiner.join(self.edit.text())

    def _ask(self, code: str, name: str) -> None:
        self.busy.hide()
        self.question.ask(code, name)

    def _answer(self, same: bool) -> None:
        self.busy.show()
        if same:
            tell(self.outcome, self.tr("Waiting for the other device…"), None)
        self.joiner.answer(same)

    def _succeed(self, name: str) -> None:
        self._set_busy(False)
        self.edit.clear()
        tell(self.outcome, self.tr("“{name}” is trusted now.").format(name=name), True)

    def _fail(self, why: str) -> None:
        self._set_busy(False)
        tell(self.outcome, why, False)
        self.edit.setFocus()

    def _set_busy(self, busy: bool) -> None:
        self.busy.setVisible(busy)
        self.question.hide()
        self.edit.setEnabled(not busy)
        self.go.setEnabled(not busy and bool(self.edit.text().strip()))


def tell(label: QWidget, text: str, good: bool | None) -> None:
    """Show how it went, in the colour of that."""
    label.setProperty("text", text)
    label.setObjectName({True: "good", False: "error", None: "muted"}[good])
    label.setAccessibleName(text)
    label.style().polish(label)


class AddDevice(QDialog):
    """Both ways, on two tabs."""

    def __init__(
        self, inviter: Inviter, joiner: Joiner, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.inviter = inviter
        self.joiner = joiner
        self.setWindowTitle(self.tr("Add a device"))
        self.resize(680, 400)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE + 6, SPACE, SPACE + 6, SPACE + 4)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.tabBar().setDrawBase(False)
        self.invite = InvitePage(inviter)
        self.join = JoinPage(joiner)
        self.tabs.addTab(self.invite, self.tr("Invite a device"))
        self.tabs.addTab(self.join, self.tr("Join another device"))
        self.tabs.currentChanged.connect(self._turn)
        layout.addWidget(self.tabs, 1)
        self.done_button = build_button(self.tr("Close"))
        self.done_button.clicked.connect(self.close)
        row = QHBoxLayout()
        row.addStretch()
        row.addWidget(self.done_button)
        layout.addLayout(row)
        inviter.open()

    def _turn(self, page: int) -> None:
        if page == 1:
            self.join.edit.setFocus()

    def done(self, result: int) -> None:
        """Invitations end with the dialog, however it is closed."""
        self.inviter.close()
        self.joiner.close()
        super().done(result)
