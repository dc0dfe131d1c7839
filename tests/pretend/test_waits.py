"""How often the host waits in a step on a pretended GPU: once for the step's numbers, once more for host memory."""

from __future__ import annotations

import pytest

from darkroom.cli.main import main
from tests.pretend.runs import USUAL, losses, own_waits

pytestmark = pytest.mark.slow
# by what is in host memory: the options, and how often a step waits
IN_HOST_MEMORY = {
    "nothing": ({"use_ema": True, "optimizer": "adamw_bf16", "caption_dropout_probability": 0.3}, 1),
    "the average": ({"use_ema": True, "ema_device": "cpu"}, 2),
    "the optimizer": ({"optimizer_cpu_offload_method": "cpu"}, 2),
    "gradients": ({"optimizer_cpu_offload_method": "cpu", "optimizer_offload_gradients": True,
                   "gradient_accumulation_steps": 2}, 2),
    "blocks that are trained": ({"model_type": "full", "learning_rate": 1e-5, "musubi_blocks_to_swap": 1,
                                 "gradient_accumulation_steps": 2}, 2),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_HOST_MEMORY)
def test_all_tensors_of_a_step_are_waited_for_at_once(what, arguments, worker, tmp_path):
    more, waits = IN_HOST_MEMORY[what]
    options = {**USUAL, "validation_disable": True, "vae_dtype": "fp32", **more}
    there, here, log = (tmp_path / name for name in ("there", "here", "log"))

    report = worker(["train", *arguments("flux", **options, output_dir=there)], log=str(log))
    assert report["code"] == 0, log.read_text()[-4000:]
    assert sum(own_waits(report["waits"]).values()) <= waits, report["waits"]
    assert [row for row in report["copies"] if row.startswith("to the device, pageable")] == []
    assert report["kept"] < 4096, "the model is still there after the run"

    assert main(["train", *arguments("flux", **options, output_dir=here)]) == 0
    assert losses(there) == pytest.approx(losses(here), rel=0.02)
