"""What the page is told, as JSON values: each message is whole, so that a page may come late. Sends nothing."""

from dataclasses import asdict
from typing import Any

from foregate.live.sampler import Picture
from foregate.runtime.watch import Subject


def loading(model: str, step: str) -> dict[str, Any]:
    """Nothing runs yet; `step` is what is being done."""
    return {"state": "loading", "subject": {"model": model}, "step": step}


def running(subject: Subject, settings: str, picture: Picture) -> dict[str, Any]:
    """A picture. Cells are a string of digits for each layer (see `foregate.runtime.watch.ABSENT`), and the minute's
    moments lists of a Moment's fields.
    """
    stats = dict(picture.look.stats)
    of_layer = stats.pop("by_layer")
    return {
        "state": picture.state,
        "subject": asdict(subject),
        "settings": settings,
        "seconds": round(picture.seconds, 2),
        "stalled": picture.stalled,
        "stats": stats,
        "layers": {name: of_layer[name] for name in ("demanded", "resident", "in_time", "late")},
        "cells": ["".join(map(str, row)) for row in picture.look.cells.tolist()],
        "minute": [list(asdict(moment).values()) for moment in picture.minute],
    }
