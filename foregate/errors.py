"""Every error foregate raises on purpose.

    ForegateError            the user can do something about it; its text is one sentence that says what
    ├── ChoiceError          an unknown name, or an option that does not fit the others
    ├── SourceError          a file somebody gave us is broken: names the file, and the line or column
    ├── TraceError           a trace contradicts itself, or lacks what was asked of it
    ├── TrainingError        a network cannot be trained any further: a number that is not finite
    ├── ModelError           a model cannot be loaded, or has nothing to record
    ├── ExtraError           an optional library is not installed: names the line to type
    └── StorageError         the disk or a database refused: no space, no permission, no answer

The command line prints the sentence and exits with 2. Our own mistakes are asserts.
"""

import importlib
from types import ModuleType


class ForegateError(Exception):
    """The user's mistake, or their machine's; the message says what to do."""


class ChoiceError(ForegateError):
    """An unknown name, or options that do not fit together."""


class SourceError(ForegateError):
    """A file that was handed to foregate is broken."""


class TraceError(ForegateError):
    """A trace contradicts itself, or lacks something that was asked of it."""


class TrainingError(ForegateError):
    """Training met a number that is not finite."""


class ModelError(ForegateError):
    """A model cannot be loaded, or has no experts."""


class ExtraError(ForegateError):
    """An optional library is missing."""


class StorageError(ForegateError):
    """The file system, or a database, refused."""


def need(module: str, extra: str) -> ModuleType:
    """Import an optional library, or raise an ExtraError that names the line to type."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise ExtraError(f"this needs {module.split('.', maxsplit=1)[0]}: pip install 'foregate[{extra}]'") from None
