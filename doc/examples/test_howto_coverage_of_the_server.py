"""How to measure the coverage of the server: the example of the page of that name."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 405)])
def test_the_app(temp_server, method, status):
    server = temp_server("howto_coverage_app:app")
    with server.client().connect() as connection:
        response = connection.request(method, "/", {}, None)
        assert response.status == status
