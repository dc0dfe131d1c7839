"""Step 5: put the parts together as the pipeline folder that ships, in float16.

python recipes/embedded_base/assemble.py build/base darkroom/assets/embedded_base
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

TOKENIZER = "PreTrainedTokenizerFast"


def pipeline(parts: Path, transformer: FluxTransformer2DModel) -> FluxPipeline:
    """A stock FluxPipeline around a denoiser, from the folders that the earlier steps wrote."""
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(parts / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(parts / "text_encoder_2"),
        tokenizer_2=PreTrainedTokenizerFast.from_pretrained(parts / "tokenizer_2"),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(transformer.device)


def export(parts: Path, target: Path) -> None:
    """Write the pipeline to `target` in float16, replacing what is there."""
    pipe = pipeline(parts, FluxTransformer2DModel.from_pretrained(parts / "transformer"))
    shutil.rmtree(target, ignore_errors=True)
    pipe.to(torch.float16).save_pretrained(target)
    _make_portable(target)


def _make_portable(folder: Path) -> None:
    """Drop the paths of the machine that built it, and name tokenizers as every release of transformers does."""
    for config in folder.glob("*/*config.json"):
        entries = json.loads(config.read_text())
        for trace in ("_name_or_path", "is_local", "local_files_only"):
            entries.pop(trace, None)
        if "tokenizer_class" in entries:
            entries["tokenizer_class"] = TOKENIZER
        config.write_text(json.dumps(entries, indent=2) + "\n")
    index = folder / "model_index.json"
    entries = json.loads(index.read_text())
    entries |= {part: ["transformers", TOKENIZER] for part in ("tokenizer", "tokenizer_2")}
    index.write_text(json.dumps(entries, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, help="folder of the finished parts")
    parser.add_argument("target", type=Path, help="pipeline folder to write")
    args = parser.parse_args()
    export(args.parts, args.target)
    size = sum(file.stat().st_size for file in args.target.rglob("*") if file.is_file())
    print(f"{args.target}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
