"""A CUDA device that is pretended, for a torch without CUDA: tensors say cuda:0, and each operator runs its CPU kernel.

    from tests.pretend import device   # before torch, which asks only once whether there is a GPU
    card = device.install(memory=24 << 30, capability=(9, 0))
    with card.watched() as seen:
        main(["train", ...])
    seen.waits, seen.copies, card.peak

It shows what a CPU test cannot: operands on two devices, generators of the wrong one, missing waits, what makes the
host wait, what is copied, how much memory the device holds, and running out of it. It does not show real kernels (flash
attention, cuDNN, Triton, the CUDA code of quantizers), speed, or several devices. `device.cpp` says how it works; it
is compiled once for each torch, in about 15 s, with the C++ compiler and the headers that torch brings.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SOURCE = Path(__file__).with_name("device.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
KINDS = ("waits", "copies", "refused")
_Listener = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)


def build() -> Path:
    """The compiled library of this source and this torch; compiled if it is not there. Raises CalledProcessError."""
    origin = importlib.util.find_spec("torch").origin  # type: ignore[union-attr]
    torch = Path(origin).parent  # type: ignore[arg-type]
    version = (torch / "version.py").read_bytes()
    digest = hashlib.sha256(SOURCE.read_bytes() + version + str(torch).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"darkroom-pretend-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"libpretend-{digest}.so"
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        includes = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
        libraries = [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib"]
        command = [str(COMPILER), "-O1", "-std=c++20", "-shared", "-fPIC", "-w", *includes, str(SOURCE), *libraries]
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.rename(library)
    return library


@dataclasses.dataclass
class Seen:
    """What happened while it was watched: how often, by kind and by the line of Darkroom that caused it."""

    waits: Counter[str] = dataclasses.field(default_factory=Counter)
    copies: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: Counter[str] = dataclasses.field(default_factory=Counter)


class Card:
    """The pretended GPU: its memory, and who watches it."""

    name = "Pretended"
    multi_processor_count = 132
    gcnArchName = ""  # noqa: N815
    uuid = "GPU-pretended"
    warp_size = 32
    max_threads_per_multi_processor = 2048
    regs_per_multiprocessor = 65536
    shared_memory_per_multiprocessor = 233472
    shared_memory_per_block = 49152
    shared_memory_per_block_optin = 232448
    L2_cache_size = 50 << 20
    is_integrated = False

    def __init__(self, library: ctypes.CDLL, memory: int, capability: tuple[int, int]) -> None:
        self.library, self.total_memory, self.capability = library, memory, capability
        self.major, self.minor = capability
        self.watching: list[Seen] = []
        for name in ("held", "peak", "pinned_peak"):
            getattr(library, f"pretend_{name}").restype = ctypes.c_size_t
        library.pretend_register_host.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        library.pretend_unregister_host.argtypes = (ctypes.c_void_p,)
        self._listener = _Listener(self._tell)
        library.pretend_listen(self._listener)
        self.limit(memory)

    def limit(self, memory: int) -> None:
        """Give the device so many bytes; more than that raises torch.cuda.OutOfMemoryError."""
        self.total_memory = memory
        self.library.pretend_capacity(ctypes.c_size_t(memory))

    @property
    def held(self) -> int:
        """Bytes of the device that tensors hold now."""
        return self.library.pretend_held()

    @property
    def peak(self) -> int:
        """Bytes of the device that were held at most since `reset_peak`."""
        return self.library.pretend_peak()

    @property
    def pinned_peak(self) -> int:
        """Bytes of pinned host memory that were held at most since `reset_peak`, rounded up as torch does."""
        return self.library.pretend_pinned_peak()

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """No stream waits for another: what a missing wait in the code would do."""
        self.library.pretend_deaf(True)
        try:
            yield
        finally:
            self.library.pretend_deaf(False)

    def reset_peak(self) -> None:
        """Begin anew to measure the most memory that is held."""
        self.library.pretend_reset_peak()
        self.library.pretend_reset_pinned_peak()

    @contextlib.contextmanager
    def watched(self) -> Iterator[Seen]:
        """Count what makes the host wait, what is copied and what is refused."""
        seen = Seen()
        self.watching.append(seen)
        try:
            yield seen
        finally:
            self.watching.remove(seen)

    def _tell(self, kind: int, what: bytes, size: int) -> None:
        if not self.watching:
            return
        row = f"{what.decode()} at {_place(sys._getframe(1))}"
        for seen in self.watching:
            getattr(seen, KINDS[kind])[row] += 1


def _place(frame: FrameType | None) -> str:
    """The innermost lines of Darkroom and of anything but torch on the stack."""
    own = inner = ""
    while frame is not None and not own:
        path = frame.f_code.co_filename
        line = f"{path.split('site-packages/')[-1].split('/darkroom/')[-1]}:{frame.f_lineno}"
        if not inner and "/torch/" not in path:
            inner = line
        if "/darkroom/" in path and "site-packages" not in path:
            own = line
        frame = frame.f_back
    return " > ".join(dict.fromkeys(filter(None, (own, inner)))) or "the backward pass"


def install(memory: int = 24 << 30, capability: tuple[int, int] = (9, 0)) -> Card:
    """Pretend that there is one GPU with so many bytes. Call it before torch is imported; raises RuntimeError after."""
    if "torch" in sys.modules:
        raise RuntimeError("The pretended GPU comes before torch: start a process for it.")
    card = Card(ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL), memory, capability)
    # both look at torch.cuda while they are imported: compilation would notice what is exchanged, and bitsandbytes
    # would take kernels that it does not have here instead of its CPU ones

    if importlib.util.find_spec("bitsandbytes"):
        importlib.import_module("bitsandbytes")

    from tests.pretend import cuda

    cuda.exchange(card)
    return card
