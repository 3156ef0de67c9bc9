"""What users and operators are told by a real master that was restarted, while what is free rests."""

import re
import time
import urllib.request

import larder
import pytest

from demo.cluster import Cluster
from demo.traffic import metric
from tests.contract.commands import run_larder as larder_command
from tests.contract.conftest import NODES


def test_a_master_that_was_restarted_says_that_it_rests_and_serves_reads(fragile: Cluster) -> None:
    with larder.connect(fragile.master, timeout_s=2) as store:
        store.put("kept", b"data")
        fragile.processes["master"].kill()
        fragile.start_master("--lease-ms", "3000", port=int(fragile.master.rpartition(":")[2]))
        until = time.monotonic() + 20
        while metric(fragile.metrics["master"], "larder_master_nodes", state="attached") < len(NODES):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert store.get("kept") == b"data"
        with pytest.raises(larder.NoSpace, match="no room for 40 bytes") as caught:
            store.put("new", b"x" * 40)
    said = re.search(r"rested for (\d+\.\d) s and does for (\d+\.\d) s more", str(caught.value))
    assert said is not None, caught.value
    assert 0 < float(said[1]) < 20
    assert 25 < float(said[2]) < 50
    assert re.search(r"try again in \d+ s", str(caught.value))
    assert "add storage nodes" not in str(caught.value)
    with urllib.request.urlopen(f"http://{fragile.metrics['master']}/ready", timeout=5) as ready:
        assert ready.status == 200, "reads go on: an operator's load balancer must not take it away"
        assert re.match(r"ready\nfree space has rested for \d+\.\d s", ready.read().decode())
    assert 25 < metric(fragile.metrics["master"], "larder_master_rest_seconds") < 50
    shown = larder_command("--master", fragile.master, "status")
    assert b"what is free has rested for" in shown.stdout
