"""The options that a GPU sees: by what they may change of what a run learns."""

from __future__ import annotations

from darkroom.memory import attention, quantize
from darkroom.optim.table import OPTIMIZERS
from tests.pretend.runs import Options

# where weights, gradients, averages and batches are, and when they move: the same numbers to the last bit
SAME: dict[str, Options] = {
    "one block waits": {"musubi_blocks_to_swap": 1},
    "pageable blocks wait": {"musubi_blocks_to_swap": 1, "use_pinned_memory_for_block_swap": False},
    "a ring of three": {"musubi_blocks_to_swap": 1, "block_swap_ring_size": 3},
    "ramtorch": {"ramtorch": True},
    "ramtorch everywhere": {
        "ramtorch": True, "ramtorch_vae": True, "ramtorch_text_encoder": True, "ramtorch_disable_extensions": False,
    },
    "groups": {"enable_group_offload": True},
    "groups on a stream": {"enable_group_offload": True, "group_offload_use_stream": True},
    "leaves": {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    "turns": {"enable_model_cpu_offload": True},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing every second": {"gradient_checkpointing": True, "gradient_checkpointing_interval": 2},
    "checkpointing on the host": {"gradient_checkpointing": True, "gradient_checkpointing_backend": "unsloth"},
    "checkpointing, blocks wait": {"gradient_checkpointing": True, "musubi_blocks_to_swap": 1},
    "checkpointing, ramtorch": {"gradient_checkpointing": True, "ramtorch": True, "ramtorch_disable_extensions": False},
    "checkpointing, leaves": {
        "gradient_checkpointing": True, "enable_group_offload": True, "group_offload_type": "leaf_level",
    },
    "EMA on the host": {"use_ema": True, "ema_device": "cpu", "ema_validation": "ema_only"},
    "EMA on the device": {"use_ema": True, "ema_device": "accelerator"},
    "optimizer on the host": {"optimizer_cpu_offload_method": "cpu"},
    "gradients released": {"optimizer_release_gradients": True},
    "startup on the host": {"offload_during_startup": True},
    "save on the host": {"offload_during_save": True},
    "VAE kept": {"keep_vae_loaded": True},
    "memory given back": {"accelerator_cache_clear_interval": 1},
}  # fmt: skip
# other kernels, or the same in other portions: nearly the same numbers
NEARLY: dict[str, Options] = {
    "VAE in portions": {"vae_enable_tiling": True, "vae_enable_slicing": True},
    **{
        f"{name}, checkpointing": {"attention_mechanism": name, "gradient_checkpointing": True}
        for name in attention.NATIVE
        if name != "cudnn"
    },
}
# the base in fewer bits, waiting or not, quantized on the host or on the device
QUANTIZED: dict[str, Options] = {
    f"{preset}, {words}": {"base_model_precision": preset, **options}
    for preset, by in quantize.find_quantizers().items()
    if not getattr(by, "NEEDS_GPU", ())
    for words, options in {
        "blocks wait": {"musubi_blocks_to_swap": 1},
        "on the device": {"quantize_via": "accelerator"},
    }.items()
}
# those that run on both sides: the pretended device has no compiler for GPUs, and pages of its own need a GPU
OPTIMIZER: dict[str, Options] = {
    name: {"optimizer": name} for name in OPTIMIZERS if OPTIMIZERS[name].on_cpu and not OPTIMIZERS[name].compiles
}
# what every run of the slow tests tries; the whole tables are tried with `make proofs`
FEW_QUANTIZED = ("nf4-bnb", "int8-quanto", "int8-torchao", "fp8-torchao", "fp8-block", "uint8-sdnq")
FEW_OPTIMIZERS = ("adamw_bf16", "prodigy", "adamw_schedulefree", "bnb-adamw8bit", "optimi-lion", "soap")
# of each other kind of network, what goes otherwise there than in flux
ELSEWHERE = {
    "sdxl": ("ramtorch everywhere", "checkpointing, ramtorch", "checkpointing, leaves", "native-flash, checkpointing"),
    "wan": ("one block waits", "turns", "checkpointing on the host", "leaves"),
    "hidream": ("one block waits", "ramtorch", "checkpointing, blocks wait"),
}
