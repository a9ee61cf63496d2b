"""What is kept from one run to the next."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QByteArray, QSettings, QStandardPaths

from demo_app.device import build_name
from demo_app.windows.theme import Scheme


class Settings:
    """`QSettings`, with names and types."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = QSettings(str(folder / "settings.ini"), QSettings.Format.IniFormat)

    def _get(self, key: str, otherwise: str) -> str:
        return str(self.store.value(key, otherwise))

    @property
    def name(self) -> str:
        """What this device calls itself."""
        return self._get("name", "") or build_name()

    @name.setter
    def name(self, name: str) -> None:
        self.store.setValue("name", name)

    @property
    def shared(self) -> Path:
        """The folder to share: the one of the last time, or one that is made."""
        folder = Path(self._get("shared", ""))
        if folder.is_absolute() and folder.is_dir():
            return folder
        folder = find_place(QStandardPaths.StandardLocation.DownloadLocation)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            folder = self.folder / "shared"  # what lies here can be written to
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @shared.setter
    def shared(self, folder: Path) -> None:
        self.store.setValue("shared", str(folder))

    @property
    def downloads(self) -> Path:
        """Where downloads go."""
        kept = self._get("downloads", "")
        if kept:
            return Path(kept)
        place = QStandardPaths.StandardLocation.DownloadLocation
        return find_place(place) / "Degu Drop"

    @downloads.setter
    def downloads(self, folder: Path) -> None:
        self.store.setValue("downloads", str(folder))

    @property
    def port(self) -> int:
        """The port of the last run, so that addresses stay good."""
        return int(self._get("port", "0"))

    @port.setter
    def port(self, port: int) -> None:
        self.store.setValue("port", port)

    @property
    def writable(self) -> bool:
        """Whether devices may add files."""
        return self._get("writable", "true") == "true"

    @writable.setter
    def writable(self, writable: bool) -> None:
        self.store.setValue("writable", "true" if writable else "false")

    @property
    def scheme(self) -> Scheme:
        """Light, dark, or as the system."""
        try:
            return Scheme(self._get("scheme", Scheme.SYSTEM))
        except ValueError:
            return Scheme.SYSTEM

    @scheme.setter
    def scheme(self, scheme: Scheme) -> None:
        self.store.setValue("scheme", str(scheme))

    def load_layout(self, key: str) -> QByteArray:
        """The geometry of a window or splitter; empty at first."""
        value = self.store.value(f"layout/{key}")
        return value if isinstance(value, QByteArray) else QByteArray()

    def save_layout(self, key: str, value: QByteArray) -> None:
        """Keep a geometry."""
        self.store.setValue(f"layout/{key}", value)


def find_place(location: QStandardPaths.StandardLocation) -> Path:
    """A folder of the user's."""
    return Path(QStandardPaths.writableLocation(location) or Path.home())


def find_data_folder() -> Path:
    """Where this application keeps its own."""
    place = QStandardPaths.StandardLocation.GenericDataLocation
    return find_place(place) / "degu-drop"
