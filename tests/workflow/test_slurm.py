"""`snakemake --profile slurm` on a real Slurm of one node (Debian's packages slurm-wlm and munge, as root)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, clone

SLURM = ROOT / "tests/slurm"
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
        reason="needs root and Debian's slurm-wlm and munge (apt-get install slurm-wlm munge)",
    ),
]


@pytest.fixture
def slurm(tmp_path):
    # munged refuses a socket below a folder that not everybody may enter, as pytest's are.
    state = Path("/tmp") / f"po-dynamics-slurm-{os.getpid()}"
    try:
        up = subprocess.run([SLURM / "up.sh", state], capture_output=True, text=True, timeout=60)
        assert up.returncode == 0, up.stdout + up.stderr
        yield state
    finally:
        subprocess.run([SLURM / "down.sh", state], timeout=60)
        shutil.rmtree(state, ignore_errors=True)


def test_stages_run_as_slurm_jobs(slurm, tmp_path):
    directory = clone(tmp_path / "clone")
    profiles = ["--profile", "slurm", "--profile", str(SLURM / "profile.yaml")]
    command = [sys.executable, "-m", "snakemake", *profiles, "--configfile", "config/smoke.yaml"]
    done = subprocess.run(
        [*command, "--slurm-keep-successful-logs", "results/smoke/menagerie/base.json"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "SLURM jobid" in done.stdout + done.stderr
    assert (directory / "results/smoke/menagerie/base/model.safetensors").stat().st_size > 10_000
    assert list((directory / ".snakemake/slurm_logs").glob("rule_pretrain_base/**/*.log"))
