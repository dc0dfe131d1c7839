"""How a run fits into the memory there is."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import SET, Section, option

_GROUP = {"enable_group_offload": True}
_RAMTORCH = {"ramtorch": True}


class MemoryOptions(Section):
    """Trading time for memory: recomputation, tiling, offloading, and what stays loaded."""

    page: ClassVar[str] = "memory"
    title: ClassVar[str] = "Memory"

    rehearsal: bool = option(
        True,
        "Before the first step, try one step of the largest batch, one image and one save, and undo them.",
        resume="free",
        level="advanced",
    )
    gradient_checkpointing: bool = option(
        True, "Recompute activations in the backward pass: much less memory, about a third more time.", resume="free"
    )
    gradient_checkpointing_interval: int | None = option(
        None,
        "Recompute only every n-th block; 2 halves both the saving and the extra time.",
        off=True,
        resume="free",
        ge=1,
        level="advanced",
        when={"gradient_checkpointing": True},
    )
    gradient_checkpointing_backend: Literal["torch", "unsloth"] = option(
        "torch",
        "Keep the saved inputs on the device (torch) or in host memory (unsloth).",
        resume="free",
        level="advanced",
        when={"gradient_checkpointing": True},
    )
    set_grads_to_none: bool = option(
        True,
        "Free gradients after each update instead of filling them with zeros; saves memory and time.",
        resume="free",
        level="expert",
    )
    keep_vae_loaded: bool = option(
        False,
        "Keep the VAE on the device during training instead of loading it for each validation.",
        resume="free",
        level="advanced",
    )
    vae_enable_tiling: bool = option(
        False,
        "Encode and decode large images in tiles; needed when the VAE runs out of memory.",
        resume="warn",
        level="advanced",
    )
    vae_enable_slicing: bool = option(
        False, "Encode and decode the images of a batch one after another.", resume="free", level="advanced"
    )
    vae_enable_patch_conv: bool = option(
        False,
        "Compute the 3-D convolutions of a video VAE in patches, somewhat slower.",
        resume="free",
        level="expert",
    )
    accelerator_cache_clear_interval: int | None = option(
        None,
        "Give unused device memory back every this many steps.",
        off=True,
        resume="free",
        ge=1,
        level="expert",
    )
    offload_during_startup: bool = option(
        False,
        "Move text encoders to the CPU while the VAE fills its cache, and the other way round.",
        resume="free",
        level="advanced",
    )
    offload_during_save: bool = option(
        False,
        "Move the model to the CPU while a checkpoint is written.",
        resume="free",
        level="expert",
    )
    delete_model_after_load: bool = option(
        False,
        "Delete downloaded weights from the disk once they are in memory; the next run downloads them again.",
        resume="free",
        level="expert",
    )
    fully_unload_text_encoder: bool = option(
        False,
        "Free the text encoders completely when they are not needed, instead of parking them on the CPU.",
        resume="free",
        level="expert",
    )
    enable_model_cpu_offload: bool = option(
        False,
        "Move whole components between CPU and device as validation needs them.",
        resume="free",
        level="advanced",
    )
    enable_group_offload: bool = option(
        False,
        "Keep groups of layers in host memory and bring each to the device when it is needed.",
        resume="free",
        level="advanced",
    )
    group_offload_type: Literal["block_level", "leaf_level"] = option(
        "block_level",
        "With enable_group_offload, move groups of blocks, or single layers for the lowest memory.",
        resume="free",
        level="expert",
        when=_GROUP,
    )
    group_offload_blocks_per_group: int = option(
        1,
        "Blocks that are offloaded together; more is faster and takes more memory.",
        resume="free",
        ge=1,
        level="expert",
        when=_GROUP,
    )
    group_offload_use_stream: bool = option(
        False,
        "Copy the next offloaded group while the present one computes; needs an NVIDIA device.",
        resume="free",
        level="expert",
        when=_GROUP,
    )
    group_offload_to_disk_path: str | None = option(
        None,
        "Folder on a fast disk that holds offloaded groups instead of host memory.",
        resume="free",
        level="expert",
        when=_GROUP,
    )
    musubi_blocks_to_swap: int = option(
        0,
        "Number of blocks, spread evenly, that wait in host memory until they are needed.",
        resume="free",
        aliases=("blocks_to_swap",),
        ge=0,
        level="advanced",
    )
    musubi_block_swap_device: str = option(
        "cpu",
        "Device on which swapped blocks wait.",
        resume="free",
        level="expert",
        when={"musubi_blocks_to_swap": SET},
    )
    block_swap_ring_size: int = option(
        2,
        "Places on the device for weights that wait in host memory; 2 let it copy while it computes, 1 saves memory.",
        resume="free",
        ge=1,
        level="expert",
    )
    use_pinned_memory_for_block_swap: bool = option(
        True,
        "Keep waiting weights in pinned memory, from which the device fetches faster.",
        resume="free",
        level="expert",
    )
    ramtorch: bool = option(
        False,
        "Keep linear layers in host memory and stream them to the device for each use.",
        resume="free",
        level="advanced",
    )
    ramtorch_target_modules: str | None = option(
        None,
        "Comma-separated name patterns of the layers that ramtorch streams; left out, all linear layers.",
        resume="free",
        level="expert",
        when=_RAMTORCH,
    )
    ramtorch_transformer_percent: float = option(
        100,
        "Share of the transformer's linear layers that is streamed, in percent.",
        resume="free",
        ge=0,
        le=100,
        level="expert",
        when=_RAMTORCH,
    )
    ramtorch_text_encoder: bool = option(
        False, "Let ramtorch stream the text encoders as well.", resume="free", level="expert", when=_RAMTORCH
    )
    ramtorch_text_encoder_percent: float = option(
        100,
        "Share of the text encoders' linear layers that is streamed, in percent.",
        resume="free",
        ge=0,
        le=100,
        level="expert",
        when={"ramtorch_text_encoder": True},
    )
    ramtorch_vae: bool = option(
        False,
        "Let ramtorch stream the linear layers in the middle of the VAE as well.",
        resume="free",
        level="expert",
        when=_RAMTORCH,
    )
    ramtorch_controlnet: bool = option(
        False,
        "Let ramtorch stream a ControlNet as well that a LoRA is trained on.",
        resume="free",
        level="expert",
        when={"controlnet": True, **_RAMTORCH},
    )
    ramtorch_disable_extensions: bool = option(
        True,
        "Let ramtorch stream linear layers only; false adds embeddings, norms and convolutions.",
        resume="free",
        level="expert",
        when=_RAMTORCH,
    )
    ramtorch_disable_sync_hooks: bool = option(
        False,
        "Leave out the device synchronisation around the backward pass of streamed layers.",
        resume="free",
        level="expert",
        when=_RAMTORCH,
    )
    offload_param_path: str | None = option(
        None,
        "Folder for parameters that DeepSpeed offloads to disk.",
        resume="free",
        level="expert",
        pending=later.DISTRIBUTED,
    )
