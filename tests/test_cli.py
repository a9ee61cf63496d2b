"""The `degu` command: every command, every exit code, signals, and no traceback."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from degu import cli
from degu.base import Output
from degu.cli import main
from degu.cli.addresses import parse_bind, parse_url
from degu.cli.command import EXIT_CODES, CommandError
from degu.cli.console import Progress
from degu.cli.get import PART_SUFFIX, _open_own
from degu.cli.put import format_digest
from degu.client import Client, SSLClient
from degu.files import PART_SUFFIX as FILES_PART_SUFFIX
from degu.files import FilesApp
from degu.rgi import Validator
from degu.server import Server, SSLServer
from degu.testing import TempPKI
from tests.conftest import wait_asleep
from tests.embed_apps import is_running

ROOT = Path(__file__).parents[1]
COMMANDS = ("serve", "files", "proxy", "inspect", "get", "put", "pki")
DATA = bytes(range(256)) * 4000

HELLO = """
import os
import time

from degu.base import ChunkedOutput

def app(request):
    return 200, "OK", {"pid": str(os.getpid())}, b"hello"

def slow(request):
    def pieces():
        yield b"begun"
        while not os.path.exists("go"):
            time.sleep(0.01)
        yield b", done"
    return 200, "OK", {"pid": str(os.getpid())}, ChunkedOutput(pieces())

def build_app():
    return app

def broken():
    raise RuntimeError("no luck")

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"wsgi ", environ["PATH_INFO"].encode("latin-1")]

number = 5
"""


@pytest.fixture
def start(tmp_path, deadline) -> Iterator[Any]:
    """Run a server command as a process; gives it and the URL that it printed."""
    (tmp_path / "hello.py").write_text(HELLO)
    processes = []

    def run(*args, **popen):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "degu", *map(str, args)],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        processes.append(process)
        url = process.stdout.readline().strip()
        assert url, process.stderr.read()
        return process, url

    yield run
    for process in processes:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=deadline(20).left)


def stop(process, number=signal.SIGINT):
    """Send a signal; gives the exit code, and what was said."""
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def read(response):
    """The whole body of a response."""
    return response.body.read()


def client_of(url):
    """A client of the server at this URL."""
    return Client(parse_url(url).addresses[0])


@pytest.fixture
def folder(tmp_path):
    """A folder to serve."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "data.bin").write_bytes(DATA)
    return root


@pytest.fixture
def files(folder) -> Iterator[str]:
    """The URL of a folder that takes uploads."""
    server = Server(("127.0.0.1", 0), Validator(FilesApp(folder, writable=True)))
    with server.running():
        yield f"http://127.0.0.1:{server.address[1]}/"


# --- help and errors


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
def test_help_teaches(command, capsys):
    """Each command shows what it does, examples that parse, and the exit codes."""
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert EXIT_CODES in out
    if command:
        examples = re.findall(rf"^  degu ({command[0]}\b.*)", out, re.MULTILINE)
        assert examples
        for example in examples:
            import shlex

            words = shlex.split(example.partition("|")[0].partition("#")[0])
            cli.build_parser().parse_args(words)
    else:
        assert all(f"    {name} " in out for name in COMMANDS)


