"""The bookkeeping finds exactly the images that kill, and loses few labellers on the way."""

import math

from hypothesis import given
from hypothesis import strategies as st

from batchdet.cluster.isolation import Suspect
from batchdet.records import ImageRef


def isolate(count: int, deadly: set[int]) -> tuple[set[str], int]:
    """Play the driver against images of which `deadly` kill; the poison found and the labellers lost."""
    refs = [ImageRef(f"memory://b/{number:05d}.jpg") for number in range(count)]
    killers = {refs[number].uri for number in deadly}
    suspect = Suspect(shard_id=0)
    deaths = 0
    while True:
        probe = suspect.next_probe()
        tried = probe if probe is not None else [ref for ref in refs if ref.uri not in suspect.poison]
        survived = not killers & {ref.uri for ref in tried}
        deaths += not survived
        if probe is not None:
            suspect.probed(survived)
        elif survived:
            return set(suspect.poison), deaths
        else:
            suspect.died_whole(refs)


@given(st.integers(1, 200).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1)))))
def test_finds_exactly_the_killing_images(case: tuple[int, set[int]]) -> None:
    count, deadly = case
    found, _ = isolate(count, deadly)
    assert found == {f"memory://b/{number:05d}.jpg" for number in deadly}


@given(st.integers(1, 4096).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))))
def test_one_killing_image_costs_at_most_a_labeller_for_each_halving(case: tuple[int, int]) -> None:
    count, position = case
    _, deaths = isolate(count, {position})
    assert deaths <= 2 + math.ceil(math.log2(count))


def test_an_innocent_shard_loses_no_labeller() -> None:
    assert isolate(64, set()) == (set(), 0)


def test_no_image_is_failed_for_a_death_it_did_not_cause() -> None:
    refs = [ImageRef(f"memory://b/{number}.jpg") for number in range(8)]
    suspect = Suspect(shard_id=0)
    suspect.died_whole(refs)  # the node was short of memory, say: no image kills
    while suspect.next_probe() is not None:
        suspect.probed(survived=True)
    assert suspect.poison == {}
