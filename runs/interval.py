"""How often a run is saved, as it is written: 10m, 500 or 1ep."""

from __future__ import annotations

import re
from dataclasses import dataclass

from saccade.base.errors import UserError

SECONDS = {"s": 1, "m": 60, "h": 3600}
USUAL = "10m"


@dataclass(frozen=True)
class Interval:
    """One of the three is not 0. With seconds the end of an epoch counts too, once a tenth of them has passed."""

    seconds: float = 0
    steps: int = 0
    epochs: int = 0

    @classmethod
    def parse(cls, text: str, flag: str = "--checkpoint-every") -> Interval:
        """Raises UserError."""
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s|m|h|ep)?", str(text), re.ASCII)
        unit = found[2] if found else None
        number = float(found[1]) if found else 0.0
        if number and unit in SECONDS:
            return cls(seconds=number * SECONDS[unit])
        if number >= 1 and number == int(number):
            return cls(epochs=int(number)) if unit else cls(steps=int(number))
        raise UserError(
            f"{flag} {text} is no interval; give minutes (10m, also 30s or 1h), steps (500) or epochs (1ep)."
        )

    def due(self, step: int, steps_per_epoch: int, passed: float) -> bool:
        """Whether it is over after `step`, `passed` seconds after the last time."""
        if self.seconds:
            return passed >= (self.seconds if step % steps_per_epoch else self.seconds / 10)
        return step % (self.steps or self.epochs * steps_per_epoch) == 0