def test_the_module_is_the_command():
    """`python -m degu` is the same as `degu`."""
    from degu import __version__

    result = subprocess.run(
        [sys.executable, "-m", "degu", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert result.stdout == f"degu {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["get"],
        ["get", "ftp://x/"],
        ["get", "http://user@x/"],
        ["get", "http://x:99999/"],
        ["get", "http://x/", "-H", "nocolon"],
        ["serve", "noattribute"],
        ["serve", "m:a", "--workers", "0"],
        ["files", "--bind", "nothing"],
        ["files", "--bind", "127.0.0.1:99999"],
        ["files", "--bind", "127.0.0.1:-1"],
        ["files", "--writ"],
        ["pki", "x", "y", "--days", "z"],
    ],
)
def test_a_wrong_command_line_is_a_2(argv, capsys):
    """It is said in two lines what is wrong, and nothing is done."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("usage: degu")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["get", "http://127.0.0.1:PORT/"], "Connection refused"),
        (["get", "http://127.0.0.1:PORT/", "x", "--ca", "x"], "for https"),
        (["get", "http+unix://%2Fnowhere/"], "No such file"),
        (["get", "https://127.0.0.1:PORT/", "--ca", "/none"], "ca_file"),
        (["put", "http://127.0.0.1:PORT/x", "/none"], "/none: No such file"),
        (["put", "http://127.0.0.1:PORT/"], "URL with a name"),
        (["put", "http://127.0.0.1:PORT/x", "--resume"], "can't be resumed"),
        (["files", "/none"], "/none: No such file"),
        (["files", "--key", "x"], "need a --cert"),
        (["files", "--cert", "x"], "--allow-unauthenticated-clients"),
        (["files", "--bind", "127.0.0.1:USED"], "in use"),
        (["proxy", "http://127.0.0.1:1/?q"], "without a query"),
        (["proxy", "http://127.0.0.1:1/", "--upstream-ca", "x"], "for https"),
        (["serve", "no_such_module_x:app"], "no module 'no_such_module_x'"),
        (["serve", "json:nothing"], "json has no 'nothing'"),
        (["serve", "json:__name__"], "expected an app"),
        (["pki", "DIR", "ca"], "name: expected"),
        (["pki", "DIR", "x", "bad_host!"], "host: expected"),
    ],
)
def test_what_cannot_be_done_is_a_1(argv, message, capsys, tmp_path):
    """One line says why, without a traceback unless it is asked for."""
    with (
        socket.create_server(("127.0.0.1", 0)) as used,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        ports = {"USED": str(used.getsockname()[1]), "PORT": str(free.getsockname()[1])}
        free.close()
        for name, port in {**ports, "DIR": str(tmp_path)}.items():
            argv = [word.replace(name, port) for word in argv]
        assert main(argv) == 1
        out, err = capsys.readouterr()
        assert not out
        assert message in err
        assert "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("degu: ")
        assert main([*argv, "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().err


def test_an_app_that_fails_to_load_is_a_1(tmp_path, monkeypatch, capsys):
    """Whatever an import or a factory raises is told in a line."""
    (tmp_path / "degu_bad_one.py").write_text("1 / 0")
    (tmp_path / "degu_bad_two.py").write_text("import degu_no_such")
    (tmp_path / "degu_bad_three.py").write_text(HELLO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for argv, message in (
        (["degu_bad_one:app"], "ZeroDivisionError"),
        (["degu_bad_two:app"], "degu_bad_two needs a module"),
        (["degu_bad_three:broken", "--factory"], "RuntimeError: no luck"),
        (["degu_bad_three:number"], "expected an app"),
    ):
        assert main(["serve", *argv]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8000", ("::1", 8000, 0, 0)),
        ("[::1]:0", ("::1", 0, 0, 0)),
        ("*:80", ("::", 80, 0, 0)),
        ("[::]:80", ("::", 80, 0, 0)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80, 0, 0)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("localhost:80", ("localhost", 80)),
        ("/run/my.sock", "/run/my.sock"),
        ("unix:my.sock", os.path.abspath("my.sock")),
        ("@name", b"\0name"),
    ],
)
def test_any_address_family_can_be_written(text, address):
    """IPv6, IPv4, Unix and abstract addresses."""
    assert parse_bind(text) == address


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://[::1]:80/a?b", (False, [("::1", 80, 0, 0)], "/a?b")),
        ("https://127.0.0.1", (True, [("127.0.0.1", 443)], "/")),
        (
            "http://name:8000/a b/%41#x",
            (False, [("name", 8000, 0, 0), ("name", 8000)], "/a%20b/%41"),
        ),
        ("http+unix://%2Frun%2Fx/ü", (False, ["/run/x"], "/%C3%BC")),
        ("https+unix://%00x/", (True, [b"\0x"], "/")),
        ("http://127.0.0.1/?", (False, [("127.0.0.1", 80)], "/")),
    ],
)
def test_urls_lead_to_addresses(text, target):
    """Literals, names (IPv6 first), Unix sockets; what is not ASCII is quoted."""
    assert tuple(parse_url(text)) == target


def shell(command):
    """Run `degu` from a shell, where a stream can be closed or go elsewhere."""
    env = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        f"{sys.executable} -m degu {command}",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "closed", "name"),
    [
        ("get {files}data.bin", ">&-", "output"),
        ("put {files}new", "<&-", "input"),
        ("pki {folder}/pki", ">&-", "output"),
    ],
)
def test_a_closed_stream_that_is_needed_is_a_1(command, closed, name, files, folder):
    """A line says which one, and nothing is done; others may be closed."""
    command = command.format(files=files, folder=folder)
    done = shell(f"{command} {closed}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"degu: standard {name} is closed\n"
    assert os.listdir(folder) == ["data.bin"]
    assert shell(f"{command} </dev/null >/dev/null").returncode == 0
    copy = folder / "copy"
    assert shell(f"get {files}data.bin {copy} {closed}").returncode == 0
    assert shell(f"put {files}again {copy} {closed}").returncode == 0
    assert (folder / "again").read_bytes() == DATA


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("get http+unix://%2Fnowhere/", 1),
        ("get http+unix://%2Fnowhere/ --debug", 1),
        ("nonsense", 2),
        ("get {files}missing", 3),
    ],
)
def test_what_nobody_can_hear_is_not_said(command, code, files, folder):
    """With standard error closed standard output has results, and nothing else."""
    command = command.format(files=files)
    done = shell(f"{command} 2>&-")
    assert (done.returncode, done.stdout) == (code, "")
    assert shell(command).stderr
    done = shell(f"pki {folder}/pki 2>&-")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"ca_file": f"{folder}/pki/ca.pem"}


def test_a_part_is_nobody_elses_file(tmp_path):
    """Its name can be foreseen, and a folder may be shared with others."""
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    with pytest.raises(OSError, match=r"link"), open(link, "ab", opener=_open_own):
        pass
    link.unlink()
    os.link(victim, link)
    with (
        pytest.raises(CommandError, match="one's own"),
        open(link, "ab", opener=_open_own),
    ):
        pass
    with open(tmp_path / "new", "ab", opener=_open_own) as file:
        assert file.tell() == 0


def test_a_part_is_called_as_the_server_calls_it():
    """So that a folder that is served shows nobody a part of a download."""
    assert PART_SUFFIX == FILES_PART_SUFFIX


# --- servers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_ends_cleanly_on_a_signal(start, number):
    """Exit code 0, nothing but a word on stderr, and the port is free again."""
    process, url = start("serve", "hello:app", "--bind", "127.0.0.1:0", "-q")
    client = client_of(url)
    assert read(client.get("/")) == b"hello"
    code, out, err = stop(process, number)
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        "degu: serving, Ctrl-C stops it",
        "degu: stopping",
    ]
    Server(client.address, lambda request: None).close()
    client.close()


def test_requests_are_logged_unless_told_otherwise(start):
    """A line a request on standard error, none with -q."""
    for options, logged in (((), True), (("-q",), False)):
        process, url = start("serve", "hello:app", "--bind", "0", *options)
        read(client_of(url).get("/x?y"))
        assert (" GET /x?y -> 200 in " in stop(process)[2]) is logged


def test_an_app_can_be_built_and_may_be_wsgi(start):
    """--factory calls the attribute, --wsgi takes another kind of app."""
    _, url = start("serve", "hello:build_app", "--factory", "--bind", "127.0.0.1:0")
    assert read(client_of(url).get("/")) == b"hello"
    _, url = start("serve", "hello:wsgi", "--wsgi", "--bind", "127.0.0.1:0")
    assert read(client_of(url).get("/a%20b")) == b"wsgi /a b"


def test_every_family_can_be_bound(start, tmp_path):
    """IPv6, every interface, a Unix socket and an abstract name."""
    path = tmp_path / "my.sock"
    for bind, prefix in (
        ("[::1]:0", "http://[::1]:"),
        ("*:0", "http://[::1]:"),
        ("0.0.0.0:0", "http://127.0.0.1:"),
        (f"unix:{path}", "http+unix://"),
        ("@degu-test-cli", "http+unix://%00"),
    ):
        process, url = start("serve", "hello:app", "--bind", bind)
        assert url.startswith(prefix)
        assert read(client_of(url).get("/")) == b"hello"
        assert stop(process)[0] == 0
    assert not path.exists()


def test_the_door_is_opened_by_name(start):
    """A foreign Host or Origin gets in only where an option names it."""
    headers = {"host": "my.example", "origin": "https://my.example"}
    _, url = start("serve", "hello:app", "--bind", "127.0.0.1:0")
    assert client_of(url).get("/", {"host": "my.example"}).status == 421
    _, url = start(
        *("serve", "hello:app", "--bind", "127.0.0.1:0"),
        *("--allowed-host", "my.example", "--allowed-origin", "https://my.example"),
    )
    assert client_of(url).get("/", headers).status == 200
    everybody = ("--allowed-host", "*", "--allowed-origin", "*")
    _, url = start("serve", "hello:app", "--bind", "127.0.0.1:0", *everybody)
    assert client_of(url).get("/", headers).status == 200


def test_workers_share_the_address(start, wait_until):
    """Several processes answer at one address, and all of them end."""
    process, url = start("serve", "hello:app", "--bind", "127.0.0.1:0", "--workers", 2)

    def ask():
        pids.add(int(client_of(url).get("/").headers["pid"]))
        return len(pids) == 2

    pids: set[int] = set()
    wait_until(ask, 20, what="both workers answer")
    assert process.pid not in pids
    code, _, err = stop(process)
    assert code == 0
    assert "Traceback" not in err
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("again", [False, True])
def test_a_second_ctrl_c_cuts_the_grace_of_workers(start, tmp_path, wait_until, again):
    """Without it a request is answered; more of them change nothing."""
    path = tmp_path / "my.sock"
    process, url = start("serve", "hello:slow", "-q", "--bind", path, "--workers", 2)
    response = client_of(url).get("/")
    assert process.stderr.readline() == "degu: serving, Ctrl-C stops it\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "degu: stopping\n"

    def interrupt():
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    if again:
        wait_until(interrupt, 20, what="an end")
    else:
        (tmp_path / "go").touch()
        assert read(response) == b"begun, done"
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == ((130, "\n") if again else (0, ""))
    assert not is_running(int(response.headers["pid"]))
    assert not path.exists()


def test_a_folder_is_served(start, folder):
    """Read-only by default; writable, hidden and without listings when asked for."""
    (folder / ".hidden").write_text("hidden")
    _, url = start("files", folder, "--bind", "127.0.0.1:0")
    client = client_of(url)
    assert read(client.get("/data.bin")) == DATA
    assert client.put("/new", {}, b"x").status == 405
    assert client.get("/.hidden").status == 404
    options = ("--writable", "--hidden", "--no-listing")
    _, url = start("files", folder, "--bind", "127.0.0.1:0", *options)
    client = client_of(url)
    assert client.put("/new", {}, b"x").status == 201
    assert read(client.get("/.hidden")) == b"hidden"
    assert client.get("/").status == 404


def test_a_folder_is_served_over_tls_with_certificates(start, folder, tmp_path, capsys):
    """What `degu pki` makes is all that both sides need, and a stranger is refused."""
    pki = tmp_path / "pki"
    assert main(["pki", str(pki)]) == 0
    ca = json.loads(capsys.readouterr().out)
    assert main(["pki", str(pki), "desk"]) == 0
    desk = json.loads(capsys.readouterr().out)
    assert main(["pki", str(pki), "phone", "phone.local", "10.0.0.9"]) == 0
    phone = json.loads(capsys.readouterr().out)
    assert ca["ca_file"] == desk["ca_file"] == phone["ca_file"] == str(pki / "ca.pem")
    assert oct((pki / "ca-key.pem").stat().st_mode)[-3:] == "600"
    assert oct((pki / "desk-key.pem").stat().st_mode)[-3:] == "600"
    process, url = start(
        *("files", folder, "--bind", "127.0.0.1:0", "--ca", desk["ca_file"]),
        *("--cert", desk["cert_file"], "--key", desk["key_file"]),
    )
    assert url.startswith("https://127.0.0.1:")
    target = str(tmp_path / "got")
    tls = ["--ca", phone["ca_file"]]
    own = ["--cert", phone["cert_file"], "--key", phone["key_file"]]
    assert main(["get", f"{url}data.bin", target, *tls, *own]) == 0
    assert Path(target).read_bytes() == DATA
    assert main(["get", f"{url}data.bin", target, *tls]) == 1
    assert main(["get", f"{url}data.bin", target]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 2
    wrong_host = SSLClient(desk, parse_url(url).addresses[0])
    assert wrong_host.get("/").status == 200
    # The phone's certificate is not one for this host.
    server = SSLServer(phone, ("127.0.0.1", 0), FilesApp(folder))
    with server.running():
        url = f"https://127.0.0.1:{server.address[1]}/data.bin"
        assert main(["get", url, target, *tls, *own]) == 1
    wrong_host.close()
    code, _, err = stop(process)
    assert code == 0
    refused = [line for line in err.splitlines() if " refused: " in line]
    assert len(refused) == 2, err  # without a certificate, and without trust in ours
    assert "127.0.0.1:" in refused[0]


def test_tls_for_everybody_is_asked_for_by_name(start, folder):
    """Without client certificates only with the long option."""
    with TempPKI() as pki:
        config = pki.anonymous_server_sslconfig
        _, url = start(
            *("files", folder, "--bind", "127.0.0.1:0"),
            *("--cert", config["cert_file"], "--key", config["key_file"]),
            "--allow-unauthenticated-clients",
        )
        client = SSLClient(pki.anonymous_client_sslconfig, parse_url(url).addresses[0])
        assert read(client.get("/data.bin")) == DATA
        client.close()


def test_the_pki_does_not_overwrite(tmp_path, capsys):
    """A second certificate of a name is refused; half a CA is not completed."""
    folder = str(tmp_path / "pki")
    assert main(["pki", folder, "desk"]) == 0
    before = (tmp_path / "pki" / "desk.pem").read_bytes()
    assert main(["pki", folder, "desk"]) == 1
    assert (tmp_path / "pki" / "desk.pem").read_bytes() == before
    (tmp_path / "pki" / "ca-key.pem").unlink()
    assert main(["pki", folder, "other"]) == 1
    assert not (tmp_path / "pki" / "other.pem").exists()
    assert "neither" in capsys.readouterr().err


def test_a_proxy_passes_on(start, files):
    """Requests go to the URL, below its path; a server that is not there is a 502."""
    _, url = start("proxy", files, "--bind", "127.0.0.1:0")
    assert read(client_of(url).get("/data.bin")) == DATA
    _, url = start("proxy", f"{files}data.bin", "--bind", "127.0.0.1:0")
    assert client_of(url).get("/").status == 404
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    _, url = start("proxy", f"http://localhost:{port}/", "--bind", "127.0.0.1:0")
    assert client_of(url).get("/").status == 502


def test_the_inspector_prints_what_came(start):
    """The text of each request is on standard output, after the URL."""
    process, url = start("inspect", "--bind", "127.0.0.1:0")
    answer = read(client_of(url).get("/foo?x=42")).decode()
    _, out, _ = stop(process)
    assert out == answer + "\n"
    assert "    x ['42']" in out


# --- downloads


def test_get_writes_to_standard_output(files):
    """Bytes, and nothing else, so that it can be piped."""
    result = subprocess.run(
        [sys.executable, "-m", "degu", "get", f"{files}data.bin"],
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    assert result.stdout == DATA
    assert result.stderr == b""


def test_a_reader_that_has_seen_enough_is_no_error_message(files):
    """`degu get URL | head -c 10` says nothing about a broken pipe."""
    command = f"{sys.executable} -m degu get {files}data.bin | head -c 3"
    result = subprocess.run(
        command, shell=True, capture_output=True, cwd=ROOT, check=True
    )
    assert result.stdout == DATA[:3]
    assert result.stderr == b""


def test_another_status_is_a_3(files, capsys, tmp_path):
    """The status and where to look are told, and no file is made."""
    assert main(["get", f"{files}missing", str(tmp_path / "x")]) == 3
    assert capsys.readouterr().err == "degu: 404 Not Found\n"
    (tmp_path / "root" / "sub").mkdir()
    assert main(["get", f"{files}sub"]) == 3
    assert capsys.readouterr().err == "degu: 308 Permanent Redirect: ./sub/\n"
    assert main(["put", f"{files}sub", str(tmp_path / "root" / "data.bin")]) == 3
    assert not (tmp_path / "x").exists()


def test_get_replaces_a_file_when_it_is_whole(files, tmp_path):
    """The old content is there until the new one is."""
    target = tmp_path / "x"
    target.write_bytes(b"old")
    assert main(["get", f"{files}data.bin", str(target)]) == 0
    assert target.read_bytes() == DATA
    assert not list(tmp_path.glob(f".*{PART_SUFFIX}"))


def test_headers_can_be_sent(files, capsysbinary):
    """-H adds or replaces a header."""
    argv = ["get", files, "-H", "Accept: application/json", "-H", "x-a:b"]
    assert main(argv) == 0
    assert json.loads(capsysbinary.readouterr().out)[0]["name"] == "data.bin"


class Flaky:
    """FilesApp, of which the first answer breaks off half-way."""

    def __init__(self, folder):
        self.app = FilesApp(folder)
        self.ranges: list[str | None] = []
        self.etag: str | None = None

    def __call__(self, request):
        self.ranges.append(request["headers"].get("range"))
        body: Any
        status, reason, headers, body = self.app(request)
        if self.etag is not None:
            headers = {**headers, "etag": self.etag}
        if len(self.ranges) == 1:
            body.fp.close()
            half = DATA[: len(DATA) // 2]

            def broken():
                yield half
                raise OSError("gone")

            body = Output(broken(), len(DATA))
        return status, reason, headers, body


@pytest.fixture
def flaky(folder):
    """A `Flaky` and its URL."""
    app = Flaky(folder)
    server = Server(("127.0.0.1", 0), app)
    with server.running():
        yield app, f"http://127.0.0.1:{server.address[1]}/data.bin"


def test_get_goes_on_where_it_broke_off(flaky, tmp_path, capsys):
    """The same command again fetches only the rest."""
    app, url = flaky
    target = tmp_path / "x"
    assert main(["get", url, str(target)]) == 1
    assert "the same command goes on" in capsys.readouterr().err
    assert not target.exists()
    [part] = tmp_path.glob(f".*{PART_SUFFIX}")
    assert part.stat().st_size == len(DATA) // 2
    assert main(["get", url, str(target)]) == 0
    assert target.read_bytes() == DATA
    assert app.ranges[-1] == f"bytes={len(DATA) // 2}-"
    assert not list(tmp_path.glob(f".*{PART_SUFFIX}"))


def test_get_starts_again_where_the_file_has_changed(flaky, tmp_path, folder):
    """The part of another state of the file is not used, and goes away."""
    app, url = flaky
    target = tmp_path / "x"
    assert main(["get", url, str(target)]) == 1
    (folder / "data.bin").write_bytes(DATA[::-1])
    assert main(["get", url, str(target)]) == 0
    assert target.read_bytes() == DATA[::-1]
    assert app.ranges == [None, None]
    assert not list(tmp_path.glob(f".*{PART_SUFFIX}"))


def test_get_keeps_nothing_that_it_could_not_trust(flaky, tmp_path):
    """Of an answer with a weak tag no part is kept."""
    app, url = flaky
    app.etag = 'W/"1"'
    assert main(["get", url, str(tmp_path / "x")]) == 1
    assert not list(tmp_path.glob(f".*{PART_SUFFIX}"))
    assert main(["get", url, str(tmp_path / "x")]) == 0


def test_get_into_a_folder_is_an_error(files, tmp_path, capsys):
    """FILE is a file."""
    assert main(["get", f"{files}data.bin", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_get_is_interrupted_cleanly(tmp_path):
    """Ctrl-C in a download is a 130 without a traceback, and the part is kept."""
    begun = threading.Event()
    gate = threading.Event()

    def app(request):
        def slow():
            yield DATA
            begun.set()
            gate.wait(20)
            yield b"x"

        return 200, "OK", {"etag": '"x"'}, Output(slow(), len(DATA) + 1)

    with Server(("127.0.0.1", 0), app).running() as server:
        url = f"http://127.0.0.1:{server.address[1]}/"
        process = subprocess.Popen(
            [sys.executable, "-m", "degu", "get", url, str(tmp_path / "x")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert begun.wait(20)
        wait_asleep(process.pid)
        code, _, err = stop(process)
        gate.set()
    assert code == 130
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


# --- uploads


def test_put_sends_a_file_or_standard_input(files, folder, tmp_path):
    """From a path, with the name added to a folder, or from a pipe."""
    source = tmp_path / "so ur%ce.bin"
    source.write_bytes(DATA)
    assert main(["put", f"{files}new.bin", str(source)]) == 0
    assert main(["put", f"{files}sub/", str(source)]) == 0
    assert (folder / "new.bin").read_bytes() == DATA
    assert (folder / "sub" / source.name).read_bytes() == DATA
    (tmp_path / "empty").write_bytes(b"")
    for resume in ([], ["--resume"]):
        assert main(["put", f"{files}empty", str(tmp_path / "empty"), *resume]) == 0
    assert (folder / "empty").read_bytes() == b""
    result = subprocess.run(
        [sys.executable, "-m", "degu", "put", f"{files}piped"],
        input=DATA,
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    assert result.stdout == b""
    assert result.stderr == b"degu: 201 Created\n"
    assert (folder / "piped").read_bytes() == DATA


def test_put_goes_on_where_it_broke_off(files, folder, tmp_path, capsys):
    """With --resume only the rest is sent, and the digest is checked."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    client = client_of(files)
    with open(source, "rb") as file:
        digest = {"repr-digest": format_digest(file)}
    begun = {"content-range": f"bytes 0-9/{len(DATA)}", **digest}
    assert client.put("/up", begun, DATA[:10]).status == 202
    assert client.head("/up", digest).headers["upload-offset"] == "10"
    assert main(["put", f"{files}up", str(source), "--resume"]) == 0
    assert (folder / "up").read_bytes() == DATA
    # Once more, over the file that is there now.
    assert main(["put", f"{files}up", str(source), "--resume"]) == 0
    client.close()


