from tests.families.faults.kit import (
    Fault,
    columns_first,
    latents,
    model_input,
    predict,
    softened_attention,
    text,
    without_first,
)

FAULTS = [
    Fault("sign of the answer", "ideogram4", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "ideogram4", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "ideogram4", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - (1 - t) * 9, c))),
    Fault("packing order", "ideogram4", "call parity", columns_first),
    Fault("order of the channels", "ideogram4", "latent parity", latents(normalizer="batch_norm")),
    Fault("start of the picture", "ideogram4", "call parity", model_input(position_ids=lambda ids: ids % 65536)),
    Fault("roles of the tokens", "ideogram4", "call parity", model_input(indicator=lambda i: 5 - i)),
    Fault("dropped leading tokens", "ideogram4", "call parity", text(without_first)),
    Fault("mask added as numbers", "ideogram4", "call parity", predict(softened_attention)),
]
