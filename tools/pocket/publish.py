"""From a trained directory to what ships: the files, their evaluation, and the model card.

Invariant: evaluation and card name the sha256 of the weights that they are about, and every figure
of the card is read from a file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from evaluate import HEADER, Result
from export import MODEL_FILES
from safetensors import safe_open

from quire.service.models import pocket

TOOLS = Path(__file__).resolve().parent
SHIPPED = TOOLS.parent.parent / "service" / "models" / "pocket"
AGAINST_CASES = 40
"""A cell's cases that transformers is asked as well."""
EVALUATION, CARD = "evaluation.json", "README.md"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def install(trained: Path, shipped: Path) -> None:
    """Copies the model's files. Raises ValueError if one is missing or altered."""
    pocket.verify(trained)
    for name in (*MODEL_FILES, pocket.MANIFEST):
        shutil.copyfile(trained / name, shipped / name)


def evaluate(shipped: Path, cases: int) -> None:
    """Asks Quire and transformers every case and writes evaluation.json."""
    command = [sys.executable, str(TOOLS / "evaluate.py"), "--model", str(shipped)]
    command += ["--engine", "quire", "--against", "transformers", "--cases", str(cases)]
    command += ["--against-cases", str(min(cases, AGAINST_CASES))]
    subprocess.run([*command, "--json", str(shipped / EVALUATION)], check=True)


def _parameters(shipped: Path) -> int:
    count = 0
    with safe_open(shipped / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (no mapping)
            size = 1
            for length in weights.get_slice(name).get_shape():
                size *= length
            count += size
    return count


def _table(report: dict[str, Any]) -> str:
    results = [Result(c["cell"], c["right"], c["count"], c["floor"]) for c in report["cells"]]
    return "\n".join([HEADER, *(result.markdown() for result in results)])


def _comparison(report: dict[str, Any]) -> str:
    found = report["against"]
    return (
        f"transformers' `generate` in float32 was asked {found['answers']} of the same questions: "
        f"{found['answers'] - found['ties'] - found['unexplained']} answers are equal token for "
        f"token, {found['ties']} differ first where the two best logits lie within 1e-4, and "
        f"{found['unexplained']} differ otherwise."
    )


def card(shipped: Path) -> str:
    """The model card, from the files of the directory."""
    report, config = _read(shipped / EVALUATION), _read(shipped / "config.json")
    digest = _read(shipped / pocket.MANIFEST)["model.safetensors"]
    if report["sha256"] != digest:
        raise SystemExit(f"{EVALUATION} is about other weights ({report['sha256']})")
    return (
        (TOOLS / "card.md")
        .read_text(encoding="utf-8")
        .format(
            parameters=_parameters(shipped) / 1e6,
            megabytes=(shipped / "model.safetensors").stat().st_size / 1e6,
            context=config["max_position_embeddings"],
            vocabulary=config["vocab_size"],
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            training=config.get("training") or "not recorded",
            sha256=digest,
            seed=report["seed"],
            cases=report["cells"][0]["count"],
            table=_table(report),
            comparison=_comparison(report),
            against_cases=report["against"]["cases"],
        )
    )


def main() -> None:
    """Installs, evaluates and describes; each part can be left out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--trained", type=Path, help="install this directory first")
    parser.add_argument("--shipped", type=Path, default=SHIPPED)
    parser.add_argument("--cases", type=int, default=200, help="a cell; 0: keep the evaluation")
    args = parser.parse_args()
    if args.trained is not None:
        install(args.trained, args.shipped)
    pocket.verify(args.shipped)
    if args.cases:
        evaluate(args.shipped, args.cases)
    (args.shipped / CARD).write_text(card(args.shipped), encoding="utf-8")


if __name__ == "__main__":
    main()
