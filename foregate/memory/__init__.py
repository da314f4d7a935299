"""Which expert sits in which slot, who leaves, who is read ahead. Decisions only: no weights, no clock, no torch."""

from pathlib import Path

HERE = Path(__file__).parent


def forget_old_code(folder: Path) -> None:
    """Drop a package's cached machine code that is older than any of its files, or of this package's.

    Compiled functions hold the code of all that they call, and numba asks only the outermost one's file for its age.
    """
    newest = max(file.stat().st_mtime for place in (HERE, folder) for file in place.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        try:
            if index.stat().st_mtime < newest:
                index.unlink()
        except OSError:  # another process was faster, or the folder is read-only: then nobody edits it either
            continue


forget_old_code(HERE)
