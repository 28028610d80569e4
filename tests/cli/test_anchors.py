"""`surefoot anchors`: what it draws and keeps, how it goes on, what it refuses, and who reads the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.cli.main import main
from surefoot.errors import DataError, RunError, VarianceError
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.registry import load_source
from surefoot.training import prepare_anchors as module
from surefoot.training.prepare_anchors import AnchorArguments, draw_completions, prepare_anchors
from tests.models import WORDS

PROMPTS = [f"the {word} " for word in WORDS]
CHAT = (
    "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'and ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(PROMPTS[i % 10], f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 9]} and") for i in range(40)]
    path = tmp_path_factory.mktemp("d") / "pairs.parquet"
    columns = {key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))}
    Dataset.from_dict(columns).to_parquet(path)
    return path


def train(policy: Path, pairs: Path, folder: Path, seed: int = 0, members: int = 4) -> Path:
    config = HeadsConfig(members=members, epochs=3, layer=0, max_length=16, seed=seed)
    data = Dataset.from_parquet(str(pairs))
    source = train_heads(data, policy, config, device="cpu")
    source.calibrate(source.score(data["prompt"], data["chosen"]))
    source.save(folder)
    return folder


@pytest.fixture(scope="module")
def source(policy_path: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(policy_path, pairs, tmp_path_factory.mktemp("source") / "s")


@pytest.fixture
def ask(policy_path: Path, pairs: Path, source: Path, tmp_path: Path) -> Callable[..., AnchorArguments]:
    def given(name: str = "a", **changes: Any) -> AnchorArguments:
        settings: dict[str, Any] = {
            "output": str(tmp_path / f"{name}.safetensors"), "model_name_or_path": str(policy_path),
            "dataset_name": str(pairs), "reward_source": str(source), "anchor_completions": 3,
            "max_completion_length": 5, "prompts_per_batch": 3,
        }  # fmt: skip
        return AnchorArguments(**(settings | changes))

    return given


def rows(path: str) -> torch.Tensor:
    return load_file(path)["rows"]


def test_an_anchor_is_the_mean_row_of_its_prompts_completions(
    ask: Callable[..., AnchorArguments], policy_path: Path, source: Path
) -> None:
    args = ask()
    store = prepare_anchors(args)
    assert len(store) == 10
    model = AutoModelForCausalLM.from_pretrained(policy_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    texts = draw_completions(model, tokenizer, [PROMPTS[4]], 3, max_new_tokens=5)
    scores = load_source(source, "cpu").score([PROMPTS[4]] * 3, texts)
    held = AnchorStore.load(args.output).of([PROMPTS[4]])
    torch.testing.assert_close(held.rows[0], scores.mean(dim=0))
    assert (held.kind, held.count.tolist()) == ("reference", [3.0])
    assert not list(Path(args.output).parent.glob("*.part"))


def test_draws_depend_on_seed_and_prompt_alone(policy_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    state = torch.get_rng_state()
    together = draw_completions(model, tokenizer, PROMPTS, 2, max_new_tokens=6, seed=1)
    alone = [one for p in PROMPTS for one in draw_completions(model, tokenizer, [p], 2, max_new_tokens=6, seed=1)]
    assert together == alone
    assert together != draw_completions(model, tokenizer, PROMPTS, 2, max_new_tokens=6, seed=2)
    assert len(set(together)) > 10
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_have_the_models_probabilities(policy_path: Path, temperature: float) -> None:
    """χ² of 2,000 first tokens against softmax(logits/T), 11 degrees of freedom: below the .999 quantile."""
    model = AutoModelForCausalLM.from_pretrained(policy_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    texts = draw_completions(
        model, tokenizer, ["the red"], 2000, max_new_tokens=1, temperature=temperature, seed=3
    )  # fmt: skip
    with torch.no_grad():
        logits = model(**tokenizer("the red", return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
    wanted = (logits / temperature).softmax(dim=-1).double()
    names = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(wanted))]
    expected: dict[str, float] = {}
    for name, p in zip(names, wanted.tolist(), strict=True):
        expected[name] = expected.get(name, 0.0) + 2000 * p
    found = sum((texts.count(name) - e) ** 2 / e for name, e in expected.items())
    assert found < 31.3
    assert sum(texts.count(name) for name in expected) == 2000


def test_an_interrupted_call_goes_on_and_gives_the_same(
    ask: Callable[..., AnchorArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_anchors(ask("whole"))
    drawn: list[list[Any]] = []
    real = module.draw_completions

    def counted(model: Any, tokenizer: Any, prompts: list[Any], *rest: Any, **keywords: Any) -> Any:
        drawn.append(prompts)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(model, tokenizer, prompts, *rest, **keywords)

    monkeypatch.setattr(module, "draw_completions", counted)
    args, seen = ask("cut"), []
    with pytest.raises(KeyboardInterrupt):
        prepare_anchors(args)
    assert not Path(args.output).exists()
    assert len(AnchorStore.load(f"{args.output}.part")) == 6
    again = prepare_anchors(args, lambda done, total: seen.append((done, total)))
    assert [len(some) for some in drawn] == [3, 3, 3, 3, 1]  # the third batch is drawn again, the first two are not
    assert seen[:2] == [(9, 10), (10, 10)]
    assert torch.equal(rows(args.output), rows(ask("whole").output))
    assert again.fingerprint() == whole.fingerprint()
    assert prepare_anchors(args).fingerprint() == whole.fingerprint()
    assert len(drawn) == 5  # a finished file is read, not made again


def test_a_killed_process_loses_what_it_had_not_saved(
    ask: Callable[..., AnchorArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a save after every batch, the part is on disk while the next batch is drawn."""
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    args, held = ask(), []
    part = Path(f"{args.output}.part")
    real = module.draw_completions

    def watched(*positional: Any, **keywords: Any) -> Any:
        held.append(len(AnchorStore.load(part)) if part.exists() else 0)
        return real(*positional, **keywords)

    monkeypatch.setattr(module, "draw_completions", watched)
    prepare_anchors(args)
    assert held == [0, 3, 6, 9]


