"""musubi-tuner's sizes: the numbers of its own documentation, and pictures worked by hand."""

from __future__ import annotations

from darkroom.media.kohya import KohyaSizing, buckets, near
from tests.rows import each_row


@each_row(
    "size, step, count, first, last",
    [
        ((960, 544), 16, 47, (352, 1472), (1472, 352)),
        ((1024, 1024), 16, 65, (512, 2048), (2048, 512)),
        ((1024, 1024), 32, 33, (512, 2048), (2048, 512)),
        ((512, 512), 16, 33, (256, 1024), (1024, 256)),
    ],
)
def test_bucket_lists(size, step, count, first, last) -> None:
    made = buckets(size[0] * size[1], step)
    assert (len(made), made[0], made[-1]) == (count, first, last)


@each_row(
    "sizing, picture, target, intermediary",
    [
        (KohyaSizing(), (1920, 1080), (960, 544), (967, 544)),
        (KohyaSizing(enable_bucket=True), (960, 544), (960, 544), (960, 544)),
        (KohyaSizing(resolution=(1024, 1024), enable_bucket=True), (3000, 2000), (1248, 832), (1248, 832)),
        (KohyaSizing(enable_bucket=True, bucket_no_upscale=True), (500, 300), (496, 288), (496, 298)),
        (KohyaSizing(mode="own"), (501, 333), (496, 320), (496, 330)),
        (KohyaSizing(mode="own", capped=True, resolution=(64, 64)), (640, 640), (64, 64), (64, 64)),
        (KohyaSizing(mode="fit", resolution=(512, 512)), (800, 400), (720, 352), (720, 360)),
    ],
)  # fmt: skip
def test_a_picture_covers_its_bucket(sizing, picture, target, intermediary) -> None:
    assert sizing.sizes(picture) == (target, intermediary)


def test_controls_get_the_nearest_aspect_of_an_area() -> None:
    width, height = near((1000, 500), 384 * 384, 16)
    assert (width % 16, height % 16) == (0, 0)
    assert width * height <= 384 * 384
    assert abs(width / height - 2) < 0.1
