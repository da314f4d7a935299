"""Which expert sits in which slot, who leaves, who is read ahead. Decisions only: no weights, no clock, no torch."""

from pathlib import Path


def _forget_old_code() -> None:
    """Drop cached machine code that is older than any file of this package.

    Its compiled functions call each other across files, and numba asks only the outermost function's file for its age.
    """
    folder = Path(__file__).parent
    newest = max(file.stat().st_mtime for file in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        try:
            if index.stat().st_mtime < newest:
                index.unlink()
        except OSError:  # another process was faster, or the folder is read-only: then nobody edits it either
            continue


_forget_old_code()
