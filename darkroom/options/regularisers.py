"""Additional losses on hidden states, and routing of tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import SET, Section, option

_CREPA = {"crepa_enabled": True}
_ENCODER = {"crepa_enabled": True, "crepa_use_backbone_features": False}
_LAYERSYNC = {"layersync_enabled": True}


class RegulariserOptions(Section):
    """Losses on hidden states beside the ordinary one (CREPA, LayerSync), and routing of tokens (TREAD)."""

    page: ClassVar[str] = "regularisers"
    title: ClassVar[str] = "Regularisers"

    crepa_enabled: bool = option(
        False,
        "Align hidden states of video frames with image features of this and the neighbouring frames.",
        resume="warn",
        level="advanced",
        pending=later.REGULARISERS,
    )
    crepa_block_index: int | None = option(
        None,
        "Block whose hidden states CREPA aligns; 8 to 10 is usual.",
        resume="warn",
        ge=0,
        level="advanced",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_lambda: float = option(
        0.5,
        "Weight of CREPA's alignment.",
        resume="warn",
        ge=0,
        level="advanced",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_lambda_end: float = option(
        0.0,
        "Weight of CREPA at the end of its decay.",
        resume="warn",
        ge=0,
        level="expert",
        when={"crepa_scheduler": ("linear", "cosine", "polynomial")},
        pending=later.REGULARISERS,
    )
    crepa_scheduler: Literal["constant", "linear", "cosine", "polynomial"] = option(
        "constant",
        "How the weight of CREPA changes during the run.",
        resume="warn",
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_warmup_steps: int = option(
        0,
        "Updates over which the weight of CREPA rises from 0.",
        resume="warn",
        ge=0,
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_decay_steps: int = option(
        0,
        "Update at which the decay of CREPA's weight has ended; 0 takes the whole run.",
        resume="warn",
        ge=0,
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_power: float = option(
        1.0,
        "Exponent of a polynomial decay of CREPA's weight.",
        resume="warn",
        ge=0.1,
        level="expert",
        when={"crepa_scheduler": "polynomial"},
        pending=later.REGULARISERS,
    )
    crepa_cutoff_step: int = option(
        0,
        "Switch CREPA off at this update; 0 never.",
        resume="warn",
        ge=0,
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_similarity_threshold: float | None = option(
        None,
        "Switch CREPA off once the averaged similarity reaches this.",
        resume="warn",
        ge=0,
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_similarity_ema_decay: float = option(
        0.99,
        "How slowly CREPA's averaged similarity moves.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        when={"crepa_similarity_threshold": SET},
        pending=later.REGULARISERS,
    )
    crepa_threshold_mode: Literal["permanent", "recoverable"] = option(
        "permanent",
        "After CREPA's threshold, stay off or come back when the similarity falls.",
        resume="warn",
        level="expert",
        when={"crepa_similarity_threshold": SET},
        pending=later.REGULARISERS,
    )
    crepa_adjacent_distance: int = option(
        1,
        "How many frames away a neighbour is for CREPA.",
        resume="warn",
        ge=0,
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_adjacent_tau: float = option(
        1.0,
        "How slowly a neighbour's weight falls with its distance.",
        resume="warn",
        gt=0,
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_cumulative_neighbors: bool = option(
        False,
        "Use all neighbours up to crepa_adjacent_distance, not only those exactly there.",
        resume="warn",
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_normalize_neighbour_sum: bool = option(
        False,
        "Divide each frame's score by the weights of its neighbours, so that it stays between -1 and 1.",
        resume="warn",
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_normalize_by_frames: bool = option(
        True,
        "Divide CREPA's loss by the number of frames, so that long videos weigh the same as short ones.",
        resume="warn",
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_spatial_align: bool = option(
        True,
        "Resize one grid of tokens to the other for CREPA; false compares their averages.",
        resume="warn",
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_model: Literal["dinov2_vitg14", "dinov2_vitb14", "dinov2_vits14"] = option(
        "dinov2_vitg14",
        "Image encoder whose features are the goal; the smaller ones take less memory.",
        resume="warn",
        level="advanced",
        when=_ENCODER,
        pending=later.REGULARISERS,
    )
    crepa_encoder_image_size: int = option(
        518,
        "Image size that CREPA's image encoder sees.",
        resume="warn",
        ge=64,
        level="expert",
        when=_ENCODER,
        pending=later.REGULARISERS,
    )
    crepa_encoder_frames_batch_size: int = option(
        -1,
        "Frames that CREPA's image encoder sees at once; 0 or less means all.",
        resume="warn",
        level="expert",
        when=_ENCODER,
        pending=later.REGULARISERS,
    )
    crepa_use_backbone_features: bool = option(
        False,
        "Take another block of the model itself as the goal, without an image encoder.",
        resume="warn",
        level="expert",
        when=_CREPA,
        pending=later.REGULARISERS,
    )
    crepa_teacher_block_index: int | None = option(
        None,
        "The block that is CREPA's goal; left out, the aligned block itself.",
        resume="warn",
        ge=0,
        level="expert",
        when={"crepa_use_backbone_features": True},
        pending=later.REGULARISERS,
    )
    layersync_enabled: bool = option(
        False,
        "LayerSync: align the hidden states of an early block with those of a later block of the same model.",
        resume="warn",
        level="advanced",
    )
    layersync_student_block: int | None = option(
        None,
        "Block that LayerSync trains, counted from 1; about a third of the way through the network is usual.",
        resume="warn",
        ge=0,
        level="advanced",
        when=_LAYERSYNC,
    )
    layersync_teacher_block: int | None = option(
        None,
        "Block that is LayerSync's goal, counted from 1; choose a later one, as a block learns nothing from "
        "itself. Defaults to layersync_student_block.",
        resume="warn",
        ge=0,
        level="advanced",
        when=_LAYERSYNC,
    )
    layersync_lambda: float = option(
        0.2,
        "Weight of LayerSync's loss, the negative mean cosine similarity of the two blocks' tokens.",
        resume="warn",
        gt=0,
        level="advanced",
        when=_LAYERSYNC,
    )
    tread_config: dict[str, object] | None = option(
        None,
        "Routes by which part of the image tokens skips some blocks, which saves time.",
        resume="warn",
        json=True,
        level="expert",
        pending=later.METHODS,
    )
