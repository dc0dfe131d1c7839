import torch

from tests.families.faults.kit import MEANS_ONLY, Fault, entries, latents, mask_last, model_inputs, predict, text


def nothing_followed(control):
    return torch.cat([control[:, :32], control[:, 32:] * 0], dim=1)


def start_everywhere(given):
    return torch.cat([given[:, :16], given[:, 16:, :1].expand_as(given[:, 16:])], dim=1)


FAULTS = [
    Fault("sign of the answer", "wan", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", "wan", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("time direction", "wan", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("times of the tokens", "wan", "call parity", model_inputs("noisy", lambda n: n.cumsum(2) - 1), "tiny-ti2v"),
    Fault("given frame's time", "wan", "call parity", model_inputs("noisy", lambda n: n.flip(2)), "tiny-ti2v", True),
    Fault("latent scale", "wan", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("channel statistics", "wan", "latent parity", latents(normalizer=MEANS_ONLY)),
    Fault("text padding", "wan", "call parity", text(lambda c: {**c, "text": c["text"] + (c["text"] == 0)})),
    Fault("dropped leading tokens", "wan", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("given frames", "wan", "call parity", model_inputs("given", mask_last), "tiny-i2v"),
    Fault("order of the channels", "wan", "call parity", model_inputs("given", lambda g: g.roll(4, 1)), "tiny-i2v"),
    Fault("given last frame", "wan", "call parity", model_inputs("given", lambda g: g.roll(1, 2)), "tiny-flf2v"),
    Fault("order of the pictures", "wan", "call parity", model_inputs("image", lambda i: i.flip(0)), "tiny-flf2v"),
    Fault("control's channels", "wan", "call parity", model_inputs("control", lambda c: c.roll(16, 1)), "tiny-vace"),
    Fault("which pixels are followed", "wan", "call parity", model_inputs("control", nothing_followed), "tiny-vace"),
    Fault("nothing kept", "wan", "call parity", entries("grey", lambda z: z * 0), "tiny-vace"),
    Fault("control and start", "wan", "call parity", model_inputs("given", lambda g: g.roll(16, 1)), "tiny-fun-i2v"),
    Fault("start as a clip", "wan", "call parity", model_inputs("given", start_everywhere), "tiny-fun-i2v"),
    Fault("control of no start", "wan", "call parity", model_inputs("given", lambda g: g.roll(16, 1)), "tiny-fun"),
    Fault("start's latents", "wan", "call parity", entries("first_frame", lambda z: z * 1.1), "tiny-fun-i2v"),
    Fault("first frame", "wan", "call parity", entries("first_frame", lambda z: z * 1.1), "tiny-i2v"),
    Fault("picture's features", "wan", "call parity", entries("image", lambda e: e[:, 1:]), "tiny-i2v"),
]
