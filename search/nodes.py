"""The nodes of a Ray cluster, as they come and go. Is handed Ray, which it does not import."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from search.executor import Event

# Seconds between two looks.
_PERIOD = 2.0

# Address and cores of each living node, by its name.
_Known = dict[str, tuple[str, int]]


class Watcher:
    """An actor that needs no core: looks for others.

    Not the driver itself: when the head node has died, whoever asks Ray for its nodes hangs.
    """

    def __init__(self, import_ray: Callable[[], Any]) -> None:
        self._ray = import_ray()

    def look(self, known: _Known) -> _Known:
        """The nodes, as soon as they are others than `known`."""
        while (nodes := _look(self._ray)) == known:
            time.sleep(_PERIOD)
        return nodes


class Nodes:
    """What is known of the nodes; Ray makes `reference` ready when that has changed."""

    watcher: Any
    reference: Any

    def __init__(self, ray: Any, import_ray: Callable[[], Any]) -> None:
        # Watched from where the driver runs, as that does not get lost while the driver lives.
        here = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, True)
        options = {"num_cpus": 0, "enable_task_events": False, "scheduling_strategy": strategy}
        kind = ray.remote(Watcher).options(**options)
        self._new: Callable[[], Any] = lambda: kind.remote(import_ray)
        self._known = _look(ray)
        self.watcher = self._new()
        self._ask()

    @property
    def cores(self) -> int:
        """All of them together, and at least one, as there will be one."""
        return max(1, sum(cores for _, cores in self._known.values()))

    def take(self, news: Any) -> list[Event]:
        """What the value behind `reference`, an exception perhaps, means; then watch on."""
        events: list[Event] = []
        if isinstance(news, BaseException):  # its worker was killed
            self.watcher = self._new()
        else:
            before, self._known = self._known, news
            changes = (("node_joined", news, before), ("node_left", before, news))
            for kind, some, others in changes:
                for name, (place, cores) in some.items():
                    if name not in others:
                        events.append((kind, {"node": place, "cores": cores}))
        self._ask()
        return events

    def _ask(self) -> None:
        self.reference = self.watcher.look.remote(self._known)


def _look(ray: Any) -> _Known:
    return {
        node["NodeID"]: (node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    }
