"""`degu.forms`: the seed's examples to the byte, round trips, and hostile forms."""

from __future__ import annotations

import doctest
import io
import os
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import degu.forms
from degu.base import ChunkedInput, Input
from degu.client import Client
from degu.errors import (
    ContentTooLargeError,
    ParseError,
    ProtocolError,
    TargetTooLongError,
    UnderFlowError,
    UnsupportedMediaTypeError,
)
from degu.forms import (
    FORM_OPTIONS,
    FORM_TYPE,
    MULTIPART_TYPE,
    FilePart,
    Form,
    Upload,
    format_form,
    format_multipart,
    format_query,
    parse_content_type,
    parse_form,
    parse_query,
    read_form,
    read_multipart,
)
from degu.server import Server

ROOT = Path(__file__).parents[1]

FIELDS = {
    "user": "James & Nancy Kirk",
    "user2": "",
    "vote": "Y",
    "pets": ["dog", "cat"],
    "comments": "",
}
URLENCODED = b"user=James+%26+Nancy+Kirk&user2=&vote=Y&pets=dog&pets=cat&comments="
FILE = b"This is a test.\nIt is only a test.\n"
BOUNDARY_264 = "---------------------------9849436581144108930470211272"
BOUNDARY_256 = "---------------------------168072824752491622650073"


def multipart_body(boundary: str) -> bytes:
    """The upload of the seed, written out."""
    return (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="myfile"; filename="text1"\r\n'
        "Content-Type: application/octet-stream\r\n"
        "\r\n"
        "This is a test.\nIt is only a test.\n\r\n"
        f"--{boundary}--\r\n"
    ).encode("ascii")


def make_request(
    body: bytes | None = None,
    content_type: str | None = None,
    method: str = "POST",
    query: str | None = None,
    chunked: bool = False,
) -> dict[str, Any]:
    """A request as an app gets it, with a real body object."""
    headers = {} if content_type is None else {"content-type": content_type}
    source: Any = None
    if body is not None and chunked:
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        source = ChunkedInput(io.BytesIO(chunk + b"0\r\n\r\n"))
    elif body is not None:
        source = Input(io.BytesIO(body), len(body))
    return {"method": method, "query": query, "headers": headers, "body": source}


def multipart_request(body: bytes, boundary: str = "B", **rest: Any) -> dict[str, Any]:
    return make_request(body, f"{MULTIPART_TYPE}; boundary={boundary}", **rest)


def body_of(output: Any) -> bytes:
    """What a body writes, which has to be as long as it says."""
    data = b"".join(bytes(piece) for piece in output)

    assert len(data) == output.content_length

    return data


def part(disposition: str, content: bytes = b"", *lines: str) -> bytes:
    """One part with its boundary B in front."""
    head = "\r\n".join(["--B", f"Content-Disposition: {disposition}", *lines])
    return head.encode("utf-8") + b"\r\n\r\n" + content + b"\r\n"


def field(name: str, content: bytes = b"") -> bytes:
    return part(f'form-data; name="{name}"', content)


def file(name: str, content: bytes = b"", filename: str = "f") -> bytes:
    return part(f'form-data; name="{name}"; filename="{filename}"', content)


END = b"--B--\r\n"


class Trickle(io.BytesIO):
    """A file that gives at most `most` bytes at once, like a network."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.most)


class Endless:
    """A body that never ends: `start`, then `piece` for ever; counts what it gave."""

    def __init__(self, start: bytes, piece: bytes) -> None:
        self.rest = start
        self.piece = piece
        self.given = 0

    def read(self, size: int, /) -> bytes:
        while len(self.rest) < size:
            self.rest += self.piece * (size // len(self.piece) + 1)
        data, self.rest = self.rest[:size], self.rest[size:]
        self.given += size
        return data


def open_files(folder: Path) -> list[str]:
    """The open files of this process that lie in `folder`, the unlinked ones too."""
    links = Path("/proc/self/fd")
    found = []
    for link in links.iterdir() if links.exists() else []:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


@pytest.fixture
def tempdir(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files that has to be empty at the end, and unused."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    yield folder

    assert list(folder.iterdir()) == []
    assert open_files(folder) == []


# The examples of the seed


def test_the_seeds_form_is_67_bytes_and_comes_back():
    """Its urlencoded body is formatted and parsed byte for byte."""
    headers, body = format_form(FIELDS)

    assert headers == {"content-type": FORM_TYPE}
    assert body == URLENCODED
    assert len(body) == 67
    form = read_form(make_request(body, FORM_TYPE, query="hi=john%20doe"))
    assert {name: form[name] for name in form} == {
        "user": ["James & Nancy Kirk"],
        "user2": [""],
        "vote": ["Y"],
        "pets": ["dog", "cat"],
        "comments": [""],
    }
    assert form.first("pets") == "dog"
    assert "hi" not in form


@pytest.mark.parametrize(
    ("boundary", "size"), [(BOUNDARY_256, 256), (BOUNDARY_264, 264)]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_the_seeds_upload_is_256_or_264_bytes_and_comes_back(
    boundary, size, chunked, tmp_path, tempdir
):
    """Both of its bodies are formatted and read byte for byte, in either framing."""
    path = tmp_path / "text1"
    path.write_bytes(FILE)

    headers, output = format_multipart({}, {"myfile": path}, boundary=boundary)

    assert headers == {"content-type": f"multipart/form-data; boundary={boundary}"}
    assert output.content_length == size
    body = body_of(output)
    assert body == multipart_body(boundary)
    request = make_request(body, headers["content-type"], chunked=chunked)
    with read_form(request, tempdir=str(tempdir)) as form:
        assert list(form) == ["myfile"]
        (upload,) = form.uploads["myfile"]
        assert (upload.filename, upload.content_type) == (
            "text1",
            "application/octet-stream",
        )
        assert upload.size == 35
        assert upload.text() == "This is a test.\nIt is only a test.\n"
    assert request["body"].closed


def test_a_query_and_a_body_are_read_the_same_way():
    """A GET's form is in its query, a POST's in its body only."""
    get = read_form(make_request(method="GET", query="x=42&y=10"))
    post = read_form(make_request(b"x=42&y=10", FORM_TYPE, query="x=1&z=2"))

    assert dict(get) == {"x": ["42"], "y": ["10"]} == dict(post)


def test_a_head_has_its_form_in_the_query_too():
    """HEAD is answered as GET would be, so it reads what GET reads."""
    form = read_form(make_request(method="HEAD", query="x=42"))

    assert dict(form) == {"x": ["42"]}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_request_without_a_form_has_an_empty_one(method):
    """Neither a query nor a body is no error."""
    form = read_form(make_request(method=method))

    assert len(form) == 0
    assert form.first("x") is None
    assert form.first("x", "y") == "y"
    with pytest.raises(KeyError):
        form["x"]


def test_the_query_is_no_form_of_a_post():
    """A POST without a body does not fall back to its query."""
    assert dict(read_form(make_request(query="x=1"))) == {}


def test_an_empty_urlencoded_body_is_an_empty_form():
    """A length of zero reaches the app as no body; its type is still right."""
    assert dict(read_form(make_request(None, FORM_TYPE))) == {}


@pytest.mark.parametrize(
    ("content_type", "status"), [(f"{MULTIPART_TYPE}; boundary=B", 400), ("a/b", 415)]
)
def test_an_empty_body_of_another_type_is_no_form(content_type, status):
    """A multipart body has at least its last boundary, and other types are others."""
    with pytest.raises(ProtocolError) as info:
        read_form(make_request(None, content_type))

    assert info.value.status == status


# Queries and urlencoded bodies


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", {}),
        ("x=42&y=10", {"x": ["42"], "y": ["10"]}),
        ("a=1&b=2&a=3", {"a": ["1", "3"], "b": ["2"]}),
        ("a", {"a": [""]}),
        ("a=", {"a": [""]}),
        ("=a", {"": ["a"]}),
        ("a=b=c", {"a": ["b=c"]}),
        ("&&a=1&", {"a": ["1"]}),
        ("a=1;b=2", {"a": ["1;b=2"]}),
        ("a+b=c%2Bd", {"a b": ["c+d"]}),
        ("%c3%A4=%E2%82%AC", {"ä": ["€"]}),
        ("a=%26%3D%25", {"a": ["&=%"]}),
        ("a=%00", {"a": ["\0"]}),
        ("a=%0D%0A", {"a": ["\r\n"]}),
        ("a=ä", {"a": ["ä"]}),
    ],
)
def test_a_query_is_parsed(text, form):
    """The same text is the same form, in a query and in a body."""
    assert parse_query(text) == form
    assert parse_form(text.encode("utf-8")) == form


def test_blank_values_are_kept_or_dropped():
    """The seed's `user2` is there, or absent, as the argument says."""
    kept = parse_form(URLENCODED)
    dropped = parse_form(URLENCODED, keep_blank=False)

    assert kept["user2"] == [""]
    assert set(kept) - set(dropped) == {"user2", "comments"}
    assert parse_query("a=&a=1&b", keep_blank=False) == {"a": ["1"]}


