"""The demo, run as people run it."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from tests.e2e.commands import SWARM, WAIT_SECONDS, environment, swarm


async def test_the_demo_answers_twice_with_the_same_text_and_fewer_round_trips(tmp_path: Path) -> None:
    report_file = tmp_path / "demo.json"
    result = await swarm("demo", "--delay-ms", "0", "--max-tokens", "40", "--json", str(report_file))
    assert result.status == 0, result.err
    report = json.loads(report_file.read_text())
    assert set(report) == {
        "autoregressive",
        "speculative",
        "speedup",
        "mean_acceptance_length",
        "equal",
        "client_bytes_per_token",
    }
    plain, drafted = report["autoregressive"], report["speculative"]
    assert set(plain) == set(drafted) == {"tokens_per_second", "round_trips", "text", "num_tokens"}
    assert report["equal"] is True
    assert plain["text"] == drafted["text"]
    assert plain["num_tokens"] == drafted["num_tokens"] == 40
    assert plain["round_trips"] == 40
    assert drafted["round_trips"] <= 40
    assert 0 < report["client_bytes_per_token"] < 2000
    assert plain["text"] in result.out


async def test_ctrl_c_ends_the_demo_and_all_that_it_started() -> None:
    """That nothing is left is what every file of tests here is checked for at its end."""
    process = await asyncio.create_subprocess_exec(
        SWARM, "demo", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment()
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_SECONDS):
        line = b"."
        while line and b"token by token" not in line:
            line = await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()
    assert process.returncode == 130, out
    assert b"Traceback" not in out
