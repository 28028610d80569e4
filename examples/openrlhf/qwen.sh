#!/usr/bin/env bash
# PPO with a critic through OpenRLHF 0.11 on one node of eight GPUs: Qwen3-1.7B on UltraFeedback's prompts. It was NOT run:
# there was no GPU. The tests check that OpenRLHF's parser and surefoot accept the options; batch sizes and learning
# rates are guesses to start from. docs/engines.md has the commands that come before.
set -euo pipefail
surefoot openrlhf \
    --surefoot.target_kl 10 \
    --algo.kl.init_coef 0.5 \
    --algo.advantage.estimator gae \
    --actor.model_name_or_path Qwen/Qwen3-1.7B \
    --reward.remote_url http://127.0.0.1:8000/get_reward \
    --data.prompt_dataset runs/qwen_prompts.jsonl \
    --data.input_key prompt \
    --data.max_len 1024 \
    --rollout.max_new_tokens 512 \
    --rollout.batch_size 128 \
    --rollout.n_samples_per_prompt 4 \
    --rollout.micro_batch_size 8 \
    --train.batch_size 128 \
    --train.micro_batch_size 4 \
    --train.colocate_all \
    --vllm.num_engines 8 \
    --vllm.gpu_memory_utilization 0.5 \
    --vllm.enable_sleep \
    --ds.enable_sleep \
    --ds.zero_stage 2 \
    --ds.packing_samples \
    --actor.num_gpus_per_node 8 \
    --ref.num_gpus_per_node 8 \
    --critic.num_gpus_per_node 8 \
    --actor.gradient_checkpointing_enable \
    --actor.adam.lr 1e-6 \
    --critic.adam.lr 1e-5 \
    --ckpt.path runs/qwen_openrlhf \
    --ckpt.save_steps 50 \
    --ckpt.output_dir runs/qwen_openrlhf_model
