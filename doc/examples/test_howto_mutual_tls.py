"""How to test mutual TLS: the example of the page of that name."""

from __future__ import annotations

import ssl
import urllib.request

import pytest

from degu.client import SSLClient
from degu.testing import TempPKI, assert_rejected


def whoami(request):
    names = dict(name[0] for name in request["ssl_peercert"]["subject"])
    return 200, "OK", {}, names["commonName"].encode()


# [good]
def test_a_client_with_a_certificate_is_let_in(temp_ssl_server):
    server = temp_ssl_server(whoami)
    client = server.client()  # has the right certificate
    assert client.get("/").body.read() == b"client"
    client.close()
    assert server.requests[0].peercert["subject"]
    # [/good]


# [server]
@pytest.mark.parametrize("case", TempPKI.CLIENT_CASES)
def test_my_server_keeps_the_others_out(temp_ssl_server, temp_pki, case):
    server = temp_ssl_server(whoami)
    assert_rejected(server.client(temp_pki.client_sslconfig_for(case)), by="server")
    assert server.requests == []
    # [/server]


# [client]
@pytest.mark.parametrize("case", TempPKI.SERVER_CASES)
def test_my_client_refuses_the_wrong_server(temp_ssl_server, temp_pki, case):
    server = temp_ssl_server(whoami, sslconfig=temp_pki.server_sslconfig_for(case))
    client = SSLClient(temp_pki.client_sslconfig, server.address)
    assert_rejected(client, by="client")
    # [/client]


# [library]
def test_another_library(temp_ssl_server, temp_pki):
    server = temp_ssl_server(whoami)
    files = temp_pki.client_sslconfig
    context = ssl.create_default_context(cafile=files["ca_file"])

    def ask():
        with urllib.request.urlopen(server.url, context=context, timeout=5) as response:
            return response.read()

    assert_rejected(ask, by="server")

    context.load_cert_chain(files["cert_file"], files["key_file"])
    assert ask() == b"client"
    # [/library]
