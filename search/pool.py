"""The best architectures that a search has found. Scores are relative to the baseline's best so
far, so they are computed anew."""

from __future__ import annotations

from statistics import fmean

from deap import tools

from search.archive import Architecture, Scores


class Pool:
    """The best `size` architectures by score."""

    def __init__(self, size: int, scores: Scores) -> None:
        self.size, self.scores = size, scores
        self.members: list[Architecture] = []
        self._worst: float | None = None  # asked for by every candidate

    def __contains__(self, architecture: Architecture) -> bool:
        return any(member is architecture for member in self.members)

    def ranked(self) -> list[Architecture]:
        """The members, best first; of equals the older first."""
        return sorted(self.members, key=self.scores.score, reverse=True)

    def statistics(self) -> dict[str, float]:
        """Best, mean and worst score of the members."""
        statistics = tools.Statistics(self.scores.score)
        for name, reduce in (("best", max), ("mean", fmean), ("worst", min)):
            statistics.register(name, reduce)
        return dict(statistics.compile(self.members)) if self.members else {}

    def admits(self, score: float) -> bool:
        """Would a new member of that score be taken in?"""
        return len(self.members) < self.size or score > self.worst()

    def worst(self) -> float:
        """The least score of a member."""
        if self._worst is None:
            self._worst = min(map(self.scores.score, self.members))
        return self._worst

    def told(self, architecture: Architecture) -> None:
        """There is a new result: scores change when it is a member's or the baseline's."""
        if architecture.alive or architecture is self.scores.baseline:
            self._worst = None

    def offer(self, architecture: Architecture) -> bool:
        """Take it in: as a new member while there is room, else in the place of the worst if it
        scores better. Of equals the older stays."""
        if architecture in self:
            return True
        if len(self.members) >= self.size:
            score = self.scores.score
            if not self.admits(score(architecture)):
                return False
            worst = min(reversed(self.members), key=score)  # of equals the younger
            self.members.remove(worst)
            worst.leave()
        self.members.append(architecture)
        architecture.alive += 1
        self._worst = None
        return True
