from tests.families.faults.kit import (
    Fault,
    entries,
    mask_of_ones,
    model_inputs,
    predict,
    seeing_the_wrong_way_up,
    softened_attention,
    stacked,
    text,
)

NAME = "hunyuanvideo_original"


def guided_by_the_picture(cls):
    """What guides away is read with the picture, and not with a black one."""

    def encode_text_with_images(self, pipe, caption, pictures, options):
        return cls.encode_text_with_images(self, pipe, caption or " ", pictures, options)

    return {"encode_text_with_images": encode_text_with_images}


FAULTS = [
    Fault("sign of the answer", NAME, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", NAME, "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("guidance", NAME, "call parity", model_inputs("guidance", lambda g: g / 1000)),
    Fault("mask of the padding", NAME, "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", NAME, "padding", predict(softened_attention)),
    Fault("dropped leading tokens", NAME, "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("pooled text", NAME, "call parity", text(lambda c: {**c, "pooled": c["text"][:, 0]})),
    Fault("latent of the first frame", NAME, "call parity", entries("start", lambda z: z * 1.1), "tiny-i2v"),
    Fault(
        "first frame of the clip", NAME, "call parity", lambda cls: {"slice_batch": lambda self, b, *_: b}, "tiny-i2v"
    ),
    Fault("picture unseen", NAME, "call parity", seeing_the_wrong_way_up, "tiny-i2v"),
    Fault("picture of guidance", NAME, "call parity", guided_by_the_picture, "tiny-i2v"),
    Fault("padding after short texts", NAME, "call parity", stacked(mask_of_ones), "tiny-i2v"),
    Fault("which frame is given", NAME, "call parity", model_inputs("given", lambda g: g.flip(2)), "tiny-i2v-33ch"),
    Fault("order of the channels", NAME, "call parity", model_inputs("given", lambda g: g.roll(1, 1)), "tiny-i2v-33ch"),
    Fault("which frame is given", NAME, "call parity", model_inputs("given", lambda g: g.flip(2)), "tiny-skyreels-i2v"),
]
