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

    def offer(self, architecture: Architecture) -> bool:
        """Take it in: as a new member while there is room, else in the place of the worst if it
        scores better. Of equals the older stays."""
        if architecture in self:
            return True
        if len(self.members) >= self.size:
            score = self.scores.score
            worst = min(reversed(self.members), key=score)  # of equals the younger
            if score(architecture) <= score(worst):
                return False
            self.members.remove(worst)
            worst.leave()
        self.members.append(architecture)
        architecture.alive += 1
        return True
