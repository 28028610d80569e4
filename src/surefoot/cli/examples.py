"""Examples that `--help` prints; a test runs them all, in this order."""

from __future__ import annotations

__all__ = ["EXAMPLES"]

_POLICY = "--model_name_or_path world/policy"
_SOURCE = "--reward_source runs/reward/source"
_PROMPTS = "--dataset_name world/prompts-train.jsonl"
_SHORT = "--max_completion_length 24"
_TRAIN = f"{_SHORT} --per_device_train_batch_size 64 --num_generations 8 --learning_rate 1e-3 --max_steps 20"

EXAMPLES: dict[str, tuple[str, ...]] = {
    "doctor": ("surefoot doctor", "surefoot doctor --json > doctor.json"),
    "world": ("surefoot world --output_dir world",),
    "demo": ("surefoot demo", "surefoot demo --output_dir demo --seeds 12"),
    "reward": (
        f"surefoot reward --kind linear --layer 0 {_POLICY} --dataset_name world/preferences-train.parquet "
        "--output_dir runs/reward",
    ),
    "score": (f"surefoot score {_SOURCE} --dataset_name world/preferences-test.parquet --output runs/scored.parquet",),
    "diagnose": (
        f"surefoot diagnose {_SOURCE} --dataset_name world/preferences-test.parquet --output_dir runs/diagnosis",
    ),
    "anchors": (f"surefoot anchors {_SOURCE} {_POLICY} {_PROMPTS} {_SHORT} --output runs/anchors.safetensors",),
    "forecast": (f"surefoot forecast {_SOURCE} {_POLICY} {_PROMPTS} {_SHORT} --output_dir runs/forecast",),
    "select": (
        f"surefoot select {_SOURCE} --completions runs/forecast/candidates.jsonl --rule d_optimal --count 20 "
        "--output_dir runs/selected",
    ),
    "label": ("surefoot label --dataset_name runs/selected/pairs.jsonl --output runs/labels.jsonl",),
    "online": (
        "echo 'reward: {kind: linear, layer: 0, model_name_or_path: world/policy}' > online.yaml",
        f"surefoot online --config online.yaml {_POLICY} {_PROMPTS} {_SHORT} "
        "--eval_dataset world/preferences-test.parquet --labels gold --gold surefoot.data.world.truth:true_rewards "
        "--count 50 --rounds 2 --output_dir runs/online",
    ),
    "judge": (
        "surefoot judge try --config examples/judge.yaml",
        "surefoot judge try --reward_source runs/judge/source --judge_endpoint http://127.0.0.1:8000/v1 --n 3 --full",
    ),
    "serve": (f"surefoot serve {_SOURCE} --port 8000",),
    "rloo": (
        f"surefoot rloo {_POLICY} {_SOURCE} {_PROMPTS} --target_kl 6 --beta 1 {_TRAIN} "
        "--gradient_checkpointing false --output_dir runs/rloo",
    ),
    "grpo": (
        f"surefoot grpo {_POLICY} {_SOURCE} {_PROMPTS} --target_kl 6 --beta 1 {_TRAIN} "
        "--gradient_checkpointing false --output_dir runs/grpo",
    ),
    "dpo": (
        f"surefoot dpo {_POLICY} {_SOURCE} --dataset_name world/preferences-train.parquet --max_steps 20 "
        "--output_dir runs/dpo",
    ),
    "bon": (f"surefoot bon {_POLICY} {_SOURCE} {_PROMPTS} {_SHORT} --preset lcb --n 8 --output_dir runs/bon",),
    "study": (
        "echo 'settings: {uneven: {world: uneven, pairs: 400}}' > study.yaml",
        "echo 'sources: {linear: {kind: linear, layer: 0}}' >> study.yaml",
        "surefoot study --config study.yaml --trainer exact --kl_budgets 1 --seeds 2 --output_dir runs/study",
    ),
    "report": ("surefoot report runs/study --format json csv",),
    "verl": ('surefoot verl --config-path "$PWD/examples/verl" --config-name cpu',),
    "openrlhf": (
        "surefoot serve --reward_source runs/linear/source --anchor_file runs/anchors.safetensors &",
        "surefoot openrlhf --actor.model_name_or_path world/policy --reward.remote_url "
        "http://127.0.0.1:8000/get_reward --data.prompt_dataset prompts.jsonl --data.input_key prompt "
        "--vllm.num_engines 1 --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --critic.num_gpus_per_node 1",
    ),
    "theory": ("surefoot theory --output_dir theory",),
}
