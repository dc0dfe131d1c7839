"""Break each convention on purpose: one of the four checks has to notice."""

from __future__ import annotations

import pytest

from darkroom import families
from tests.families.faults import FAULTS, Fault, caught
from tests.rows import each_row

QUICK = [fault for fault in FAULTS if fault.caught_by != "oracle"]
SLOW = [fault for fault in FAULTS if fault.caught_by == "oracle"]


# what every family can get wrong, by the words that its faults have for it
LEAST = {"sign": {"sign"}, "time": {"time"}, "scale": {"scale", "statistics", "shift"}}


def title(fault: Fault) -> str:
    return f"{fault.family} {fault.flavour}: {fault.convention}"


@each_row("name", families.names())
def test_every_family_breaks_at_least_sign_time_and_scale(name):
    words = {word for fault in FAULTS if fault.family == name for word in fault.convention.split()}
    assert [what for what, either in LEAST.items() if not words & either] == []


@pytest.mark.parametrize("family", sorted({fault.family for fault in QUICK}))
def test_a_broken_convention_is_caught(family, subtests):
    for fault in (fault for fault in QUICK if fault.family == family):
        with subtests.test(title(fault)):
            found = caught(fault)
            assert found is not None, "no check noticed"
            assert found[0] == fault.caught_by


@pytest.mark.slow
@pytest.mark.each_family
@pytest.mark.parametrize("fault", SLOW, ids=title)
def test_a_broken_sign_is_caught_by_the_oracle(fault):
    found = caught(fault)
    assert found is not None, "no check noticed"
    assert found[0] == "oracle"
