from tests.families.faults.kit import Fault, latents, mask, model_input, other_packing, predict, text

FAULTS = [
    Fault("sign of the answer", "longcat_image", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "longcat_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "longcat_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("packing order", "longcat_image", "call parity", other_packing),
    Fault("latent shift", "longcat_image", "latent parity", latents(normalizer="scale")),
    Fault("start of the picture", "longcat_image", "call parity", model_input(img_ids=lambda i: (i - 512).relu())),
    Fault("positions of the text", "longcat_image", "call parity", model_input(txt_ids=lambda ids: ids * 0)),
    Fault("mask of the padding", "longcat_image", "call parity", text(lambda c: {"text": c["text"] * mask(c["text"])})),
]
