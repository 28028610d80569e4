"""The tutorials on a user's own script and on a judge work as written, with small models and a local judge."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from surefoot.cli.main import main
from tests.docs.first_hour import ROOT, steps
from tests.models import WORDS, save_policy
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, rated

TUTORIALS = ROOT / "docs" / "tutorials"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),  # torch's, of a machine without an accelerator
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning"),  # of TRL 1.16's own trainer
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that both pages take for granted, in the current folder."""
    monkeypatch.chdir(tmp_path)
    save_policy(tmp_path / "policy")
    pairs = [
        {
            "prompt": f"{WORDS[i % 10]} {WORDS[i // 10]}",
            "chosen": f" {WORDS[i % 7]} red",
            "rejected": f" {WORDS[i % 6 + 3]} and",
        }
        for i in range(100)
    ]
    for name, rows in (("pairs", pairs), ("held_out_pairs", pairs[::-3])):
        Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"a {word}"}) + "\n" for word in WORDS[:4]))
    return tmp_path


def run_page(name: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """Run the commands and Python blocks of a page, other than `export`, with names of its own replaced.

    Returns:
        The variables that each Python block left.
    """
    page = (TUTORIALS / name).read_text(encoding="utf-8")
    for written, ours in names.items():
        assert written in page
        page = page.replace(written, ours)
    left = []
    for language, text in steps(page):
        if language == "python":
            held: dict[str, Any] = {}
            exec(compile(text, name, "exec"), held)
            left.append(held)
            continue
        program, *words = shlex.split(text)
        if program == "surefoot":
            assert main(words) == 0, text
        elif program == "python":
            assert words[0] == "-m"
            import_module(words[1]).main(words[2:])
        else:
            assert program == "export"
    return left


def test_a_users_own_script(folder: Path) -> None:
    """TRL's trainer before and ours after; what ours logs beside TRL's figures is what docs/trainers.md lists."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    model.save_pretrained(folder / "reward_model")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "reward_model")
    names = {"Qwen/Qwen3-0.6B": "policy", "my-org/my-reward-model": "reward_model"}
    names['("aligned", beta=0.05'] = '("aligned", bf16=False, beta=0.05'  # TRL's default needs a GPU
    before, after = run_page("own_script.md", names)
    for held in (before, after):
        assert held["trainer"].state.global_step > 0
    trl, figures = ({name for row in held["trainer"].state.log_history for name in row} for held in (before, after))
    page = (TUTORIALS / "own_script.md").read_text(encoding="utf-8")
    watched = re.findall(r"^\| `([\w/]+)` \|", page[page.index("## 4.") :], re.MULTILINE)
    assert len(watched) == 5
    assert [name for name in watched if name not in figures] == []
    table = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8").partition("## What is logged")[2]
    described = {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in row.strip("`").split("`, `")
    }
    conditional = {"reward/member_0`, …", "monitor/NAME"}  # of sources with members; of monitors
    conditional |= {f"reward/variance_{part}_families" for part in ("between", "within")}  # of panels
    assert described - conditional == figures - trl


def test_a_judge(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every request carries the key; the saved source holds neither it nor the endpoint."""
    keys = set()

    def act(request: Request) -> Act:
        keys.add(request.headers["authorization"])
        return rated(1 + (len(request.texts["ANSWER"]) + request.sample) % 9)

    page = (TUTORIALS / "judge.md").read_text(encoding="utf-8")
    (folder / "rubric.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    (folder / "my_policy.yaml").write_text(
        "model_name_or_path: policy\ndataset_name: prompts.jsonl\noutput_dir: aligned\nmax_completion_length: 4\n"
        "per_device_train_batch_size: 4\nnum_generations: 4\nmax_steps: 2\nanchor_completions: 2\nreport_to: none\n"
    )
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key")
    with JudgeServer(act) as server:
        run_page("judge.md", {"https://HOST/v1": server.endpoint, " MODEL ": " m "})
        assert keys >= {"Bearer s3cret-key"}
        assert json.loads((folder / "injections.json").read_text())["all"]["items"] == 36 * 3
        assert (folder / "aligned" / "model.safetensors").exists()
        saved = (folder / "runs" / "judge" / "source" / "source.json").read_text()
        assert server.endpoint not in saved
    assert "s3cret-key" not in saved + capsys.readouterr().out
