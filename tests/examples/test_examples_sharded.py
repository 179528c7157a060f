from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "sharded"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of torch 2.6 needs a card")
def test_two_ranks_load_what_four_ranks_saved(tmp_path):
    """A distributed checkpoint is compared, loaded and run, whole and into a model sharded by FSDP2."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "sharded", ignore=shutil.ignore_patterns("__pycache__"))
    assert len(list((folder / "checkpoint").glob("*.distcp"))) == 4
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pytest_here = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "."]
    pytest_here += ["--ckpt-report=json:report.json", "--ckpt-report=markdown:report.md"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*ranks, *pytest_here],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 passed") == 2
    assert done.stdout.count("2 of 2 checks passed") == 2
    assert "skipped" not in done.stdout.replace("forward: skipped", "")
    nodeids = [check["nodeid"] for check in json.loads((folder / "report.json").read_text())["checks"]]
    assert len(nodeids) == 2
    assert (folder / "report.md").read_text().count(
        "test_the_checkpoint_fits_and_runs"
    ) == 1  # not a rank each


@pytest.mark.parametrize(
    ("environment", "written"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}, True),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "1"}, False),
        ({"RANK": "1"}, True),  # a variable of somebody else's
    ],
)
def test_one_rank_of_torchrun_writes_the_reports(pytester, monkeypatch, environment, written):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pytester.makepyfile("def test_nothing(): ...")
    result = pytester.runpytest_inprocess("-p", "no:randomly", "--ckpt-report=json:report.json")
    assert result.ret == 0
    assert (pytester.path / "report.json").exists() == written
