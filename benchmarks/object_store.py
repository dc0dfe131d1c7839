"""Train from an S3 server that is killed on the way: is anything lost, or encoded twice?

    python benchmarks/object_store.py --server "npx s3rver -d {folder} -p {port}" --key S3RVER --secret S3RVER

Puts `--objects` small photographs into a bucket of a server that keeps them on disk, starts `darkroom train` on them,
kills the server (SIGKILL) while latents are being encoded, starts it again `--away` seconds later, and lets the run
end. Then the same with a server that stays away longer than the patience of the store: the run stops with a message,
and the same command goes on. The counts come from the runs' own caches and logs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BUCKET = "photographs"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A server process that can be killed and started again over the same folder."""

    def __init__(self, command: str, folder: Path, port: int):
        self.words = shlex.split(command.format(folder=folder, port=port))
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise SystemExit(f"the server did not start: {self.words}")

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def pictures(count: int) -> list[tuple[str, bytes]]:
    """Crops of photographs, all different."""
    from skimage import data

    sources = [
        np.asarray(Image.fromarray(getattr(data, n)()).convert("RGB")) for n in ("astronaut", "coffee", "chelsea")
    ]
    draw, made = np.random.default_rng(0), []
    for i in range(count):
        whole = sources[i % len(sources)]
        top, left = (int(draw.integers(0, edge - 128)) for edge in whole.shape[:2])
        out = io.BytesIO()
        Image.fromarray(whole[top : top + 128, left : left + 128]).save(out, "jpeg", quality=90)
        made.append((f"set/{i % 20:02d}/a_photograph_{i:05d}.jpg", out.getvalue()))
    return made


def upload(arguments: argparse.Namespace, port: int) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=arguments.key,
        aws_secret_access_key=arguments.secret,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    for name, body in pictures(arguments.objects):
        client.put_object(Bucket=BUCKET, Key=name, Body=body)


def dataset(arguments: argparse.Namespace, port: int, folder: Path) -> Path:
    path = folder / "datasets.json"
    entry = {
        "id": "remote",
        "type": "aws",
        "aws_bucket_name": BUCKET,
        "aws_endpoint_url": f"http://127.0.0.1:{port}",
        "aws_data_prefix": "set",
        "aws_access_key_id": arguments.key,
        "aws_secret_access_key": arguments.secret,
        "caption_strategy": "instanceprompt",
        "instance_prompt": "a photograph",
        "resolution": 64,
        "write_batch_size": 50,
    }
    path.write_text(json.dumps([entry]))
    return path


def command(datasets: Path, output: Path, steps: int) -> list[str]:
    options: dict[str, Any] = {
        "model_family": "flux",
        "model_flavour": "tiny",
        "data_backend_config": datasets,
        "output_dir": output,
        "max_train_steps": steps,
        "train_batch_size": 4,
        "validation_disable": "true",
        "seed": 3,
    }
    return [sys.executable, "-m", "darkroom", "train", *(f"--{name}={value}" for name, value in options.items())]


def encoded(output: Path) -> int:
    """Latents on disk, as the shards' headers say."""
    from darkroom.data.cache.shards import read_header

    total = 0
    for path in (output / "cache/vae").rglob("*.shard.safetensors"):
        try:
            total += len(read_header(path).entries)
        except ValueError:
            continue  # being written
    return total


def keys(output: Path) -> list[str]:
    """Every entry of every shard; one that was encoded twice stands here twice."""
    from darkroom.data.cache.shards import read_header

    return [k for path in (output / "cache/vae").rglob("*.shard.safetensors") for k in read_header(path).entries]


def run_through(arguments: argparse.Namespace, server: Server, folder: Path, name: str, away: float) -> dict[str, Any]:
    """One run with the server killed when 40 % of the latents are there."""
    output = folder / name
    datasets = dataset(arguments, server.port, folder)
    started = time.monotonic()
    codes, killed_at, before = [], 0, 0
    run = subprocess.Popen(command(datasets, output, arguments.steps), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while run.poll() is None and killed_at == 0:
        if encoded(output) >= 0.4 * arguments.objects:
            killed_at = encoded(output)
            server.kill()
            if away < 60:
                time.sleep(away)
                server.start()
        time.sleep(0.1)
    said = run.communicate()[0].decode()
    codes.append(run.returncode)
    if away >= 60:
        before = encoded(output)
        server.start()
        again = subprocess.run(command(datasets, output, arguments.steps), capture_output=True, text=True, check=False)
        codes.append(again.returncode)
        said = said.strip().splitlines()[-2:] and "\n".join(said.strip().splitlines()[-2:])
    found = keys(output)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "killed_when_encoded": killed_at,
        "encoded_when_it_stopped": before,
        "exit_codes": codes,
        "entries": len(found),
        "encoded_twice": len(found) - len(set(found)),
        "trained": (output / "pytorch_lora_weights.safetensors").exists(),
        "message": said if away >= 60 else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="command that starts the server, with {folder} and {port}")
    parser.add_argument("--key", default="S3RVER")
    parser.add_argument("--secret", default="S3RVER")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--away", type=float, default=10.0, help="seconds until the killed server is started again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        server = Server(arguments.server, folder / "objects", free_port())
        (folder / "objects").mkdir()
        server.start()
        try:
            upload(arguments, server.port)
            made = {
                "short": run_through(arguments, server, folder, "short", arguments.away),
                "long": run_through(arguments, server, folder, "long", 1e9),
            }
        finally:
            server.kill()
    distinct = len({body for _, body in pictures(arguments.objects)})
    print(json.dumps({"objects": arguments.objects, "distinct": distinct, **made}, indent=2))


if __name__ == "__main__":
    main()
