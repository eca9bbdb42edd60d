from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from routing.version import __version__

SWARM = str(Path(sys.executable).with_name("swarm"))


def test_the_installed_command_says_its_version() -> None:
    run = subprocess.run([SWARM, "--version"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"swarm {__version__}\n", "")


def test_an_unknown_command_ends_with_a_clear_line_and_no_traceback() -> None:
    run = subprocess.run([SWARM, "sreve"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "No such command 'sreve'" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr


@pytest.mark.parametrize("modules", ["swarm.cli", "swarm, swarm.client"])
def test_the_command_line_and_the_client_start_without_torch_transformers_and_hivemind(modules: str) -> None:
    code = f"import sys, {modules}; print({{'torch', 'transformers', 'hivemind'}} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
