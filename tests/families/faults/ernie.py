from tests.families.faults.kit import (
    UNSHUFFLED_ONLY,
    Fault,
    all_real,
    latents,
    model_input,
    predict,
    softened_attention,
    stacked,
    text,
    without_first,
)

FAULTS = [
    Fault("sign of the answer", "ernie", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "ernie", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "ernie", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("channel statistics", "ernie", "latent parity", latents(normalizer=UNSHUFFLED_ONLY)),
    Fault("smallest spread of a channel", "ernie", "latent parity", latents(normalizer="batch_norm")),
    Fault("length of the text", "ernie", "call parity", model_input(text_lens=lambda lengths: lengths - 1)),
    Fault("mask of the padding", "ernie", "call parity", stacked(all_real)),
    Fault("mask added as numbers", "ernie", "call parity", predict(softened_attention)),
    Fault("dropped leading tokens", "ernie", "call parity", text(without_first)),
]
