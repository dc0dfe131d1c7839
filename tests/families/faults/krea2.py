from tests.families.faults.kit import (
    MEANS_ONLY,
    Fault,
    latents,
    mask_of_ones,
    model_input,
    other_packing,
    pipe,
    predict,
    softened_attention,
    text,
)

FAULTS = [
    Fault("sign of the answer", "krea2", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "krea2", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "krea2", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("packing order", "krea2", "call parity", other_packing),
    Fault("channel statistics", "krea2", "latent parity", latents(normalizer=MEANS_ONLY)),
    Fault("positions of the text", "krea2", "call parity", model_input(position_ids=lambda ids: ids.roll(4, 0))),
    Fault("mask of the padding", "krea2", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "krea2", "padding", predict(softened_attention)),
    Fault("template tokens kept", "krea2", "call parity", pipe(prompt_template_encode_start_idx=33)),
    Fault("order of the layers", "krea2", "call parity", text(lambda c: {**c, "text": c["text"].flip(2)})),
]
