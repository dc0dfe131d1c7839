from tests.families.faults.kit import (
    Fault,
    all_real,
    latents,
    no_template,
    predict,
    stacked,
    text,
    tokenizer,
    without_first,
)

FAULTS = [
    Fault("sign of the answer", "z_image", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "z_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "z_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - (1 - t) * 1000, c))),
    Fault("latent shift", "z_image", "latent parity", latents(normalizer="scale")),
    Fault("dropped leading tokens", "z_image", "call parity", text(without_first)),
    Fault("chat template", "z_image", "call parity", tokenizer(apply_chat_template=no_template)),
    Fault("mask of the padding", "z_image", "call parity", stacked(all_real)),
]
