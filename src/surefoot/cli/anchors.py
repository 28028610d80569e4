"""`surefoot anchors`: sample and score completions of the reference policy for every prompt of a dataset."""

from __future__ import annotations

from functools import partial

from surefoot.cli.parsing import parse
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.training.prepare_anchors import AnchorArguments

    return AnchorArguments, JudgeArguments


def run(arguments: list[str]) -> None:
    """Draw, score, and write one file of anchors, with a progress bar."""
    from rich.console import Console

    from surefoot.training.prepare_anchors import prepare_anchors

    quieten()
    (args,) = parse(option_types(), arguments, "anchors")
    with progress() as show:
        store = prepare_anchors(args, partial(show, "prompts"))
    console = Console()
    unknown = store.unscored()
    if unknown:
        console.print(f"{unknown} of {len(store)} prompts have no scored completion, and so no anchor")
    console.print(
        f"anchors of {len(store)} prompts, {store.completions} completions each, by '{store.source}': {args.output}",
        soft_wrap=True,
    )
