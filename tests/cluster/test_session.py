"""Ray addresses: what is wrong with one is said at once."""

import socket

import pytest

from batchdet.cluster.session import connected
from batchdet.errors import ClusterError


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("somewhere", "--ray somewhere: expected auto, local, off or HOST:PORT"),
        ("host:", "--ray host:: expected auto, local, off or HOST:PORT"),
        (":6379", "--ray :6379: expected auto, local, off or HOST:PORT"),
        ("127.0.0.1:{closed}", "no Ray cluster answers there"),
        ("ray://127.0.0.1:{closed}", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
    ],
)
def test_an_address_where_nobody_answers(address: str, says: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = address.format(closed=closed.getsockname()[1])
        with pytest.raises(ClusterError) as caught, connected(address, pytest.fail):
            pytest.fail("connected to nobody")
    assert str(caught.value).startswith(f"--ray {address}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
