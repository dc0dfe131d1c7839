"""Folders whose weights are pickles are refused, with the way to convert them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from darkroom import families
from darkroom.cli.main import main
from darkroom.families import tiny
from darkroom.pretrained.weight_files import Misfit, refuse_pickled_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.build(families.get("sdxl")).save_pretrained(folder)
    return folder


def pickled(folder, name: str, parts: int = 1):
    """Turn a component's safetensors into as many pickles."""
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    path.unlink()
    keys = list(state)
    for number in range(parts):
        own = {key: state[key] for key in keys[number::parts]}
        ending = f"-{number + 1:05d}-of-{parts:05d}" if parts > 1 else ""
        torch.save(own, folder / f"{name}{ending}.bin")
    return state


@pytest.mark.parametrize(
    ("part", "name", "parts"), [("text_encoder", "pytorch_model", 2), ("vae", "diffusion_pytorch_model", 1)]
)
def test_a_base_with_pickles_only_is_refused_and_the_line_in_the_message_converts_it(base, part, name, parts, tmp_path):
    folder = tmp_path / "it's a base" / part
    folder.parent.mkdir()
    shutil.copytree(base / part, folder)
    state = pickled(folder, name, parts)

    with pytest.raises(Misfit, match="is a pickle") as caught:
        refuse_pickled_folder(folder)

    command = caught.value.change.split("convert it once: ")[1]
    assert shlex.split(command)[:2] == ["python", "-c"]
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, executable="/bin/bash")
    refuse_pickled_folder(folder)
    (written,) = folder.glob("*.safetensors")
    assert written.name == ("model.safetensors" if part == "text_encoder" else f"{name}.safetensors")
    back = load_file(written)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_no_part_of_a_base_is_read_from_a_pickle(base, part, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    pickled(folder / part, "pytorch_model" if part.startswith("text") else "diffusion_pytorch_model")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))

    code = main([
        "train", "--model_family=sdxl", f"--pretrained_model_name_or_path={folder}", f"--output_dir={tmp_path / 'out'}",
        "--data_backend_config=none.json", "--max_train_steps=1",
    ])  # fmt: skip

    said = capsys.readouterr().err
    assert code == 2
    assert "is a pickle" in said
    assert "pretrained_model_name_or_path" in said
