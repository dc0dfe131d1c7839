from tests.families.faults.kandinsky5_image import with_padding
from tests.families.faults.kit import Fault, entries, model_input, model_inputs, pipe, predict, text

NAME = "kandinsky5_video"

FAULTS = [
    Fault("sign of the answer", NAME, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", NAME, "call parity", lambda cls: {"to_pipeline": lambda self, x: x.movedim(1, -1) * 1.1}),
    Fault("template tokens kept", NAME, "call parity", pipe(prompt_template_encode_start_idx=34)),
    Fault("pooled text", NAME, "call parity", text(lambda c: {**c, "pooled": c["pooled"].roll(1, 1)})),
    Fault("padding read as text", NAME, "call parity", predict(with_padding)),
    Fault("stretch of positions", NAME, "call parity", model_input(scale_factor=lambda _: (1, 2, 2))),
    Fault("which frames are given", NAME, "call parity", model_inputs("given", lambda g: g.flip(2)), "tiny-i2v"),
    Fault("the picture's latent", NAME, "call parity", entries("start", lambda z: z * 1.1), "tiny-i2v"),
]
