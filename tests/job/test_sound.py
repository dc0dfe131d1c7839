"""Films with sound: both are trained, and what is drawn can be heard."""

from __future__ import annotations

import numpy as np
from safetensors.torch import load_file

from darkroom.cli.main import main
from darkroom.media import audio
from darkroom.media.video import write_mp4
from tests.families.conformance import tone

FRAMES = 9


def test_a_film_and_its_sound_are_learnt_and_drawn(dataset_file, arguments, tmp_path):
    from darkroom import families

    track = families.get("ltxvideo2").audio.format
    films, noise = tmp_path / "films", np.random.default_rng(0)
    films.mkdir()
    for name, sound in (("heard", (tone(track), track.rate)), ("silent", None)):
        write_mp4(films / f"{name}.mp4", noise.integers(0, 256, (FRAMES, 64, 64, 3), np.uint8), 25.0, audio=sound)
        (films / f"{name}.txt").write_text(f"a film of {name}")
    data = dataset_file(
        dataset_type="video", instance_data_dir=str(films), video={"num_frames": FRAMES, "min_frames": FRAMES}
    )
    words = arguments(
        "ltxvideo2", data_backend_config=data, train_batch_size=1, max_train_steps=2,
        validation_prompt="a film", validation_num_video_frames=FRAMES, validation_num_inference_steps=2,
    )  # fmt: skip
    assert main(["train", *words]) == 0

    out = tmp_path / "out"
    kept = [load_file(shard) for shard in (out / "cache" / "vae").rglob("*.safetensors")]
    counts = [float(value) for shard in kept for name, value in shard.items() if name.endswith("sound_counts")]
    assert sorted(counts) == [0.0, 1.0]
    drawn = next((out / "validation_images" / "originals").glob("step_2_*.mp4"))
    heard = audio.probe(drawn)
    assert (heard.rate, heard.channels) == (16000, 2)
    assert abs(heard.seconds - FRAMES / 25) < 0.15
    assert main(["verify", str(out)]) == 0
    made = tmp_path / "made"
    assert main(["generate", "--adapter", str(out / "pytorch_lora_weights.safetensors"), "--prompt", "a film",
                 "--output", str(made), "--steps", "2", "--frames", str(FRAMES), "--seed", "0"]) == 0  # fmt: skip
    assert audio.probe(next(made.glob("*.mp4"))).channels == 2
