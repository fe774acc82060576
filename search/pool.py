"""The best architectures that a search has found. Scores are relative to the baseline's best so
far: those that are known hold until a member or the baseline has a new result."""

from __future__ import annotations

from statistics import fmean

from deap import tools

from search.archive import Architecture, Scores


class Pool:
    """The best `size` architectures by score."""

    def __init__(self, size: int, scores: Scores) -> None:
        self.size, self.scores = size, scores
        self.members: list[Architecture] = []
        self.joined = 0  # how many have ever become members
        # Scores of members, and the least of them: asked for all the time.
        self._known: dict[Architecture, float] = {}
        self._worst: float | None = None

    def __contains__(self, architecture: Architecture) -> bool:
        return any(member is architecture for member in self.members)

    def ranked(self) -> list[Architecture]:
        """The members, best first; of equals the older first."""
        return sorted(self.members, key=self.score, reverse=True)

    def statistics(self) -> dict[str, float]:
        """Best, mean and worst score of the members."""
        statistics = tools.Statistics(self.score)
        for name, reduce in (("best", max), ("mean", fmean), ("worst", min)):
            statistics.register(name, reduce)
        return dict(statistics.compile(self.members)) if self.members else {}

    def admits(self, score: float) -> bool:
        """Would a new member of that score be taken in?"""
        return len(self.members) < self.size or score > self.worst()

    def worst(self) -> float:
        """The least score of a member."""
        if self._worst is None:
            self._worst = min(map(self.score, self.members))
        return self._worst

    def score(self, member: Architecture) -> float:
        """The score of a member."""
        found = self._known.get(member)
        if found is None:
            found = self._known[member] = self.scores.score(member)
        return found

    def told(self, architecture: Architecture) -> None:
        """There is a new result: scores change when it is a member's or the baseline's."""
        if self._known.pop(architecture, None) is not None:
            self._worst = None
        if architecture is self.scores.baseline:
            self._known.clear()
            self._worst = None

    def offer(self, architecture: Architecture) -> bool:
        """Take it in: as a new member while there is room, else in the place of the worst if it
        scores better. Of equals the older stays."""
        if architecture in self:
            return True
        if len(self.members) >= self.size:
            if not self.admits(self.scores.score(architecture)):
                return False
            worst = min(reversed(self.members), key=self.score)  # of equals the younger
            self.members.remove(worst)
            self._known.pop(worst)
            worst.leave()
        self.members.append(architecture)
        self._worst = None
        self.joined += 1
        architecture.alive += 1
        return True
