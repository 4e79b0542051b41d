"""The protocol keeps its promises in every state that can be reached within a bound, and the model notices where it would not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.protocol import ABSENT, AVOIDS, MUTATIONS, OF_BUCKETS, Bound, explore

TOGGLE = ((0, 1), (0, 0))
"""One publisher changes a chunk, another changes it back: the first file is put again while it may be collected."""
COMMITS = Bound(TOGGLE, collections=0, sends=2)
SOURCE = Bound(((0, ABSENT), (0, ABSENT)), values=3, edits=2, collections=0, sends=1)
COLLECTING = Bound(TOGGLE, sends=0)
BUCKET = Bound(TOGGLE, sends=0, bucket=True)
PULLING = Bound(((0, 1),), pulls=1, sends=0)

BREAKS = {
    "no_grace": (PULLING, "which is missing"),
    "reuses_what_seems_to_be_there": (COLLECTING, "which is missing"),
    "unclear_is_lost": (COMMITS, "committed twice"),
    "archives_after_the_swap": (PULLING, "not archived"),
    "age_from_own_time": (PULLING, "superseded"),
    "age_from_own_archive": (PULLING, "superseded"),
    "deletes_by_the_listing": (COLLECTING, "which is missing"),
    "never_gives_up": (COLLECTING, "which is missing"),
    "keeps_an_old_reading": (SOURCE, "old reading"),
    "swaps_without_comparing": (COMMITS, "committed twice"),
    "lists_before_head": (PULLING, "which is missing"),
}


@pytest.mark.parametrize(
    "bound", [COMMITS, SOURCE, COLLECTING, PULLING], ids=["commits", "source", "collecting", "pulling"]
)
def test_no_promise_is_broken(bound):
    states, way = explore(bound)
    assert way is None
    assert states > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "bound",
    [
        Bound(TOGGLE, sends=1),
        Bound(TOGGLE, sends=0, pulls=1),
        Bound((*TOGGLE, (0, 1)), collections=0, sends=1),
        Bound(((0, ABSENT),) * 3, values=3, edits=2, collections=0, sends=0),
    ],
    ids=["collecting", "pulling", "commits", "source"],
)
def test_no_promise_is_broken_in_a_larger_bound(bound):
    states, way = explore(bound)
    assert way is None
    assert states > 5_000


@pytest.mark.parametrize("mutation", BREAKS)
def test_the_model_notices_a_protocol_that_is_wrong(mutation):
    bound, promise = BREAKS[mutation]
    _, way = explore(bound, mutation)
    assert way is not None
    assert promise in way[-1]


def test_reading_head_again_is_not_what_protects():
    """A file that is looked at again in the moment it is removed is safe without; the collector reads HEAD all the same."""
    assert explore(PULLING, "head_not_read_again")[1] is None
    assert set(MUTATIONS) == {*BREAKS, "head_not_read_again"}


@pytest.mark.slow
@pytest.mark.parametrize("collections", [1, 2])
def test_no_promise_is_broken_in_a_bucket(collections):
    states, way = explore(replace(BUCKET, collections=collections))
    assert way is None
    assert states > 40_000


@pytest.mark.slow
@pytest.mark.parametrize("mutation", OF_BUCKETS)
def test_each_part_of_what_buckets_need_is_needed(mutation):
    _, way = explore(BUCKET, mutation)
    assert way is not None
    assert "which is missing" in way[-1]


@pytest.mark.slow
def test_names_that_have_lain_long_can_be_avoided_instead():
    """What a store that removes by the listing needs: publishers that put such content under another name."""
    bound = Bound(TOGGLE, values=4, sends=0)
    assert explore(bound, "deletes_by_the_listing")[1] is not None
    assert explore(bound, AVOIDS)[1] is None
