"""`surefoot serve`: a reward source behind HTTP, in the formats of the training engines."""

from __future__ import annotations

from surefoot.cli.parsing import parse
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.serving.settings import ServeArguments

    return ServeArguments, JudgeArguments


def run(arguments: list[str]) -> None:
    """Serve until SIGTERM or Ctrl+C, then finish what was accepted."""
    from surefoot.errors import ConfigError

    quieten()
    (args,) = parse(option_types(), arguments, "serve")
    args.check()
    try:
        from surefoot.serving.run import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise ConfigError(f"the server needs {error.name}: pip install surefoot[serve]") from None
    serve(args)
