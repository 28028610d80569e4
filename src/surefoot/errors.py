"""What goes wrong, said so that it can be put right: each message tells what, where and what to do."""

__all__ = ["ConfigError", "DataError", "ModelError", "RunError", "SurefootError", "VarianceError"]


class SurefootError(Exception):
    """Base of every error that surefoot raises on purpose.

    The command line prints the message alone; anything else that escapes is a bug and keeps its traceback.
    """


class ConfigError(SurefootError, ValueError):
    """A setting is unknown, or its value contradicts another."""


class DataError(SurefootError, ValueError):
    """The data lack a column, hold no usable row, or hold a bad one (its number is in the message)."""


class ModelError(SurefootError, ValueError):
    """A model or tokenizer can't be loaded, or can't do what is asked of it."""


class RunError(SurefootError, RuntimeError):
    """A run can't start or go on, such as an output directory that holds another run."""


class VarianceError(SurefootError, ValueError):
    """A variance was asked of something that has none, such as a single member."""