def test_new_prompts_are_added_to_a_finished_file(ask: Callable[..., AnchorArguments]) -> None:
    first = prepare_anchors(ask(dataset_prompts=4))
    assert len(first) == 4
    assert prepare_anchors(ask()).fingerprint() == prepare_anchors(ask("b")).fingerprint()


def test_another_source_is_refused(
    ask: Callable[..., AnchorArguments], policy_path: Path, pairs: Path, tmp_path: Path, source: Path
) -> None:
    args = ask()
    prepare_anchors(args)
    AnchorStore.load(args.output, load_source(source, "cpu"))
    other = load_source(train(policy_path, pairs, tmp_path / "other", seed=5), "cpu")
    with pytest.raises(DataError, match="which has the same name: it scores the completions kept with them"):
        AnchorStore.load(args.output, other)
    fewer = load_source(train(policy_path, pairs, tmp_path / "fewer", members=3), "cpu")
    with pytest.raises(DataError, match="rows of 4 columns, but the source 'heads' gives 3"):
        AnchorStore.load(args.output, fewer)
    other.name = "another"
    with pytest.raises(DataError, match=r"a\.safetensors: the anchors are of the source 'heads', but the source is"):
        AnchorStore.load(args.output, other)
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(RunError, match="is not a file of anchors"):
        AnchorStore.load(tmp_path / "text.safetensors")