@pytest.mark.parametrize(
    "text",
    ["a=%", "a=%4", "a=%zz", "%=1", "a=%%41", "a=%+1", "a=%\u0664\u0661", "a=%u0041"],
)
def test_a_bad_escape_is_refused(text):
    """A percent sign without two hex digits is a 400, not a guess."""
    with pytest.raises(ParseError, match="urlencoded") as info:
        parse_query(text)

    assert info.value.status == 400


@pytest.mark.parametrize(
    "text", ["a=%ff", "a=%C3", "%C0%80=1", "a=%ED%A0%80", "a=%F8%88%80%80%80"]
)
def test_an_escape_that_is_not_utf_8_is_refused(text):
    """Latin-1, cut, overlong and surrogate encodings are a 400."""
    with pytest.raises(ParseError, match="UTF-8"):
        parse_query(text)


def test_a_body_that_is_not_utf_8_is_refused():
    """So are such bytes that were not escaped, and lone surrogates of a str."""
    with pytest.raises(ParseError, match="UTF-8"):
        parse_form(b"a=\xff")
    with pytest.raises(ParseError, match="UTF-8"):
        parse_query("a=\ud800")


@pytest.mark.parametrize("text", ["a=\0", "a=1\r\n", "a\tb=1", "a=\x7f", "%00=1"])
def test_a_control_character_is_refused(text):
    """Raw ones are no urlencoding; in a name an escaped NUL is refused as well."""
    with pytest.raises(ParseError):
        parse_query(text)


@pytest.mark.parametrize(
    ("text", "limit", "value"),
    [
        ("a=1&b=2", "max_parts", 2),
        ("a=12", "max_field_size", 2),
        ("a=12", "max_fields_size", 4),
        ("a=%C3%A4", "max_field_size", 1),
    ],
)
def test_a_query_over_a_limit_is_too_long(text, limit, value):
    """A query at its limit passes, one below is 414; the same as a body is 413."""
    assert parse_query(text, **{limit: value})
    with pytest.raises(TargetTooLongError, match="at most") as query:
        parse_query(text, **{limit: value - 1})
    with pytest.raises(ContentTooLargeError, match="at most") as form:
        parse_form(text.encode(), **{limit: value - 1})

    assert (query.value.status, form.value.status) == (414, 413)


def test_a_million_fields_are_refused_before_they_are_split():
    """Ampersands are counted first, so that a flood of them costs nothing."""
    with pytest.raises(ContentTooLargeError, match="1000 fields"):
        parse_form(b"a=1&" * 1_000_000, max_fields_size=10_000_000)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_urlencoded_body_is_refused_while_it_is_read(chunked):
    """The length that a body states is believed, and one without is counted."""
    body = b"a=" + b"x" * 1000
    assert len(read_form(make_request(body, FORM_TYPE), max_fields_size=1002)) == 1
    request = make_request(body, FORM_TYPE, chunked=chunked)
    with pytest.raises(ContentTooLargeError):
        read_form(request, max_fields_size=1001)

    assert request["body"].closed is chunked


