"""`surefoot anchors`: completions of the reference policy, scored once, for every prompt of a dataset."""

from __future__ import annotations

from surefoot.cli.parsing import parse
from surefoot.quiet import quieten


def run(arguments: list[str]) -> None:
    """Draw, score, and write one file of anchors, with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from surefoot.training.prepare_anchors import AnchorArguments, prepare_anchors

    quieten()
    (args,) = parse((AnchorArguments,), arguments, "anchors", judges=True)
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bars:
        task = bars.add_task("prompts", total=None)
        store = prepare_anchors(args, lambda done, total: bars.update(task, completed=done, total=total))
    console = Console()
    unknown = store.unscored()
    if unknown:
        console.print(f"{unknown} of {len(store)} prompts have no scored completion, and so no anchor")
    console.print(
        f"anchors of {len(store)} prompts, {store.completions} completions each, by '{store.source}': {args.output}",
        soft_wrap=True,
    )
