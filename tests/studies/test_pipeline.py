"""A whole pipeline at its smallest: records are whole, finished work is kept, and the baseline is a fair one."""

import json
from pathlib import Path

import pytest

from surefoot.errors import ConfigError, RunError
from surefoot.reports.study import build_report
from surefoot.rewards.source import load_source
from surefoot.studies.pipeline import PipelineConfig, seed_folder
from surefoot.studies.risk import run_study

CONFIG = PipelineConfig(pairs=60, held_out_pairs=40, members=3, steps=3, evaluation_completions=48, samples_kept=2)


@pytest.mark.slow
def test_a_small_study_resumes_and_reports(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    methods, seeds = ["vanilla", "variance_aware"], [0]
    seen: list[tuple[str, int, int]] = []
    run_study(CONFIG, methods, seeds, folder, title="small", workers=1, on_progress=lambda *a: seen.append(a))
    assert seen[-1] == ("policies", 6, 6)

    cell = json.loads((folder / "cells" / "variance_aware-0.json").read_text())
    assert [row["step"] for row in cell["trajectory"]] == [1, 2, 3]
    assert cell["trajectory"][0]["kl"] == 0.0
    assert all(row["gold"] is not None and row["variance"] > 0 for row in cell["trajectory"])
    assert cell["metrics"]["gold_gain"] == pytest.approx(
        cell["metrics"]["gold_final"] - cell["metrics"]["gold_reference"]
    )
    assert cell["config"]["pairs"] == 60
    assert cell["data_hash"]

    # The baseline is one plain model: all pairs, no prior function, not a member of the ensemble.
    single, ensemble = (load_source(seed_folder(folder, 0) / name, device="cpu") for name in ("single", "ensemble"))
    assert single.num_members == 1
    assert single.heads.shape.prior_scale == 0.0
    assert ensemble.num_members == 3
    vanilla = json.loads((folder / "cells" / "vanilla-0.json").read_text())
    assert vanilla["trajectory"][0]["variance"] is None

    # A lost cell is run again, to the same result; a finished one is not touched.
    kept = (folder / "cells" / "vanilla-0.json").stat().st_mtime_ns
    (folder / "cells" / "variance_aware-0.json").unlink()
    run_study(CONFIG, methods, seeds, folder, title="small", workers=1)
    again = json.loads((folder / "cells" / "variance_aware-0.json").read_text())
    assert again["trajectory"] == cell["trajectory"]
    assert (folder / "cells" / "vanilla-0.json").stat().st_mtime_ns == kept
    assert build_report(folder).stat().st_size > 10_000

    with pytest.raises(RunError, match=r"seeds: \[0\] there, \[0, 1\] here"):
        run_study(CONFIG, methods, [0, 1], folder, title="small", workers=1)


def test_an_unknown_method_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown objective 'vanila'; did you mean 'vanilla'"):
        run_study(CONFIG, ["vanila"], [0], tmp_path / "s", title="x", workers=1)
    assert not (tmp_path / "s").exists()
