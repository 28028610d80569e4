"""An LLM judge as a reward source with a variance, over any OpenAI-compatible endpoint (docs/judge.md)."""
