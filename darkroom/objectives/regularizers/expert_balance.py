"""Load balancing (2101.03961): experts of a transformer that get more tokens than others cost more.

The gates of diffusers' HiDream compute this loss and drop it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from darkroom.families.base import Family
from darkroom.objectives.streams import Prediction
from darkroom.objectives.taps import Recorded, Tap
from darkroom.options.config import option_info

if TYPE_CHECKING:
    from darkroom.options.config import Config

GATE = "MoEGate"
SWITCH = "hidream_use_load_balancing_loss"


class ExpertBalance:
    """How unevenly gates share tokens among their experts, added up over all gates."""

    name = "balance"

    def __init__(self, family: Family, options: Config, denoisers: Sequence[nn.Module]) -> None:
        modules = (module for denoiser in denoisers for module in denoiser.modules())
        self.gates = [module for module in modules if type(module).__name__ == GATE]
        self.weight = options.hidream_load_balancing_loss_weight
        self.taps = {str(number): Tap([gate], _read_scores) for number, gate in enumerate(self.gates)}

    @staticmethod
    def is_enabled(options: Config) -> bool:
        """Do the options ask for it?"""
        return options.hidream_use_load_balancing_loss and options.model_family in option_info(SWITCH).families

    def __call__(self, recorded: Recorded, predictions: Sequence[Prediction]) -> Tensor:
        """The sum of the gates' losses, each of which has the gate's own weight in it, a scalar."""
        losses = []
        for gate, gate_losses in zip(self.gates, recorded.values(), strict=True):
            factor = 1.0 if self.weight is None else self.weight / gate.alpha  # type: ignore[operator]
            losses += [loss * factor for loss in gate_losses]
        return sum(losses[1:], losses[0])


REGULARIZER = ExpertBalance


def _read_scores(output: object) -> Tensor:
    """Of what a gate returns, the scores of its experts."""
    return cast("tuple[Tensor, ...]", output)[2]
