"""The app whose coverage is wanted."""


def app(request):
    if request["method"] == "PUT":
        return 405, "Method Not Allowed", {"allow": "GET"}, None
    return 200, "OK", {}, b"hello"
