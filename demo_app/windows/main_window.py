"""The main window: the sidebar, the page that it chooses, the transfers below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import QSize, Qt, QUrl, Signal
from PySide6.QtGui import QCloseEvent, QDesktopServices, QGuiApplication, QKeySequence
from PySide6.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QMainWindow,
    QMenu,
    QMessageBox,
    QSplitter,
    QStackedWidget,
    QStyle,
    QWidget,
)

from demo_app.windows.add_device import AddDevice
from demo_app.windows.icons import refresh_icons, set_icon
from demo_app.windows.peer_page import PeerPage
from demo_app.windows.preferences import Preferences
from demo_app.windows.process_bar import ProcessBar
from demo_app.windows.settings import Settings
from demo_app.windows.share_page import SharePage
from demo_app.windows.sidebar import Sidebar
from demo_app.windows.theme import apply_theme
from demo_app.windows.transfer_panel import TransferPanel
from demo_app.workers.peers import PeerBrowser
from demo_app.workers.queue import TransferQueue
from demo_app.workers.share import Share
from demo_app.workers.trust import Inviter, Joiner


class MainWindow(QMainWindow):
    """Everything that is seen. `closing` is emitted when the user wants to leave."""

    closing = Signal()

    def __init__(self, settings: Settings, share: Share, queue: TransferQueue) -> None:
        super().__init__()
        self.settings = settings
        self.share = share
        self.queue = queue
        self.inviter = Inviter(share)
        self.joiner = Joiner(share)
        self.dialog: AddDevice | None = None
        self.pages: dict[bytes, PeerPage] = {}
        self.setWindowTitle("Degu Drop")
        self.setMinimumSize(QSize(860, 600))
        self.resize(self._choose_size())
        self._build_center()
        self.bar = ProcessBar(self.share)
        self.setStatusBar(self.bar)
        self._build_menus()
        self._connect()
        self._follow()
        self.restoreGeometry(settings.load_layout("window"))
        self.splitter.restoreState(settings.load_layout("splitter"))

    # --- parts

    def _choose_size(self) -> QSize:
        """As large as all parts like it, and as the screen allows."""
        room = self.screen().availableSize()
        title = self.style().pixelMetric(QStyle.PixelMetric.PM_TitleBarHeight)
        return QSize(1120, 820).boundedTo(room - QSize(0, title))

    def _build_center(self) -> None:
        self.sidebar = Sidebar(self.share.device)
        self.share_page = SharePage(self.share, self.queue)
        self.stack = QStackedWidget()
        self.stack.addWidget(self.share_page)
        self.transfers = TransferPanel(self.queue)
        self.splitter = QSplitter(Qt.Orientation.Vertical)
        self.splitter.addWidget(self.stack)
        self.splitter.addWidget(self.transfers)
        self.splitter.setStretchFactor(0, 1)
        self.splitter.setCollapsible(0, False)
        self.splitter.setSizes([620, 168])
        self.splitter.setHandleWidth(1)
        center = QWidget()
        layout = QHBoxLayout(center)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.sidebar)
        layout.addWidget(self.splitter, 1)
        self.setCentralWidget(center)

    def _build_menus(self) -> None:
        file = self.menuBar().addMenu(self.tr("&File"))
        self._add(
            file, self.tr("&Share a folder…"), "folder", "Ctrl+O", self.ask_folder
        )
        self._add(
            file, self.tr("Open in &browser"), "globe", "Ctrl+B", self.share.open_link
        )
        file.addSeparator()
        self._add(
            file, self.tr("&Preferences…"), "settings", "Ctrl+,", self.show_preferences
        )
        self._add(file, self.tr("&Quit"), "cross", "Ctrl+Q", self.close)
        devices = self.menuBar().addMenu(self.tr("&Devices"))
        self._add(devices, self.tr("&Add a device…"), "plus", "Ctrl+N", self.add_device)
        self._add(
            devices, self.tr("&This computer"), "share", "Ctrl+1", self.show_share
        )
        server = self.menuBar().addMenu(self.tr("&Server"))
        self._add(server, self.tr("&Start"), "play", "", self.share.server.start)
        self._add(server, self.tr("S&top"), "stop", "", self.share.stop)
        server.addSeparator()
        self._add(
            server, self.tr("&Kill the server"), "bolt", "", self.share.server.kill
        )
        self._add(server, self.tr("Kill this &app…"), "bolt", "", self.bar.ask_kill)

    def _add(self, menu: QMenu, text: str, icon: str, keys: str, slot: Any) -> None:
        action = menu.addAction(text)
        set_icon(action, icon)
        if keys:
            action.setShortcut(QKeySequence(keys))
        action.triggered.connect(lambda _=False: slot())

    def _connect(self) -> None:
        self.sidebar.chosen.connect(self._turn)
        self.sidebar.add_asked.connect(self.add_device)
        self.share_page.choose_asked.connect(self.ask_folder)
        self.share_page.folder_dropped.connect(self.share_folder)
        self.share_page.writable.toggled.connect(self._keep_writable)
        self.share.server.changed.connect(self._follow)
        self.share.reported.connect(self._report)
        self.share.linked.connect(lambda url: QDesktopServices.openUrl(QUrl(url)))
        for trust in (self.inviter, self.joiner):
            trust.paired.connect(lambda _name: self.sidebar.refresh())
        hints = QGuiApplication.styleHints()
        hints.colorSchemeChanged.connect(self.refresh_theme)

    # --- what happens

    def _follow(self) -> None:
        if self.share.server.pid is None:
            self.sidebar.show_connected({})

    def _report(self, event: dict[str, Any]) -> None:
        own = self.share.device.identity.fingerprint.hex()
        peers = {name: n for name, n in event["peers"].items() if name != own}
        self.sidebar.show_connected(peers)

    def _turn(self, fingerprint: bytes | None) -> None:
        if fingerprint is None:
            self.stack.setCurrentWidget(self.share_page)
            return
        if fingerprint not in self.pages:
            page = self._build_page(fingerprint)
            if page is None:
                return
            self.pages[fingerprint] = page
            self.stack.addWidget(page)
            page.load()
        self.stack.setCurrentWidget(self.pages[fingerprint])

    def _build_page(self, fingerprint: bytes) -> PeerPage | None:
        device = self.share.device
        peer = device.find(fingerprint)
        if peer is None:
            return None
        page = PeerPage(PeerBrowser(device, peer), self.queue, self.settings.downloads)
        page.forget_asked.connect(lambda: self.ask_forget(fingerprint))
        return page

    def show_share(self) -> None:
        """Turn to the page of this computer."""
        self.sidebar.select(None)

    def add_device(self) -> None:
        """Open the dialog of trust."""
        if self.dialog is None or not self.dialog.isVisible():
            self.dialog = AddDevice(self.inviter, self.joiner, self)
            self.dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
            self.dialog.finished.connect(self._forget_dialog)
        self.dialog.show()
        self.dialog.raise_()

    def _forget_dialog(self) -> None:
        self.dialog = None

    def ask_folder(self) -> None:
        """Share a folder that the user chooses."""
        name = QFileDialog.getExistingDirectory(
            self, self.tr("Share a folder"), str(self.share.folder)
        )
        if name:
            self.share_folder(Path(name))

    def share_folder(self, folder: Path) -> None:
        """Share another folder from now on."""
        self.settings.shared = folder
        self.share.change_folder(folder)
        self.share_page.show_state()

    def _keep_writable(self, writable: bool) -> None:
        self.settings.writable = writable

    def ask_forget(self, fingerprint: bytes) -> None:
        """Trust a device no more, if the user is sure."""
        page = self.pages[fingerprint]
        text = self.tr("Forget “{name}”? It can't connect any more.")
        answer = QMessageBox.question(
            self, self.tr("Forget a device"), text.format(name=page.browser.peer.name)
        )
        if answer == QMessageBox.StandardButton.Yes:
            self.forget(fingerprint)

    def forget(self, fingerprint: bytes) -> None:
        """Trust a device no more."""
        page = self.pages.pop(fingerprint)
        self.stack.removeWidget(page)
        page.browser.forgotten.connect(self.sidebar.refresh)
        page.browser.forgotten.connect(page.deleteLater)
        page.browser.forget()
        self.show_share()

    def show_preferences(self) -> None:
        """Open the dialog of preferences."""
        dialog = Preferences(self.settings, self)
        if dialog.exec():
            self.refresh_theme()
            for page in self.pages.values():
                page.downloads = self.settings.downloads

    def refresh_theme(self) -> None:
        """Dress everything anew."""
        apply_theme(self.settings.scheme)
        refresh_icons(self)
        self.sidebar.refresh()
        self.share_page.refresh_theme()
        for row in self.transfers.rows.values():
            row.refresh_theme()

    def closeEvent(self, event: QCloseEvent) -> None:
        """Hide at once; the application ends when its servers have."""
        self.settings.save_layout("window", self.saveGeometry())
        self.settings.save_layout("splitter", self.splitter.saveState())
        if self.dialog is not None:
            self.dialog.close()
        event.accept()
        self.closing.emit()
