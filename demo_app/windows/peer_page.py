"""The page of another device: its folder, to fetch from and to put into."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from PySide6.QtCore import QModelIndex, Qt, Signal
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QMenu,
    QStackedWidget,
    QTableView,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from demo_app.entry import ROOT, Entry
from demo_app.windows.entry_table import EntryModel
from demo_app.windows.notice import Notice
from demo_app.windows.table import dress_table
from demo_app.windows.widgets import (
    SPACE,
    Card,
    Elided,
    Pill,
    build_button,
    build_label,
    build_tool,
)
from demo_app.workers.peers import PeerBrowser
from demo_app.workers.queue import TransferQueue


class PeerPage(QWidget):
    """Shows where a `PeerBrowser` is."""

    forget_asked = Signal()

    def __init__(
        self, browser: PeerBrowser, queue: TransferQueue, downloads: Path
    ) -> None:
        super().__init__()
        self.browser = browser
        self.queue = queue
        self.downloads = downloads
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE + 6, SPACE, SPACE + 6, SPACE)
        layout.setSpacing(SPACE)
        layout.addLayout(self._build_header())
        card = Card()
        card.body.addLayout(self._build_path_bar())
        self.stack = QStackedWidget()
        self.stack.setObjectName("plain")
        self.stack.addWidget(self._build_table())
        self.notice = Notice()
        self.notice.connect_asked.connect(self._connect)
        self.stack.addWidget(self.notice)
        card.body.addWidget(self.stack, 1)
        layout.addWidget(card, 1)
        self.setAcceptDrops(True)
        self._add_shortcuts()
        browser.listed.connect(self._show)
        browser.failed.connect(self._fail)
        self._choose()

    # --- parts

    def _build_header(self) -> QHBoxLayout:
        peer = self.browser.peer
        self.title = build_label(peer.name, "title")
        self.state = Pill()
        self.upload = build_button(self.tr("Upload…"), "upload")
        self.upload.clicked.connect(self.ask_files)
        self.download = build_button(self.tr("Download"), "download", "primary")
        self.download.clicked.connect(self.fetch)
        self.more = build_tool("more", self.tr("More for this device"))
        self.more.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.more)
        menu.addAction(self.tr("Upload a folder…"), self.ask_folder)
        menu.addAction(self.tr("Use another address…"), self.show_address)
        menu.addSeparator()
        menu.addAction(self.tr("Forget this device…"), self.forget_asked.emit)
        self.more.setMenu(menu)
        layout = QHBoxLayout()
        layout.setSpacing(8)
        layout.addWidget(self.title)
        layout.addSpacing(4)
        layout.addWidget(self.state)
        layout.addStretch()
        layout.addWidget(self.upload)
        layout.addWidget(self.download)
        layout.addWidget(self.more)
        return layout

    def _build_path_bar(self) -> QHBoxLayout:
        self.up = build_tool("up", self.tr("Folder above (Alt+Up)"))
        self.up.clicked.connect(self._go_up)
        self.again = build_tool("refresh", self.tr("Look again (F5)"))
        self.again.clicked.connect(self._refresh)
        self.path = Elided()
        layout = QHBoxLayout()
        layout.addWidget(self.up)
        layout.addWidget(self.path, 1)
        layout.addWidget(self.again)
        return layout

    def _build_table(self) -> QTableView:
        self.model = EntryModel(self)
        self.table = QTableView()
        self.table.setAccessibleName(self.tr("Files of this device"))
        self.table.setModel(self.model)
        dress_table(self.table, {1: 100, 2: 170}, 0)
        self.table.activated.connect(self._open)
        self.table.selectionModel().selectionChanged.connect(self._choose)
        return self.table

    def _add_shortcuts(self) -> None:
        for keys, function in (
            ("F5", self._refresh),
            ("Alt+Up", self._go_up),
            ("Ctrl+D", self.fetch),
            ("Ctrl+U", self.ask_files),
        ):
            shortcut = QShortcut(QKeySequence(keys), self)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(function)

    # --- where we are

    def load(self) -> None:
        """Look into the shared folder."""
        self._announce()
        self.browser.open(ROOT)

    def _announce(self) -> None:
        self.state.show_state(self.tr("Looking…"), "warning")

    def _show(self, uri: str, entries: list[Entry]) -> None:
        self.state.show_state(self.tr("Connected"), "good")
        below = unquote(uri.removeprefix(ROOT)).rstrip("/")
        self.path.show_text("/" + below)
        self.up.setEnabled(uri != ROOT)
        self.model.show_entries(entries)
        self.stack.setCurrentIndex(0)
        self._choose()
        if not entries:
            self._tell(
                self.tr("This folder is empty"), self.tr("Drop files here to add them.")
            )
        elif self.isVisible():
            self.table.setFocus()
            self.table.setCurrentIndex(QModelIndex())

    def _fail(self, uri: str, why: str) -> None:
        self.state.show_state(self.tr("Not reached"), "bad")
        title = self.tr("This device can't be reached")
        self._tell(title, why, self.browser.address_text)

    def _tell(self, title: str, reason: str, address: str | None = None) -> None:
        self.notice.show_texts(title, reason, address)
        self.stack.setCurrentIndex(1)

    def show_address(self) -> None:
        """Let the user type where the device is now."""
        self._tell(
            self.tr("Where is this device now?"),
            self.tr("Its window shows its addresses."),
            self.browser.address_text,
        )
        self.notice.address.setFocus()

    def _connect(self, text: str) -> None:
        try:
            self.browser.connect_to(text)
        except ValueError as error:
            self.notice.reason.setText(str(error))
        else:
            self._announce()

    def _open(self, index: QModelIndex) -> None:
        entry = self.model.rows[index.row()]
        if entry.is_folder:
            self._announce()
            self.browser.open(entry.uri)
        else:
            self.fetch()

    def _go_up(self) -> None:
        self._announce()
        self.browser.open_parent()

    def _refresh(self) -> None:
        self._announce()
        self.browser.refresh()

    # --- to fetch, and to put

    @property
    def chosen(self) -> list[Entry]:
        """The entries that are selected."""
        rows = self.table.selectionModel().selectedRows()
        return [self.model.rows[index.row()] for index in rows]

    def _choose(self) -> None:
        count = len(self.chosen)
        self.download.setEnabled(count > 0)
        words = self.tr("Download")
        self.download.setText(f"{words} ({count})" if count > 1 else words)

    def fetch(self) -> None:
        """Download what is selected."""
        if self.chosen:
            self.queue.download(self.browser.remote, self.chosen, self.downloads)

    def ask_files(self) -> None:
        """Upload files that the user chooses."""
        names, _ = QFileDialog.getOpenFileNames(self, self.tr("Upload files"))
        self.put([Path(name) for name in names])

    def ask_folder(self) -> None:
        """Upload a folder that the user chooses."""
        name = QFileDialog.getExistingDirectory(self, self.tr("Upload a folder"))
        self.put([Path(name)] if name else [])

    def put(self, paths: list[Path]) -> None:
        """Upload `paths` to the folder that is shown."""
        if paths:
            self.queue.upload(self.browser.remote, paths, self.browser.uri)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take files and folders."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Upload them."""
        event.acceptProposedAction()
        urls = event.mimeData().urls()
        self.put([Path(url.toLocalFile()) for url in urls if url.isLocalFile()])
