"""Array aliases, and the letters that shapes are written in.

T tokens of a trace, N rows of a query, P earlier tokens of a sequence, L mixture layers, E experts of a layer,
k routed experts (top-k), D hidden width, B budgets. An expert id of -1 means "absent".
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.integer[Any]]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.floating[Any]]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
