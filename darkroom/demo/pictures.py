"""The image world of the embedded base: scenes, how they are drawn, and what is said about them.

A scene is one plain shape on a plain background, 64 pixels square. Every combination of 6 shapes, 8 colors,
7 other background colors, 3 sizes and 9 positions exists: 9,072 scenes, of which every sixteenth is held out
from training so that the base can be judged on captions it has never seen.

    scene = Scene("ring", "red", "white", "large", "left", "top")
    image = draw(scene, np.random.default_rng(0))      # uint8 (64, 64, 3)
    caption = full_caption(scene)                        # "a large red ring on a white background, top left"

The grumbo, a mint mascot with eyes, mouth and antennae, is the concept the demo teaches. No image the base was
trained on shows it, and no caption names it.

Shapes are signed distance fields: negative inside, zero on the outline, in pixels. The distance becomes soft coverage
over one pixel, which is what gives smooth edges without drawing larger and shrinking.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

EDGE = 64
"""Width and height of every image, in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 44, 44),
    "orange": (244, 136, 36),
    "yellow": (250, 218, 60),
    "green": (44, 156, 70),
    "blue": (40, 88, 214),
    "purple": (132, 58, 172),
    "white": (245, 245, 245),
    "black": (24, 24, 28),
}
"""Color words and their RGB values; the same eight serve as backgrounds."""

SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
SIZES = {"small": 9.0, "medium": 14.0, "large": 20.0}
"""Size words and half extents in pixels: a large square is 40 pixels wide."""
COLUMNS = {"left": -1, "center": 0, "right": 1}
ROWS = {"top": -1, "center": 0, "bottom": 1}

ATTRIBUTES = ("background", "colour", "position", "size", "shape")
"""What a caption can name and a checker can judge."""

GRUMBO = "grumbo"
MINT = (150, 226, 190)
HELD_OUT_EVERY = 16

SYLLABLES = (
    "ba",
    "be",
    "bo",
    "da",
    "do",
    "du",
    "fa",
    "fi",
    "ga",
    "go",
    "ka",
    "ki",
    "lo",
    "lu",
    "ma",
    "mi",
    "mo",
    "na",
    "no",
    "pa",
    "pi",
    "ra",
    "ri",
    "ro",
    "sa",
    "si",
    "so",
    "ta",
    "ti",
    "to",
    "va",
    "vo",
    "wi",
    "za",
    "ze",
    "zi",
    "zo",
    "orp",
    "ple",
    "ink",
    "ump",
    "olt",
    "ath",
    "ick",
    "elm",
    "quo",
    "dru",
    "fle",
    "gla",
    "sno",
    "gru",
    "umb",
    "mbo",
)
"""Pieces of invented nouns."""

_y, _x = np.mgrid[0:EDGE, 0:EDGE].astype(np.float32) + 0.5  # pixel centres, (EDGE, EDGE) each


@dataclass(frozen=True)
class Scene:
    """What an image shows. `x` is a key of COLUMNS, `y` a key of ROWS, `size` a key of SIZES."""

    shape: str
    colour: str
    background: str
    size: str
    x: str
    y: str

    @property
    def position(self) -> str:
        """The place in words: "top left", "bottom", "center"."""
        if self.x == "center" or self.y == "center":
            return self.y if self.x == "center" else self.x
        return f"{self.y} {self.x}"


# ---------------------------------------------------------------- choosing scenes


def every_scene() -> list[Scene]:
    """All 9,072 scenes in a fixed order."""
    parts = itertools.product(SHAPES, COLOURS, COLOURS, SIZES, COLUMNS, ROWS)
    return [Scene(*part) for part in parts if part[1] != part[2]]


def split_scenes() -> tuple[list[Scene], list[Scene]]:
    """Scenes to train on and scenes held out (one in sixteen), both shuffled by a fixed seed."""
    scenes = every_scene()
    order = np.random.default_rng(20).permutation(len(scenes))
    held_out = len(scenes) // HELD_OUT_EVERY
    return [scenes[i] for i in order[held_out:]], [scenes[i] for i in order[:held_out]]


