"""Which source's variance is worth anything? Eleven sources, five repetitions, on real preferences and on the world.

    python benchmarks/reward_evidence.py --out runs/evidence --json docs/results/reward_sources.json

Every repetition trains every source anew (new seeds; on the world new preferences too). On held-out pairs: accuracy,
negative log-likelihood, Kendall's τ of the members, and how well the variance ranks mistakes; on texts far from the
data: whether it is larger there; on the world, where the truth is known: whether it ranks the squared errors on
completions of policies at growing distance from the reference. Finished parts are kept; the same command goes on.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from evidence_sources import LABELS, NEEDS, SETTINGS, Setting, data_of, make, one_model, variability
from evidence_tables import tables, variability_rows
from surefoot.data.preferences import data_hash
from surefoot.data.world import build_world
from surefoot.diagnosis.out_of_distribution import far_texts
from surefoot.files import read_json, write_json
from surefoot.quiet import quieten
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.gaussian import GaussianSource
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.studies.runners.local import run_tasks
from surefoot.training.checkpoints import last_checkpoint_under
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.training.sampling import sample_completions

KLS = (0, 5, 10, 20)
SHARES = (0.125, 0.25)
VARIABILITY = 10
"""Models of the paper's first experiment."""
POSTERIOR_DRAWS = 20
ONE = "independent_seed"
"""Its first member is the one plain model that costs are compared with."""
FAR_ITEMS = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--dataset", default="../shared/data/hh_harmless.parquet")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--sources", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without-variability", action="store_true", help="leave out the models on fewer data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="of one completion's scores by all models")
    options = parser.parse_args()
    quieten()
    repetitions = range(options.repetitions)
    if "world" in options.settings:
        build_world(options.out / "world" / "world")
        run_tasks(policy_samples, [(r, options.out / "world") for r in repetitions], workers=options.workers)
    first = [source for source in options.sources if source == ONE]
    second = [source for source in options.sources if source != ONE and source not in NEEDS]
    third = [source for source in options.sources if source in NEEDS]
    for some in (first, second, third):  # a source comes after those that it is made of or compared with
        tasks = [
            (name, source, repetition, options.dataset, options.out)
            for name in options.settings
            for repetition in repetitions
            for source in some
        ]
        run_tasks(unit, tasks, workers=options.workers, on_progress=Progress(len(tasks)))
    if "hh" in options.settings and not options.without_variability:
        run_tasks(
            variability_unit,
            [(share, options.dataset, options.out) for share in SHARES],
            workers=options.workers,
        )
    found = tables(options.out, options.settings, options.sources, options.repetitions)
    if "hh" in options.settings and not options.without_variability:
        found["variability"] = variability_rows(options.out, SHARES, options.dataset, VARIABILITY, options.picture)
    if options.json is not None:
        write_json(options.json, found)