def test_a_truncated_urlencoded_body_is_an_underflow():
    """A connection that breaks off is the body's own error, never half a form."""
    request = make_request(b"a=1", FORM_TYPE)
    request["body"] = Input(io.BytesIO(b"a=1"), 4)
    with pytest.raises(UnderFlowError):
        read_form(request)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, ""),
        ({"a": "1", "b": ["2", "3"]}, "a=1&b=2&b=3"),
        ([("a", "1"), ("b", "2"), ("a", "3")], "a=1&b=2&a=3"),
        ({"a": ("1", "2"), "b": []}, "a=1&a=2"),
        ({"a b": "*-._~"}, "a+b=*-._%7E"),
        ({"ä": "€\r\n\0"}, "%C3%A4=%E2%82%AC%0D%0A%00"),
        ({"": ""}, "="),
    ],
)
def test_fields_are_formatted_as_browsers_do(fields, text):
    """Mappings and pairs; the escapes of the WHATWG's urlencoded serializer."""
    assert format_query(fields) == text


@pytest.mark.parametrize(
    "fields", [{"a": 1}, {1: "a"}, {"a": b"1"}, {"a": None}, {"a": ["1", 2]}]
)
def test_a_field_that_is_not_text_is_refused(fields):
    """A number or bytes would be a guess at how to write them."""
    with pytest.raises(TypeError, match="expected str"):
        format_query(fields)
    with pytest.raises(TypeError, match="expected str"):
        format_multipart(fields)


def test_a_nul_in_a_name_is_not_formatted():
    """What would be refused on arrival is not sent, and is nobody's status."""
    with pytest.raises(ValueError, match="NUL") as info:
        format_query({"a\0": "1"})

    assert not isinstance(info.value, ProtocolError)


def test_an_unknown_limit_is_named():
    """A misspelt limit must not be taken for no limit."""
    with pytest.raises(TypeError, match=r"'max_part'.*max_parts"):
        parse_query("a=1", max_part=1)
    with pytest.raises(TypeError, match="max_sizes"):
        read_form(make_request(), max_sizes=1)


@pytest.mark.parametrize("value", [-1, None, True, 1.5, "1"])
def test_a_limit_that_is_no_size_is_refused(value):
    """There is no way to say no limit but a large number."""
    with pytest.raises((TypeError, ValueError), match="max_parts: expected an int"):
        parse_query("a=1", max_parts=value)


def test_the_limits_are_named_by_one_table():
    """Every limit has a default that is a number above 0."""
    assert all(option.default > 0 for option in FORM_OPTIONS.values())


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NAMES = TEXT.map(lambda text: text.replace("\0", ""))


@given(st.lists(st.tuples(NAMES, TEXT), max_size=8))
def test_a_form_survives_its_format(pairs):
    """Parsing what was formatted gives the fields again, as a query and as a body."""
    form: dict[str, list[str]] = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value)

    assert parse_query(format_query(pairs)) == form
    assert parse_form(format_form(form)[1]) == form
    assert format_query(pairs).isascii()


@given(st.binary(max_size=40) | st.text("%&=+;aF0\xff", max_size=40).map(str.encode))
def test_any_bytes_are_a_form_or_a_400(data):
    """No body makes the parser fail in another way."""
    try:
        form = parse_form(data)
    except ParseError:
        return

    assert parse_form(format_form(form)[1]) == form


# Content types


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("text/plain", ("text/plain", {})),
        ("Text/HTML;Charset=UTF-8", ("text/html", {"charset": "UTF-8"})),
        ('a/b ; x="a;b\\"c" ;; y=z;', ("a/b", {"x": 'a;b"c', "y": "z"})),
        (
            'multipart/form-data; boundary="a b"',
            ("multipart/form-data", {"boundary": "a b"}),
        ),
    ],
)
def test_a_content_type_is_parsed(value, result):
    """Type and parameter names are lower-case, quotes and their pairs are gone."""
    assert parse_content_type(value) == result


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        "text/",
        "text/plain charset=utf-8",
        "text/plain; charset",
        "text/plain; charset=",
        "text/plain; charset = utf-8",
        'text/plain; charset="utf-8',
        "a/b; x=1; X=2",
        "a/b, c/d",
    ],
)
def test_a_malformed_content_type_is_refused(value):
    """Also one that says a thing twice: two readers could choose differently."""
    with pytest.raises(ParseError):
        parse_content_type(value)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/json",
        "multipart/mixed; boundary=B",
        "application/x-www-form-urlencoded; charset=iso-8859-1",
        "multipart/form-data; boundary=B; charset=utf-7",
        None,
    ],
)
def test_another_type_or_charset_is_a_415(content_type):
    """Only the two types of forms are read, in UTF-8, and never without a type."""
    with pytest.raises(UnsupportedMediaTypeError) as info:
        read_form(make_request(b"a=1", content_type))

    assert info.value.status == 415


def test_utf_8_may_be_said():
    """Clients that name the one charset there is are right."""
    content_type = f"{FORM_TYPE}; charset=UTF-8"

    assert dict(read_form(make_request(b"a=1", content_type))) == {"a": ["1"]}


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        "; boundary=",
        '; boundary=""',
        "; boundary=" + "b" * 71,
        '; boundary="b "',
        '; boundary="b\\"b"',
        "; boundary=b%",
        "; boundary=a; boundary=B",
        '; boundary="ä"',
    ],
)
def test_a_missing_or_malformed_boundary_is_a_400(parameters):
    """A boundary is 1 to 70 characters of RFC 2046, once."""
    with pytest.raises(ParseError):
        read_form(make_request(field("a") + END, MULTIPART_TYPE + parameters))


def test_a_boundary_of_70_characters_with_a_space_is_read():
    """The control of the refusals: the longest, with what has to be quoted."""
    boundary = "'()+_,-./:=? " + "b" * 57

    headers, output = format_multipart({"a": "1"}, boundary=boundary)

    assert headers["content-type"] == f'{MULTIPART_TYPE}; boundary="{boundary}"'
    assert dict(read_form(make_request(body_of(output), **as_type(headers)))) == {
        "a": ["1"]
    }


def as_type(headers: dict[str, str]) -> dict[str, Any]:
    return {"content_type": headers["content-type"]}


# multipart/form-data