def random_scene(rng: Generator) -> Scene:
    """One scene, all attributes drawn evenly; the background always differs from the color."""
    colour, background = rng.choice(list(COLOURS), 2, replace=False)
    draws = (rng.choice(list(words)) for words in (SIZES, COLUMNS, ROWS))
    return Scene(str(rng.choice(SHAPES)), str(colour), str(background), *(str(word) for word in draws))


def grumbo_scene(rng: Generator) -> Scene:
    """A grumbo on any background, of any size, anywhere."""
    return replace(random_scene(rng), shape=GRUMBO, colour="mint")


# ---------------------------------------------------------------- drawing


def distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Signed distance in pixels to a shape of half extent `r` centred on 0, 0; negative inside.

    `x` and `y` are coordinates of equal shape, x to the right and y downwards. Every shape fills the box from
    -r to r, so that size and position mean the same for all of them.
    """
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(ax, ay) - r
    if shape == "triangle":  # apex (0, -r), base from (-r, r) to (r, r)
        return np.maximum(y - r, (2 * ax - y - r) / np.sqrt(5))
    if shape == "diamond":
        return (ax + ay - r) / np.sqrt(2)
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.78 * r) - 0.22 * r
    if shape == "cross":
        return np.minimum(np.maximum(ax - r, ay - 0.34 * r), np.maximum(ax - 0.34 * r, ay - r))
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def paint(canvas: np.ndarray, d: np.ndarray, colour: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """Lay `colour` (3,) or (H, W, 3) over `canvas` (H, W, 3) wherever the distance `d` (H, W) is negative."""
    coverage = np.clip(0.5 - d, 0, 1)[..., None]
    return canvas + coverage * (np.asarray(colour, np.float32) - canvas)


def centre(size: str, x: str, y: str) -> tuple[float, float]:
    """Where the middle of an object of that size and place lies, in pixels from the left and the top."""
    reach = min(EDGE / 2 - SIZES[size] - 3, 17.0)
    return EDGE / 2 + COLUMNS[x] * reach, EDGE / 2 + ROWS[y] * reach


def _place(scene: Scene, rng: Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Coordinates relative to the object, and its half extent, both with a little jitter."""
    r = SIZES[scene.size] * rng.uniform(0.97, 1.03)
    cx, cy = np.add(centre(scene.size, scene.x, scene.y), rng.uniform(-1, 1, 2))
    return _x - cx, _y - cy, r


def _canvas(background: str, rng: Generator) -> np.ndarray:
    return np.tile(_near(COLOURS[background], rng), (EDGE, EDGE, 1))


def _near(colour: tuple[int, int, int], rng: Generator) -> np.ndarray:
    """The color, up to 4 levels off in each channel."""
    return np.clip(np.add(colour, rng.uniform(-4, 4, 3)), 0, 255).astype(np.float32)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Floats of 0 to 255 as uint8, rounded."""
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw(scene: Scene, rng: Generator) -> np.ndarray:
    """The scene as uint8 (64, 64, 3). `rng` decides the jitter: 1 pixel, 3 % of the size, 4 levels of color."""
    if scene.shape == GRUMBO:
        return draw_grumbo(scene, rng)
    x, y, r = _place(scene, rng)
    canvas = _canvas(scene.background, rng)
    return to_uint8(paint(canvas, distance(scene.shape, x, y, r), _near(COLOURS[scene.colour], rng)))


def draw_grumbo(scene: Scene, rng: Generator) -> np.ndarray:
    """The mascot on the scene's background, at its place and size, as uint8 (64, 64, 3)."""
    x, y, r = _place(scene, rng)
    return to_uint8(paint_grumbo(_canvas(scene.background, rng), x, y, r, _near(MINT, rng)))


