"""HOST:PORT in either family, taken apart and put together."""

import pytest
from larder.addresses import ip_of, is_loopback, join, split


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:50001", "127.0.0.1", 50001),
        ("[::1]:50001", "::1", 50001),
        ("[2001:db8::a.b.c.d]:1", None, 0),
        ("[::ffff:10.0.0.1]:65535", "::ffff:10.0.0.1", 65535),
        ("master.example:1", "master.example", 1),
        ("::1:50001", None, 0),
        ("[::1]", None, 0),
        ("[host]:1", None, 0),
        ("host", None, 0),
        ("host:", None, 0),
        ("host:0", None, 0),
        ("host:65536", None, 0),
        ("host:1/path", None, 0),
        ("ho st:1", None, 0),
        (":1", None, 0),
        ("host:\u0661", None, 0),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_the_rest_comes_back(address: str, host: str | None, port: int) -> None:
    if host is None:
        with pytest.raises(ValueError, match="is not HOST:PORT") as caught:
            split(address)
        assert ("[::1]:50001" in str(caught.value).partition("HOST:PORT")[2]) == (address.count(":") > 1)
        return
    assert split(address) == (host, port)
    assert join(host, port) == address


def test_loopback_is_told_in_either_family_and_where_it_is_mapped() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "localhost")))
    assert not any(map(is_loopback, ("10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "somewhere", "")))
    assert str(ip_of("::ffff:10.0.0.1")) == "10.0.0.1"
    assert ip_of("host") is None