def test_fields_and_files_come_in_their_order(tempdir):
    """Fields are str, files are uploads, and a name may have both."""
    body = field("a", b"1") + file("b", b"xyz", "n.txt") + field("a", "ä".encode())
    body += file("a", b"", "empty") + END
    with read_form(multipart_request(body), tempdir=str(tempdir)) as form:
        assert list(form) == ["a", "b"]
        assert form["a"][:2] == ["1", "ä"]
        assert form.fields == {"a": ["1", "ä"]}
        assert [upload.filename for upload in form.uploads["a"]] == ["empty"]
        (upload,) = form.uploads["b"]
        assert (upload.name, upload.filename, upload.size) == ("b", "n.txt", 3)
        assert upload.content_type == "application/octet-stream"
        assert repr(upload) == "Upload('b', 'n.txt', 'application/octet-stream', 3)"
        assert "'a'" in repr(form)


def test_an_upload_is_a_seekable_file(tempdir):
    """Two uploads are read independently, though they share one file."""
    body = file("a", b"first\nline") + file("b", b"second") + END
    with read_form(multipart_request(body), tempdir=str(tempdir)) as form:
        (a,), (b,) = form.uploads["a"], form.uploads["b"]
        assert a.file.read(2) == b"fi"
        assert b.file.read() == b"second"
        assert a.file.readline() == b"rst\n"
        assert a.file.tell() == 6
        assert a.file.seek(-4, io.SEEK_END) == 6
        assert a.file.seek(1, io.SEEK_CUR) == 7
        assert a.file.read(100) == b"ine"
        assert a.file.read() == b""
        assert a.file.seek(100) == 100
        assert a.file.read() == b""
        with pytest.raises((ValueError, OSError)):
            a.file.seek(-1)
        assert not a.file.writable()
        copy = io.BytesIO()
        assert a.write_to(copy) == 10
        assert copy.getvalue() == b"first\nline"


def test_an_upload_that_is_not_text_says_so(tempdir):
    """`text()` does not guess a charset, and takes another by argument."""
    body = file("a", b"\xe4") + END
    with read_form(multipart_request(body), tempdir=str(tempdir)) as form:
        (upload,) = form.uploads["a"]
        with pytest.raises(UnicodeDecodeError):
            upload.text()
        assert upload.text("latin-1") == "ä"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_large_uploads_share_one_temporary_file_without_a_name(tempdir):
    """Many large files of a form cost one descriptor; closing the form ends it."""
    content = os.urandom(3000)
    body = b"".join(file(f"f{n}", content) for n in range(50)) + END
    with read_form(
        multipart_request(body), tempdir=str(tempdir), spool_size=1000
    ) as form:
        assert len(open_files(tempdir)) == 1
        assert list(tempdir.iterdir()) == []
        for uploads in form.uploads.values():
            assert uploads[0].file.read() == content
        file_after = form.uploads["f0"][0].file
    assert open_files(tempdir) == []
    file_after.seek(0)
    with pytest.raises(ValueError, match="closed"):
        file_after.read()
    form.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_small_uploads_stay_in_memory(tempdir):
    """Up to the spool's size no file is made at all; a size of 0 is not no limit."""
    body = file("f", b"x" * 1000) + END
    for size, count in ((1000, 0), (999, 1), (0, 1)):
        with read_form(multipart_request(body), tempdir=str(tempdir), spool_size=size):
            assert len(open_files(tempdir)) == count


def test_blank_parts_are_kept_or_dropped(tempdir):
    """A file input where nothing was chosen is as blank as an empty field."""
    body = field("a") + file("b", b"", "") + file("c", b"", "n") + END
    kept = read_form(multipart_request(body), tempdir=str(tempdir))
    dropped = read_form(multipart_request(body), tempdir=str(tempdir), keep_blank=False)
    with kept, dropped:
        assert kept["a"] == [""]
        assert kept.uploads["b"][0].size == 0
        assert list(dropped) == ["c"]


@pytest.mark.parametrize("end", [b"--B--", b"--B--\r\n"])
def test_a_form_without_parts_is_empty(end, tempdir):
    """A browser sends only the last boundary then."""
    with read_form(multipart_request(end), tempdir=str(tempdir)) as form:
        assert dict(form) == {}


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        ('form-data; name="a"; filename="b"', "a", "b"),
        ("form-data; name=a; filename=b", "a", "b"),
        ('Form-Data ; filename = "b" ; NAME="a"', "a", "b"),
        ('form-data; name="a%22%0D%0Ab"; filename="%22"', 'a"\r\nb', '"'),
        ('form-data; name="%41%0d"; filename="100%"', "%41%0d", "100%"),
        ('form-data; name="a"; filename="C:\\x\\y.txt"', "a", "C:\\x\\y.txt"),
        ('form-data; name="a"; filename="back\\"', "a", "back\\"),
        ('form-data; name="ä;="; filename="日本.txt"', "ä;=", "日本.txt"),
        ("form-data; name=a; filename=b; filename*=utf-8''c", "a", "b"),
        ('form-data; name=""; filename=""', "", ""),
        ('form-data; name="a"; size=3; filename="b"', "a", "b"),
    ],
)
def test_a_disposition_is_read_as_browsers_write_it(disposition, name, filename):
    """Three escapes, no backslashes; a second spelling of a filename is ignored."""
    with read_form(multipart_request(part(disposition, b"x") + END)) as form:
        assert list(form) == [name]
        assert form.uploads[name][0].filename == filename


@pytest.mark.parametrize(
    "disposition",
    [
        "attachment; name=a",
        "form-data",
        'form-data; filename="b"',
        "form-data; name=a; name=b",
        'form-data; name="a"; filename="b"; filename="c"',
        "form-data; name=a; filename*=utf-8''b",
        'form-data; name="a"b"',
        'form-data; name="a\\"b"',
        'form-data; name="a',
        "form-data; name=a b",
        "form-data, name=a",
        'form-data; name="a\0"',
        'form-data; name="a"; filename="b\0.txt"',
        'form-data; name="a"; filename="b\rc"',
        'form-data; name="a"; filename="b\nc"',
        'form-data; name="a\x1b[31m"',
    ],
)
def test_a_malformed_disposition_is_a_400(disposition, tempdir):
    """What could be read in two ways, and control characters, are refused."""
    with pytest.raises(ParseError) as info:
        read_form(multipart_request(part(disposition) + END), tempdir=str(tempdir))

    assert info.value.status == 400


PLAIN = 'form-data; name="a"'
FILED = 'form-data; name="a"; filename="b"'