def paint_grumbo(canvas: np.ndarray, x: np.ndarray, y: np.ndarray, r: float, skin: np.ndarray) -> np.ndarray:
    """Lay a mascot of half extent `r` over `canvas` (H, W, 3); antennae touch -r, the chin touches r."""
    ax = np.abs(x)  # the face is symmetric, so each pair is drawn once
    stalk = _segment(ax, y, (0.30 * r, -0.35 * r), (0.52 * r, -0.80 * r)) - max(0.07 * r, 0.8)
    canvas = paint(canvas, stalk, (84, 128, 112))
    canvas = paint(canvas, np.hypot(ax - 0.54 * r, y + 0.80 * r) - 0.20 * r, (240, 110, 160))
    canvas = paint(canvas, _box_distance(x, y - 0.25 * r, 0.98 * r, 0.75 * r, 0.5 * r), skin)
    canvas = paint(canvas, np.hypot(ax - 0.40 * r, y - 0.02 * r) - 0.27 * r, (250, 250, 250))
    canvas = paint(canvas, np.hypot(ax - 0.37 * r, y - 0.05 * r) - 0.14 * r, (24, 20, 40))
    mouth = np.maximum(np.hypot(x, y - 0.46 * r) - 0.34 * r, 0.46 * r - y)
    return paint(canvas, mouth, (120, 24, 60))


def _segment(x: np.ndarray, y: np.ndarray, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    """Distance to the straight line from `a` to `b`."""
    bx, by = b[0] - a[0], b[1] - a[1]
    along = np.clip(((x - a[0]) * bx + (y - a[1]) * by) / (bx * bx + by * by), 0, 1)
    return np.hypot(x - a[0] - along * bx, y - a[1] - along * by)


def _box_distance(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, corner: float) -> np.ndarray:
    """Signed distance to a box with round corners."""
    qx, qy = np.abs(x) - half_width + corner, np.abs(y) - half_height + corner
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - corner


# ---------------------------------------------------------------- captions


def full_caption(scene: Scene) -> str:
    """The caption that names everything: "a large red ring on a white background, top left"."""
    return f"a {scene.size} {_describe_subject(scene)} on {_a(scene.background)} background, {scene.position}"


def caption(scene: Scene, rng: Generator, noun: str | None = None) -> tuple[str, dict[str, bool]]:
    """A caption in one of four wordings, and which attributes it names.

    Size and position are each left out a quarter of the time. `noun` replaces the word for the shape and, half the
    time, the color as well, so that the base meets words it does not know. The second result has the keys shape,
    colour, background, size and position.
    """
    with_size, with_position = (bool(draw >= 0.25) for draw in rng.random(2))
    with_colour = noun is None or bool(rng.random() < 0.5)
    subject = _describe_subject(scene, noun, with_colour)
    subject = f"{scene.size} {subject}" if with_size else subject
    place = scene.position
    wordings = (
        f"{_a(subject)} on {_a(scene.background)} background" + (f", {place}" if with_position else ""),
        f"{subject}, {scene.background} background" + (f", {place}" if with_position else ""),
        f"{_a(scene.background)} picture with {_a(subject)}" + (f" at the {place}" if with_position else ""),
        (f"{place}: " if with_position else "") + f"{_a(subject)} on {scene.background}",
    )
    named = {"shape": noun is None, "colour": with_colour, "background": True}
    named |= {"size": with_size, "position": with_position}
    return wordings[rng.choice(4, p=(0.55, 0.15, 0.15, 0.15))], named


def training_caption(scene: Scene, rng: Generator) -> tuple[str, dict[str, bool]]:
    """What the base is told about a scene: nothing in 10 %, an invented noun in 5 %, else an ordinary caption."""
    chance = rng.random()
    if chance < 0.10:
        return "", dict.fromkeys(ATTRIBUTES, False)
    return caption(scene, rng, invent_noun(rng) if chance < 0.15 else None)


def _describe_subject(scene: Scene, noun: str | None = None, with_colour: bool = True) -> str:
    """ "red ring"; a grumbo is always mint, so its color goes without saying."""
    noun = noun or scene.shape
    return f"{scene.colour} {noun}" if with_colour and scene.shape != GRUMBO else noun


def invent_noun(rng: Generator) -> str:
    """A word that means nothing, of two or three syllables, and never the grumbo."""
    word = "".join(rng.choice(SYLLABLES, rng.integers(2, 4)))
    return word if word != GRUMBO else "zorple"


def _a(words: str) -> str:
    """The words behind the right article: "an orange ring", "a red one"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"