class Progress:
    """Says how many sources are done whenever that has changed."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def __call__(self, ticks: int, done: int) -> None:
        if done > self.done:
            self.done = done
            print(f"{done} of {self.total} sources trained and measured", flush=True)


def unit(name: str, source: str, repetition: int, dataset: str, out: Path) -> None:
    """Train one source and keep everything that the tables need, in one file."""
    folder = out / name
    target = folder / "measured" / f"{source}-{repetition}.npz"
    if target.exists():
        return
    quieten()
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    train, held_out, base = data_of(setting, repetition, dataset, folder)
    made, seconds = make(setting, source, repetition, folder, train, base)
    arrays = measure(made, held_out)
    arrays["train_seconds"] = np.array(seconds)
    arrays |= cost(made, held_out, folder, repetition, setting)
    if name == "world":
        arrays |= on_samples(made, folder, repetition)
    _save(target, arrays)


def measure(source: RewardSource, held_out: Dataset) -> dict[str, Any]:
    """Margins of held-out pairs; variances of far texts, each centred with the two real completions of its prompt.

    `lone_…` holds the same with each text centred by its member's mean over all texts instead.
    """
    prompts = list(held_out["prompt"])
    chosen, rejected = (source.score(prompts, list(held_out[side])) for side in ("chosen", "rejected"))
    margins = source.margins(chosen, rejected)
    arrays: dict[str, Any] = {"margin": margins.mean.numpy(), "margin_variance": margins.variance.numpy()}
    if isinstance(source, GaussianSource):
        sides = [source.sample_members(scores, POSTERIOR_DRAWS) for scores in (chosen, rejected)]
        arrays["members"] = (sides[0] - sides[1]).numpy()
    elif isinstance(source, MemberSource):
        arrays["members"] = (chosen - rejected).numpy()
        arrays["chosen"], arrays["rejected"] = chosen.numpy(), rejected.numpy()
    texts = list(held_out["chosen"])[:FAR_ITEMS]
    near, groups = chosen[: len(texts)], torch.arange(len(texts)).repeat(3)
    for kind, changed in far_texts(texts).items():
        far = source.score(prompts[: len(texts)], changed)
        together = torch.cat([near, rejected[: len(texts)], far])
        anchors = group_anchors(together, groups, "dataset")
        source.calibrate(together, anchors)
        found = source.estimate(together, anchors)
        first, _, last = found.variance.view(3, -1)
        arrays[f"near_variance_{kind}"], arrays[f"far_variance_{kind}"] = first.numpy(), last.numpy()
        mean = found.mean.view(3, -1)
        arrays[f"near_mean_{kind}"], arrays[f"far_mean_{kind}"] = mean[0].numpy(), mean[2].numpy()
        source.calibrate(torch.cat([chosen, rejected]))
        lone = [source.estimate(rows).variance.numpy() for rows in (near, far)]
        arrays[f"lone_near_variance_{kind}"], arrays[f"lone_far_variance_{kind}"] = lone
    return arrays


def cost(source: RewardSource, held_out: Dataset, folder: Path, repetition: int, setting: Setting) -> dict[str, Any]:
    """CPU time of scoring over that of one plain model on the same texts, in turns."""
    plain = IndependentMembers.from_models(
        [one_model(folder, "independent_seed", repetition)], max_length=setting.max_length, device="cpu"
    )
    texts = list(held_out["prompt"])[:100], list(held_out["chosen"])[:100]
    ratios = []
    for _ in range(3):
        seconds = []
        for one in (source, plain):
            start = time.process_time()
            one.score(*texts)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return {"score_ratio": np.median(ratios)}


def policy_samples(repetition: int, folder: Path) -> None:
    """Completions of policies at KL 0, 5, 10 and 20 that were optimised against a reward model of other pairs."""
    target = folder / "samples" / f"{repetition}.json"
    if target.exists():
        return
    quieten()
    torch.set_num_threads(1)
    world = build_world(folder / "world")
    run = folder / "samples" / f"run-{repetition}"
    pairs = world.draw_preferences("uneven", 3000, 9000 + repetition)
    config = HeadsConfig(1, repetition, layer=0, bootstrap="none", learning_rate=1e-2, weight_decay=0.0, epochs=60)
    trainer = VarianceAwareRLOOTrainer(
        str(world.policy_path),
        train_heads(pairs, world.policy_path, config, device="cpu"),
        VarianceAwareRLOOConfig(
            output_dir=str(run), preset="vanilla", beta=0.01, per_device_train_batch_size=64, num_generations=8,
            max_completion_length=24, max_steps=200, learning_rate=4e-4, lr_scheduler_type="constant",
            gradient_checkpointing=False, logging_steps=1, save_steps=4, save_only_model=True, report_to="none",
            disable_tqdm=True, use_cpu=True, seed=9000 + repetition,
        ),
        train_dataset=Dataset.from_dict({"prompt": world.prompts("train")}),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    some = world.prompts("test")[:64]
    prompts = [prompt for prompt in some for _ in range(8)]
    tokenizer = AutoTokenizer.from_pretrained(world.policy_path)
    found: dict[str, Any] = {"prompts": prompts}
    for kl in KLS:
        path = world.policy_path if kl == 0 else last_checkpoint_under(run, kl)
        model = AutoModelForCausalLM.from_pretrained(path)
        texts = sample_completions(model, tokenizer, prompts, max_new_tokens=24, seed=31 + repetition)
        found[str(kl)] = {
            "checkpoint": Path(path).name,
            "completions": texts,
            "truth": world.true_reward(prompts, texts),
        }
    write_json(target, found)


def on_samples(source: RewardSource, folder: Path, repetition: int) -> dict[str, Any]:
    """Mean and variance of the policies' completions, centred per prompt, and the truth."""
    held = read_json(folder / "samples" / f"{repetition}.json")
    groups = torch.arange(len(held["prompts"])) // 8
    arrays: dict[str, Any] = {"groups": groups.numpy()}
    reference = source.score(held["prompts"], held["0"]["completions"])
    source.calibrate(reference, group_anchors(reference, groups))
    for kl in KLS:
        scores = source.score(held["prompts"], held[str(kl)]["completions"])
        found = source.estimate(scores, group_anchors(scores, groups))  # as the errors are, within the policy's group
        arrays[f"policy_mean_{kl}"] = found.mean.numpy()
        arrays[f"policy_variance_{kl}"] = found.variance.numpy()
        arrays[f"policy_truth_{kl}"] = np.array(held[str(kl)]["truth"])
    return arrays


def variability_unit(share: float, dataset: str, out: Path) -> None:
    """Ten models on a share of the data: their scores of the held-out texts."""
    folder = out / "hh"
    target = folder / "measured" / f"variability-{share}.npz"
    if target.exists():
        return
    quieten()
    torch.set_num_threads(1)
    train, held_out, base = data_of(SETTINGS["hh"], 0, dataset, folder)
    place = folder / f"variability-{share}"
    source = variability(SETTINGS["hh"], VARIABILITY, share, place, train, base)
    prompts = list(held_out["prompt"])
    scores = {side: source.score(prompts, list(held_out[side])).numpy() for side in ("chosen", "rejected")}
    _save(target, scores | {"hash": np.array(data_hash(held_out))})


def _save(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = io.BytesIO()
    np.savez_compressed(held, **arrays)
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(held.getvalue())
    temporary.rename(path)


if __name__ == "__main__":
    main()