@pytest.mark.parametrize(
    ("disposition", "line"),
    [
        (FILED, "Content-Type: multipart/mixed; boundary=C"),
        (PLAIN, "Content-Type: Multipart/Form-Data; boundary=B"),
        (FILED, "Content-Transfer-Encoding: base64"),
        (PLAIN, "Content-Transfer-Encoding: quoted-printable"),
        (PLAIN, "Content-Type: text/plain; charset=utf-7"),
        (PLAIN, "Content-Type: text/plain; charset=iso-8859-1"),
        (PLAIN, "Content-Type: text/plain; charset=utf-16"),
    ],
)
def test_a_nested_or_encoded_part_is_a_415(disposition, line, tempdir):
    """A part is plain: no parts inside, no transfer encoding, no other charset."""
    with pytest.raises(UnsupportedMediaTypeError):
        read_form(
            multipart_request(part(disposition, b"x", line) + END),
            tempdir=str(tempdir),
        )


@pytest.mark.parametrize(
    ("disposition", "line"),
    [
        (PLAIN, "Content-Transfer-Encoding: 8bit"),
        (FILED, "content-transfer-encoding: Binary"),
        (PLAIN, "Content-Type: text/plain; charset=UTF-8"),
        (PLAIN, "Content-Type: application/json"),
        (FILED, "Content-Type: text/plain; charset=iso-8859-1"),
        (PLAIN, "X-Unknown: whatever\t"),
        (PLAIN, "Content-Length: 1"),
    ],
)
def test_a_plain_part_may_say_that_it_is_plain(disposition, line):
    """The controls of the refusals; a file's charset is the app's own business."""
    body = part(disposition, b"x", line) + END
    with read_form(multipart_request(body)) as form:
        (value,) = form["a"]
        assert (value if isinstance(value, str) else value.text()) == "x"


@pytest.mark.parametrize(
    "line",
    [
        "Content-Type: nonsense",
        "Content-Type: text/plain\r\nContent-Type: text/html",
        'Content-Disposition: form-data; name="b"',
        "Content-Length: 2",
        "Content-Length: -1",
        "Content-Length: 1\r\nContent-Length: 1",
        "no colon",
        " folded: line",
        "(: x",
        "X: \0",
        "X: bare\nline",
    ],
)
def test_a_malformed_part_header_is_a_400(line, tempdir):
    """So are one that says a thing twice, and a length that is not the part's."""
    with pytest.raises(ParseError):
        read_form(
            multipart_request(part(FILED, b"x", line) + END), tempdir=str(tempdir)
        )


GOOD = field("a", b"1") + file("b", b"22")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n",
        b"--B",
        b"a=1",
        GOOD,
        GOOD + b"--B",
        GOOD + b"--B-",
        GOOD + b"--B\r\n",
        GOOD + b"--C--\r\n",
        GOOD + b"--B --\r\n",
        GOOD[:-2] + b"--B--\r\n",
        GOOD + b"--B--\n",
        GOOD + b"--B--\r",
        GOOD + b"--B--\r\n\r\n",
        GOOD + b"--B--epilogue",
        GOOD + b"--B--\r\n--B--\r\n",
        b"preamble\r\n" + GOOD + END,
        b"\r\n" + GOOD + END,
        b"-" + GOOD + END,
        b"--B \r\n" + field("a")[5:] + END,
        b"--B\n" + field("a")[5:] + END,
        b"--B\r\n\r\nno disposition\r\n" + END,
        b"--B\r\nContent-Disposition: form-data; name=a\r\n" + END,
        b"--B\r\n" + END,
        GOOD + b"--B\r\n--B--: x\r\n" + END,
        field("a", b"\xff") + END,
        field("a", b"x\r\n--Bx") + END,
        b'--B\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\r\n' + END,
    ],
)
@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_malformed_body_is_a_400_however_it_is_cut(body, most, tempdir):
    """Truncated, wrongly ended, surrounded by something or with bad lines in it."""
    control = read_multipart(Trickle(GOOD + END, most), "B", tempdir=str(tempdir))
    with control:
        assert list(control) == ["a", "b"]
    with pytest.raises(ParseError) as info:
        read_multipart(Trickle(body, most), "B", tempdir=str(tempdir), spool_size=0)

    assert info.value.status == 400


def test_a_connection_that_breaks_off_leaves_no_file(tempdir):
    """The body's own error comes out; what was spooled is gone."""
    request = multipart_request(b"")
    data = file("a", b"x" * 10_000)
    request["body"] = Input(io.BytesIO(data), len(data) + 100)
    with pytest.raises(UnderFlowError):
        read_form(request, tempdir=str(tempdir), spool_size=10)


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        (field("a") + field("b"), {"max_parts": 2}),
        (field("a", b"123"), {"max_field_size": 3}),
        (field("a", b"1") + field("b", b"2"), {"max_fields_size": 4}),
        (file("a", b"123"), {"max_file_size": 3}),
        (field("a", b"123"), {"max_form_size": 0}),
        (part(PLAIN, b"", "X: y", "Y: z"), {"max_part_headers": 3}),
        (part(PLAIN, b"", "X: " + "y" * 97), {"max_part_header_size": 100}),
    ],
)
@pytest.mark.parametrize("most", [1, 1000])
def test_a_body_over_a_limit_is_a_413(body, limits, most, tempdir):
    """At its limit a body passes, at one less it is refused, however it is cut."""
    ((name, limit),) = limits.items()
    limit = limit or len(body + END)
    options: dict[str, Any] = {"tempdir": str(tempdir), "spool_size": 0, name: limit}
    read_multipart(Trickle(body + END, most), "B", **options).close()
    options[name] -= 1
    with pytest.raises(ContentTooLargeError) as info:
        read_multipart(Trickle(body + END, most), "B", **options)

    assert info.value.status == 413


def test_a_stated_length_over_the_limit_is_refused_before_it_is_read(tempdir):
    """A client that waits for 100 Continue never sends what would be dropped."""
    request = multipart_request(GOOD + END)
    with pytest.raises(ContentTooLargeError):
        read_form(request, tempdir=str(tempdir), max_form_size=len(GOOD))

    assert request["body"].read() == GOOD + END


