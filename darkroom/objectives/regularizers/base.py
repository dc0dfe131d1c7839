"""What a regularizer is: it names modules to tap, and makes a term of the loss of what they returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor, nn

from darkroom.families.base import Family
from darkroom.objectives.streams import Prediction
from darkroom.objectives.taps import Recorded, Tap

if TYPE_CHECKING:
    from darkroom.options.config import Config


class Regularizer(Protocol):
    """A further term of the loss.

    name  of the term, in events, metrics and reports
    taps  what is recorded while the network predicts
    """

    name: ClassVar[str]
    taps: Mapping[str, Tap]

    def __init__(self, family: Family, options: Config, denoisers: Sequence[nn.Module]) -> None:
        """Raises ConfigError for options that these denoisers cannot follow. Their weights may have no data."""

    @staticmethod
    def is_enabled(options: Config) -> bool:
        """Do the options ask for it?"""

    def __call__(self, recorded: Recorded, predictions: Sequence[Prediction]) -> Tensor:
        """The term of one batch, a scalar with its weight in it. `recorded` has the names of `taps`."""
