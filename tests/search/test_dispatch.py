"""Who runs what, and who is to blame: the scheduling of workers that die, without any."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search.dispatch import NODE_LOSSES, Call, Dispatch, Lane


def dispatch(lanes: int, units: int, attempts: int = 3, recycle: int | None = None) -> Dispatch:
    made = Dispatch(attempts, recycle)
    for _ in range(lanes):
        up(made, made.add_lane())
    for unit in range(units):
        made.add(Call(unit, b"", limit=10.0))
    return made


def up(made: Dispatch, lane: Lane) -> None:
    made.start(lane, f"worker {lane.number}")


def assigned(made: Dispatch, now: float = 0.0) -> list[tuple[int, int]]:
    return [(lane.number, call.unit) for lane, call in made.assign(now)]


def units(lane: Lane) -> list[int]:
    return [call.unit for call in lane.calls]


def answer(made: Dispatch, lane: Lane, now: float = 0.0, seconds: float = 1.0) -> list[int]:
    return [call.unit for call in made.finish(lane, lane.calls[0], now, seconds)]


def test_every_lane_gets_one_call_before_any_gets_two():
    made = dispatch(lanes=3, units=7)
    assert assigned(made) == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5)]
    assert assigned(made) == []
    answer(made, made.lanes[1], now=1.0)
    assert assigned(made) == [(1, 6)]
    assert made.outstanding == 6


def test_lanes_that_are_down_get_nothing():
    made = dispatch(lanes=2, units=3)
    made.lose(made.lanes[0])
    assert assigned(made) == [(1, 0), (1, 1)]
    assert made.outstanding == 3


def test_the_clock_of_a_call_starts_when_it_is_the_oldest():
    made = dispatch(lanes=1, units=2)
    lane = made.lanes[0]
    assert lane.deadline is None
    assigned(made, now=5.0)
    assert lane.deadline == 15.0
    answer(made, lane, now=12.0)
    assert lane.deadline == 22.0
    answer(made, lane, now=13.0)
    assert lane.deadline is None


def test_results_that_arrive_out_of_order():
    made = dispatch(lanes=1, units=2)
    lane = made.lanes[0]
    assigned(made, now=5.0)
    made.finish(lane, lane.calls[1], now=6.0, seconds=1.0)
    assert units(lane) == [0]
    assert lane.deadline == 15.0


def test_only_the_oldest_call_of_a_dead_lane_is_blamed():
    made = dispatch(lanes=1, units=4)
    lane = made.lanes[0]
    assigned(made)
    assert made.lose(lane) is None
    assert not lane.up
    assert made.outstanding == 4
    up(made, lane)
    assert assigned(made) == [(0, 0)]  # the suspect, alone, and here as there is no other lane
    assert lane.calls[0].failures == 1
    answer(made, lane)
    assert assigned(made) == [(0, 1), (0, 2)]  # its mate, as if nothing had happened
    assert [call.failures for call in lane.calls] == [0, 0]


def test_a_suspect_is_tried_on_another_lane():
    made = dispatch(lanes=2, units=9)
    first, second = made.lanes
    assert assigned(made) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    made.lose(first)
    up(made, first)
    # Its own lane goes on, with one call at a time as long as the suspect waits for the other.
    assert assigned(made) == [(0, 2)]
    answer(made, second)
    assert assigned(made) == []
    answer(made, second)
    assert assigned(made) == [(1, 0), (0, 4)]


def test_a_suspect_does_not_wait_for_a_lane_that_is_down():
    made = dispatch(lanes=2, units=3)
    first, second = made.lanes
    assigned(made)
    made.lose(first)
    made.lose(second, node=True)
    up(made, first)
    assert assigned(made) == [(0, 0)]


def test_a_call_that_kills_too_often_is_given_up():
    made = dispatch(lanes=1, units=1, attempts=2)
    lane = made.lanes[0]
    assigned(made)
    assert made.lose(lane) is None
    up(made, lane)
    assigned(made)
    given_up = made.lose(lane)
    assert given_up is not None
    assert (given_up.unit, given_up.failures, given_up.starts) == (0, 2, 2)
    assert made.outstanding == 0
    assert made.lose(lane) is None  # an idle lane dies without anybody to blame


def test_a_lost_node_blames_nobody_at_first():
    made = dispatch(lanes=1, units=3, attempts=1)
    lane = made.lanes[0]
    for losses in range(1, NODE_LOSSES):
        assert assigned(made) == [(0, 0), (0, 1)]
        assert made.lose(lane, node=True) is None
        assert made.outstanding == 3
        up(made, lane)
        assert losses < NODE_LOSSES
    assigned(made)
    given_up = made.lose(lane, node=True)
    assert given_up is not None
    assert (given_up.unit, given_up.failures, given_up.starts) == (0, 0, NODE_LOSSES)


def test_a_suspect_on_a_lost_node_stays_a_suspect():
    made = dispatch(lanes=1, units=3)
    lane = made.lanes[0]
    assigned(made)
    for _ in range(2):
        made.lose(lane, node=lane.calls[0].failures > 0)
        up(made, lane)
        assert assigned(made) == [(0, 0)]


def test_a_worker_that_answered_but_failed_is_replaced():
    made = dispatch(lanes=2, units=5, attempts=2)
    first, second = made.lanes
    assigned(made)
    failed = first.calls[0]
    answer(made, first)
    assert made.fail(first, failed, 1.0, alone=True) is None
    assert made.replaceable() == []  # something is in flight on it
    answer(made, first)
    assert made.replaceable() == [first]
    answer(made, second)
    answer(made, second)
    assert assigned(made) == [(1, 0)]  # alone on the other
    answer(made, second)
    assert made.fail(second, failed, 2.0, alone=True) is failed
    assert made.outstanding == 1


def test_recycling_waits_for_the_calls_in_flight():
    made = dispatch(lanes=1, units=9, recycle=2)
    lane = made.lanes[0]
    assigned(made)
    answer(made, lane)
    assert assigned(made) == [(0, 2)]
    answer(made, lane)
    assert assigned(made) == []  # two are answered, the third is under way
    assert made.replaceable() == []
    answer(made, lane)
    assert made.replaceable() == [lane]
    assert made.lose(lane) is None
    assert made.replaceable() == []
    up(made, lane)
    assert assigned(made) == [(0, 3), (0, 4)]


def test_one_lane_is_recycled_at_a_time():
    made = dispatch(lanes=2, units=20, recycle=1)
    first, second = made.lanes
    assigned(made)
    answer(made, first)
    answer(made, second)
    assert [lane.retiring for lane in made.lanes] == [True, False]
    answer(made, first)
    made.lose(first)
    assigned(made)
    answer(made, second)
    assert not second.retiring
    up(made, first)
    assigned(made)
    answer(made, second)
    assert second.retiring


def test_recycling_does_not_wait_for_ever_for_a_worker_that_never_comes():
    made = dispatch(lanes=2, units=20, recycle=1)
    first, second = made.lanes
    assigned(made)
    answer(made, first, now=0.0)
    answer(made, second, now=59.0)
    assert not second.retiring
    answer(made, second, now=61.0)
    assert second.retiring


def test_draining_starts_nothing():
    made = dispatch(lanes=2, units=9)
    first, second = made.lanes
    assigned(made)
    made.drain()
    assert made.outstanding == 4
    made.lose(first)
    up(made, first)
    assert assigned(made) == []
    answer(made, second)
    answer(made, second)
    assert made.outstanding == 0


def test_removed_lanes_get_nothing():
    made = dispatch(lanes=2, units=9)
    made.lose(made.lanes[0])
    made.remove_lane(made.lanes[0])
    assert [lane.number for lane in made.lanes] == [1]
    assert made.add_lane().number == 2
    assert assigned(made) == [(1, 0), (1, 1)]


def short(lanes: int, count: int, attempts: int = 3, seconds: float = 0.0012) -> Dispatch:
    """A dispatch that has seen a short call on every lane, with `count` others queued."""
    made = dispatch(lanes, lanes, attempts)
    assigned(made)
    for lane in made.lanes:
        answer(made, lane, seconds=seconds)
    for unit in range(count):
        made.add(Call(100 + unit, b"", limit=10.0 + unit))
    return made


def parties(made: Dispatch) -> list[list[int]]:
    return [[call.unit for call in first.party] for _, first in made.assign(0.0)]


def test_short_calls_travel_together():
    made = short(lanes=2, count=14, seconds=0.00124)  # four of them take a journey's 5 ms
    assert parties(made) == [
        [100, 101, 102, 103],
        [104, 105, 106, 107],
        [108, 109, 110, 111],
        [112, 113],
    ]
    assert made.outstanding == 14
    first = made.lanes[0]
    assert first.deadline == 13.0  # the longest of them, not all four
    assert answer(made, first, seconds=0.001) == [100, 101, 102, 103]
    assert made.outstanding == 10


def test_at_most_eight_travel_together():
    made = short(lanes=1, count=40, seconds=0.0)
    assert [len(party) for party in parties(made)] == [8, 8]


def test_long_calls_travel_alone():
    made = short(lanes=1, count=40)
    parties(made)
    answer(made, made.lanes[0], seconds=1.0)
    assert parties(made) == [[108]]


def test_what_fails_together_is_tried_alone_before_anybody_is_blamed():
    made = short(lanes=1, count=8, attempts=1)
    lane = made.lanes[0]
    assert parties(made) == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert made.lose(lane) is None
    assert made.outstanding == 8
    up(made, lane)
    for unit in (100, 101):
        assert parties(made) == [[unit]]
        answer(made, lane, seconds=0.001)
    assert parties(made) == [[102]]
    given_up = made.lose(lane)
    assert given_up is not None
    assert (given_up.unit, given_up.starts) == (102, 1)
    up(made, lane)
    assert parties(made) == [[103]]
    answer(made, lane, seconds=0.001)
    assert sorted(unit for party in parties(made) for unit in party) == [104, 105, 106, 107]


def test_one_of_a_party_that_failed_is_tried_alone():
    made = short(lanes=1, count=4, attempts=1, seconds=0.0024)
    lane = made.lanes[0]
    assert parties(made) == [[100, 101], [102, 103]]
    (_, failed) = made.finish(lane, lane.calls[0], 0.0, 0.002)
    assert made.fail(lane, failed, 0.0, alone=False) is None
    assert made.replaceable() == []
    answer(made, lane, seconds=0.001)
    assert made.replaceable() == [lane]
    made.lose(lane)
    up(made, lane)
    assert parties(made) == [[101]]
    answer(made, lane)
    assert made.fail(lane, failed, 0.0, alone=True) is failed


@given(
    lanes=st.integers(1, 4),
    count=st.integers(0, 12),
    poison=st.sets(st.integers(0, 11)),
    attempts=st.integers(1, 3),
    recycle=st.sampled_from([None, 1, 3]),
    choices=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60),
    seconds=st.sampled_from([0.001, 1.0]),
)
def test_every_call_ends_exactly_once_and_only_killers_are_given_up(
    lanes: int,
    count: int,
    poison: set[int],
    attempts: int,
    recycle: int | None,
    choices: list[tuple[int, bool]],
    seconds: float,
):
    made = dispatch(lanes, count, attempts, recycle)
    ended: list[int] = []
    turn = 0
    while made.outstanding:
        assert turn < 1000
        for lane in made.replaceable():
            assert made.lose(lane) is None
        before = made.outstanding
        for lane, call in made.assign(float(turn)):
            others = [other for other in made.lanes if other.up and other is not lane]
            assert call.failed_on is not lane or not others
        assert made.outstanding == before
        pick, restart = choices[turn % len(choices)] if choices else (turn, True)
        turn += 1
        lane = made.lanes[pick % lanes] if turn % 2 else made.lanes[turn // 2 % lanes]
        if not lane.up:
            if restart or turn > 100:
                up(made, lane)
        elif lane.calls:
            suspects = [call for call in lane.calls if call.alone]
            assert not suspects or (len(lane.calls) == 1 and not suspects[0].mates)
            oldest = lane.calls[0]
            if any(call.unit in poison for call in oldest.party):
                together = len(oldest.party) > 1
                given_up = made.lose(lane)
                assert (given_up is oldest) == (oldest.failures == attempts)
                assert not (together and given_up)
                ended += [given_up.unit] if given_up else []
            else:
                assert oldest.failures == 0
                ended += answer(made, lane, float(turn), seconds)
    assert sorted(ended) == list(range(count))
