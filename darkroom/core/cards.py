"""Graphics cards as data: what a plan needs to know of one that is not here."""

from __future__ import annotations

import dataclasses
import re

from darkroom.core.errors import ConfigError
from darkroom.core.registry import find_nearest
from darkroom.core.units import parse_size, show_size

MIB = 2**20
# the first compute capabilities whose tensor cores take bfloat16 (Ampere) and eight-bit floats (Ada)
BF16, FP8 = (8, 0), (8, 9)
# what a card given by its size alone is taken for: an Ampere card does nothing that later ones cannot
USUAL = (8, 6)
# what the driver's context and torch's libraries take of a card that nothing else uses
CONTEXT = 600 * MIB
# the share of the rest that torch's allocator can fill before it is too fragmented for another large block
FILLED = 0.96


@dataclasses.dataclass(frozen=True)
class Card:
    """A card by its name: bytes of memory, bytes of them that a run can fill, and its compute capability."""

    name: str
    memory: int
    room: int
    capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, {show_size(self.memory)}, compute capability {major}.{minor}"


def empty_card(name: str, memory: int, capability: tuple[int, int]) -> Card:
    """A card that nothing else uses."""
    return Card(name, memory, max(0, int((memory - CONTEXT) * FILLED)), capability)


# MiB as the driver reports them, and compute capability, by NVIDIA's data sheets
_ROWS: dict[str, tuple[int, tuple[int, int]]] = {
    "GTX 1080 Ti": (11264, (6, 1)),
    "V100-16GB": (16384, (7, 0)),
    "V100-32GB": (32768, (7, 0)),
    "T4": (15360, (7, 5)),
    "RTX 2060": (6144, (7, 5)),
    "RTX 2070": (8192, (7, 5)),
    "RTX 2080": (8192, (7, 5)),
    "RTX 2080 Ti": (11264, (7, 5)),
    "Titan RTX": (24576, (7, 5)),
    "RTX 3050": (8192, (8, 6)),
    "RTX 3060": (12288, (8, 6)),
    "RTX 3070": (8192, (8, 6)),
    "RTX 3080": (10240, (8, 6)),
    "RTX 3080 Ti": (12288, (8, 6)),
    "RTX 3090": (24576, (8, 6)),
    "RTX 3090 Ti": (24564, (8, 6)),
    "RTX A4000": (16376, (8, 6)),
    "RTX A5000": (24564, (8, 6)),
    "RTX A6000": (49140, (8, 6)),
    "A10": (23028, (8, 6)),
    "A40": (46068, (8, 6)),
    "A100-40GB": (40960, (8, 0)),
    "A100-80GB": (81920, (8, 0)),
    "RTX 4060": (8188, (8, 9)),
    "RTX 4060 Ti 16GB": (16380, (8, 9)),
    "RTX 4070": (12282, (8, 9)),
    "RTX 4070 Ti": (12282, (8, 9)),
    "RTX 4070 Ti Super": (16376, (8, 9)),
    "RTX 4080": (16376, (8, 9)),
    "RTX 4090": (24564, (8, 9)),
    "RTX 6000 Ada": (49140, (8, 9)),
    "L4": (23034, (8, 9)),
    "L40": (46068, (8, 9)),
    "L40S": (46068, (8, 9)),
    "H100": (81559, (9, 0)),
    "H100 NVL": (95830, (9, 0)),
    "H200": (143771, (9, 0)),
    "GH200": (97871, (9, 0)),
    "B200": (183359, (10, 0)),
    "RTX 5060 Ti 16GB": (16311, (12, 0)),
    "RTX 5070": (12227, (12, 0)),
    "RTX 5070 Ti": (16303, (12, 0)),
    "RTX 5080": (16303, (12, 0)),
    "RTX 5090": (32607, (12, 0)),
    "RTX PRO 6000": (97887, (12, 0)),
}
CARDS: dict[str, Card] = {name: empty_card(name, mib * MIB, able) for name, (mib, able) in _ROWS.items()}
# what a name may have before it without being another card
_MAKER = re.compile(r"^(nvidia)?(geforce|tesla)?")
# without a unit only what is no number of a model
_IS_SIZE = re.compile(r"^(\d{1,3}(\.\d+)?|\d+(\.\d+)?\s*([KMGT]i?B?|B))$", re.IGNORECASE)
OPTION = "--for"
MAX_NAMES = 4


def find_card(text: str) -> Card:
    """The card of a name, as people write it, or one of a size such as `24GiB`, `24G` or `24`, which means GiB.

    Raises ConfigError.

    >>> find_card("rtx4090").name, find_card("NVIDIA A100 40GB").name, find_card("24").memory == 24 * 2**30
    ('RTX 4090', 'A100-40GB', True)
    """
    if _IS_SIZE.match(text.strip()):
        return _parse_card_size(text.strip())
    plain_name = _normalize_name(text)
    plain = {name: _normalize_name(name) for name in CARDS}
    several = [name for name in CARDS if plain_name and plain[name].startswith(plain_name)]
    by_number = [name for name in CARDS if plain_name[:1].isdigit() and plain[name].endswith(plain_name)]
    for matches in ([name for name in CARDS if plain[name] == plain_name], by_number, several):
        if len(matches) == 1:
            return CARDS[matches[0]]
    near = several[:MAX_NAMES] or find_nearest(text, CARDS)
    problem = f"This card is not known; did you mean {' or '.join(near)}?" if near else "This card is not known."
    hint = "" if near else f", or one of: {', '.join(CARDS)}"
    raise ConfigError(OPTION, text, "command line", problem, f"Give its memory, such as 24GiB{hint}.")


def _parse_card_size(text: str) -> Card:
    plain = re.sub(r"(?i)i?b$", "", text)
    memory = parse_size(plain if plain[-1].isalpha() else f"{plain}G")
    if memory <= CONTEXT:
        raise ConfigError(OPTION, text, "command line", "No run fits into so little.", "Give a size such as 24GiB.")
    return empty_card(f"a card of {show_size(memory)}", memory, USUAL)


def _normalize_name(name: str) -> str:
    return _MAKER.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))
