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
FEW = 3
# and if its blocks hold at least this share of the network's modules
SHARE = 0.05
MIDDLE = re.compile(r" middle\b")


@dataclasses.dataclass(frozen=True)
class Kind:
    """Blocks that are alike: how many of them are in each of several lists, by the lists' names in the network.

    `places` are the blocks' positions in their list, in order; all of them have so many `modules`.
    """

    count: int
    modules: int
    places: tuple[tuple[str, tuple[int, ...]], ...]

    def kept(self, count: int) -> dict[str, set[int]]:
        """The positions that stay of each list if `count` blocks do: the first ones, and the last."""
        return {path: {*where[: count - 1], where[-1]} for path, where in self.places}


def kinds_of(model: nn.Module, patterns: Sequence[str] = ()) -> list[Kind]:
    """The kinds of blocks that repeat in a network.

    `patterns` name layers that something is done to: blocks that one of them names by their number are told apart.
    """
    total = sum(1 for _ in model.modules())
    found: dict[tuple[object, int], list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
    weight: Counter[tuple[object, int]] = Counter()
    for path, blocks in _lists(model):
        alike: dict[object, list[int]] = defaultdict(list)
        for number, block in enumerate(blocks):
            alike[_looks(block), _named_by(f"{path}.{number}", patterns)].append(number)
        for looks, where in alike.items():
            if len(where) > FEW:
                found[looks, len(where)].append((path, tuple(where)))
                weight[looks, len(where)] += sum(1 for number in where for _ in blocks[number].modules())
    chosen = [key for key in found if weight[key] >= SHARE * total]
    return [Kind(count, weight[looks, count], tuple(found[looks, count])) for looks, count in chosen]


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Every list of blocks that is not inside a block of another list which repeats."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in inside):
            if max(Counter(map(_looks, module)).values(), default=0) > FEW:
                inside.append(path)
            yield path, module


def _looks(block: nn.Module) -> tuple[object, ...]:
    """What two blocks that do the same have in common: classes, shapes, and what is switched on or off in them."""
    modules = tuple(
        (name, type(module), tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, (bool, str)))))
        for name, module in block.named_modules()
    )
    return modules, tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters())


def _named_by(path: str, patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(p for p in patterns if re.search(rf"(^|\.){re.escape(path)}(\.|$)", p))


def shorten(model: nn.Module, kinds: Sequence[Kind], counts: Sequence[int]) -> None:
    """Leave so many blocks of each kind. Those that stay keep their names."""
    gone: dict[str, set[int]] = defaultdict(set)
    for kind, count in zip(kinds, counts, strict=True):
        for path, kept in kind.kept(count).items():
            gone[path] |= set(dict(kind.places)[path]) - kept
    for path, numbers in gone.items():
        blocks = model.get_submodule(path)
        for number in numbers:
            blocks._modules.pop(str(number), None)


def shortened(model: nn.Module, kinds: Sequence[Kind], counts: Sequence[int]) -> nn.Module:
    """A copy of a network with so many blocks of each kind."""
    lists = {path: model.get_submodule(path) for kind in kinds for path, _ in kind.places}
    whole = {path: dict(blocks._modules) for path, blocks in lists.items()}
    shorten(model, kinds, counts)
    try:
        return copy.deepcopy(model)
    finally:
        for path, blocks in lists.items():
            blocks._modules.clear()
            blocks._modules.update(whole[path])


def fewest(kinds: Sequence[Kind], stride: int = 1) -> dict[Kind, int]:
    """How few blocks of each kind show what any number takes, if every `stride`-th of them is treated alike.

    Kinds of which there are no more are left out.
    """
    few = {kind: 2 * stride + kind.count % stride for kind in kinds}
    return {kind: count for kind, count in few.items() if kind.count > count + stride}


def follow(model: nn.Module, kinds: Sequence[Kind], tell: Callable[[str], None]) -> None:
    """Tell when the first and the last block of each kind that repeats is entered, forwards or backwards.

    Between two of these moments, what is held is linear in the numbers of blocks; the blocks between are "middle".
    """
    for kind in kinds:
        for path, where in kind.places:
            blocks = model.get_submodule(path)._modules
            for number in (n for n in where if str(n) in blocks):
                part = {where[0]: "first", where[-1]: "last"}.get(number, "middle")
                _follow(blocks[str(number)], f"{path} {part}", tell)


def _follow(block: nn.Module | None, name: str, tell: Callable[[str], None]) -> None:
    assert block is not None

    def enter(*_: object) -> None:
        tell(name)

    def left(module: nn.Module, given: object, answer: object) -> None:
        for tensor in pytree.tree_leaves(answer):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: tell(f"{name}, backwards"))
                return  # the first gradient to come is the block's

    block.register_forward_pre_hook(enter)
    block.register_forward_hook(left)


def extend(base: Mapping[str, int], more: Sequence[Mapping[str, int]], times: Sequence[float]) -> int:
    """The highest of several moments, from what each took: with few blocks of each kind, and with some more of one kind
    after the other. `times` says how often those come on top.

    Raises ValueError if the moments are not the same.
    """
    rows = [base, *more]
    names = [{name for name in row if not MIDDLE.search(name)} for row in rows]
    if any(each != names[0] for each in names):
        raise ValueError("with more blocks other things happen")
    return max(
        round(base[name] + sum((row[name] - base[name]) * often for row, often in zip(more, times, strict=True)))
        for name in names[0]
    )
