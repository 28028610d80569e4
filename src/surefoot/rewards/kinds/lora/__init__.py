"""Members as LoRA adapters on one trunk, in one batched forward."""
