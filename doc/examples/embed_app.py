"""The app of the recipes: at the top of a module, so that any process can import it."""

import os


def app(request):
    """Say who answers; end the process when asked for /crash."""
    if request["path"] == ["crash"]:
        os._exit(3)
    return (200, "OK", {"content-type": "text/plain"}, str(os.getpid()).encode())
