"""Every generator of control pictures: the promises all of them make, and what each one does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import pattern

from darkroom.core.errors import MissingPackage, ModelError
from darkroom.media.controls import CONTROLS, validate_params
from darkroom.media.controls.networks import load_pipeline
from darkroom.media.controls.optical_flow import flow_to_color
from darkroom.media.controls.random_masks import SHAPES, draw_shapes
from darkroom.media.controls.sdr import logc3, rec709, srgb
from tests.rows import each_row

PICTURE = np.random.default_rng(5).integers(0, 256, (12, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)  # 48x64

CHANGED: dict[str, dict[str, list[Any]]] = {
    "superresolution": {
        "blur_radius": [4.0],
        "blur_type": ["box", "both"],
        "add_noise": [False],
        "noise_level": [0.2],
        "jpeg_quality": [10],
        "downscale_factor": [4],
    },
    "jpeg_artifacts": {
        "quality_mode": ["range", "random"],
        "quality": [60],
        "quality_range": [[90, 95]],
        "quality_list": [[70, 80]],
        "compression_rounds": [3],
        "round_quality_decay": [0.3],
        "subsampling": ["4:4:4", "4:2:2"],
        "pre_blur": [True],
        "pre_blur_radius": [3],
        "add_noise": [True],
        "noise_level": [0.2],
        "enhance_blocks": [True],
        "block_noise_level": [0.2],
    },
    "canny": {"low_threshold": [0, 90], "high_threshold": [1500]},
    "random_masks": {
        "mask_types": [["circle"], ["brush"]],
        "mask_type_weights": [[0, 0, 0, 1]],
        "min_coverage": [0.45],
        "max_coverage": [0.12],
        "min_masks": [5],
        "max_masks": [1],
        "rect_min_size": [0.4],
        "rect_max_size": [0.1],
        "circle_min_radius": [0.2],
        "circle_max_radius": [0.05],
        "brush_min_width": [40],
        "brush_max_width": [5],
        "brush_min_length": [0.5],
        "brush_max_length": [0.1],
        "irregular_min_points": [20],
        "irregular_max_points": [5],
        "edge_blur": [False],
        "edge_blur_radius": [6],
        "edge_feather": [False],
        "output_mode": ["masked_image"],
        "mask_value": [100],
        "invert_mask": [True],
    },
    "sdr": {"transform": ["srgb", "logc3"], "input_scale": [3], "exposure": [-1.5]},
    "logc3_sdr": {"transform": ["srgb", "rec709"], "input_scale": [3], "exposure": [-1.5]},
}
"""Values that must change the picture, by generator and parameter."""

BESIDE = {
    "quality_range": {"quality_mode": "range"},
    "quality_list": {"quality_mode": "random"},
    "round_quality_decay": {"compression_rounds": 3},
    "pre_blur_radius": {"pre_blur": True},
    "block_noise_level": {"enhance_blocks": True},
    **{f"rect_{end}_size": {"mask_types": ["rectangle"]} for end in ("min", "max")},
    **{f"circle_{end}_radius": {"mask_types": ["circle"]} for end in ("min", "max")},
    **{f"brush_{end}_{what}": {"mask_types": ["brush"]} for end in ("min", "max") for what in ("width", "length")},
    **{f"irregular_{end}_points": {"mask_types": ["irregular"]} for end in ("min", "max")},
}
"""What has to be set as well for a parameter to matter."""

NO_EFFECT = {("jpeg_artifacts", "optimize"), ("jpeg_artifacts", "progressive")}  # they change the file, not the picture

PLAIN = [name for name, control in CONTROLS.items() if not control.needs_model and not control.needs_clip]


def run(name: str, params: Mapping[str, Any] = {}, seed: int = 0, picture: np.ndarray = PICTURE) -> np.ndarray:
    return CONTROLS[name](picture, validate_params(name, params), np.random.default_rng(seed))


# --- every generator --------------------------------------------------------------------------------------------------


def test_the_registry_holds_what_the_reference_lists() -> None:
    expected = (
        "superresolution super_resolution lowres jpeg_artifacts jpeg compression canny edges depth depth_map "
        "depth_midas random_masks masks inpainting segmentation semantic_segmentation optical_flow flow "
        "i2v_first_frame sdr sdr_downsample hdr_to_sdr logc3_sdr"
    )
    for name in expected.split():
        assert validate_params(name, {}) == CONTROLS[name].defaults


@each_row("name", PLAIN)
@each_row("shape", [(48, 64, 3), (41, 53, 3), (1, 1, 3), (3, 40, 3)])
def test_shape_and_type_are_those_of_the_picture_which_stays_as_it_was(name: str, shape) -> None:
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    before = picture.copy()
    made = run(name, picture=picture)
    assert (made.shape, made.dtype) == (shape, np.uint8)
    assert np.array_equal(picture, before)
    assert not np.shares_memory(made, picture)


@each_row("name", PLAIN)
def test_equal_seeds_give_equal_pictures_and_only_the_seeded_draw(name: str) -> None:
    assert np.array_equal(run(name, seed=3), run(name, seed=3))
    generator = np.random.default_rng(3)
    before = generator.bit_generator.state
    params = validate_params(name, {"quality_mode": "range"} if name == "jpeg_artifacts" else {})
    CONTROLS[name](PICTURE, params, generator)
    assert (generator.bit_generator.state != before) == CONTROLS[name].seeded


@each_row(
    "name, param",
    [(name, param) for name in PLAIN for param in CONTROLS[name].params if (name, param) not in NO_EFFECT],
)
def test_every_parameter_has_an_effect(name: str, param: str) -> None:
    beside = BESIDE.get(param, {})
    if name == "jpeg_artifacts" and param == "noise_level":
        beside = {"add_noise": True}
    for value in CHANGED[name][param]:
        # some seeds draw what the parameter does not touch
        assert any(
            not np.array_equal(run(name, beside, seed), run(name, {**beside, **_paired(param, value)}, seed))
            for seed in range(8)
        )


def _paired(param: str, value: Any) -> dict[str, Any]:
    """A bound and, where it would be crossed, the other one."""
    other = param.replace("min_", "max_") if "min_" in param else param.replace("max_", "min_")
    default = CONTROLS["random_masks"].defaults.get(other)
    if other == param or default is None or (value <= default if "min_" in param else value >= default):
        return {param: value}
    return {param: value, other: value}


@pytest.mark.parametrize(("name", "param"), sorted(NO_EFFECT))
def test_these_change_the_file_only(name: str, param: str) -> None:
    assert np.array_equal(run(name), run(name, {param: True}))


@each_row("name, param", [(name, param) for name in CONTROLS for param in CONTROLS[name].params])
def test_wrong_parameters_are_refused_by_name_with_a_remedy(name: str, param: str) -> None:
    row = CONTROLS[name].params[param]
    wrong = {
        "whole": [1.5, "3", True, -1, float("nan"), float("inf"), 10**9],
        "number": ["3", True, -1e9, float("nan"), float("inf"), 10**9],
        "flag": [1, "true", 0],
        "text": [3, ""],
        "choice": ["no such choice", 3],
    }[row.kind]
    values = [*wrong, *([[w] * (row.length or 1) for w in wrong] if row.many else [[1]])]
    values += [] if row.default is None else [None]
    for value in [*values, *([[]] if row.many else [])]:
        with pytest.raises(ValueError, match=rf"^{param} = .*give ") as caught:
            validate_params(name, {param: value})
        assert row.expectation in str(caught.value)
    assert row.help.endswith(".")


@each_row("name", CONTROLS)
def test_unknown_parameters_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no parameter 'no_such'"):
        validate_params(name, {"no_such": 1})
    for param in list(CONTROLS[name].params)[:1]:
        with pytest.raises(ValueError, match=f"did you mean {param}"):
            validate_params(name, {param + "x": 1})


def test_an_unknown_type_lists_the_registry() -> None:
    with pytest.raises(ValueError, match=r"did you mean canny.*superresolution.*logc3_sdr"):
        validate_params("cany", {})


@each_row("name", [name for name in CONTROLS if not CONTROLS[name].needs_model])
def test_clips_keep_their_shape(name: str) -> None:
    frames = pattern(4)
    made = CONTROLS[name].clip(frames, validate_params(name, {}), np.random.default_rng(0))
    assert made.shape == (1 if name == "i2v_first_frame" else 4, 48, 64, 3)
    assert made.dtype == np.uint8


@each_row(
    "name, params, words",
    [
        ("canny", {"low_threshold": 101}, "low_threshold = 101 is above high_threshold = 100"),
        ("jpeg_artifacts", {"quality_range": [50, 10]}, r"quality_range\[0\] = 50 is above"),
        ("random_masks", {"min_coverage": 0.6}, "min_coverage = 0.6 is above max_coverage"),
        ("random_masks", {"mask_type_weights": [1]}, "as many numbers"),
        ("random_masks", {"mask_type_weights": [0, 0, 0, 0]}, "above 0"),
        ("optical_flow", {"model_type": "raft"}, "model_type: dis"),
    ],
)
def test_parameters_that_do_not_fit_together_are_refused(name: str, params, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate_params(name, params)


# --- each generator ---------------------------------------------------------------------------------------------------


def test_superresolution_without_any_step_is_the_picture() -> None:
    assert np.array_equal(run("superresolution", {"blur_radius": 0, "add_noise": False}), PICTURE)


def test_noise_has_the_asked_strength() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    made = run("superresolution", {"blur_radius": 0, "noise_level": 0.05}, picture=grey)
    assert made.std() == pytest.approx(0.05 * 255, rel=0.02)


def test_scaling_down_by_the_whole_picture_leaves_one_colour() -> None:
    made = run("superresolution", {"blur_radius": 0, "add_noise": False, "downscale_factor": 64})
    assert np.ptp(made.reshape(-1, 3), axis=0).tolist() == [0, 0, 0]


def test_lower_jpeg_quality_is_further_from_the_picture() -> None:
    off = [np.abs(run("jpeg_artifacts", {"quality": q}).astype(int) - PICTURE).mean() for q in (90, 30, 5)]
    assert off == sorted(off)


def test_block_noise_stands_on_the_block_edges_only() -> None:
    plain, made = run("jpeg_artifacts"), run("jpeg_artifacts", {"enhance_blocks": True, "block_noise_level": 0.3})
    changed = (plain != made).any(2)
    assert not changed[1:8, 1:8].any()
    assert changed[::8].mean() > 0.5


def test_canny_draws_the_outline_of_a_square() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[10:30, 10:30] = 200
    edges = run("canny", picture=picture)
    assert set(np.unique(edges)) == {0, 255}
    assert not edges[14:26, 14:26].any()
    assert edges[9:12, 12:28].any(axis=0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 0.9),
    st.floats(0.1, 0.9),
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
    st.integers(0, 1000),
    st.booleans(),
)
def test_masks_cover_a_share_between_the_bounds(low: float, more: float, types, seed: int, many: bool) -> None:
    high = min(1.0, low + more)
    given = {"min_coverage": low, "max_coverage": high, "mask_types": types, **({"max_masks": 30} if many else {})}
    mask = draw_shapes(96, 64, validate_params("random_masks", given), np.random.default_rng(seed))
    assert mask.shape == (64, 96)
    assert low - 0.01 <= mask.mean() <= high + 0.01


def test_a_masked_image_is_white_inside_and_untouched_outside() -> None:
    params = {"edge_blur": False}
    mask = run("random_masks", params)[..., 0] > 0
    made = run("random_masks", {**params, "output_mode": "masked_image"})
    assert (made[mask] == 255).all()
    assert np.array_equal(made[~mask], PICTURE[~mask])
    assert np.array_equal(run("random_masks", {**params, "invert_mask": True})[..., 0] > 0, ~mask)


def test_a_clip_has_one_mask_for_all_frames() -> None:
    made = CONTROLS["random_masks"].clip(pattern(3), validate_params("random_masks", {}), np.random.default_rng(0))
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


def test_the_flow_of_a_moving_picture_has_one_hue_and_rest_is_white() -> None:
    rng = np.random.default_rng(0)
    view = rng.integers(0, 256, (24, 40, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    frames = np.stack([view[:, 8 - 2 * i :][:, :128] for i in range(4)])  # the content moves 2 pixels to the right
    made = CONTROLS["optical_flow"].clip(frames, validate_params("flow", {}), np.random.default_rng(0))
    middle = np.median(made[1, 20:-20, 20:-20].reshape(-1, 3), axis=0)
    assert middle[0] == 255
    assert (middle[1:] < 120).all()  # right is red
    still = CONTROLS["optical_flow"].clip(
        frames[:1].repeat(3, 0), validate_params("flow", {}), np.random.default_rng(0)
    )
    assert still.mean() > 250
    with pytest.raises(ValueError, match="needs a clip"):
        CONTROLS["flow"](PICTURE, {}, np.random.default_rng(0))


def test_directions_of_flow_are_a_quarter_of_the_wheel_apart() -> None:
    flow = np.array([[[[9, 0], [0, 9], [-9, 0], [0, -9], [0, 0]]]], np.float32)
    right, down, left, up, rest = flow_to_color(flow)[0, 0].tolist()
    assert right == [255, 0, 0]
    assert rest == [255, 255, 255]
    assert (down[1] > 250, left[1] > 250, up[2] > 250) == (True, True, True)  # lime, cyan, violet
    assert len({tuple(c) for c in (right, down, left, up)}) == 4


def test_the_first_frame_is_the_first_frame() -> None:
    frames = pattern(3)
    made = CONTROLS["i2v_first_frame"].clip(frames, {}, np.random.default_rng(0))
    assert np.array_equal(made, frames[:1])


def test_transfer_curves_pass_through_their_published_points() -> None:
    assert rec709(np.array([0.0, 0.018, 0.18, 1.0])) == pytest.approx([0, 0.081, 0.409, 1], abs=1e-3)
    assert srgb(np.array([0.0, 0.0031308, 0.18, 1.0])) == pytest.approx([0, 0.04045, 0.4613, 1], abs=1e-4)
    assert logc3(np.array([0.0, 0.18, 1.0])) == pytest.approx([0.0928, 0.391, 0.5707], abs=1e-3)


def test_a_stop_of_exposure_doubles_the_light() -> None:
    assert np.array_equal(run("sdr", {"exposure": 1}), run("sdr", {"input_scale": 2}))
    assert run("sdr", {"exposure": 30}).max() == 255


@pytest.mark.parametrize("name", ["canny", "optical_flow"])
def test_without_opencv_it_is_said_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingPackage, match=r"darkroom-trainer\[vision\]"):
        CONTROLS[name].clip(pattern(2), validate_params(name, {}), np.random.default_rng(0))


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def depth_network(tmp_path: Path) -> Path:
    """A DPT of a few thousand weights, in a folder."""
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    DPTForDepthEstimation(config).save_pretrained(tmp_path)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def segmentation_network(tmp_path: Path) -> Path:
    """A SegFormer of 5 classes, in a folder."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=5, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


