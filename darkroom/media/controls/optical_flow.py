"""Optical flow: where every point of a frame goes in the next one, as colors.

Hue is the direction, saturation the distance, in relation to the longest of the clip; what rests is white (the color
wheel of Baker and others, A Database and Evaluation Methodology for Optical Flow, 2011, here by HSV). The flow is
OpenCV's DIS (Kroeger and others, Fast Optical Flow using Dense Inverse Search, 2016).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from PIL import Image

from darkroom.core.optional import import_optional
from darkroom.media.controls.base import Control, Param
from darkroom.media.controls.pixels import to_bytes


class OpticalFlow(Control):
    """Frame k shows the motion from frame k to frame k + 1; the last frame shows that of the one before it."""

    name = "optical_flow"
    aliases = ("flow",)
    needs_clip = True
    params = {"model_type": Param("dis", "choice", "Method; raft is not available.", choices=("dis", "raft"))}

    def validate_together(self, params: Mapping[str, object]) -> None:
        if params["model_type"] == "raft":
            raise ValueError(
                "model_type = 'raft' cannot be used: the RAFT network is part of torchvision, which Darkroom does not "
                "use; write model_type: dis for OpenCV's dense flow, which needs no weights"
            )

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        raise ValueError(
            "optical_flow needs a clip: a single picture shows no motion; use it in a dataset of type video"
        )

    def clip(self, frames: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        if len(frames) < 2 or min(frames.shape[1:3]) < 12:
            return np.full_like(frames, 255)  # too little to see motion in: everything rests
        cv2 = import_optional("cv2", "vision", "The control generator optical_flow")
        method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        gray = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
        flows = [method.calc(a, b, None) for a, b in itertools.pairwise(gray)]
        return flow_to_color(np.stack([*flows, flows[-1]]))


def flow_to_color(flow: np.ndarray) -> np.ndarray:
    """Displacements float32 (F, H, W, 2) in pixels (right, down) to colors uint8 (F, H, W, 3)."""
    length = np.linalg.norm(flow, axis=-1)
    longest = max(float(length.max(initial=0)), 1.0)  # less than a pixel is mostly noise
    hue = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1.0
    planes = np.stack([to_bytes(255 * hue), to_bytes(255 * length / longest), np.full(hue.shape, 255, np.uint8)], 1)
    return np.stack([np.asarray(Image.merge("HSV", [*map(Image.fromarray, hsv)]).convert("RGB")) for hsv in planes])
