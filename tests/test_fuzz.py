"""A slice of `make fuzz` with a fixed seed, and that the fuzzer itself can fail."""

from __future__ import annotations

import pytest

from benchmarks.fuzz import run_target, table
from benchmarks.fuzz_files import targets_of
from retro_demo.errors import UserError

SLICE = 12
SHORTER = {"output folders": 10}  # each is some thirty commands
NAMES = 30  # of targets, told here so that none is lost unseen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def targets(folder):
    return targets_of(folder)


@pytest.mark.parametrize("place", range(NAMES))
@pytest.mark.filterwarnings("ignore")
def test_every_input_ends_in_a_result_or_a_sentence(targets, folder, place):
    assert len(targets) == NAMES
    name, target = list(targets.items())[place]

    count = SHORTER.get(name, SLICE)

    tally = run_target(target, name, 0, range(count), folder / "work")

    assert not tally.crashes, tally.crashes[0][1]
    assert tally.results + tally.refusals == count


def test_a_crash_is_counted_with_its_number_and_the_same_seed_makes_it_again(tmp_path):
    def target(rng, _folder):
        number = rng.random()
        if number < 0.2:
            raise KeyError(f"{number}")
        if number < 0.5:
            raise UserError("no")

    first, again = (run_target(target, "some", 3, range(40), tmp_path) for _ in range(2))

    assert first.crashes
    assert first.crashes == again.crashes
    assert first.results + first.refusals + len(first.crashes) == 40
    only = run_target(target, "some", 3, range(first.crashes[0][0], first.crashes[0][0] + 1), tmp_path)
    assert only.crashes == first.crashes[:1]
    assert f"| some | 40 | {first.results} | {first.refusals} | {len(first.crashes)} |" in table(
        {"some": first}
    )