def test_depth_is_grey_and_as_large_as_the_picture(depth_network: Path) -> None:
    made = run("depth", {"model": str(depth_network)})
    assert (made.shape, made.dtype) == (PICTURE.shape, np.uint8)
    assert (made == made[..., :1]).all()
    assert np.ptp(made) > 100  # stretched
    assert np.array_equal(made, run("depth", {"model": str(depth_network)}))
    assert not np.array_equal(made, run("depth", {"model": str(depth_network)}, picture=PICTURE[::-1].copy()))


def test_segmentation_gives_the_levels_of_its_classes(segmentation_network: Path) -> None:
    made = run("segmentation", {"model_name": str(segmentation_network)})
    assert (made.shape, made.dtype) == (PICTURE.shape, np.uint8)
    assert set(np.unique(made)) <= {0, 51, 102, 153, 204}
    assert np.array_equal(made, run("segmentation", {"model_name": str(segmentation_network)}))


@pytest.mark.parametrize(("name", "param"), [("depth", "model"), ("segmentation", "model_name")])
def test_weights_that_are_not_at_hand_are_refused(
    name: str, param: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load_pipeline.cache_clear()
    with pytest.raises(ModelError, match=rf"generator {name} needs the network(.|\n)*config\.json, prepro"):
        run(name, {param: str(tmp_path)})
    with pytest.raises(ModelError, match=rf"no/such-network(.|\n)*give its folder as {param}"):
        run(name, {param: "no/such-network"})