def test_a_source_that_scores_nearly_the_same_is_the_same(
    ask: Callable[..., AnchorArguments], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding to another precision passes; a tenth does not, even where it is in the reward's column alone."""
    args = ask()
    prepare_anchors(args)
    loaded = load_source(source, "cpu")
    real = loaded.score
    for change, same in ((torch.tensor([1.01] * 4), True), (torch.tensor([1.1, 1, 1, 1]), False)):
        monkeypatch.setattr(loaded, "score", lambda p, c, by=change: real(p, c) * by)
        if same:
            AnchorStore.load(args.output, loaded)
        else:
            with pytest.raises(DataError, match="differently"):
                AnchorStore.load(args.output, loaded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "a.bin"}, "output must end in .safetensors"),
        ({"reward_models": ["x", "y"]}, "give exactly one of reward_source"),
        ({"reward_source": None}, "give exactly one of reward_source"),
        ({"anchor_completions": 0}, "anchor_completions must be at least 1"),
        ({"dataset_prompts": 0}, "dataset_prompts must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"model_name_or_path": "/nowhere"}, "can't load model"),
        ({"dataset_name": "/nowhere.parquet"}, "nowhere"),
        ({"reward_source": "/nowhere"}, "can't load reward source"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(
    ask: Callable[..., AnchorArguments], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(module, "draw_completions", lambda *_, **__: pytest.fail("something was drawn"))
    with pytest.raises(Exception, match=message) as caught:
        prepare_anchors(ask(**changes))
    assert caught.type.__module__ == "surefoot.errors"


def test_sources_without_a_centred_variance_and_other_settings_are_refused(
    ask: Callable[..., AnchorArguments], policy_path: Path, pairs: Path, tmp_path: Path
) -> None:
    one = train(policy_path, pairs, tmp_path / "one", members=1)
    with pytest.raises(VarianceError, match="has one member"):
        prepare_anchors(ask(reward_source=str(one)))
    prepare_anchors(ask())
    with pytest.raises(RunError, match="made otherwise \\(seed: 0 there, 1 here\\)"):
        prepare_anchors(ask(seed=1))


def test_messages(
    ask: Callable[..., AnchorArguments], policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages are drawn through the chat template, scored as messages, and known by their content."""
    chats = [[{"role": "user", "content": word}] for word in ("the red", "a dog")]
    Dataset.from_dict({"prompt": chats}).to_parquet(tmp_path / "chats.parquet")
    args = ask(dataset_name=str(tmp_path / "chats.parquet"))
    with pytest.raises(Exception, match="has no chat template"):
        prepare_anchors(args)
    model = AutoModelForCausalLM.from_pretrained(policy_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    tokenizer.chat_template = CHAT
    (first, *_) = draw_completions(model, tokenizer, chats[:1], 3, max_new_tokens=5)
    assert first[0]["role"] == "assistant"
    same = draw_completions(model, tokenizer, ["the red and "], 500, max_new_tokens=1)
    mine = draw_completions(model, tokenizer, chats[:1], 500, max_new_tokens=1)
    shares = [[texts.count(word) / 500 for word in WORDS] for texts in (same, [m[0]["content"] for m in mine])]
    assert max(abs(a - b) for a, b in zip(*shares, strict=True)) < 0.12  # one distribution, other draws
    continued = [[*chats[0], {"role": "assistant", "content": "cat"}]]
    assert len(draw_completions(model, tokenizer, continued, 2, max_new_tokens=3)) == 2

    class Scored:
        name, centred, calibration, num_members = "chat", True, None, 2

        def score(self, prompts: Any, completions: Any) -> torch.Tensor:
            assert all(message[0]["role"] == "assistant" for message in completions)
            return torch.tensor([[float(len(c[0]["content"])), 1.0] for c in completions])

    tokenizer.save_pretrained(tmp_path / "policy")
    model.save_pretrained(tmp_path / "policy")
    monkeypatch.setattr(module, "load_source", lambda _: Scored())
    (tmp_path / "scored").mkdir()
    given = {"dataset_name": args.dataset_name, "model_name_or_path": str(tmp_path / "policy")}
    store = prepare_anchors(ask(**given, reward_source=str(tmp_path / "scored")))
    assert chats[1] in store
    texts = draw_completions(model, tokenizer, [chats[1]], 3, max_new_tokens=5)
    assert float(store.of([chats[1]]).rows[0, 0]) == pytest.approx(sum(len(t[0]["content"]) for t in texts) / 3)


@pytest.mark.filterwarnings("ignore:.*texts are longer than max_length:UserWarning")
def test_the_command_and_its_readers(
    ask: Callable[..., AnchorArguments], policy_path: Path, pairs: Path, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Score, DPO and diagnose read the file that the command wrote, and say by row or by share what they used."""
    file, common = tmp_path / "a.safetensors", [f"--reward_source={source}"]
    words = [f"--model_name_or_path={policy_path}", f"--dataset_name={pairs}", f"--output={file}"]
    settings = ["--anchor_completions=3", "--max_completion_length=5", "--dataset_prompts=6"]
    assert main(["anchors", *common, *words, *settings]) == 0
    assert "anchors of 6 prompts, 3 completions each, by 'heads'" in capsys.readouterr().out.replace("\n", "")
    out = tmp_path / "out.parquet"
    given = [f"--dataset_name={pairs}", f"--anchor_file={file}"]
    assert main(["score", *common, *given, f"--output={out}"]) == 0
    table = pq.read_table(out).to_pylist()
    covered = {row["prompt"]: row["anchor"] for row in table}
    assert [covered[prompt] for prompt in PROMPTS] == ["reference"] * 6 + ["dataset"] * 4
    loaded = load_source(source, "cpu")
    first = table[0]
    score = loaded.score([first["prompt"]], [first["chosen"]])
    expected = loaded.estimate(score, AnchorStore.load(file).of([first["prompt"]]))
    assert first["chosen_variance"] == pytest.approx(float(expected.variance), rel=1e-4)

    run = [
        f"--reward_source={source}", *given, f"--model_name_or_path={policy_path}", "--max_steps=2", "--use_cpu",
        "--bf16=false", "--report_to=none", "--save_strategy=no", "--per_device_train_batch_size=4",
        "--logging_steps=1", "--disable_tqdm=true", "--gradient_checkpointing=false", "--dtype=float32",
    ]  # fmt: skip
    assert main(["dpo", *run, f"--output_dir={tmp_path / 'dpo'}"]) == 0
    record = json.loads((tmp_path / "dpo" / "record.json").read_text())
    assert record["metrics"]["anchor"] == pytest.approx({"reference": 0.6, "dataset": 0.4})
    assert record["log"][0]["anchor/reference"] == pytest.approx(0.6)
    scored = [word.replace(str(pairs), str(out)) for word in run]
    assert main(["dpo", *scored, f"--output_dir={tmp_path / 'no'}"]) == 1
    assert "anchor_file centres what reward_source scores" in capsys.readouterr().err

    words = ["diagnose", *common, f"--dataset_name={pairs}", f"--anchor_file={file}", f"--output_dir={tmp_path / 'd'}"]
    assert main(words) == 0
    found = json.loads((tmp_path / "d" / "diagnose.json").read_text())
    assert found["heterogeneity"]["anchors"]["reference"] == pytest.approx(0.6)


def test_best_of_n_says_that_groups_are_their_own_anchor(
    policy_path: Path, pairs: Path, source: Path, tmp_path: Path
) -> None:
    words = [
        "bon", f"--model_name_or_path={policy_path}", f"--dataset_name={pairs}", f"--reward_source={source}", "--n=4",
        "--max_completion_length=4", f"--output_dir={tmp_path / 'bon'}",
    ]  # fmt: skip
    assert main(words) == 0
    assert json.loads((tmp_path / "bon" / "record.json").read_text())["metrics"]["anchor"] == {"group": 1.0}
    table = pq.read_table(tmp_path / "bon" / "parts" / "00000000.parquet").to_pylist()
    assert {row["anchor"] for row in table} == {"group"}
    loaded = load_source(source, "cpu")
    scores = loaded.score([row["prompt"] for row in table], [row["completion"] for row in table])
    expected = loaded.estimate(scores, group_anchors(scores, torch.arange(len(table)) // 4))
    assert [row["reward_variance"] for row in table] == pytest.approx(expected.variance.tolist(), rel=1e-3)
