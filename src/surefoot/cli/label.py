"""`surefoot label`: a page on which people compare pairs, and its answers as preferences."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.cli.parsing import parse
from surefoot.quiet import quieten


@dataclass
class LabelConfig:
    """Settings of `surefoot label`. With `export_to` or `import_from` it serves no page."""

    dataset_name: str = field(
        metadata={"help": "Pairs of `surefoot select`, or preferences, whose labels aren't shown."}
    )
    output: str = field(metadata={"help": "The file of answers (.jsonl); the same again goes on."})
    port: int = field(default=0, metadata={"help": "On loopback; 0 takes a free one."})
    seed: int = field(default=0, metadata={"help": "Decides which completion is shown on the left."})
    export_to: str | None = field(default=None, metadata={"help": "Write the answers to this file, and end."})
    import_from: str | None = field(default=None, metadata={"help": "Add this file's answers to the output, and end."})
    format: str = field(
        default="trl",
        metadata={"help": "Of these files.", "choices": ("trl", "plain", "label_studio", "argilla")},
    )
    strong_margin: float = field(
        default=0.0, metadata={"help": "Column margin of a much better reply, in units of reward; a better one has 0."}
    )


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    return (LabelConfig,)


def run(arguments: list[str]) -> None:
    """Serve the page until it is interrupted, or convert the answers."""
    from rich.console import Console

    from surefoot.errors import ConfigError
    from surefoot.feedback.answers import read_answers
    from surefoot.feedback.exchange import export_answers, import_answers
    from surefoot.feedback.pairs import distinct, read_pairs

    quieten()
    (config,) = parse(option_types(), arguments, "label")
    if config.export_to is not None and config.import_from is not None:
        raise ConfigError("give export_to or import_from, not both")
    if not 0 <= config.port <= 65535:
        raise ConfigError(f"port must be between 0 and 65535, got {config.port}")
    if Path(config.output).suffix != ".jsonl":
        raise ConfigError(f"output must end in .jsonl, got {Path(config.output).name}")
    console = Console()
    rows = read_pairs(config.dataset_name)
    pairs = distinct(rows)
    if len(pairs) < len(rows):
        console.print(f"{len(rows) - len(pairs):,} rows repeat another row's pair and are left out")
    if config.import_from is not None:
        _import(console, config, pairs, import_answers(config.import_from, pairs, config.format))
    elif config.export_to is not None:
        settings = {"strong_margin": config.strong_margin} if config.format == "trl" else {}
        answers = read_answers(config.output) if Path(config.output).exists() else []
        count = export_answers(config.export_to, pairs, answers, config.format, **settings)
        console.print(f"{count:,} rows: {config.export_to}", soft_wrap=True)
        _print_summary(console, answers)
    else:
        _serve(console, config, pairs)
        _print_summary(console, read_answers(config.output))
        console.print(f"answers: {config.output} (the same command goes on)", soft_wrap=True)


def _import(console: Any, config: Any, pairs: Any, answers: Any) -> None:
    from surefoot.feedback.answers import open_answers

    with open_answers(config.output, pairs, config.seed) as file:
        added = sum(file.add(answer) for answer in answers)
    console.print(f"{added:,} of {len(answers):,} answers were new: {config.output}", soft_wrap=True)


def _serve(console: Any, config: Any, pairs: Any) -> None:
    """Serve until an interrupt; answers are on the disk already when one comes."""
    from surefoot.errors import ConfigError
    from surefoot.feedback.answers import open_answers

    try:
        import uvicorn

        from surefoot.feedback.page import LOOPBACK, listen, make_app
    except ImportError as error:
        raise ConfigError(
            f"the page needs {error.name}, which is not installed: pip install 'surefoot[serve]'"
        ) from None
    token = secrets.token_urlsafe(24)
    with open_answers(config.output, pairs, config.seed) as answers, listen(config.port) as listening:
        port = listening.getsockname()[1]
        app = make_app(pairs, answers, token, port, config.seed)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
        )
        console.print(f"page: http://{LOOPBACK}:{port}/?token={token}", soft_wrap=True, highlight=False)
        console.print("Ctrl-C stops it")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            return


def _print_summary(console: Any, answers: Any) -> None:
    """Agreement and time per label."""
    from surefoot.feedback.agreement import summary

    told = summary(answers)
    if not told["answers"]:
        return
    choices = ", ".join(f"{name} {count}" for name, count in told["choices"].items())
    console.print(f"{told['answers']:,} answers by {', '.join(told['annotators'])}: {choices}")
    if told["median_seconds"] is not None:
        console.print(f"median time per label: {told['median_seconds']:.1f} s")
    alpha = told["alpha"]
    if alpha["nominal"] is not None:
        console.print(
            f"Krippendorff's α: {alpha['nominal']:.3f} nominal, {alpha['ordinal']:.3f} ordinal, "
            f"of {told['pairs_with_two']:,} pairs with two answers or more"
        )
