"""The Slurm job, run by stand-ins of Slurm's programs."""

import os
import subprocess
from pathlib import Path

import pytest
from support.patience import PATIENCE

from quire.service.settings import ServiceConfig, read_settings

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


STAND_INS = {
    # Each node in turn, as srun would start its task there.
    "srun": """#!/bin/bash
        while [[ $1 == --* ]]; do echo "srun $1"; shift; done
        for node in 0 1; do SLURM_NODEID=$node SLURMD_NODENAME=n$node "$@"; done""",
    "scontrol": "#!/bin/bash\nprintf 'n0\\nn1\\n'",
    # Its first end is with FIRST_CODE.
    "quire": """#!/bin/bash
        printf "quire %s\\n" "$*"; env | grep ^QUIRE_ | sort
        [ -e "$0.ran" ] || { touch "$0.ran"; exit "${FIRST_CODE:-0}"; }""",
    "sleep": "#!/bin/bash\n",
}


def submitted(job: str, tmp_path: Path, *words: str, **environment: str) -> list[dict[str, str]]:
    """Of each node, what `quire` was started with: options of the environment; the words as ""."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "20007"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", DEPLOY / "slurm" / f"{job}.sbatch", *words],
        env={"PATH": path, "SLURM_GPUS_ON_NODE": "4", **given, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    nodes: list[dict[str, str]] = []
    for line in done.stdout.splitlines():
        if line.startswith("quire "):
            nodes.append({"": line})
        elif line.startswith("QUIRE_"):
            name, _, value = line.partition("=")
            nodes[-1][name] = value
    return nodes


def test_a_slurm_job_starts_every_node_with_one_number_each(tmp_path: Path) -> None:
    nodes = submitted("tensor-parallel", tmp_path, "--model", "a b", "--host", "0.0.0.0")
    assert [node.pop("QUIRE_NODE_RANK") for node in nodes] == ["0", "1"]
    assert nodes[0] == nodes[1]
    secret = nodes[0].pop("QUIRE_JOIN_SECRET")
    assert nodes[0].pop("") == "quire serve --model a b --host 0.0.0.0"
    engine = read_settings({}, nodes[0], None).engine
    assert (engine.nnodes, engine.tensor_parallel_size, engine.ranks_per_node) == (2, 8, 4)
    assert (engine.master_addr, engine.master_port) == ("n0", 28007)
    other = submitted("tensor-parallel", tmp_path, RANKS_PER_NODE="2", QUIRE_MASTER_ADDR="10.0.0.1")
    assert other[0]["QUIRE_JOIN_SECRET"] != secret and len(secret) == 64
    assert other[0]["QUIRE_MASTER_ADDR"] == "10.0.0.1"
    assert other[0]["QUIRE_TENSOR_PARALLEL_SIZE"] == "4"


def test_a_slurm_job_of_replicas_has_one_a_node(tmp_path: Path) -> None:
    nodes = submitted("replicas", tmp_path, "--model", "m", PORT_STEP="1")
    assert [node["QUIRE_PORT"] for node in nodes] == ["50051", "50052"]
    assert [node["QUIRE_HTTP_PORT"] for node in nodes] == ["8000", "8001"]
    for node in nodes:
        assert node.pop("") == "quire serve --model m"
        engine = read_settings({}, node, None).engine
        assert (engine.nnodes, engine.tensor_parallel_size) == (1, 4)


@pytest.mark.parametrize(
    ("code", "starts"), [("1", ["50051", "50051", "50052"]), ("2", ["50051", "50052"])]
)
def test_a_replica_whose_engine_is_lost_is_started_again(
    tmp_path: Path, code: str, starts: list[str]
) -> None:
    """And not one whose options are wrong."""
    nodes = submitted("replicas", tmp_path, PORT_STEP="1", FIRST_CODE=code)
    assert [node["QUIRE_PORT"] for node in nodes] == starts


@pytest.mark.parametrize("job", ["tensor-parallel", "replicas"])
def test_a_slurm_job_drains_before_its_time_is_over(job: str) -> None:
    lines = (DEPLOY / "slurm" / f"{job}.sbatch").read_text().splitlines()
    (signal,) = (line for line in lines if line.startswith("#SBATCH --signal"))
    name, _, before = signal.removeprefix("#SBATCH --signal=").partition("@")
    assert name == "TERM" and int(before) > ServiceConfig().drain_seconds + 12
