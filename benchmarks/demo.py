"""The demo's four methods over many fresh seeds, as a table and a picture.

    python benchmarks/demo.py --out runs/demo --seeds 12 --json docs/results/demo.json --picture demo.svg

This is `surefoot demo --seeds 12 --first_seed 600`; the folder may be one that the command has filled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surefoot.cli.demo import run as demo
from surefoot.files import read_json, write_json, write_text
from surefoot.reports.figures import svg
from surefoot.reports.records import read_study
from surefoot.reports.study_figures import trajectory_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=600)
    parser.add_argument("--variant", default="uneven")
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    names = {"output_dir": "out", "seeds": "seeds", "first_seed": "first_seed", "variant": "variant", "pairs": "pairs"}
    demo([f"--{ours}={getattr(options, theirs)}" for ours, theirs in names.items()])
    study = read_study(options.out)
    if options.json is not None:
        write_json(
            options.json, {"seeds": study.grid["seeds"], "methods": read_json(options.out / "summary.json")["rows"]}
        )
    if options.picture is not None:
        write_text(options.picture, svg(trajectory_figure(study), "demo", standalone=True))


if __name__ == "__main__":
    main()
