# PYTHON_ARGCOMPLETE_OK
"""`surefoot <command>`: import the command's module and call its `run`; nothing heavy is imported before."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

import surefoot
from surefoot.errors import SurefootError

COMMANDS = {
    "demo": "the whole pipeline on a small offline world, with a report",
    "reward": "train a reward source with a variance on preferences",
    "score": "reward and variance for every row of a dataset",
    "anchors": "draw and score the reference policy's completions once, to centre variances by",
    "judge": "try an LLM judge: what it is sent, what it replies, and what is read from that (`surefoot judge try`)",
    "serve": "a reward source behind HTTP, in the formats of the training engines",
    "diagnose": "measure how far a reward source can be trusted",
    "forecast": "what each objective would give at each KL budget, before training",
    "select": "choose which pairs of a policy's completions to label",
    "label": "a page on which people compare pairs, and its answers as preferences",
    "online": "rounds of choosing pairs, labelling them and training the reward again",
    "study": "run many whole pipelines and measure how often each method ends below the reference",
    "report": "make a study's report again from its records",
    "world": "write the offline world to disk: model, preferences, prompts",
    "theory": "the risk theorem, exact optima, and what an estimated variance does to them",
    "rloo": "align a language model with TRL's RLOO and the variance-aware objective",
    "grpo": "the same with TRL's GRPO",
    "dpo": "align offline with TRL's DPO, log-ratios weighted by the variance",
    "verl": "PPO with a critic, RLOO, GRPO or REINFORCE++ on verl, the KL weighted by the variance",
    "openrlhf": "PPO with a critic, REINFORCE++ or RLOO on OpenRLHF, the KL weighted by the variance",
    "bon": "sample n completions of each prompt and keep the best",
    "doctor": "versions, devices and extras of this installation, and what is missing for what",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that the user can mend are printed without a traceback.

    Returns:
        0 on success, 1 on an error of ours or of the system (disk full, no permission), 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    if not words or words[0] not in COMMANDS:
        _parser().parse_args(words or ["--help"])
    command, rest = words[0], words[1:]
    before = dict(os.environ)
    try:
        if "-h" in rest or "--help" in rest:
            from surefoot.cli.help import help_text

            print(help_text(command, COMMANDS[command], rest), end="")
            return 0
        import_module(f"surefoot.cli.{command}").run(rest)
    except SurefootError as error:
        print(f"surefoot {command}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except Exception as error:
        said = told_by_the_system(error) or told_by_a_library(error)
        if said is None:
            raise
        print(f"surefoot {command}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        what = str(stop) or "run the same command again to go on"
        print(f"\nsurefoot {command}: interrupted; {what}", file=sys.stderr)
        return 130
    finally:
        _forget_judges(before)
    return 0


def _complete() -> None:
    """Answer the shell, which runs this program with `_ARGCOMPLETE` set when Tab is pressed (docs/commands.md)."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)  # the shell falls back to file names
    from surefoot.cli.help import add_options

    parser = argparse.ArgumentParser(prog="surefoot")
    commands = parser.add_subparsers()
    for name, about in COMMANDS.items():
        add_options(commands.add_parser(name, help=about), name)
    argcomplete.autocomplete(parser, always_complete_options="long")


def _forget_judges(before: dict[str, str]) -> None:
    """Restore the judge settings in the environment, so that the process's next command doesn't inherit them."""
    for name in [name for name in os.environ if name.startswith("SUREFOOT_JUDGE")]:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name.startswith("SUREFOOT_JUDGE")})


def told_by_the_system(error: Exception) -> str | None:
    """What the system refused, in one line; None if the error is something else, which is a bug."""
    if isinstance(error, UnicodeError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename!s:.200}" if error.filename else ""
        return f"{error.strerror or error}{place}"
    first = str(error).strip().partition("\n")[0]
    system = isinstance(error, OSError | MemoryError) or any(words in first for words in _SYSTEM)
    return (first or "out of memory") if system else None


def told_by_a_library(error: Exception) -> str | None:
    """What a library says of a setting that is passed on to it, in one line; None if it didn't raise this itself."""
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    package = "" if raised is None else str(raised.tb_frame.f_globals.get("__name__")).partition(".")[0]
    if package not in ("transformers", "trl", "peft", "accelerate") or not isinstance(error, ValueError | ImportError):
        return None
    return f"{package} refuses: {' '.join(str(error).split()):.500}"


_SYSTEM = ("os error", "PytorchStreamWriter failed", "database or disk is full", "unable to open database file")
"""How safetensors, torch and SQLite tell of a disk that refused."""


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="surefoot",
        description="Align language models on preferences when the reward model can't be fully trusted.",
        epilog=f"commands:\n{listing}\n\n`surefoot <command> --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=sorted(COMMANDS), metavar="command")
    parser.add_argument("--version", action="version", version=f"surefoot {surefoot.__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
