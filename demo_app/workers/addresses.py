"""The addresses of this computer that others can reach."""

from __future__ import annotations

from PySide6.QtNetwork import QAbstractSocket, QNetworkInterface

from degu.address import Address
from degu.invitation import MAX_ADDRESSES

LOOPBACK: Address = ("::1", 0, 0, 0)


def list_addresses(port: int, local: bool = False) -> list[Address]:
    """All addresses with `port`, IPv4 first; only loopback if there is nothing else."""
    found: list[Address] = []
    if not local:
        for interface in QNetworkInterface.allInterfaces():
            if _is_useful(interface):
                found.extend(_list_of(interface, port))
    # IPv4 first, as people can type it; then IPv6, link-local at the end.
    found.sort(key=lambda address: (len(address), str(address[0]).startswith("fe80")))
    return found[:MAX_ADDRESSES] or [("::1", port, 0, 0)]


def _is_useful(interface: QNetworkInterface) -> bool:
    flags = interface.flags()
    wanted = QNetworkInterface.InterfaceFlag
    return (
        bool(flags & wanted.IsUp)
        and bool(flags & wanted.IsRunning)
        and not flags & wanted.IsLoopBack
    )


def _list_of(interface: QNetworkInterface, port: int) -> list[Address]:
    found: list[Address] = []
    for entry in interface.addressEntries():
        ip = entry.ip()
        # The scope id is of no use elsewhere; who connects tries its own.
        text = ip.toString().partition("%")[0]
        if ip.protocol() == QAbstractSocket.NetworkLayerProtocol.IPv4Protocol:
            found.append((text, port))
        else:
            found.append((text, port, 0, 0))
    return found
