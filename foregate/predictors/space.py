"""Which values of a predictor's option are worth trying: a declaration. Nothing is searched here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both ends are. `log`: by their magnitude."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{' by magnitude' if self.log else ''}"

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Options:
    """One of a few values, in no order."""

    values: tuple[str | int | float | bool, ...]

    def __str__(self) -> str:
        return "|".join(map(str, self.values))


Choice = Range | Options
