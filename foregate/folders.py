"""Where foregate keeps what is the user's: one folder for what may be made again, and who says where. Reads nothing."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of all that foregate may make again, and anybody may delete: $FOREGATE_CACHE, else foregate/ in
    $XDG_CACHE_HOME (~/.cache). Downloaded models are not in it: they are Hugging Face's, in $HF_HOME.
    """
    named = os.environ.get("FOREGATE_CACHE")
    return Path(named).expanduser() if named else _home("XDG_CACHE_HOME", ".cache") / "foregate"


def settings_folder() -> Path:
    """The folder of the user's settings: foregate/ in $XDG_CONFIG_HOME (~/.config)."""
    return _home("XDG_CONFIG_HOME", ".config") / "foregate"


def keep_compiled_code() -> None:
    """Say where numba, which is not loaded yet, is to keep compiled functions: beside our code, as is its habit; in the
    cache folder where $FOREGATE_CACHE names one, or where nobody may write beside the code.

    Functions hold the code of those that they call, in other files too, and numba asks only their own file for its age:
    each state of the package has a folder.
    """
    package = Path(__file__).parent
    if os.environ.get("FOREGATE_CACHE") or not os.access(package, os.W_OK):
        newest = max(file.stat().st_mtime_ns for file in package.rglob("*.py"))
        os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder() / f"compiled-{newest:x}"))


def _home(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or f"~/{usual}").expanduser()