@pytest.mark.parametrize(
    ("start", "piece", "most"),
    [
        (b"", field("a"), 2**20),
        (b"", file("a"), 2**20),
        (b"", file("a", b"", ""), 2**20),
        (b"--B\r\n", b"X: y\r\n", 2**20),
        (b"--B\r\nX", b"y", 2**20),
        (b"--B\r\n" + b"Content-Disposition: " + b"; a=b" * 100, b"; a=b", 2**20),
        (field("a")[:-2], b"x", 2 * 2**20),
        (field("a")[:-2], b"\r", 2 * 2**20),
        (field("a")[:-2], b"\r\n--", 2 * 2**20),
        (file("a")[:-2], b"x" * 1000, 3 * 2**20),
        (b"", b"-", 2**20),
    ],
)
def test_a_flood_is_refused_after_little_of_it(start, piece, most, tempdir):
    """A million parts, endless headers and huge values stop at their limits."""
    body = Endless(start, piece)
    with pytest.raises(ProtocolError) as info:
        read_multipart(body, "B", tempdir=str(tempdir), max_file_size=2**21)

    assert info.value.status == (413 if start or piece != b"-" else 400)
    assert body.given <= most


def test_a_flood_behind_the_end_is_refused(tempdir):
    """What follows the last boundary is not drained."""
    body = Endless(GOOD + END, b"x")
    with pytest.raises(ParseError, match="end of the form"):
        read_multipart(body, "B", tempdir=str(tempdir))

    assert body.given <= 2**20


def test_a_full_disk_leaves_no_file(tempdir, monkeypatch):
    """Whatever fails while a form is read closes its temporary file."""
    spools = []

    def make_failing(*args: Any) -> Any:
        spools.append(make(*args))

        def write(data: bytes) -> int:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(spools[0], "write", write)
        return spools[0]

    make = degu.forms._make_spool
    monkeypatch.setattr(degu.forms, "_make_spool", make_failing)
    with pytest.raises(OSError, match="28"):
        read_form(multipart_request(GOOD + END), tempdir=str(tempdir))

    assert spools[0].closed


@pytest.mark.parametrize("module", [None, type(sys)("multipart")])
def test_a_missing_extra_is_named(module, monkeypatch, tempdir):
    """Without the package, or with another of its name, only multipart fails."""
    monkeypatch.setitem(sys.modules, "multipart", module)

    assert read_form(make_request(b"a=1", FORM_TYPE))["a"] == ["1"]
    with pytest.raises(ImportError, match=r"degu\[forms\]"):
        read_form(multipart_request(GOOD + END), tempdir=str(tempdir))


# Names of files


