"""degu.certificate: what can be pinned, and what others can look up."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from degu.certificate import build_subject_hash, check_certificate
from degu.errors import ParseError
from tests.devices import build_pem, parse_der

GOOD = build_pem()


def test_certificates_that_can_not_be_pinned_are_refused():
    """CAs, those that somebody else signed, expired ones and garbage."""
    other = ec.generate_private_key(ec.SECP256R1())
    check_certificate(parse_der(build_pem()))
    check_certificate(parse_der(build_pem(key=ed25519.Ed25519PrivateKey.generate())))

    for pem, message in (
        (build_pem(ca=True), "got a CA"),
        (build_pem(ca=None), "got a CA"),
        (build_pem(issuer_key=other), "expected a self-signed one"),
        (build_pem(issuer_key=other, issuer="other"), "expected a self-signed one"),
        (build_pem(last=timedelta(minutes=-1)), "expired on"),
        (build_pem(first=timedelta(minutes=1)), "is not valid before"),
    ):
        with pytest.raises(ParseError, match=message):
            check_certificate(parse_der(pem))
    for der in (b"", b"x", parse_der(GOOD)[:-1], parse_der(GOOD) + b"\0"):
        with pytest.raises(ParseError, match="certificate: expected"):
            check_certificate(der)


LONG_NAMES = ["x,O=" + "y" * 150, "x,1.2.840.113549.1.9.1=a@example.org"]
"""Of which DER writes a length, or an OID, with more bytes."""


def test_certificates_are_found_by_openssl():
    """The names among the anchors are those that openssl itself computes."""
    for cn in ("degu-00ff", "Ängström  GmbH", "x" * 64, "A  b\\, C", *LONG_NAMES):
        pem = build_pem(cn=cn)
        expected = subprocess.run(
            ["openssl", "x509", "-noout", "-subject_hash"],
            input=pem,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout.decode()
        parsed = x509.load_pem_x509_certificate(pem)

        assert build_subject_hash(parsed) == expected.strip()


def test_a_name_that_can_not_be_found_is_refused():
    """Two attributes in one have an order that only their encoding knows."""
    check_certificate(parse_der(build_pem(cn="x,O=y")))
    with pytest.raises(ParseError, match="expected a subject of plain texts"):
        check_certificate(parse_der(build_pem(cn="x+O=y")))
