"""Control images made from the images of a dataset: edges, depth, masks, worse copies and others.

>>> params = check_params("canny", {"low_threshold": 80})
>>> edges = CONTROLS["canny"](picture, params, np.random.default_rng(0))      # uint8 (H, W, 3), as `picture`
>>> moving = CONTROLS["canny"].clip(frames, params, np.random.default_rng(0))  # uint8 (F, H, W, 3), as `frames`
"""

from __future__ import annotations

from collections.abc import Mapping

from darkroom.core.registry import Table, find_nearest
from darkroom.media.controls.base import Control, Param
from darkroom.media.controls.canny import Canny
from darkroom.media.controls.depth import Depth
from darkroom.media.controls.i2v_first_frame import FirstFrame
from darkroom.media.controls.jpeg_artifacts import JpegArtifacts
from darkroom.media.controls.optical_flow import OpticalFlow
from darkroom.media.controls.random_masks import RandomMasks
from darkroom.media.controls.sdr import LogC3, Sdr
from darkroom.media.controls.segmentation import Segmentation
from darkroom.media.controls.superresolution import Superresolution

__all__ = ["CONTROLS", "Control", "Param", "validate_params"]

CONTROLS: Table[Control] = Table("control generator", entry_points="darkroom.controls")
"""Every generator by name and alias."""

for _control in (
    Superresolution(),
    JpegArtifacts(),
    Canny(),
    Depth(),
    RandomMasks(),
    Segmentation(),
    OpticalFlow(),
    FirstFrame(),
    Sdr(),
    LogC3(),
):
    CONTROLS.add(_control.name, _control, _control.aliases)


def validate_params(type: str, params: Mapping[str, object]) -> dict[str, object]:
    """Every parameter of the generator `type` (a name or alias), given or default. Raises ValueError.

    The message names the type or parameter, what is wrong, and what to write instead.
    """
    try:
        control = CONTROLS[type]
    except KeyError:
        names = {name: control.aliases for name, control in CONTROLS.items()}
        hint = find_nearest(type, [*names, *(alias for aliases in names.values() for alias in aliases)])
        raise ValueError(
            f"type = {type!r} is no control generator; "
            + (f"did you mean {' or '.join(hint)}? " if hint else "")
            + f"There are: {', '.join(names)}"
        ) from None
    return control.validate_params(params)
