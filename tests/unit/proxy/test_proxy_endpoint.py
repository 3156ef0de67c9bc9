"""How engines are named, and that each has only one name."""

import pytest

from services.proxy.core.endpoint import BadPort, Endpoint, canonical, endpoint_of


@pytest.mark.parametrize(
    ("written", "name", "endpoint"),
    [
        ("h:1", "h:1", Endpoint(False, "h", 1, "")),
        ("http://h:080/", "h:80", Endpoint(False, "h", 80, "")),
        ("HTTP://h", "h:80", Endpoint(False, "h", 80, "")),
        ("https://h", "https://h:443", Endpoint(True, "h", 443, "")),
        ("https://h:8443/", "https://h:8443", Endpoint(True, "h", 8443, "")),
        ("http://h:1/base", "h:1/base", Endpoint(False, "h", 1, "/base")),
        ("h:1/a/b%20c/", "h:1/a/b%20c", Endpoint(False, "h", 1, "/a/b%20c")),
        ("https://[fd00::1]:8/x", "https://[fd00::1]:8/x", Endpoint(True, "[fd00::1]", 8, "/x")),
        ("[::1]:65535", "[::1]:65535", Endpoint(False, "[::1]", 65535, "")),
    ],
)
def test_an_engine_is_named_in_one_way(written: str, name: str, endpoint: Endpoint) -> None:
    assert canonical(written) == canonical(name) == str(endpoint) == name
    assert endpoint_of(written) == endpoint_of(name) == endpoint
    assert endpoint.host == endpoint.name.strip("[]")
    assert endpoint.beside(5) == f"{endpoint.name}:5"


@pytest.mark.parametrize(
    "written",
    [
        *("", "h", "h:", ":1", "h:x", "ftp://h:1", "https:/h:1", "//h:1", "::1:80", "fd00::1"),
        *("u@h:1", "http://u:p@h:1", "h:1?a", "h:1#a", "h:1/a?b", "h:1 /a", "h:1/a b", "h:1/a\r\nb", "h:1/é"),
        *("h:1/a//b", "h:1/../a", "h:1/a/..", "h:1/./a", "h:1\\a", "h:1/\\a"),
    ],
)
def test_a_bad_engine_name_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        canonical(written)


@pytest.mark.parametrize("port", ["0", "65536", "99999", "123456789"])
def test_bad_ports(port: str) -> None:
    with pytest.raises(BadPort):
        endpoint_of(f"h:{port}")
