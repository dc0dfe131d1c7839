from tests.families.faults.kit import (
    MEANS_ONLY,
    Fault,
    all_real,
    conditions,
    latents,
    model_input,
    other_packing,
    pipe,
    predict,
    stacked,
    taller,
    text,
    without_first,
)


def seeing_the_wrong_way_up(cls):
    def encode_seen(self, pipe, caption, pictures, options):
        return cls.encode_seen(self, pipe, caption, [picture.rotate(180) for picture in pictures], options)

    return {"encode_seen": encode_seen}


FAULTS = [
    Fault("sign of the answer", "qwen_image", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "qwen_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "qwen_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("packing order", "qwen_image", "call parity", other_packing),
    Fault("channel statistics", "qwen_image", "latent parity", latents(normaliser=MEANS_ONLY)),
    Fault("dropped leading tokens", "qwen_image", "call parity", text(without_first)),
    Fault("template tokens kept", "qwen_image", "call parity", pipe(prompt_template_encode_start_idx=32)),
    Fault("mask of the padding", "qwen_image", "call parity", stacked(all_real)),
    Fault("no references", "qwen_image", "call parity", conditions("references", lambda r: ()), "tiny-edit-plus"),
    Fault("pictures unseen", "qwen_image", "call parity", seeing_the_wrong_way_up, "tiny-edit"),
    Fault("shapes of the pictures", "qwen_image", "call parity", model_input(img_shapes=taller)),
]
