from tests.families.faults.kit import (
    MEANS_ONLY,
    Fault,
    latents,
    mask_of_ones,
    model_inputs,
    predict,
    softened_attention,
    text,
    without_instruction,
)

FAULTS = [
    Fault("sign of the answer", "sanavideo", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "sanavideo", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "sanavideo", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("channel statistics", "sanavideo", "latent parity", latents(normalizer=MEANS_ONLY)),
    Fault("mask of the padding", "sanavideo", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "sanavideo", "padding", predict(softened_attention)),
    Fault("instruction before a caption", "sanavideo", "call parity", without_instruction),
    Fault("given frame's time", "sanavideo", "call parity", model_inputs("noisy", lambda n: n.flip(2)), started=True),
    Fault("unconditional text", "sanavideo", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
]