# --- progress


def test_progress_is_drawn_on_a_terminal_only(files, tmp_path):
    """A bar on a terminal, none in a pipe or with -q."""
    for options, drawn in (([], True), (["-q"], False)):
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "degu", "get", f"{files}data.bin"]
        process = subprocess.Popen(
            [*command, str(tmp_path / "x"), *options], cwd=ROOT, stderr=follower
        )
        os.close(follower)
        said = b""
        while True:
            try:
                more = os.read(leader, 1000)
            except OSError:
                break
            if not more:
                break
            said += more
        os.close(leader)
        assert process.wait(20) == 0
        assert (b"100% [====" in said) == drawn
        assert drawn or said == b""


def test_progress_tells_share_rate_and_time_left():
    """What a bar says, with and without a known end."""
    progress = Progress(1 << 20, 1 << 18, quiet=True)
    progress.add(1 << 18)
    expected = (
        f" 50% [{'=' * 15}{' ' * 15}] 512.0 KiB of 1.0 MiB, 256.0 KiB/s, 0:02 left"
    )
    assert progress.format(1.0) == expected
    unknown = Progress(None, quiet=True)
    unknown.add(1000)
    assert unknown.format(0.5) == "1000 B, 2.0 KiB/s"
    assert Progress(0, quiet=True).format(0.0) == "0 B, 0 B/s"


def test_errors_are_explained_in_a_line():
    """Errors of the system by their reason and file, all others by their text."""
    assert cli.explain(FileNotFoundError(2, "No such file", "x")) == "x: No such file"
    assert cli.explain(TimeoutError("timed out")) == "timed out"
    assert cli.explain(ValueError()) == "ValueError"
    with pytest.raises(argparse.ArgumentTypeError, match="no port"):
        parse_bind("x")
