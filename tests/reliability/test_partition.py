"""A host that is cut off works on and commits; so does whoever got its work; one part counts."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep

import figures
import networks
import pytest
from sound_results import require_sound

from cluster.results.results import Results

HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
       "--object-store-memory", str(80 << 20)]  # fmt: skip
STARTED = "Ray runtime started"


def start(
    net: networks.Network, namespace: str, words: list[str], log: Path, env: dict[str, str]
) -> None:
    """Start a node, and wait until it runs.

    One after the other: they share a session's folder here, and two that start at the same moment
    take the same names for their sockets.
    """
    before = log.read_text().count(STARTED) if log.exists() else 0
    process = net.start(namespace, [*RAY, *words], log=log, env=env)
    until = monotonic() + 120
    while log.read_text().count(STARTED) == before:
        assert process.poll() is None, log.read_text()[-3000:]
        assert monotonic() < until, log.read_text()[-3000:]
        sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not networks.can_make(), reason="needs root, and network namespaces")
def test_both_sides_of_a_partition_finish_and_one_part_counts(tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env = os.environ | token
    log = tmp_path / "log"
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short,
        networks.network(2) as net,
    ):
        address = f"{net.address(net.hub)}:6379"
        head = ["--head", "--port", "6379", "--node-ip-address", net.address(net.hub),
                "--num-cpus", "0", "--include-dashboard", "false", "--temp-dir", short,
                "--system-config", json.dumps(HEALTH)]  # fmt: skip
        start(net, net.hub, head, log, env)
        for host in net.hosts:
            joins = ["--address", address, "--node-ip-address", net.address(host)]
            start(net, host, [*joins, "--num-cpus", "1"], log, env)
        program = Path(__file__).parents[1] / "support" / "trials" / "partition_trial.py"
        printed = tmp_path / "printed"
        driver = net.start(
            net.hub, [sys.executable, str(program), address, str(tmp_path)], log=printed, env=env
        )
        until = monotonic() + 240
        while driver.poll() is None and monotonic() < until:
            sleep(0.5)
        text = printed.read_text()
        assert driver.returncode == 0, text[-3000:] + log.read_text()[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    figures.note(3, "partition", "both sides finish, one part counts", **found)
    assert found["is_complete"]
    assert found["failures"] == {"crash": 1}
    assert found["executions"] == found["cells_finished"] == 5
    assert found["duplicates"] == 1
    assert found["num_parts"] == 4
    results = Results(str(tmp_path / "out"))
    require_sound(results.plan(), results)
