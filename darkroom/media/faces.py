"""Where the largest face of an image is, so that a crop can be centred on it.

Three detectors can serve, in this order: a YuNet network, when its model file is given; OpenCV's Haar cascade, which is
part of OpenCV 4 and no longer of OpenCV 5; and scikit-image's LBP cascade, when scikit-image is installed.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from darkroom.core.errors import UserError
from darkroom.core.optional import import_optional
from darkroom.media.resize import Size

if TYPE_CHECKING:
    from skimage.feature import Cascade


EDGE = 640
"""Longer edge at which faces are sought; larger images are scaled down."""

_STEP, _NEIGHBOURS = 1.1, 4
_SMALLEST = 0.1  # of the shorter edge, for the LBP cascade only: below that it sees faces in brick walls

Box = tuple[float, float, float, float]
"""Left, top, width, height."""

_detector_lock = threading.Lock()  # a detector keeps scratch memory, and images are read in threads


def locate_face(image: np.ndarray, model: str | Path | None = None) -> tuple[float, float] | None:
    """(x, y) of the largest face's middle in 0..1 of width and height, or None when no face is found.

    `image` is uint8 (H, W, 3), of a clip the first frame. `model` is a YuNet file (.onnx). Raises UserError when
    there is no detector.
    """
    full = Image.fromarray(image)
    scale = min(1.0, EDGE / max(full.size))
    small = full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))))
    find = load_detector(None if model is None else str(model))
    with _detector_lock:
        boxes = find(np.asarray(small))
    if not boxes:
        return None
    left, top, width, height = max(boxes, key=lambda box: box[2] * box[3])
    x, y = (left + width / 2) / small.width, (top + height / 2) / small.height
    return min(1.0, max(0.0, x)), min(1.0, max(0.0, y))


def crop_around(centre: tuple[float, float], intermediary: Size, target: Size) -> tuple[int, int]:
    """(top, left) of a crop of `target` whose middle is as near to `centre` (x, y in 0..1) as the image allows."""
    left, top = (
        min(max(0, length - part), max(0, round(at * length - part / 2)))
        for at, length, part in zip(centre, intermediary, target, strict=True)
    )
    return top, left


@functools.lru_cache(maxsize=4)
def load_detector(model: str | None = None) -> Callable[[np.ndarray], Sequence[Box]]:
    """From an image uint8 (H, W, 3) to the boxes of its faces. Raises UserError when nothing can find faces."""
    if model is not None:
        return _yunet(import_optional("cv2", "vision", "Finding faces"), model)
    cv2 = _opencv()
    if cv2 is not None and hasattr(cv2, "CascadeClassifier"):
        file = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
        if file.is_file():
            return _haar(cv2, file)
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError as cause:
        raise UserError(
            "crop_style 'face' needs a face detector, and none is installed"
            + (f": OpenCV {cv2.__version__} comes without the Haar cascade.\n" if cv2 is not None else ".\n")
            + "  Install one: pip install 'opencv-python-headless<5' or pip install scikit-image; or choose another "
            "crop_style."
        ) from cause
    return _lbp(Cascade(lbp_frontal_face_cascade_filename()))


def _opencv() -> ModuleType | None:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module("cv2")
    except ImportError:
        return None


def _yunet(cv2: ModuleType, model: str) -> Callable[[np.ndarray], Sequence[Box]]:
    if not Path(model).is_file():
        raise UserError(f"The face detection model {model} is not there.\n  Give the path of a YuNet .onnx file.")
    try:
        network = cv2.FaceDetectorYN.create(model, "", (320, 320), 0.7)
    except cv2.error as cause:
        raise UserError(f"The face detection model {model} cannot be read.\n  Give a YuNet .onnx file.") from cause

    def find(image: np.ndarray) -> Sequence[Box]:
        network.setInputSize((image.shape[1], image.shape[0]))
        _, faces = network.detect(np.ascontiguousarray(image[..., ::-1]))  # OpenCV's order is blue, green, red
        return [] if faces is None else [_box(face[:4]) for face in faces]

    return find


def _haar(cv2: ModuleType, file: Path) -> Callable[[np.ndarray], Sequence[Box]]:
    cascade = cv2.CascadeClassifier(str(file))

    def find(image: np.ndarray) -> Sequence[Box]:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return [_box(face) for face in cascade.detectMultiScale(gray, _STEP, _NEIGHBOURS)]

    return find


def _lbp(cascade: Cascade) -> Callable[[np.ndarray], Sequence[Box]]:
    def find(image: np.ndarray) -> Sequence[Box]:
        shorter = min(image.shape[:2])
        smallest = max(24, round(shorter * _SMALLEST))  # the cascade was trained on 24 pixels
        if shorter < smallest:
            return []
        faces = cascade.detect_multi_scale(
            img=image,
            scale_factor=_STEP,
            step_ratio=1,
            min_size=(smallest, smallest),
            max_size=(shorter, shorter),
            min_neighbor_number=_NEIGHBOURS,
        )
        return [(float(f["c"]), float(f["r"]), float(f["width"]), float(f["height"])) for f in faces]

    return find


def _box(values: Iterable[float]) -> Box:
    left, top, width, height = (float(v) for v in values)
    return left, top, width, height
