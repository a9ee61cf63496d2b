"""A real browser: folders, media, forms and uploads; and pages that must not get in.

Chromium is driven through its own debugging pipe. With ``DEGU_SCREENSHOTS`` set to a
folder, what is seen is kept there.
"""

from __future__ import annotations

import base64
import fcntl
import json
import math
import os
import select
import shutil
import ssl
import struct
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from degu.rgi import Validator
from degu.server import Server
from degu.testing import TempPKI
from tests.conftest import Deadline

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOCALHOST = ("127.0.0.1", 0)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")


class Browser:
    """A headless Chromium, spoken to in JSON through two pipes."""

    def __init__(self, profile: str, *options: str) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            *options,
        ]
        # The browser takes the descriptors 3 and 4 for its pipes.
        run = (
            f"import os, sys; os.dup2({high[0]}, 3); os.dup2({high[1]}, 4); "
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", run, CHROMIUM or "", *flags],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in high:
            os.close(fd)
        self._data = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the browser and all of its processes."""
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(10)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Call a method of the DevTools protocol and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = Deadline(20)
        while True:
            answer = self.receive(deadline)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self, deadline: Deadline) -> dict[str, Any]:
        """The next message, whatever it is."""
        while b"\0" not in self._data:
            ready = select.select([self._in], [], [], deadline.left)[0]
            assert ready, "the browser says nothing"
            more = os.read(self._in, 1 << 20)
            assert more, "the browser has ended"
            self._data += more
        message, _, self._data = self._data.partition(b"\0")
        result: dict[str, Any] = json.loads(message)
        return result


class Page:
    """One tab of the browser."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call(
            "Target.attachToTarget", targetId=self.target, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method for this tab."""
        return self.browser.call(method, self.session, **params)

    def close(self) -> None:
        """Close the tab."""
        self.browser.call("Target.closeTarget", targetId=self.target)

    def open(self, url: str) -> None:
        """Go to a URL and wait until it is loaded."""
        self.browser.events.clear()
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert failed is None, failed
        self.wait_loaded()

    def wait_loaded(self) -> None:
        """Wait for the load event of a page that is being gone to."""
        deadline = Deadline(20)
        while True:
            while self.browser.events:
                if self.browser.events.pop(0)["method"] == "Page.loadEventFired":
                    return
            self.browser.events.append(self.browser.receive(deadline))

    def run(self, script: str) -> Any:
        """The value of a script, awaited where it is a promise."""
        result = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, script: str) -> None:
        """Click on what a script finds, and wait for the page that this leads to."""
        self.browser.events.clear()
        self.run(f"{script}.click()")
        self.wait_loaded()

    def text(self) -> str:
        """What is to be read on the page."""
        return str(self.run("document.body.innerText"))

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file for an upload, as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def shoot(self, name: str, height: int = 400) -> None:
        """Take a picture, and keep it where that is wanted."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=900,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        image = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        assert image.startswith(b"\x89PNG")
        if folder := os.environ.get("DEGU_SCREENSHOTS"):
            Path(folder, f"{name}.png").write_bytes(image)


@pytest.fixture(scope="module")
def pki():
    """Certificates for localhost."""
    with TempPKI() as pki:
        yield pki


@pytest.fixture(scope="module")
def browser(pki):
    """One browser for all tests, that trusts our certificate and knows our names."""
    mark = build_key_mark(pki.server_sslconfig["cert_file"])
    with tempfile.TemporaryDirectory(prefix="degu-chromium-") as profile:
        browser = Browser(
            profile,
            f"--ignore-certificate-errors-spki-list={mark}",
            "--host-resolver-rules=MAP *.example 127.0.0.1",
        )
        try:
            yield browser
        finally:
            browser.close()


def build_key_mark(cert_file: str) -> str:
    """The digest of a certificate's public key, by which the browser trusts it."""
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    pem = Path(cert_file).read_text(encoding="ascii")
    cert = x509.load_der_x509_certificate(ssl.PEM_cert_to_DER_cert(pem))
    key = cert.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


@pytest.fixture
def page(browser):
    """A new tab."""
    page = Page(browser)
    yield page
    page.close()


class Command(NamedTuple):
    """How to start a server command, and what it will speak."""

    start: Callable[..., tuple[str, Callable[[], str]]]
    scheme: str


@pytest.fixture(params=["http", "https"])
def command(request, pki, deadline):
    """Run a server command, plain or over TLS; gives its URL and what it logs."""
    with ExitStack() as stack:

        def start(*args):
            options = ["--bind", "127.0.0.1:0"]
            if request.param == "https":
                config = pki.anonymous_server_sslconfig
                options += ["--cert", config["cert_file"], "--key", config["key_file"]]
                options.append("--allow-unauthenticated-clients")
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            process: Any = subprocess.Popen(
                [sys.executable, "-m", "degu", *map(str, args), *options],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            stack.callback(process.communicate, timeout=deadline(10).seconds)
            stack.callback(process.terminate)
            url = process.stdout.readline().strip()
            assert url.startswith(f"{request.param}://")

            def read_log():
                log.seek(0)
                return log.read()

            return url.replace("127.0.0.1", "localhost"), read_log

        yield Command(start, request.param)


def write_tone(path: Path, seconds: int) -> None:
    """A sine of 440 Hz, as long as asked for."""
    rate = 8000
    second = b"".join(
        struct.pack("<h", int(8000 * math.sin(2 * math.pi * 440 * n / rate)))
        for n in range(rate)
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(second * seconds)


@pytest.fixture
def folder(tmp_path):
    """A folder such as somebody may want to share."""
    root = tmp_path / "shared"
    (root / "Photos & more").mkdir(parents=True)
    (root / "Photos & more" / "cat #1.txt").write_text("This is a cat.")
    (root / "notes.txt").write_text("Grüße")
    (root / "report.html").write_text("<h1>Report</h1>")
    write_tone(root / "tone.wav", 300)
    for path in root.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return root


def test_a_folder_is_browsed(page, command, folder):
    """A listing with sizes; links lead into folders, to files, and back."""
    url, _ = command.start("files", folder)
    page.open(url)
    assert page.run("document.title") == "/"
    listing = page.text()
    for word in ("Photos & more/", "notes.txt", "tone.wav", "4.6 MiB", "2023-11-14"):
        assert word in listing
    page.shoot(f"files-{command.scheme}")
    page.click("document.querySelector('a[href*=Photos]')")
    assert page.run("location.pathname") == "/Photos%20%26%20more/"
    page.click("[...document.links].find(a => a.text.includes('cat'))")
    assert page.text() == "This is a cat."
    page.open(f"{url}notes.txt")
    assert page.text() == "Grüße"
    page.open(f"{url}Photos%20%26%20more/")
    page.click("document.links[0]")
    assert page.run("location.pathname") == "/"


def test_a_media_file_is_played_from_the_middle(page, command, folder):
    """The browser asks for ranges, gets them, and plays where it was told to."""
    url, read_log = command.start("files", folder)
    page.open(f"{url}tone.wav")
    played = page.run(
        """
        (async () => {
            const media = document.querySelector('video, audio');
            const until = (condition) => new Promise((resolve, reject) => {
                const timer = setInterval(() => {
                    if (media.error) reject(media.error.message);
                    if (condition()) { clearInterval(timer); resolve(); }
                }, 20);
            });
            await until(() => media.readyState >= 1);
            media.currentTime = 200;
            await media.play();
            await until(() => media.currentTime > 200.2 && !media.seeking);
            return [media.duration, media.currentTime];
        })()
        """
    )
    assert played[0] == 300
    assert played[1] > 200.2
    assert "GET /tone.wav -> 206 in " in read_log()
    page.shoot(f"media-{command.scheme}")


def test_both_forms_of_the_inspector_arrive(page, command, tmp_path):
    """A form with its query beside it, and an upload, as a browser sends them."""
    url, _ = command.start("inspect")
    page.open(f"{url}foo/bar")
    text = page.text()
    assert "Request: GET /foo/bar HTTP/1.1" in text
    assert ("Cipher: ('TLS_" in text) == (command.scheme == "https")
    page.click("document.forms[0].querySelector('[type=submit]')")
    text = page.text()
    assert "Request: POST /foo/bar?hi=john%20doe HTTP/1.1" in text
    assert "content-length: 67" in text
    for line in (
        "user ['James & Nancy Kirk']",
        "user2 ['']",
        "vote ['Y']",
        "pets ['dog', 'cat']",
        "comments ['']",
    ):
        assert f"\n    {line}" in text
    page.shoot(f"inspect-{command.scheme}", 1360)
    file = tmp_path / "text1"
    file.write_text("This is a test.\nIt is only a test.\n")
    page.choose_file("input[type=file]", file)
    page.click("document.forms[1].querySelector('[type=submit]')")
    text = page.text()
    assert "multipart/form-data; boundary=----WebKitFormBoundary" in text
    assert "    myfile ['This is a test.\\nIt is only a test.\\n']" in text


# --- the browser door

ATTACK = """
(async () => {
    const url = %r, results = {};
    const tries = {
        get: () => fetch(url + 'get'),
        no_cors: () => fetch(url + 'no_cors', {mode: 'no-cors'}),
        post: () => fetch(url + 'post', {method: 'POST', body: 'x'}),
        json: () => fetch(url + 'json', {method: 'PUT', body: '{}',
                          headers: {'content-type': 'application/json'}}),
    };
    for (const [name, attempt] of Object.entries(tries)) {
        results[name] = await attempt().then(r => r.type, e => 'refused');
    }
    results.image = await new Promise(resolve => {
        const image = new Image();
        image.onload = () => resolve('shown');
        image.onerror = () => resolve('refused');
        image.src = url + 'image';
    });
    const frame = document.createElement('iframe');
    frame.name = 'frame';
    document.body.append(frame);
    const form = document.createElement('form');
    form.method = 'POST';
    form.target = 'frame';
    form.action = url + 'form';
    document.body.append(form);
    await new Promise(resolve => {
        frame.onload = resolve;
        form.submit();
    });
    return results;
})()
"""

PIXEL = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1">'
    b'<rect width="1" height="1"/></svg>'
)


class Victim:
    """An app on this machine that notes whatever reaches it."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    def __call__(self, request):
        self.reached.append(f"{request['method']} {'/'.join(request['path'])}")
        origin = request["headers"].get("origin")
        cors = {}
        if origin is not None:
            cors = {
                "access-control-allow-origin": origin,
                "access-control-allow-methods": "PUT",
                "access-control-allow-headers": "content-type",
            }
        headers = {"content-type": "image/svg+xml", **cors}
        return 200, "OK", headers, PIXEL


def blank(request):
    """The page of somebody else."""
    return 200, "OK", {"content-type": "text/html"}, b"<p>somebody else"


@pytest.fixture
def foreign(page):
    """A page of another site is open; gives its origin."""
    server = Server(LOCALHOST, Validator(blank), allowed_hosts=["attacker.example"])
    with server.running():
        origin = f"http://attacker.example:{server.address[1]}"
        page.open(f"{origin}/")
        yield origin


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_site_does_not_get_in(page, foreign, host):
    """No fetch, form post or image of it ever reaches the app."""
    app = Victim()
    with Server(LOCALHOST, Validator(app)).running() as server:
        results = page.run(ATTACK % f"http://{host}:{server.address[1]}/")
    assert app.reached == []
    # What a page may not read looks to it like any answer: "opaque" says nothing.
    assert results.pop("no_cors") in ("opaque", "refused")
    assert set(results.values()) == {"refused"}


def test_a_page_of_an_allowed_site_gets_in(page, foreign):
    """The same page, named by `allowed_origins`: everything works."""
    app = Victim()
    server = Server(LOCALHOST, Validator(app), allowed_origins=[foreign])
    with server.running():
        results = page.run(ATTACK % f"http://127.0.0.1:{server.address[1]}/")
    assert results == {
        "get": "cors",
        "no_cors": "opaque",
        "post": "cors",
        "json": "cors",
        "image": "shown",
    }
    assert {"POST form", "GET image", "PUT json", "POST post"} <= set(app.reached)


def test_a_page_of_the_servers_own_gets_in(page):
    """What the server has served itself may ask it anything."""
    app = Victim()

    def own(request):
        return blank(request) if request["path"] == [] else app(request)

    with Server(LOCALHOST, Validator(own)).running() as server:
        url = f"http://127.0.0.1:{server.address[1]}/"
        page.open(url)
        results = page.run(ATTACK % url)
    assert set(results.values()) == {"basic", "shown"}
    assert {"POST form", "GET image", "PUT json"} <= set(app.reached)


def test_a_name_that_is_bound_anew_does_not_get_in(page):
    """DNS rebinding: the page's own name suddenly leads to us, and is not ours."""
    app = Victim()
    theirs = Server(LOCALHOST, Validator(blank), allowed_hosts=["rebound.example"])
    with theirs.running():
        port = theirs.address[1]
        page.open(f"http://rebound.example:{port}/")
    secret = "fetch('/secret').then(r => r.status)"
    with Server(theirs.address, Validator(app)).running():
        assert page.run(secret) == 421
        assert app.reached == []
        page.open(f"http://127.0.0.1:{port}/")
        assert page.run(secret) == 200
    assert "GET secret" in app.reached


def test_a_foreign_page_on_this_machine_does_not_get_in_either(page):
    """Another port of this host is another origin, though it is the same site."""
    app = Victim()
    with (
        Server(LOCALHOST, Validator(blank)).running() as other,
        Server(LOCALHOST, Validator(app)).running() as server,
    ):
        page.open(f"http://127.0.0.1:{other.address[1]}/")
        results = page.run(ATTACK % f"http://127.0.0.1:{server.address[1]}/")
    assert app.reached == []
    assert results["image"] == "refused"
