"""A Degu server in an asyncio program, whose loop never waits for it."""

import asyncio

import embed_app

import degu


class AsyncServer:
    """``async with AsyncServer() as server`` and ``await server.ended``."""

    def __init__(self, address=degu.IPv6_LOOPBACK):
        self.address = address
        self.server = None
        self.ended = None

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.server = await asyncio.to_thread(
            degu.EmbeddedServer, self.address, None, embed_app.app
        )
        self.ended = loop.create_future()
        loop.add_reader(self.server.sentinel, self._on_end)
        return self

    def _on_end(self):
        # The descriptor stays readable: without this the loop would spin.
        asyncio.get_running_loop().remove_reader(self.server.sentinel)
        if not self.ended.done():
            self.ended.set_result(self.server.wait())

    async def __aexit__(self, *exc):
        await asyncio.to_thread(self.server.stop)
        await self.ended


async def main():
    """Serve until the server ends, for a minute at most."""
    async with AsyncServer() as running:
        print("serving at", running.server.url)
        await asyncio.wait([running.ended], timeout=60)


if __name__ == "__main__":
    asyncio.run(main())
