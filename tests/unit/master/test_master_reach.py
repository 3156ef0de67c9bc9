"""The master's word on nodes that say to be where they do not come from."""

import pytest
from larder.v1.node_pb2 import Hello

from services.common.rpc import peer_host
from services.master.reach import check_address


@pytest.mark.parametrize(
    ("address", "peer", "warned"),
    [
        ("10.0.0.2", "10.0.0.2", False),
        ("10.0.0.3", "10.0.0.2", True),
        ("127.0.0.1", "10.0.0.2", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("10.0.0.2", "127.0.0.1", False),  # on the master's host
        ("fd00::0:2", "fd00::2", False),
        ("::1", "fd00::2", True),
        ("localhost", "10.0.0.2", True),
        ("no-such-host.invalid", "10.0.0.2", True),
        ("", "10.0.0.2", False),  # an older node says none
        ("10.0.0.2", "", False),  # not by IP
    ],
)
async def test_addresses_that_disagree_are_said(
    address: str, peer: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await check_address(Hello(node_id="n1", address=address), peer)
    assert len(caplog.records) == warned
    if warned:
        assert all(word in caplog.text for word in ("n1", address, peer, "--advertise"))


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:[::1]:4711", "::1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[::ffff:10.0.0.1]:4711", "10.0.0.1"),
        ("unix:/run/socket", ""),
        ("", ""),
    ],
)
def test_the_address_in_a_peers_name(peer: str, host: str) -> None:
    assert peer_host(peer) == host
