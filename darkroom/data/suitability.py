"""Whether a family can be trained on the datasets of a file, told before anything is opened."""

from __future__ import annotations

from collections.abc import Iterator

from darkroom.core.errors import DataError
from darkroom.data.requirements import DataRequirements
from darkroom.options.datasets import DatasetFile, SampleDataset
from darkroom.options.datasets.entries import LOSS_MASKS


def fit_conditioning(file: DatasetFile, requirements: DataRequirements) -> DatasetFile:
    """The datasets with conditioning that the model can take.

    A model that takes reference images and no control images reads controls as references: SimpleTuner's datasets for
    models that edit say `controlnet`, and mean the image that is edited. Controls of a musubi-tuner file are what the
    model takes, references or control images, and left out where it takes neither. The tiny flavour of a family leaves
    out what another flavour takes, so that a config for that one can be tried.
    """
    has_control, has_references = requirements.control is not None, requirements.references
    samples, warnings, left_out = [], [], set()
    for d in file.samples:
        if d.conditioning_type == "controlnet" and not has_control and has_references:
            d = d.model_copy(update={"conditioning_type": "reference_strict"})
            reason = "takes reference images and no control images"
            warnings.append(
                f"Dataset '{d.id}': conditioning_type controlnet is read as reference_strict, as "
                f"{requirements.display_name} {reason}."
            )
        if d.follows_model and not has_references and has_control:
            d = d.model_copy(update={"conditioning_type": "controlnet"})
        takes = has_references if str(d.conditioning_type).startswith("reference") else has_control
        is_image_for_model = d.dataset_type == "conditioning" and d.conditioning_type not in LOSS_MASKS
        if requirements.substitutes and is_image_for_model and not takes:
            left_out.add(d.id)
            warnings.append(f"Dataset '{d.id}' is left out at tiny, which takes no {d.conditioning_type} images.")
        elif d.follows_model and not takes:
            left_out.add(d.id)
            warnings.append(
                f"Dataset '{d.id}' is left out: {requirements.display_name} takes no control images, and musubi-tuner "
                "leaves them out of its training too."
            )
        else:
            samples.append(d)
    samples = [
        d.model_copy(update={"conditioning_data": tuple(name for name in d.conditioning_data if name not in left_out)})
        for d in samples
    ]
    return file.model_copy(update={"samples": tuple(samples), "warnings": (*file.warnings, *warnings)})


def validate_suitability(file: DatasetFile, requirements: DataRequirements) -> Iterator[tuple[str, str]]:
    """Dataset and warning for each setting without effect. Raises DataError for what cannot be trained on."""
    for entry in file.samples:
        for warning in _describe_ineffective(entry, requirements):
            yield entry.id, warning
        _refuse_unsuitable(entry, requirements)


def _describe_ineffective(entry: SampleDataset, requirements: DataRequirements) -> Iterator[str]:
    if entry.video and entry.video.is_i2v is not None and not requirements.may_start:
        yield "video.is_i2v has no effect here: the flavour itself says what clips start from."
    if entry.audio and not requirements.audio_format:
        yield f"audio has no effect: {requirements.display_name} does not train on sound."
    if entry.layers and not requirements.layers:
        yield f"layers only keeps numbered pictures out: {requirements.display_name} trains on whole pictures."


def _refuse_unsuitable(entry: SampleDataset, requirements: DataRequirements) -> None:
    kind, family = entry.dataset_type, requirements.display_name
    if requirements.layers and not entry.layers and kind != "conditioning":
        raise DataError(
            f"Dataset '{entry.id}' has no layers, and {family} trains on pictures with their layers here.\n"
            '  Set "layers": true, with name_0.png, name_1.png, ... beside each name.png.'
        )
    if kind in ("image", "video") and kind not in requirements.media:
        offered = " and ".join(sorted(requirements.media))
        raise DataError(
            f"Dataset '{entry.id}' is of type {kind}, and {family} trains on {offered}.\n"
            f"  Change its dataset_type, disable it, or choose a family that trains on {kind}."
        )
    if requirements.batch and entry.is_training and entry.train_batch_size > requirements.batch:
        raise DataError(
            f"Dataset '{entry.id}' has train_batch_size = {entry.train_batch_size}, and captions of several "
            "lengths in one batch need a mask, which this attention_mechanism does not take.\n"
            f"  Set its train_batch_size to {requirements.batch}, or choose another attention_mechanism."
        )
    conditioning_type = str(entry.conditioning_type)
    is_reference = conditioning_type.startswith("reference")
    takes = requirements.references if is_reference else requirements.control is not None
    if kind == "conditioning" and conditioning_type not in LOSS_MASKS and not takes and entry.source_dataset_id:
        raise DataError(
            f"Dataset '{entry.id}' brings {conditioning_type} pictures, and {family} takes none as it is trained "
            "here.\n  Take it out of conditioning_data, or choose a family or flavour that takes them."
        )


def require_conditioning(entry: SampleDataset, roles: set[str], requirements: DataRequirements) -> None:
    """Raises DataError for a training dataset that lacks images the family needs; `roles` has those that are there.

    A role counts as there for every sample: optional references do not.
    """
    if not entry.is_training:
        return
    if requirements.requires_control and "control" not in roles:
        raise DataError(
            f"Dataset '{entry.id}' has no control pictures, and this run of {requirements.display_name} "
            "trains on them.\n"
            "  Name a dataset of conditioning_type controlnet in its conditioning_data, or have them made: "
            '"conditioning": {"type": "canny"}.'
        )
    if requirements.text_images == "references" and "reference" not in roles:
        raise DataError(
            f"Dataset '{entry.id}' has no reference pictures, and {requirements.display_name} reads its captions with "
            "them.\n  Name a dataset of conditioning_type reference_strict or reference_loose in its "
            "conditioning_data, with a picture for every sample."
        )
