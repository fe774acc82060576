"""Who runs what, and who is to blame: the scheduling of workers that die, without any."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search.dispatch import Call, Dispatch, Lane


def dispatch(lanes: int, units: int, attempts: int = 3) -> Dispatch:
    made = Dispatch(lanes, attempts)
    for lane in made.lanes:
        lane.up = True
    for unit in range(units):
        made.add(Call(unit, {}, limit=10.0))
    return made


def assigned(made: Dispatch, now: float = 0.0) -> list[tuple[int, int]]:
    return [(lane.index, call.unit) for lane, call in made.assign(now)]


def units(lane: Lane) -> list[int]:
    return [call.unit for call in lane.calls]


def test_every_lane_gets_one_call_before_any_gets_two():
    made = dispatch(lanes=3, units=7)
    assert assigned(made) == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5)]
    assert assigned(made) == []
    made.finish(made.lanes[1], made.lanes[1].calls[0], now=1.0)
    assert assigned(made) == [(1, 6)]
    assert made.outstanding == 6


def test_lanes_that_are_down_get_nothing():
    made = dispatch(lanes=2, units=3)
    made.lanes[0].up = False
    assert assigned(made) == [(1, 0), (1, 1)]


def test_the_clock_of_a_call_starts_when_it_is_the_oldest():
    made = dispatch(lanes=1, units=2)
    lane = made.lanes[0]
    assert lane.deadline is None
    assigned(made, now=5.0)
    assert lane.deadline == 15.0
    made.finish(lane, lane.calls[0], now=12.0)
    assert lane.deadline == 22.0
    made.finish(lane, lane.calls[0], now=13.0)
    assert lane.deadline is None


def test_results_that_arrive_out_of_order():
    made = dispatch(lanes=1, units=2)
    lane = made.lanes[0]
    assigned(made, now=5.0)
    made.finish(lane, lane.calls[1], now=6.0)
    assert units(lane) == [0]
    assert lane.deadline == 15.0


def test_only_the_oldest_call_of_a_dead_lane_is_blamed():
    made = dispatch(lanes=1, units=4)
    lane = made.lanes[0]
    assigned(made)
    assert made.lose(lane) is None
    assert not lane.up
    assert made.outstanding == 4
    lane.up = True
    assert assigned(made) == [(0, 0)]  # the suspect, alone
    assert lane.calls[0].deaths == 1
    made.finish(lane, lane.calls[0], now=1.0)
    assert assigned(made) == [(0, 1), (0, 2)]  # its mate, as if nothing had happened
    assert [call.deaths for call in lane.calls] == [0, 0]


def test_a_suspect_gets_the_next_lane_that_is_empty():
    made = dispatch(lanes=2, units=9)
    first, second = made.lanes
    assigned(made)  # first: 0 2, second: 1 3
    made.lose(first)
    made.finish(second, second.calls[0], now=1.0)
    assert assigned(made) == []  # no second call anywhere as long as a suspect waits
    made.finish(second, second.calls[0], now=2.0)
    assert assigned(made) == [(1, 0)]
    first.up = True
    assert assigned(made) == [(0, 2), (0, 4)]


def test_a_call_that_kills_too_often_is_given_up():
    made = dispatch(lanes=1, units=1, attempts=2)
    lane = made.lanes[0]
    assigned(made)
    assert made.lose(lane) is None
    lane.up = True
    assigned(made)
    given_up = made.lose(lane)
    assert given_up is not None
    assert (given_up.unit, given_up.deaths) == (0, 2)
    assert made.outstanding == 0
    assert made.lose(lane) is None  # an idle lane dies without anybody to blame


def test_evicting_for_a_timeout_blames_nobody():
    made = dispatch(lanes=1, units=3)
    lane = made.lanes[0]
    assigned(made)
    oldest = made.evict(lane)
    assert oldest is not None
    assert (oldest.unit, oldest.deaths) == (0, 0)
    lane.up = True
    assert assigned(made) == [(0, 1), (0, 2)]


@given(
    lanes=st.integers(1, 4),
    count=st.integers(0, 12),
    poison=st.sets(st.integers(0, 11)),
    attempts=st.integers(1, 3),
    choices=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60),
)
def test_every_call_ends_exactly_once_and_only_killers_are_given_up(
    lanes: int, count: int, poison: set[int], attempts: int, choices: list[tuple[int, bool]]
):
    made = dispatch(lanes, count, attempts)
    ended: list[int] = []
    turn = 0
    while made.outstanding:
        assert turn < 1000
        list(made.assign(float(turn)))
        pick, restart = choices[turn % len(choices)] if choices else (turn, True)
        turn += 1
        lane = made.lanes[pick % lanes] if turn % 2 else made.lanes[turn // 2 % lanes]
        if not lane.up:
            lane.up = restart or turn > 100
        elif lane.calls:
            suspects = [call for call in lane.calls if call.deaths]
            assert not suspects or len(lane.calls) == 1
            oldest = lane.calls[0]
            if oldest.unit in poison:
                given_up = made.lose(lane)
                assert (given_up is oldest) == (oldest.deaths == attempts)
                ended += [given_up.unit] if given_up else []
            else:
                assert oldest.deaths == 0
                made.finish(lane, oldest, float(turn))
                ended.append(oldest.unit)
    assert sorted(ended) == list(range(count))
