"""The clients that are compared; each sends the same GET on one kept connection.

``python -m bench.clients NAME ADDRESS`` reads counts from stdin, exchanges so many
messages, and prints the microseconds of one.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.tools import REQUEST_HEADERS

HEADERS = {"host": "localhost", **REQUEST_HEADERS}
Exchange = Callable[[], Any]


def make_degu(address: str) -> Exchange:
    from degu.client import Client

    where = address if address[0] == "/" else ("::1", int(address), 0, 0)
    request = Client(where).connect().request

    def exchange() -> bytes:
        body = request("GET", "/a/b", HEADERS).body
        assert body is not None
        return body.read()

    return exchange


def make_http_client(address: str) -> Exchange:
    from http.client import HTTPConnection

    connection = HTTPConnection("::1", int(address))

    def exchange() -> bytes:
        connection.request("GET", "/a/b", headers=HEADERS)
        return connection.getresponse().read()

    return exchange


def make_pycurl(address: str) -> Exchange:
    import io

    pycurl = importlib.import_module("pycurl")
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, f"http://[::1]:{address}/a/b")
    fields = [f"{name}: {value}" for name, value in HEADERS.items()]
    curl.setopt(pycurl.HTTPHEADER, fields)
    curl.setopt(pycurl.USERAGENT, "bench")

    def exchange() -> bytes:
        body = io.BytesIO()
        curl.setopt(pycurl.WRITEDATA, body)
        curl.perform()
        return body.getvalue()

    return exchange


def make_urllib3(address: str) -> Exchange:
    import urllib3

    pool = urllib3.HTTPConnectionPool("::1", int(address))
    return lambda: pool.request("GET", "/a/b", headers=HEADERS).data


def make_requests(address: str) -> Exchange:
    import requests

    session = requests.Session()
    url = f"http://[::1]:{address}/a/b"
    return lambda: session.get(url, headers=HEADERS).content


def make_httpx(address: str) -> Exchange:
    import httpx

    client = httpx.Client()
    url = f"http://[::1]:{address}/a/b"
    return lambda: client.get(url, headers=HEADERS).content


CLIENTS: dict[str, Callable[[str], Exchange]] = {
    "degu": make_degu,
    "degu, pure Python": make_degu,
    "pycurl": make_pycurl,
    "http.client": make_http_client,
    "urllib3": make_urllib3,
    "requests": make_requests,
    "httpx": make_httpx,
}


def measure(exchange: Exchange, count: int) -> float:
    """Microseconds of one exchange."""
    started = time.perf_counter()
    for _ in range(count):
        exchange()
    return (time.perf_counter() - started) / count * 1e6


def run_aiohttp(address: str) -> None:
    """The one that needs a loop of its own."""
    import asyncio

    import aiohttp

    async def main() -> None:
        url = f"http://[::1]:{address}/a/b"
        async with aiohttp.ClientSession() as session:
            for line in sys.stdin:
                started = time.perf_counter()
                for _ in range(int(line)):
                    async with session.get(url, headers=HEADERS) as response:
                        await response.read()
                spent = time.perf_counter() - started
                print(f"{spent / int(line) * 1e6:.3f}", flush=True)

    asyncio.run(main())


def main(name: str, address: str) -> None:
    if name == "aiohttp":
        run_aiohttp(address)
        return
    exchange = CLIENTS[name](address)
    for line in sys.stdin:
        print(f"{measure(exchange, int(line)):.3f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
