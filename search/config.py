"""The configuration of a run: frozen dataclasses, read from YAML and checked field by field.

The type of a field is its whole specification (`search.typed` reads it), so that a new option is
one line here and nowhere else. Whether a task or a seed cell of that name exists is checked by the
driver (`search.launch.plan`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from evaluators.settings import JOZEFOWICZ, MODERN, Grid
from search import typed
from search.errors import SearchError
from search.typed import FieldError, Rule

Natural = Annotated[int, Rule("a whole number of at least 0", lambda v: v >= 0)]
Count = Annotated[int, Rule("a whole number of at least 1", lambda v: v >= 1)]
Positive = Annotated[float, Rule("a number above 0", lambda v: v > 0)]
Probability = Annotated[float, Rule("a number from 0 to 1", lambda v: 0 <= v <= 1)]
Dropout = Annotated[float, Rule("a number from 0 to below 1", lambda v: 0 <= v < 1)]
Text = Annotated[str, Rule("a text that is not empty", bool)]
RunName = Annotated[
    str,
    Rule(
        "letters, digits, '.', '_' and '-', starting with a letter or digit",
        lambda v: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", v) is not None,
    ),
]
#: Before a tag of the zoo, among the seeds.
TAG = "tag:"
DISTINCT = Rule("a list of different values, at least one", lambda v: 0 < len(v) == len(set(v)))


def _axis(name: str) -> Any:
    """A field that starts with the values of `evaluators.settings.MODERN`."""
    return field(default=getattr(MODERN, name))


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The hyperparameter values that settings are drawn from, one list per axis.

    In YAML either a mapping (axes left out keep the values of `modern`) or one of the names
    `jozefowicz` and `modern`, the grids of `evaluators.settings`. The remaining axis, the parameter
    budget, belongs to the stage.
    """

    optimizer: Annotated[tuple[Literal["sgd", "adam"], ...], DISTINCT] = _axis("optimizer")
    # Initial parameters are uniform in ±scale/√units.
    scale: Annotated[tuple[Positive, ...], DISTINCT] = _axis("scale")
    # Learning rate.
    lr: Annotated[tuple[Positive, ...], DISTINCT] = _axis("lr")
    # Largest norm of the gradient; longer ones are scaled down to it.
    clip: Annotated[tuple[Positive, ...], DISTINCT] = _axis("clip")
    # Layers of the cell on top of each other.
    layers: Annotated[tuple[Count, ...], DISTINCT] = _axis("layers")
    # Share of activations dropped between layers.
    dropout: Annotated[tuple[Dropout, ...], DISTINCT] = _axis("dropout")

    NAMES: ClassVar[tuple[str, ...]] = ("jozefowicz", "modern")

    @classmethod
    def jozefowicz(cls) -> GridConfig:
        """The 840 points of Jozefowicz et al. 2015, section 3.5."""
        return cls._of(JOZEFOWICZ)

    @classmethod
    def modern(cls) -> GridConfig:
        """Adam with points that train small cells in a few hundred steps: the defaults."""
        return cls._of(MODERN)

    @classmethod
    def _of(cls, grid: Grid) -> GridConfig:
        return cls(**{axis.name: getattr(grid, axis.name) for axis in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True)
class MutationConfig:
    """How a child is made from its parent."""

    # Edits of one child: "per_node" draws p ~ U[0, 1] once and edits every node with probability p;
    # [low, high] draws the number of edits uniformly (Jozefowicz et al. 2015 state both).
    edits: Literal["per_node"] | tuple[Count, Count] = "per_node"
    # Draws until a valid cell appears that may be tried now; then other parents are picked.
    attempts: Count = 100
    # Probability that a proposal crosses two parents instead of editing one.
    crossover: Probability = 0.0
    # A child with more nodes is drawn again.
    max_nodes: Count = 80

    def __post_init__(self) -> None:
        if not isinstance(self.edits, str) and self.edits[0] > self.edits[1]:
            raise FieldError("edits", f"the low end exceeds the high end in {list(self.edits)}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The search; the numbers are those of Jozefowicz et al. 2015 where it has any."""

    # Who the parents are (search/algorithms): jozefowicz (a pool of the best), aging (regularised
    # evolution), nsga2 (score against parameters and time), random (no selection: the baseline).
    algorithm: Text = "jozefowicz"
    # Proposals to try, beside the seeds; 0 compares the seeds and ends.
    candidates: Natural = 60
    # The best cells that are kept: the parents in jozefowicz; aging and nsga2 have a population of
    # this size besides.
    pool: Count = 100
    # aging: how many members of the population compete to be the parent.
    tournament: Count = 10
    # random: a proposal is a random walk of at most this many mutations from a random seed.
    walk: Count = 8
    # May a cell that is known be tried again on other settings? The paper does so; else a duplicate
    # takes the results in the archive, and so does a cell whose values equal those of another.
    retry: bool = True
    # The cells that the pool starts with: zoo names, paths of .cell files, or `tag:TAG`, all cells
    # of the zoo with a tag (without those that are seeds already, or have states of other widths);
    # the configuration that a run keeps has their names.
    seeds: Annotated[tuple[Text, ...], DISTINCT] = ("lstm", "gru")
    # The seed whose best result is 1.0 on the scale of scores.
    baseline: Text = "gru"
    # Settings per task for each seed; "all" is the whole grid.
    seed_settings: Count | Literal["all"] = "all"
    # Fresh settings per task for each candidate and each re-evaluation.
    settings: Count = 20
    # Probability that a step re-evaluates a member of the pool instead of proposing a cell.
    reevaluate: Probability = 0.2
    # A candidate goes on to the next task when its best result exceeds this share of the
    # baseline's.
    threshold: Annotated[float, Rule("a number of at least 0", lambda v: v >= 0)] = 0.9
    # Try a cell no further that can no longer enter the pool: its score is the least of its ratios.
    # For jozefowicz and random, which keep nothing else; the populations of the others take in
    # every cell that comes through the funnel.
    abandon: bool = False
    # A parent with more settings than this hands down settings from its own best ones.
    experienced_after: Natural = 420
    # How many of a cell's best settings can be handed down.
    best_settings: Count = 100
    mutation: MutationConfig = field(default_factory=MutationConfig)

    def __post_init__(self) -> None:
        tags = any(seed.startswith(TAG) for seed in self.seeds)  # what they mean the driver finds
        if self.baseline not in self.seeds and not tags:
            raise FieldError("baseline", f"{self.baseline!r} is not in seeds {list(self.seeds)}")

    @property
    def abandons(self) -> bool:
        return self.abandon and self.algorithm in ("jozefowicz", "random")


@dataclass(frozen=True, kw_only=True)
class RungConfig:
    """An early decision: after some steps the worst settings of a candidate stop."""

    # Training steps; a multiple of eval_every.
    steps: Count
    # How many settings go on; none stated, all that reach the bar.
    keep: Count | None = None
    # Share of the best that the baseline had reached after as many steps; none stated, no bar.
    bar: Annotated[float, Rule("a number of at least 0", lambda v: v >= 0)] | None = None


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What the filter and the stages share: a task, how long to train on it, at which sizes."""

    # Training steps (batches) of one setting.
    steps: Count
    # Steps between evaluations on validation data.
    eval_every: Count
    # Budgets for all parameters of the model; one is drawn per setting.
    params: Annotated[tuple[Count, ...], DISTINCT]
    # Options of the task, such as its sizes or batch_size.
    options: dict[str, Any] = field(default_factory=dict)
    # Replaces the grid of the run here.
    grid: GridConfig | None = None
    # Successive halving over the settings of a candidate.
    rungs: tuple[RungConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.eval_every > self.steps:
            raise FieldError("eval_every", f"{self.eval_every} exceeds steps: {self.steps}")
        last = 0
        for index, rung in enumerate(self.rungs):
            if not last < rung.steps < self.steps or rung.steps % self.eval_every:
                raise FieldError(
                    f"rungs.{index}.steps",
                    f"{rung.steps}, expected a multiple of eval_every ({self.eval_every}) between "
                    f"{last} and {self.steps}",
                )
            last = rung.steps


@dataclass(frozen=True, kw_only=True)
class FilterConfig(_Training):
    """The cheap first test: one random setting must learn a task that any useful cell learns."""

    task: Text = "memorisation"
    # The accuracy to reach, or, if relative, the share of the baseline's best.
    threshold: Probability = 0.95
    # The seeds are trained on this task too, and thresholds are shares of the baseline's results.
    relative: bool = False
    # A test of milliseconds before any training: does anything move, does anything explode?
    screen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for index, rung in enumerate(self.rungs):
            if rung.bar is not None and not self.relative:
                raise FieldError(
                    f"rungs.{index}.bar", "is a share of the baseline's, expected relative: true"
                )


@dataclass(frozen=True, kw_only=True)
class StageConfig(_Training):
    """One task of the funnel."""

    task: Text
    # Learning rate over the steps. "halving": after 3 evaluations without gain halve it at each of
    # 4 more evaluations, then stop. "music": times 0.8 after 10 without gain, stop below 1e-3.
    schedule: Literal["constant", "cosine", "halving", "music"] = "constant"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Made by `load` or `from_dict`, which check every value."""

    # The run directory is runs/NAME unless the command line says otherwise; default: the file name.
    name: RunName = "run"
    # The result depends on the configuration and this number alone.
    seed: Natural = 1
    # The backend of cellgraph.compile.
    backend: Text = "auto"
    # Workers of the virtual clock. Changes the result, unlike `workers`; a few times as many as the
    # real ones keeps those busy.
    virtual_workers: Count = 8
    # Real workers: none stated, all cores; 0, this process without Ray.
    workers: Natural | None = None
    # Wall-clock guard in seconds for one setting; results must not depend on it.
    timeout: Positive = 600.0
    # Tries of a unit of work whose worker died, each on another worker where there is one.
    attempts: Count = 2
    # Units after which a worker process is replaced by a new one; compiled cells stay in memory.
    recycle: Count = 2000
    search: SearchConfig = field(default_factory=SearchConfig)
    filter: FilterConfig | None = None
    # The stages of the funnel, in order.
    tasks: Annotated[tuple[StageConfig, ...], Rule("a list of at least one task", bool)]
    grid: GridConfig = field(default_factory=GridConfig.modern)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "configuration") -> Config:
        """The configuration that plain data describe; `source` stands in front of errors.

        Raises SearchError naming the dotted path, the value and what was expected.
        """
        try:
            config: Config = typed.read(cls, data)
        except FieldError as error:
            raise SearchError(f"{source}: {error}") from None
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain data (dicts, lists, numbers, text) from which `from_dict` makes an equal object."""
        plain: dict[str, Any] = typed.plain(dataclasses.asdict(self))
        return plain


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with `a.b=value` overrides applied in order.

    path: a file; or, where no such file exists, the name of a bundled configuration (`find`).
    overrides: dotted paths into the loaded configuration, list elements by index; the value is
        YAML (`tasks.0.steps=10`, `search.seeds=[gru]`, `filter=null`).

    Raises SearchError for a file that cannot be read, YAML that cannot be parsed, unknown keys and
    values of the wrong type or range.
    """
    file = find(path)
    data = typed.parse_yaml(file)
    if isinstance(data, dict) and "name" not in data:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")
        data["name"] = stem or "run"
    config = Config.from_dict(data, source=str(path))
    if not overrides:
        return config
    # The file is right by itself, so whatever is wrong from here on comes from the overrides.
    tree = config.to_dict()
    for override in overrides:
        typed.override(tree, override)
    return Config.from_dict(tree, source="--set")


def bundled() -> dict[str, Path]:
    """The configurations that come with cellsearch, by file name, sorted."""
    package = Path(__file__).resolve().parent
    # Installed as package data, or next to the package in a checkout.
    files = [f for folder in (package / "configs", package.parent / "configs")
             if folder.is_dir() for f in folder.glob("*.yaml")]  # fmt: skip
    return {f.name: f for f in sorted(files, key=lambda f: f.name)}


def find(path: str | Path) -> Path:
    """The file that `path` means: itself, or the bundled configuration of that name.

    `quick`, `quick.yaml` and `configs/quick.yaml` mean the bundled one wherever no such file
    exists. A path into any other folder means only itself: what somebody calls their own file must
    not turn into one of ours because of a typing error in the folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    known = bundled()
    if path.parent == Path() or path.parent.name == "configs":
        for name in (path.name, f"{path.name}.yaml"):
            if name in known:
                return known[name]
    if path.is_dir():
        raise SearchError(f"{path}: is a folder, expected a YAML file")
    listed = ", ".join(name.removesuffix(".yaml") for name in known)
    hint = f"; bundled ones are {listed}" if listed else ""
    raise SearchError(f"{path}: no such configuration file{hint}")
