"""The line at the bottom: which processes there are, and buttons that kill them."""

from __future__ import annotations

import os
import signal

from PySide6.QtWidgets import QMessageBox, QStatusBar

from demo_app.windows.widgets import build_button, build_label
from demo_app.workers.share import Share


class ProcessBar(QStatusBar):
    """Shows what becomes of the processes of a `Share`, whatever is done to them."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share
        self.process = build_label("", "muted")
        self.process.setContentsMargins(8, 0, 0, 0)
        self.kill_server = build_button(self.tr("Kill the server"), "bolt", "danger")
        self.kill_server.setToolTip(
            self.tr("End its process by SIGKILL, and see it come back")
        )
        self.kill_server.clicked.connect(share.server.kill)
        self.kill_app = build_button(self.tr("Kill this app"), "bolt", "danger")
        self.kill_app.setToolTip(
            self.tr("End this process by SIGKILL; no server is left behind")
        )
        self.kill_app.clicked.connect(self.ask_kill)
        self.setSizeGripEnabled(False)
        self.setContentsMargins(0, 3, 10, 3)
        self.addWidget(self.process, 1)
        self.addPermanentWidget(self.kill_server)
        self.addPermanentWidget(self.kill_app)
        share.server.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the processes that there are now."""
        server = self.share.server
        text = self.tr("This app is process {app}").format(app=os.getpid())
        if server.pid is not None:
            words = self.tr("its server is process {server}")
            text = f"{text}, {words.format(server=server.pid)}"
        self.process.setText(text)
        self.kill_server.setEnabled(server.pid is not None)

    def ask_kill(self) -> None:
        """Kill this process, if the user is sure, to show that its servers go too."""
        text = self.tr("This app dies at once, by SIGKILL. No server will be left.")
        answer = QMessageBox.warning(
            self,
            self.tr("Kill this app"),
            text,
            QMessageBox.StandardButton.Ok | QMessageBox.StandardButton.Cancel,
        )
        if answer == QMessageBox.StandardButton.Ok:
            os.kill(os.getpid(), signal.SIGKILL)
