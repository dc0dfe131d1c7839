"""Blocks of a network that repeat, and the network with fewer of them.

What a computation takes is linear in how many alike blocks there are. So two networks with a few of them tell what any
number takes, in a fraction of the time.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.utils import _pytree as pytree

# a list is shortened if it has more alike blocks than that
MAX_UNSHORTENED = 3
# and if its blocks hold at least this share of the network's modules
SHARE = 0.05
MIDDLE = re.compile(r" middle\b")


@dataclasses.dataclass(frozen=True)
class RepeatedBlocks:
    """Blocks that are alike: how many of them are in each of several lists, by the lists' names in the network.

    `positions` are the blocks' positions in their list, in order; all of them have so many `modules`.
    """

    count: int
    modules: int
    positions: tuple[tuple[str, tuple[int, ...]], ...]

    def positions_to_keep(self, count: int) -> dict[str, set[int]]:
        """The positions that stay of each list if `count` blocks do: the first ones, and the last."""
        return {path: {*positions[: count - 1], positions[-1]} for path, positions in self.positions}


def find_repeated_blocks(model: nn.Module, patterns: Sequence[str] = ()) -> list[RepeatedBlocks]:
    """The kinds of blocks that repeat in a network.

    `patterns` name layers that something is done to: blocks that one of them names by their number are told apart.
    """
    total = sum(1 for _ in model.modules())
    groups: dict[tuple[object, int], list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
    weight: Counter[tuple[object, int]] = Counter()
    for path, blocks in _find_lists(model):
        alike: dict[object, list[int]] = defaultdict(list)
        for number, block in enumerate(blocks):
            alike[_signature(block), _match_patterns(f"{path}.{number}", patterns)].append(number)
        for signature, positions in alike.items():
            if len(positions) > MAX_UNSHORTENED:
                groups[signature, len(positions)].append((path, tuple(positions)))
                weight[signature, len(positions)] += sum(1 for number in positions for _ in blocks[number].modules())
    keys = [key for key in groups if weight[key] >= SHARE * total]
    return [
        RepeatedBlocks(count, weight[signature, count], tuple(groups[signature, count])) for signature, count in keys
    ]


def _find_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Every list of blocks that is not inside a block of another list which repeats."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in inside):
            if max(Counter(map(_signature, module)).values(), default=0) > MAX_UNSHORTENED:
                inside.append(path)
            yield path, module


def _signature(block: nn.Module) -> tuple[object, ...]:
    """What two blocks that do the same have in common: classes, shapes, and what is switched on or off in them."""
    modules = tuple(
        (name, type(module), tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, (bool, str)))))
        for name, module in block.named_modules()
    )
    return modules, tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters())


def _match_patterns(path: str, patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(p for p in patterns if re.search(rf"(^|\.){re.escape(path)}(\.|$)", p))


def shorten(model: nn.Module, groups: Sequence[RepeatedBlocks], counts: Sequence[int]) -> None:
    """Leave so many blocks of each kind. Those that stay keep their names."""
    removed: dict[str, set[int]] = defaultdict(set)
    for group, count in zip(groups, counts, strict=True):
        for path, remaining in group.positions_to_keep(count).items():
            removed[path] |= set(dict(group.positions)[path]) - remaining
    for path, numbers in removed.items():
        blocks = model.get_submodule(path)
        for number in numbers:
            blocks._modules.pop(str(number), None)


def copy_shortened(model: nn.Module, groups: Sequence[RepeatedBlocks], counts: Sequence[int]) -> nn.Module:
    """A copy of a network with so many blocks of each kind."""
    lists = {path: model.get_submodule(path) for group in groups for path, _ in group.positions}
    originals = {path: dict(blocks._modules) for path, blocks in lists.items()}
    shorten(model, groups, counts)
    try:
        return copy.deepcopy(model)
    finally:
        for path, blocks in lists.items():
            blocks._modules.clear()
            blocks._modules.update(originals[path])


def find_smallest_counts(groups: Sequence[RepeatedBlocks], stride: int = 1) -> dict[RepeatedBlocks, int]:
    """How few blocks of each kind show what any number takes, if every `stride`-th of them is treated alike.

    Kinds of which there are no more are left out.
    """
    counts = {group: 2 * stride + group.count % stride for group in groups}
    return {group: count for group, count in counts.items() if group.count > count + stride}


def watch_blocks(model: nn.Module, groups: Sequence[RepeatedBlocks], notify: Callable[[str], None]) -> None:
    """Tell when the first and the last block of each kind that repeats is entered, forwards or backwards.

    Between two of these moments, what is held is linear in the numbers of blocks; the blocks between are "middle".
    """
    for group in groups:
        for path, positions in group.positions:
            blocks = model.get_submodule(path)._modules
            for number in (n for n in positions if str(n) in blocks):
                position = {positions[0]: "first", positions[-1]: "last"}.get(number, "middle")
                _watch_block(blocks[str(number)], f"{path} {position}", notify)


def _watch_block(block: nn.Module | None, name: str, notify: Callable[[str], None]) -> None:
    assert block is not None

    def enter(*_: object) -> None:
        notify(name)

    def on_output(module: nn.Module, inputs: object, answer: object) -> None:
        for tensor in pytree.tree_leaves(answer):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: notify(f"{name}, backwards"))
                return  # the first gradient to come is the block's

    block.register_forward_pre_hook(enter)
    block.register_forward_hook(on_output)


def extrapolate(base: Mapping[str, int], extended: Sequence[Mapping[str, int]], times: Sequence[float]) -> int:
    """The highest of several moments, from what each took: with few blocks of each kind, and with some more of one kind
    after the other. `times` says how often those come on top.

    Raises ValueError if the moments are not the same.
    """
    rows = [base, *extended]
    names = [{name for name in row if not MIDDLE.search(name)} for row in rows]
    if any(row_names != names[0] for row_names in names):
        raise ValueError("with more blocks other things happen")
    return max(
        round(base[name] + sum((row[name] - base[name]) * factor for row, factor in zip(extended, times, strict=True)))
        for name in names[0]
    )