@pytest.mark.parametrize(
    ("filename", "safe"),
    [
        ("text1", "text1"),
        ("Übersicht 2.tar.gz", "Übersicht 2.tar.gz"),
        ("日本.txt", "日本.txt"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\x", "x"),
        ("../../.ssh/authorized_keys", "authorized_keys"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        (".bashrc", "bashrc"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("a/", "unnamed"),
        ("a:b", "a_b"),
        ('<"|?*>', "______"),
        ("x.txt. . ", "x.txt"),
        ("a\r\nb\t\x1b[0m", "ab[0m"),
        ("a\u202egpj.exe", "agpj.exe"),
        ("con", "_con"),
        ("NUL .txt", "_NUL .txt"),
        ("com1.tar.gz", "_com1.tar.gz"),
        ("console", "console"),
    ],
)
def test_a_safe_name_is_one_component(filename, safe):
    """Paths, hidden files, devices and what cannot be seen are taken out."""
    assert Upload("n", filename, "a/b", 0, io.BytesIO()).safe_name == safe


def test_a_safe_name_is_short_and_keeps_its_suffix():
    """File systems count bytes; a suffix that is none is not kept."""
    for filename in ("ä" * 300 + ".jpeg", "a" * 255 + ".jpeg", "." + "a" * 300):
        safe = Upload("n", filename, "a/b", 0, io.BytesIO()).safe_name
        assert len(safe.encode("utf-8")) in (253, 254)
        assert safe.endswith(".jpeg") == filename.endswith(".jpeg")


@given(TEXT | st.text("./\\ :CON\0é", max_size=300))
def test_any_safe_name_stays_in_its_folder(filename):
    """Whatever a client says, it is one component, and safe once for all."""
    safe = Upload("n", filename, "a/b", 0, io.BytesIO()).safe_name

    assert safe == Upload("n", safe, "a/b", 0, io.BytesIO()).safe_name
    assert Path(safe).name == safe
    assert safe.isprintable()
    assert not safe.startswith(".")
    assert 0 < len(safe.encode("utf-8")) <= 255


# Multipart to send


def test_files_are_sent_from_paths_bytes_and_open_files(tmp_path, tempdir):
    """Each source has its length known before and its name and type as given."""
    path = tmp_path / "näme.txt"
    path.write_bytes(b"from a path")
    with open(path, "rb") as opened:
        opened.seek(5)
        headers, output = format_multipart(
            [("a", "1"), ("b", "2"), ("a", "3")],
            [
                ("f", path),
                ("f", str(path)),
                ("f", FilePart(b"bytes", "x.bin")),
                ("g", FilePart(opened, content_type="text/plain; charset=utf-8")),
                ("h", FilePart(io.BytesIO(b"0123456789"), size=4)),
            ],
        )
        body = body_of(output)
    with read_form(
        make_request(body, **as_type(headers)), tempdir=str(tempdir)
    ) as form:
        assert form.fields == {"a": ["1", "3"], "b": ["2"]}
        seen = [
            (upload.name, upload.filename, upload.content_type, upload.text())
            for uploads in form.uploads.values()
            for upload in uploads
        ]
    assert seen == [
        ("f", "näme.txt", "application/octet-stream", "from a path"),
        ("f", "näme.txt", "application/octet-stream", "from a path"),
        ("f", "x.bin", "application/octet-stream", "bytes"),
        ("g", "näme.txt", "text/plain; charset=utf-8", "a path"),
        ("h", "file", "application/octet-stream", "0123"),
    ]


def test_a_file_without_a_name_is_called_file(tmp_path):
    """A file that was opened by its descriptor has a number for a name."""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    with open(os.open(path, os.O_RDONLY), "rb") as opened:
        _, output = format_multipart({}, {"f": FilePart(opened)})
        assert b'filename="file"' in body_of(output)


def test_a_received_form_can_be_sent_on(tempdir):
    """Fields and uploads are what the formatter takes: a form passes a proxy whole."""
    body = field("a", b"1") + file("b", b"x" * 5000, "ü.txt") + END
    with read_form(multipart_request(body), tempdir=str(tempdir), spool_size=9) as form:
        form.uploads["b"][0].file.read(10)
        _, output = format_multipart(form.fields, form.uploads, boundary="B")
        again = read_multipart(
            io.BytesIO(body_of(output)), "B", tempdir=str(tempdir), spool_size=9
        )
        with again:
            assert again.fields == form.fields
            (upload,) = again.uploads["b"]
            assert (upload.filename, upload.text()) == ("ü.txt", "x" * 5000)


def test_a_large_file_is_streamed():
    """A body that would not fit is made in pieces as they are asked for."""

    class Zeros:
        given = 0

        def read(self, size: int, /) -> bytes:
            self.given += size
            return bytes(size)

    source = Zeros()
    _, output = format_multipart({}, {"f": FilePart(source, "zeros", size=2**40)})

    assert output.content_length > 2**40
    assert source.given == 0
    assert len(next(iter(output))) < 2**20
    assert source.given < 2**20


def test_a_small_form_is_one_piece():
    """Many parts do not become as many packets."""
    _, output = format_multipart({"a": ["1", "2", "3"]}, {"f": FilePart(b"x" * 1000)})

    assert len(list(output)) == 1


def test_boundaries_differ():
    """No two forms share a boundary unless asked to."""
    types = {format_multipart({"a": "1"})[0]["content-type"] for _ in range(10)}

    assert len(types) == 10


def test_a_file_that_became_shorter_is_an_underflow(tmp_path):
    """Its length was promised to the peer: the body breaks off instead of lying."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 1000)
    _, output = format_multipart({}, {"f": path, "g": FilePart(b"y")})
    path.write_bytes(b"x" * 999)
    with pytest.raises(UnderFlowError, match="999 of 1000"):
        body_of(output)


def test_of_a_file_that_grew_the_promised_part_is_sent(tmp_path):
    """A log may be written to while it is sent."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    _, output = format_multipart({}, {"f": path}, boundary="B")
    path.write_bytes(b"y" * 20)

    assert b"\r\n\r\nyyyyyyyyyy\r\n--B--" in body_of(output)


@pytest.mark.parametrize("before", [0, 262_140, 262_143, 300_000])
def test_a_file_that_contains_the_boundary_is_not_sent(before):
    """It is found across the blocks it is read in, so no file can forge a part."""
    content = b"x" * before + b"\r\n--B\r\nContent-Disposition: form-data; name=admin"
    _, output = format_multipart({}, {"f": FilePart(io.BytesIO(content))}, boundary="B")
    with pytest.raises(ValueError, match="no boundary"):
        body_of(output)
    _, output = format_multipart({}, {"f": FilePart(io.BytesIO(content))}, boundary="C")

    assert content in body_of(output)


@pytest.mark.parametrize(
    ("fields", "files", "boundary"),
    [
        ({"a": "--B"}, {}, "B"),
        ({"--B": "a"}, {}, "B"),
        ({}, {"a": FilePart(b"--B")}, "B"),
        ({}, {"a": FilePart(b"x", "--B")}, "B"),
        ({"a": "1"}, {}, ""),
        ({"a": "1"}, {}, "a\r\nb"),
        ({"a": "1"}, {}, "b" * 71),
        ({"a\0": "1"}, {}, None),
        ({"a\x1b": "1"}, {}, None),
        ({"a%22": "1"}, {}, None),
        ({}, {"a": FilePart(b"x", "b%0D")}, None),
        ({}, {"a": FilePart(b"x", "b\x7f")}, None),
        ({}, {"a": FilePart(b"x", "b", "text/plain\r\nX: y")}, None),
        ({}, {"a": FilePart(b"x", "b", "nonsense")}, None),
        ({}, {"a": FilePart(b"x", "b", "multipart/mixed; boundary=C")}, None),
        ({}, {"a": FilePart(Endless(b"", b"x"))}, None),
    ],
)
def test_what_a_form_cannot_say_is_a_value_error(fields, files, boundary):
    """The sender's mistake is found before a byte is sent, and is nobody's status."""
    with pytest.raises(ValueError, match="expected") as info:
        format_multipart(fields, files, boundary=boundary)

    assert not isinstance(info.value, ProtocolError)


@pytest.mark.parametrize("value", [1, None, b"bytes", io.BytesIO()])
def test_a_file_that_is_not_one_is_a_type_error(value):
    """An open file says nothing of its type: it is wrapped in a part."""
    with pytest.raises(TypeError, match="FilePart"):
        format_multipart({}, {"f": value})


def test_a_missing_file_is_found_before_anything_is_sent(tmp_path):
    """The length has to be known, so the path is looked at once."""
    with pytest.raises(FileNotFoundError):
        format_multipart({}, {"f": tmp_path / "missing"})


def is_sendable(text: str) -> bool:
    """Whether `text` can be a name in a multipart form."""
    return not any(escape in text for escape in ("%22", "%0D", "%0A")) and all(
        char in "\t\r\n" or not (char < " " or char == "\x7f") for char in text
    )


PART_NAMES = (TEXT | st.text('a"\r\n\\;%=2', max_size=12)).filter(is_sendable)
CONTENTS = st.binary(max_size=300) | st.text("\r\n-B", max_size=40).map(str.encode)


@given(
    st.lists(st.tuples(PART_NAMES, TEXT), max_size=5),
    st.lists(st.tuples(PART_NAMES, PART_NAMES, CONTENTS), max_size=5),
    st.integers(1, 200),
)
def test_a_multipart_form_survives_its_format(fields, files, most):
    """Reading what was formatted gives the form again, however the body is cut."""
    sent = [(name, FilePart(data, filename)) for name, filename, data in files]
    headers, output = format_multipart(fields, sent)
    boundary = parse_content_type(headers["content-type"])[1]["boundary"]
    body = body_of(output)
    with read_multipart(Trickle(body, most), boundary, spool_size=100) as form:
        received = [
            (upload.filename, upload.file.read())
            for uploads in form.uploads.values()
            for upload in uploads
        ]

        assert form.fields == parse_query(format_query(fields))
        assert sorted(received) == sorted((name, data) for _, name, data in files)


@given(
    st.lists(
        st.sampled_from(
            [
                *[b"--B", b"\r\n", b"--", b"-", b"B", b"\r", b"\n", b"\0", b"x", b":"],
                *[b"Content-Disposition: form-data; name=a", b"; filename=b", b'"'],
                *[GOOD, END, field("a", b"1"), b"Content-Length: 1\r\n", b"\xff"],
            ]
        ),
        max_size=12,
    ),
    st.integers(1, 40),
)
def test_any_body_is_a_form_or_a_status_however_it_is_cut(pieces, most):
    """No body makes the reader fail in another way, or depend on the network."""

    def outcome(rfile: Any) -> Any:
        try:
            with read_multipart(rfile, "B") as form:
                return {
                    name: [
                        value if isinstance(value, str) else value.file.read()
                        for value in values
                    ]
                    for name, values in form.items()
                }
        except ProtocolError as error:
            return error.status

    body = b"".join(pieces)

    assert outcome(io.BytesIO(body)) == outcome(Trickle(body, most))


# With a server and a client


def answer_form(request: dict[str, Any]) -> tuple[int, str, dict[str, Any], Any]:
    """An app that shows the form as the seed's test handler does."""
    with read_form(request, max_file_size=1000, max_form_size=2000) as form:
        lines = [
            f"{name} {[v if isinstance(v, str) else v.text() for v in values]!r}\n"
            for name, values in form.items()
        ]
    return 200, "OK", {}, "".join(lines).encode("utf-8")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of a server that runs `answer_form`."""
    server = Server(("127.0.0.1", 0), answer_form)
    with server.running():
        client = Client(server.address)
        yield client
        client.close()


def test_a_client_posts_forms_to_a_server(client, tmp_path):
    """The seed's three forms, by query, urlencoded and uploaded, in one line each."""
    path = tmp_path / "text1"
    path.write_bytes(FILE)

    def ask(method: str, *args: Any) -> str:
        response = client.request(method, *args)
        assert response.status == 200
        return response.body.read().decode()

    assert ask("GET", "/foo?" + format_query({"x": "42", "y": "10"})) == (
        "x ['42']\ny ['10']\n"
    )
    assert "pets ['dog', 'cat']\n" in ask("POST", "/foo", *format_form(FIELDS))
    assert ask("POST", "/foo", *format_multipart({}, {"myfile": path})) == (
        "myfile ['This is a test.\\nIt is only a test.\\n']\n"
    )


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        (f"{MULTIPART_TYPE}; boundary=B", GOOD + END, 200),
        (f"{MULTIPART_TYPE}; boundary=B", GOOD, 400),
        (f"{MULTIPART_TYPE}; boundary=B", file("a", b"x" * 1001) + END, 413),
        (f"{MULTIPART_TYPE}; boundary=B", file("a") * 50 + END, 413),
        (MULTIPART_TYPE, GOOD + END, 400),
        (FORM_TYPE, b"a=%", 400),
        ("text/plain", b"a=1", 415),
    ],
)
def test_a_server_answers_a_refused_body_by_itself(client, content_type, body, status):
    """The app need not catch anything for the client to get the stated status."""
    response = client.request("POST", "/", {"content-type": content_type}, body)
    if response.body is not None:
        response.body.read()

    assert response.status == status


# Other people's clients and parsers


def test_forms_of_other_clients_are_read(tempdir):
    """What httpx and requests make of the same form is the same form here."""
    httpx = pytest.importorskip("httpx")
    requests = pytest.importorskip("requests")
    data = {"user": "James & Nancy Kirk ä", "pets": ["dog", "cat"]}
    files = {"myfile": ("t\xe4xt\u65e5.txt", FILE, "text/plain")}
    url = "http://localhost/"
    ours = httpx.Request("POST", url, data=data, files=files)
    theirs = requests.Request("POST", url, data=data, files=files).prepare()
    for body, headers in ((ours.read(), ours.headers), (theirs.body, theirs.headers)):
        request = make_request(body, headers["content-type"])
        with read_form(request, tempdir=str(tempdir)) as form:
            assert form.fields == {**data, "user": [data["user"]]}
            (upload,) = form.uploads["myfile"]
            assert upload.filename == files["myfile"][0]
            assert upload.text().encode() == FILE
    urlencoded = httpx.Request("POST", url, data=data).read()
    assert parse_form(urlencoded) == {**data, "user": [data["user"]]}


def test_other_parsers_read_our_forms():
    """What Werkzeug and the standard library make of our forms is what was meant."""
    werkzeug = pytest.importorskip("werkzeug.formparser")
    names = {"a": "1", 'q"u\r\no\\te;ä': "ü\r\n--x"}
    headers, output = format_multipart(names, {"f": FilePart(FILE, 'n"\\;日本.txt')})
    body = body_of(output)
    _, form, files = werkzeug.parse_form_data(
        {
            "REQUEST_METHOD": "POST",
            "CONTENT_TYPE": headers["content-type"],
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
    )

    assert form["a"] == "1"
    assert list(form.values()) == list(names.values())
    assert files["f"].read() == FILE
    files["f"].close()
    assert urllib.parse.parse_qs(format_query(FIELDS), keep_blank_values=True) == (
        parse_form(URLENCODED)
    )


# The package itself


def test_a_form_is_closed_twice_and_without_a_file():
    """Closing is harmless, whatever the form is made of."""
    form = Form({"a": ["1"]})
    form.close()
    form.close()

    assert form["a"] == ["1"]


def test_importing_forms_does_not_need_the_extra(monkeypatch):
    """The parser is looked for when the first multipart body comes."""
    assert "multipart" not in vars(degu.forms)
    assert set(degu.forms.__all__) <= set(dir(degu.forms))


@pytest.mark.parametrize("page", ["howto/forms.rst", "reference/forms.rst"])
def test_the_pages_on_forms_run(page, tmp_path, monkeypatch):
    """Every example of the documentation gives what it shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failed, tried = doctest.testfile(
        str(ROOT / "doc" / page),
        module_relative=False,
        encoding="utf-8",
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )

    assert tried > 0
    assert failed == 0
