"""How long commands take to answer, and whether they import torch.

python benchmarks/startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROBE = """
import sys
from darkroom.cli.main import main
main(sys.argv[1:])
print("torch" in sys.modules, file=sys.stderr)
"""


def seconds(arguments: list[str], runs: int) -> tuple[float, bool]:
    """Median wall seconds of a fresh process, and whether torch was imported."""
    times, has_torch = [], False
    for _ in range(runs):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        has_torch = done.stderr.split()[-1] == "True"
    return statistics.median(times), has_torch


def main() -> None:
    """Measure the commands that people wait for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        pictures = Path(__file__).parent.parent / "darkroom" / "demo" / "concept"
        entry = {"id": "concept", "instance_data_dir": str(pictures), "caption_strategy": "textfile"}
        (here / "datasets.json").write_text(json.dumps([entry]))
        plan = [
            "plan", "--model_family=flux", "--model_flavour=embedded", f"--output_dir={here / 'out'}",
            f"--data_backend_config={here / 'datasets.json'}",
        ]  # fmt: skip
        for arguments in (["--help"], ["options"], ["families"], plan):
            took, has_torch = seconds(arguments, chosen.runs)
            print(f"darkroom {arguments[0]}: {took:.2f} s{', imports torch' if has_torch else ', no torch'}")


if __name__ == "__main__":
    main()
