"""Degu: an HTTP server and its client for applications that embed them.

Importing this package imports nothing else, not even from the standard library;
`start_server`, `EmbeddedServer` and their sisters are fetched from `degu.embed` when
they are first asked for, and the server itself is only ever imported by the process
that it runs in.
"""

__all__ = [
    "ADDRESS_CONSTANTS",
    "EmbeddedSSLServer",
    "EmbeddedServer",
    "EmbeddedService",
    "IPv4_ANY",
    "IPv4_LOOPBACK",
    "IPv6_ANY",
    "IPv6_LOOPBACK",
    "start_server",
    "start_sslserver",
]

__version__ = "1.0.0"

IPv6_LOOPBACK = ("::1", 0, 0, 0)
"""This host only, over IPv6; the kernel picks the port."""

IPv6_ANY = ("::", 0, 0, 0)
"""Every IPv6 address of this host, and IPv4 too where the system is dual-stack."""

IPv4_LOOPBACK = ("127.0.0.1", 0)
"""This host only, over IPv4."""

IPv4_ANY = ("0.0.0.0", 0)
"""Every IPv4 address of this host."""

ADDRESS_CONSTANTS = (IPv6_LOOPBACK, IPv6_ANY, IPv4_LOOPBACK, IPv4_ANY)

_EMBED_NAMES = (
    "EmbeddedSSLServer",
    "EmbeddedServer",
    "EmbeddedService",
    "start_server",
    "start_sslserver",
)

# A type checker takes any TYPE_CHECKING for true; typing's own would be an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from degu.embed import (
        EmbeddedServer,
        EmbeddedService,
        EmbeddedSSLServer,
        start_server,
        start_sslserver,
    )
else:

    def __getattr__(name):
        """Fetch one of `degu.embed`'s names when it is first used (PEP 562)."""
        if name not in _EMBED_NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from degu import embed

        value = globals()[name] = getattr(embed, name)
        return value

    def __dir__():
        """Show the lazy names too."""
        return sorted({*globals(), *_EMBED_NAMES})
