"""The largest face of a picture, by whichever detector is at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.core.errors import MissingPackage, UserError
from darkroom.media import faces
from darkroom.media.faces import crop_around, load_detector, locate_face

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(autouse=True)
def fresh():
    load_detector.cache_clear()
    yield
    load_detector.cache_clear()


def test_the_astronaut_is_found_and_a_cup_of_coffee_is_not() -> None:
    picture = skimage_data.astronaut()
    found = locate_face(picture)
    assert found is not None
    assert found == pytest.approx((225 / 512, 110 / 512), abs=0.04)  # between nose and eyes
    assert locate_face(skimage_data.coffee()) is None


def test_size_and_place_do_not_matter_to_the_fraction() -> None:
    picture = np.kron(skimage_data.astronaut(), np.ones((2, 2, 1), np.uint8))[:, 100:]
    assert locate_face(picture) == pytest.approx(((450 - 100) / 924, 110 / 512), abs=0.04)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (30, 30, 3)])
def test_small_pictures_have_no_face(shape: tuple[int, ...]) -> None:
    assert locate_face(np.full(shape, 127, np.uint8)) is None


def test_the_crop_is_centred_and_stays_inside() -> None:
    assert crop_around((0.5, 0.5), (100, 60), (40, 40)) == (10, 30)
    assert crop_around((0.0, 1.0), (100, 60), (40, 40)) == (20, 0)
    assert crop_around((0.75, 0.1), (100, 60), (40, 40)) == (0, 55)


@given(st.floats(0, 1), st.floats(0, 1), *[st.integers(1, 99)] * 4)
def test_no_crop_leaves_the_picture(x: float, y: float, w: int, h: int, more_w: int, more_h: int) -> None:
    top, left = crop_around((x, y), (w + more_w, h + more_h), (w, h))
    assert 0 <= top <= more_h
    assert 0 <= left <= more_w


def haar(boxes: list[tuple[int, int, int, int]], tmp_path: Path) -> SimpleNamespace:
    """A stand-in for OpenCV 4."""
    (tmp_path / "haarcascade_frontalface_default.xml").write_text("")
    return SimpleNamespace(
        __version__="4",
        data=SimpleNamespace(haarcascades=str(tmp_path)),
        COLOR_RGB2GRAY=7,
        cvtColor=lambda picture, code: picture[..., 0],
        CascadeClassifier=lambda file: SimpleNamespace(
            detectMultiScale=lambda grey, step, neighbours: boxes if (step, neighbours) == (1.1, 4) else []
        ),
    )


def test_a_haar_cascade_is_used_where_opencv_has_one_and_the_largest_box_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", haar([(0, 0, 5, 5), (40, 20, 20, 20)], tmp_path))
    assert locate_face(np.zeros((50, 100, 3), np.uint8)) == (0.5, 0.6)


def test_without_a_detector_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="5.0.0"))
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(UserError, match=r"OpenCV 5\.0\.0 comes without(.|\n)*scikit-image"):
        locate_face(np.zeros((50, 100, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="none is installed"):
        locate_face(np.zeros((50, 100, 3), np.uint8))
    with pytest.raises(MissingPackage, match=r"vision"):
        locate_face(np.zeros((50, 100, 3), np.uint8), "yunet.onnx")


def test_a_model_file_that_is_none_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(UserError, match="is not there"):
        locate_face(np.zeros((50, 100, 3), np.uint8), tmp_path / "gone.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="cannot be read"):
        locate_face(np.zeros((50, 100, 3), np.uint8), tmp_path / "bad.onnx")


def test_a_network_is_given_pictures_in_its_order_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    network = SimpleNamespace(
        setInputSize=seen.append,
        detect=lambda picture: (seen.append(picture[0, 0].tolist()), np.array([[10, 10, 20, 20, 0.9]], np.float32)),
    )
    create = SimpleNamespace(create=lambda *given: network)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(FaceDetectorYN=create, error=ValueError))
    (tmp_path / "yunet.onnx").write_bytes(b"")
    picture = np.full((40, 80, 3), (1, 2, 3), np.uint8)
    assert faces.locate_face(picture, tmp_path / "yunet.onnx") == (0.25, 0.5)
    assert seen == [(80, 40), [3, 2, 1]]
