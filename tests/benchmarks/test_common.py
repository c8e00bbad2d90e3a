"""What every result says of how it was made."""

from support.benchmark_code import common


def test_a_results_command_holds_no_folder_of_the_machine() -> None:
    inside = str(common.ROOT / "benchmarks" / "host.py")
    assert common.typed([inside, "--out", "/home/someone/host.json", "--steps", "4"]) == (
        "python benchmarks/host.py --out host.json --steps 4"
    )
    assert common.typed(["run.py", "--report=/scratch/a/b.xml", "--k=v"]) == (
        "python run.py --report=b.xml --k=v"
    )
