"""How to use it in doctests and unittest: the example of the page of that name."""

from __future__ import annotations

import unittest

from degu.testing import TempServer, check_leaks


# [doctest]
def count_notes(client):
    """How many notes there are.

    >>> from degu.testing import TempServer
    >>> app = lambda request: (200, "OK", {}, b"[1, 2, 3]")
    >>> with TempServer(("127.0.0.1", 0), None, app) as server:
    ...     with server.client().connect() as connection:
    ...         count_notes(connection)
    3
    """
    return len(client.get("/notes").body.read().split(b","))
    # [/doctest]


# [getfixture]
def count_users(client):
    """How many users there are; pytest's doctests can have fixtures.

    >>> server = getfixture("temp_server")()
    >>> _ = server.expect("GET", "/users").answer(200, "[1, 2]")
    >>> client = server.client()
    >>> count_users(client)
    2
    >>> client.close()
    >>> server.assert_all_met()
    """
    return len(client.get("/users").body.read().split(b","))
    # [/getfixture]


# [unittest]
class TestNotes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(TempServer(("127.0.0.1", 0)))

    def setUp(self):
        self.server.clear()
        self.client = self.server.client()
        self.addCleanup(self.client.close)

    def test_notes_are_counted(self):
        self.server.expect("GET", "/notes").answer(200, "[1]")
        self.assertEqual(count_notes(self.client), 1)  # noqa: PT009
        self.server.assert_all_met()

    def test_nothing_is_left(self):
        with check_leaks(), TempServer(("127.0.0.1", 0)) as server:
            server.stub("GET", "/notes").answer(200, "[]")
            with server.client().connect() as connection:
                count_notes(connection)
                # [/unittest]


if __name__ == "__main__":
    unittest.main()
