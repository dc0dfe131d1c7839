"""A folder of pictures in which something is wrong with nearly every file, and one in which nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

GOOD = {
    "astronaut": "a woman in an orange suit",
    "chelsea": "a ginger cat looks up",
    "coffee": "a cup of coffee, a spoon",
    "rocket": "a rocket before a dusk sky",
    "camera": "a man behind a camera",
    "coins": "old coins on felt",
}
MARKUP = "<script>alert('x')</script> a cat"
OVERLONG = "a cup of coffee on wood " + "and more words than any encoder reads " * 4 + "zebra crossing"


def photograph(name: str) -> Image.Image:
    """One of scikit-image's photographs."""
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def square(image: Image.Image, edge: int = 256, at: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """The largest square of a picture, at a size."""
    side = min(image.size)
    left, top = round((image.width - side) * at[0]), round((image.height - side) * at[1])
    return image.crop((left, top, left + side, top + side)).resize((edge, edge), Image.Resampling.LANCZOS)


def put(folder: Path, name: str, image: Image.Image, caption: str | None) -> Path:
    """A picture with its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    image.save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def good(folder: Path) -> Path:
    """Six sharp photographs of one size, each with a caption of its own."""
    for name, caption in GOOD.items():
        put(folder, f"{name}.png", square(photograph(name)), caption)
    return folder


def bad(folder: Path) -> Path:
    """The good ones, and one file for each thing that can be wrong."""
    good(folder)
    cat, coffee, astronaut, rocket = (photograph(n) for n in ("chelsea", "coffee", "astronaut", "rocket"))
    # exact and near duplicates
    (folder / "chelsea_copy.png").write_bytes((folder / "chelsea.png").read_bytes())
    (folder / "chelsea_copy.txt").write_text("the cat again", encoding="utf-8")
    put(folder, "coffee_again.jpg", square(coffee, 250).resize((256, 256)), "one more cup of coffee")
    # how it looks
    soft = square(coffee, 256, (0.0, 0.5)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    put(folder, "blurred.png", soft.filter(ImageFilter.GaussianBlur(5)), "coffee, out of focus")
    put(folder, "flat.png", Image.new("RGB", (256, 256), (90, 120, 90)), "a green wall")
    clear = square(astronaut.rotate(180)).convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 256).astype(np.uint8), (256, 1))))
    put(folder, "transparent.png", clear, "a woman upside down")
    # how large it is, and of which shape
    put(folder, "tiny.png", square(rocket, 60, (0.1, 0.5)), "the sky beside a rocket")
    put(folder, "huge.png", square(astronaut.crop((0, 0, 300, 300)), 1100), "a face before a flag")
    put(folder, "wide.png", rocket.crop((0, 180, 640, 340)), "a launch pad")
    # files that cannot be read
    whole = put(folder, "truncated.jpg", square(cat.rotate(90)), "a cat lying")
    whole.write_bytes(whole.read_bytes()[:3000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("I am no picture", encoding="utf-8")
    for name in ("empty", "text"):
        (folder / f"{name}.txt").write_text("nothing", encoding="utf-8")
    # captions
    turned = square(coffee.rotate(180), 256)
    put(folder, "silent.png", turned.crop((0, 0, 200, 200)), None)
    put(folder, "mute.png", turned.crop((56, 56, 256, 256)), " \n")
    put(folder, "latin.png", turned.crop((0, 56, 200, 256)), None).with_suffix(".txt").write_bytes(b"caf\xe9")
    put(folder, "overlong.png", square(photograph("moon")), OVERLONG)
    put(folder, "<script>.png", square(photograph("grass")), MARKUP)
    for i, name in enumerate(("brick", "gravel", "page")):
        put(folder, f"same_{i}.png", square(photograph(name)), "a surface")
    return folder


def masked(folder: Path) -> tuple[Path, Path]:
    """Three photographs, and masks for two of them, of which one is empty: (pictures, masks)."""
    pictures, masks = folder / "pictures", folder / "masks"
    for name in ("astronaut", "chelsea", "coffee"):
        put(pictures, f"{name}.png", square(photograph(name)), GOOD[name])
    disc = np.hypot(*np.mgrid[-128:128, -128:128]) < 90
    put(masks, "astronaut.png", Image.fromarray((disc * 255).astype(np.uint8)), None)
    put(masks, "chelsea.png", Image.new("L", (256, 256)), None)
    return pictures, masks


def clips(folder: Path) -> Path:
    """Three clips of a moving view: one at the rate of the model, one at twice that, and one that is too short."""
    from darkroom.media.video import write_mp4

    folder.mkdir(parents=True, exist_ok=True)
    for name, source, count, fps in (
        ("slow", "rocket", 33, 16),
        ("fast", "astronaut", 66, 32),
        ("short", "coffee", 3, 16),
    ):
        whole = np.asarray(photograph(source).resize((320, 256)))
        frames = np.stack([whole[64:160, i * 2 : i * 2 + 128] for i in np.linspace(0, 80, count).astype(int)])
        write_mp4(folder / f"{name}.mp4", frames, fps)
        (folder / f"{name}.txt").write_text(f"a {name} move over a view", encoding="utf-8")
    return folder
