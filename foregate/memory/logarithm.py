"""The natural logarithm of a normal positive number, in a form that compiled loops compute eight at a time.

Off by less than one unit in the last place, as the C library's, which is called for one number at a time.

Source: fdlibm, e_log.c, Sun Microsystems 1993.
"""

import numpy as np

from foregate.memory.compiled import pasted

HALF_ROOT = np.int64(0x3FE6A09E667F3BCD)  # the bits of the square root of 1/2
FRACTION = np.int64(52)  # bits of a number's fraction; those of its exponent are above
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
SERIES = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)


@pasted
def logarithm(x: float) -> float:
    """x = 2^power * (1 + f), with f around 0; log(1 + f) as a series in f / (2 + f)."""
    bits = np.float64(x).view(np.int64)
    power = (bits - HALF_ROOT) >> FRACTION
    f = np.int64(bits - (power << FRACTION)).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = z * (SERIES[0] + w * (SERIES[2] + w * (SERIES[4] + w * SERIES[6])))
    even = w * (SERIES[1] + w * (SERIES[3] + w * SERIES[5]))
    half = 0.5 * f * f
    return power * LN2_HIGH - ((half - (s * (half + even + odd) + power * LN2_LOW)) - f)
