"""The shipped numbers of the network behind `predicted` eviction. No code of it: that is in `predicted`, and what found
them in `recipes/predicted_eviction.py`.
"""

import json
from pathlib import Path

import numpy as np

from foregate.arrays import Float32

FILE = Path(__file__).parent.parent / "data" / "predicted_eviction.json"
HIDDEN = 8
HORIZON = 4.0
"""Passes; how far a wait has to be apart from another to make a difference of e."""


def weights() -> tuple[Float32, Float32, Float32, Float32]:
    """first [HIDDEN, FEATURES], offset [HIDDEN], last [HIDDEN], bias [1]."""
    numbers = json.loads(FILE.read_text())
    first, offset, last, bias = (np.array(numbers[name], np.float32) for name in ("first", "offset", "last", "bias"))
    return first, offset, last, bias
