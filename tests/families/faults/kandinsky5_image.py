from tests.families.faults.kit import Fault, latents, model_input, pipe, predict, text

NAME = "kandinsky5_image"


def with_padding(plain, self, model, x_t, t, cond):
    """Shorter captions are read with zeros behind their ends."""
    return plain(self, model, x_t, t, {name: value for name, value in cond.items() if name != "mask"})


FAULTS = [
    Fault("sign of the answer", NAME, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("shift in the VAE's settings", NAME, "latent parity", latents(normalizer="shift_scale")),
    Fault("template tokens kept", NAME, "call parity", pipe(prompt_template_encode_start_idx=34)),
    Fault("pooled text", NAME, "call parity", text(lambda c: {**c, "pooled": c["pooled"].roll(1, 1)})),
    Fault("padding read as text", NAME, "call parity", predict(with_padding)),
    Fault("positions of text", NAME, "call parity", model_input(text_rope_pos=lambda places: places + 1)),
    Fault("stretch of positions", NAME, "call parity", model_input(scale_factor=lambda _: [1.0, 2.0, 2.0])),
]
