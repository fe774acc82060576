"""The configuration: defaults, YAML, overrides, and one clear line for everything that is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import cellgraph as cg
from search import config as configuration
from search import funnel
from search.config import Config, GridConfig, SearchConfig, StageConfig, find, load
from search.errors import SearchError

STAGE = {"task": "arithmetic", "steps": 100, "eval_every": 50, "params": [5000]}

FULL = """
name: full
seed: 7
backend: eager
virtual_workers: 4
workers: 0
timeout: 30
attempts: 2
search:
  candidates: 5
  seeds: [lstm, gru, mine.cell]
  seed_settings: 3
  mutation: {edits: [1, 3], crossover: 0.25}
filter:
  task: memorisation
  options: {symbols: 5, nested: {a: [1, null, true, text]}}
  steps: 200
  eval_every: 20
  params: [3000]
tasks:
  - {task: arithmetic, steps: 100, eval_every: 50, schedule: halving, params: [5000, 20000]}
  - {task: music, steps: 100, eval_every: 50, params: [5000], grid: {lr: [1e-3, 5e-1]}}
grid: jozefowicz
"""


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str, name: str = "some.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def minimal(**changes: Any) -> dict[str, Any]:
    return {"tasks": [dict(STAGE)], **changes}


def refused(data: Any) -> str:
    with pytest.raises(SearchError) as caught:
        Config.from_dict(data, source="SOURCE")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_tasks_are_required():
    config = Config.from_dict(minimal())
    assert config == Config(
        tasks=(StageConfig(task="arithmetic", steps=100, eval_every=50, params=(5000,)),)
    )
    assert (config.seed, config.backend, config.virtual_workers, config.workers) == (
        1,
        "auto",
        8,
        None,
    )
    assert config.filter is None
    assert config.search == SearchConfig()
    assert config.grid == GridConfig.modern()
    assert config.tasks[0].schedule == "constant"


def test_everything_set(write):
    config = load(write(FULL))
    assert config.name == "full"
    assert config.timeout == 30.0
    assert isinstance(config.timeout, float)
    assert config.search.seeds == ("lstm", "gru", "mine.cell")
    assert config.search.seed_settings == 3
    assert config.search.mutation.edits == (1, 3)
    assert config.search.mutation.attempts == 100
    assert config.filter is not None
    assert config.filter.threshold == 0.95
    assert config.filter.options == {"symbols": 5, "nested": {"a": [1, None, True, "text"]}}
    assert config.tasks[0].params == (5000, 20000)
    assert config.tasks[1].grid == dataclasses.replace(GridConfig.modern(), lr=(1e-3, 0.5))
    assert config.grid == GridConfig.jozefowicz()


def test_the_grid_of_jozefowicz_has_840_points():
    grid = GridConfig.jozefowicz()
    assert len(grid.scale) * len(grid.lr) * len(grid.clip) * len(grid.layers) == 840
    assert grid.optimizer == ("sgd",)
    assert grid.dropout == (0.0,)


def test_round_trip(write):
    for config in (Config.from_dict(minimal()), load(write(FULL))):
        assert Config.from_dict(config.to_dict()) == config
    assert config.to_dict()["search"]["mutation"]["edits"] == [1, 3]  # lists, as YAML writes them


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config.from_dict(minimal()).seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (minimal(sede=1), "sede: unknown key; did you mean 'seed'?"),
        (minimal(search={"candiates": 3}), "search.candiates: unknown key; did you mean 'candid"),
        (minimal(search={"zzz": 3}), "search.zzz: unknown key; expected one of algorithm, "),
        (
            minimal(search={"mutation": {"max_node": 3}}),
            "search.mutation.max_node: unknown key; did you mean 'max_nodes'?",
        ),
        (minimal(tasks=[{**STAGE, "stesp": 1}]), "tasks.0.stesp: unknown key; did you mean 'steps"),
        (minimal(filter={"step": 1}), "filter.step: unknown key; did you mean 'steps'?"),
        (minimal(**{"1": 2}), "1: unknown key; expected one of name, "),
        ({**minimal(), 1: 2}, "1: unknown key"),
        ({}, "tasks: is missing, expected a list, each a mapping"),
        (minimal(tasks=[{"task": "x"}]), "tasks.0.steps: is missing, expected a whole number of"),
        (minimal(tasks=[]), "tasks: expected a list of at least one task, not []"),
        (minimal(tasks=STAGE), "tasks: expected a list, each a mapping, not {'task': 'arithm"),
        (minimal(tasks=[None]), "tasks.0: expected a mapping, not null"),
        (None, "expected a mapping, not null"),
        ([1], "expected a mapping, not [1]"),
        (minimal(seed=-1), "seed: expected a whole number of at least 0, not -1"),
        (minimal(seed=1.0), "seed: expected a whole number of at least 0, not 1.0"),
        (minimal(seed=True), "seed: expected a whole number of at least 0, not True"),
        (minimal(seed=2**63), "seed: expected a whole number"),
        (minimal(virtual_workers=0), "virtual_workers: expected a whole number of at least 1, not"),
        (minimal(workers=-1), "workers: expected a whole number of at least 0 or null, not -1"),
        (minimal(timeout=0), "timeout: expected a number above 0, not 0"),
        (minimal(timeout=float("inf")), "timeout: expected a number above 0, not inf"),
        (minimal(timeout=10**400), "timeout: expected a number above 0, not 1000"),
        (minimal(timeout="10"), "timeout: expected a number above 0, not '10'"),
        (minimal(name=2015), "name: expected letters, digits,"),
        (minimal(name="../up"), "name: expected letters, digits,"),
        (minimal(search=None), "search: expected a mapping, not null"),
        (minimal(search={"threshold": -0.1}), "search.threshold: expected a number of at least 0"),
        (minimal(search={"reevaluate": 1.1}), "search.reevaluate: expected a number from 0 to 1"),
        (minimal(search={"reevaluate": float("nan")}), "search.reevaluate: expected a number"),
        (minimal(search={"seeds": "gru"}), "search.seeds: expected a list, each a text"),
        (minimal(search={"seeds": []}), "search.seeds: expected a list of different values"),
        (minimal(search={"seeds": ["gru", "gru"]}), "search.seeds: expected a list of different"),
        (minimal(search={"seeds": ["gru", 1]}), "search.seeds.1: expected a text that is not"),
        (
            minimal(search={"seeds": ["lstm"]}),
            "search.baseline: 'gru' is not in seeds ['lstm']",
        ),
        (
            minimal(search={"seed_settings": "some"}),
            "search.seed_settings: expected a whole number of at least 1 or 'all', not 'some'",
        ),
        (
            minimal(search={"mutation": {"edits": [1, 2, 3]}}),
            "search.mutation.edits: expected 'per_node' or a list of 2, each a whole number",
        ),
        (
            minimal(search={"mutation": {"edits": [3, 1]}}),
            "search.mutation.edits: the low end exceeds the high end in [3, 1]",
        ),
        (
            minimal(search={"mutation": {"edits": [0, 1]}}),
            "search.mutation.edits.0: expected a whole number of at least 1, not 0",
        ),
        (
            minimal(filter={**STAGE, "threshold": 95}),
            "filter.threshold: expected a number from 0 to 1, not 95",
        ),
        (
            minimal(tasks=[{**STAGE, "eval_every": 101}]),
            "tasks.0.eval_every: 101 exceeds steps: 100",
        ),
        (
            minimal(tasks=[{**STAGE, "schedule": "linear"}]),
            "tasks.0.schedule: expected one of constant, cosine, halving, music, not 'linear'",
        ),
        (minimal(tasks=[{**STAGE, "params": [0]}]), "tasks.0.params.0: expected a whole number of"),
        (
            minimal(tasks=[{**STAGE, "options": {"a": {"b": object}}}]),
            "tasks.0.options.a.b: expected a number, a text, a list or a mapping, not <class",
        ),
        (
            minimal(tasks=[{**STAGE, "options": {1: 2}}]),
            "tasks.0.options.1: expected a key that is text, not 1",
        ),
        (minimal(grid="other"), "grid: expected a mapping or 'jozefowicz' or 'modern', not 'other"),
        (minimal(grid={"lr": 0.1}), "grid.lr: expected a list, each a number above 0, not 0.1"),
        (minimal(grid={"lr": [0.1, 0]}), "grid.lr.1: expected a number above 0, not 0"),
        (minimal(grid={"dropout": [1.0]}), "grid.dropout.0: expected a number from 0 to below 1"),
        (
            minimal(grid={"optimizer": ["rmsprop"]}),
            "grid.optimizer.0: expected 'sgd' or 'adam', not 'rmsprop'",
        ),
        (
            minimal(tasks=[{**STAGE, "grid": {"rl": [1]}}]),
            "tasks.0.grid.rl: unknown key; did you mean 'lr'?",
        ),
    ],
)
def test_wrong_values_are_named(data: Any, message: str):
    text = refused(data)
    assert text.startswith(f"SOURCE: {message}"), text


def test_options_within_themselves():
    options: dict[str, Any] = {}
    options["again"] = options
    assert "is nested too deeply" in refused(minimal(tasks=[{**STAGE, "options": options}]))


def test_a_wrong_combination_is_refused_without_yaml_too():
    with pytest.raises(SearchError, match="baseline: 'gru' is not in seeds"):
        SearchConfig(seeds=("lstm",))


def test_the_name_comes_from_the_file(write):
    text = "tasks: [{task: a, steps: 2, eval_every: 1, params: [9]}]"
    assert load(write(text, "my run (2).yaml")).name == "my-run-2"
    assert load(write("name: x\n" + text)).name == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' given twice"),
        ("tasks: [\n", "line 2, column 1: expected the node content, but found '<stream end>'"),
        ("", "expected a mapping, not null"),
        ("seed: !!python/object:os.system 1\n", "could not determine a constructor for the tag"),
        ("? [a]\n: 1\n", "found unhashable key"),
        ("seed: \x01\n", "special characters are not allowed"),
        ("seed: 2020-13-45\n", "not usable as YAML: month must be in 1..12"),
    ],
)
def test_what_is_not_a_configuration(write, text: str, message: str):
    path = write(text)
    with pytest.raises(SearchError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_merge_key_is_no_duplicate(write):
    text = """
tasks:
  - &base {task: a, steps: 2, eval_every: 1, params: [9]}
  - {<<: *base, steps: 3}
"""
    assert [task.steps for task in load(write(text)).tasks] == [2, 3]


def test_not_text(tmp_path: Path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SearchError, match="cannot be read: is not UTF-8 text"):
        load(tmp_path / "bytes.yaml")


def test_overrides(write):
    path = write(FULL)
    config = load(
        path,
        [
            "tasks.0.steps=1000",
            "tasks.1.options.pieces=[a, b]",
            "search.seeds=[gru]",
            "search.mutation.edits=per_node",
            "filter=null",
            "grid=modern",
            "timeout=1e3",
            "tasks.0.steps=70",
        ],
    )
    assert config.tasks[0].steps == 70
    assert config.tasks[1].options == {"pieces": ["a", "b"]}
    assert config.search.seeds == ("gru",)
    assert config.search.mutation.edits == "per_node"
    assert config.filter is None
    assert config.grid == GridConfig.modern()
    assert config.timeout == 1000.0
    unchanged = dataclasses.replace(load(path), seed=8)
    assert load(path, ["seed=8"]) == unchanged


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected KEY.KEY=VALUE"),
        ("=3", "--set =3: expected KEY.KEY=VALUE"),
        ("search..pool=3", "--set search..pool=3: expected KEY.KEY=VALUE"),
        ("seed=two", "--set: seed: expected a whole number of at least 0, not 'two'"),
        ("seed=", "--set: seed: expected a whole number of at least 0, not null"),
        ("seed=[1", "--set seed=[1: line 1, column 3: expected ',' or ']'"),
        ("seed=2020-13-45", "--set seed=2020-13-45: not usable as YAML: month must be in 1..12"),
        ("sede=1", "--set: sede: unknown key; did you mean 'seed'?"),
        ("serch.pool=1", "--set serch.pool=1: serch: unknown key; did you mean 'search'?"),
        ("search.mutatoin.x=1", "--set search.mutatoin.x=1: search.mutatoin: unknown key; did you"),
        ("tasks.2.steps=1", "--set tasks.2.steps=1: tasks: expected an index below 2, not '2'"),
        ("tasks.x=1", "--set tasks.x=1: tasks: expected an index below 2, not 'x'"),
        ("seed.x=1", "--set seed.x=1: seed is 7, which has no 'x' to set"),
        ("tasks.0.grid.lr=[1]", "--set tasks.0.grid.lr=[1]: tasks.0.grid is null, which has no"),
        ("search.seeds=[lstm]", "--set: search.baseline: 'gru' is not in seeds ['lstm']"),
    ],
)
def test_wrong_overrides(write, override: str, message: str):
    with pytest.raises(SearchError) as caught:
        load(write(FULL), [override])
    assert str(caught.value).startswith(message)


def test_bundled_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`quick` and `configs/quick.yaml` work in any folder, from a checkout and when installed."""
    text = "tasks: [{task: a, steps: 2, eval_every: 1, params: [9]}]"
    (tmp_path / "site" / "search" / "configs").mkdir(parents=True)
    (tmp_path / "site" / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    installed = tmp_path / "site" / "search" / "configs" / "installed.yaml"
    checkout = tmp_path / "site" / "configs" / "checkout.yaml"
    installed.write_text(text)
    checkout.write_text(text)
    monkeypatch.setattr(configuration, "__file__", str(tmp_path / "site" / "search" / "config.py"))
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert list(configuration.bundled()) == ["checkout.yaml", "installed.yaml"]
    for name in ("checkout", "checkout.yaml", "configs/checkout.yaml", "configs/checkout"):
        assert find(name) == checkout
    assert find("installed") == installed
    assert load("installed").name == "installed"

    with pytest.raises(SearchError, match=r"^chekout: no such .*; bundled ones are checkout, inst"):
        find("chekout")
    with pytest.raises(SearchError, match="no such configuration file"):
        find("mine/checkout.yaml")
    with pytest.raises(SearchError, match="is a folder, expected a YAML file"):
        find(tmp_path)

    Path("checkout").mkdir()  # a folder in the way is not what is meant
    assert find("checkout") == checkout
    Path("checkout.yaml").write_text(text)  # but a file is
    assert find("checkout.yaml") == Path("checkout.yaml")


# -- seeds by tag ----------------------------------------------------------------------------------


def seeded(*seeds: str, baseline: str = "gru") -> Config:
    """A configuration whose tags the driver has replaced by names."""
    return funnel.resolved(
        Config.from_dict(minimal(search={"seeds": list(seeds), "baseline": baseline}))
    )


def test_a_tag_stands_for_all_its_cells():
    names = seeded("tag:gated").search.seeds
    gated = [name for name in cg.zoo.tagged("gated") if len(cg.load(name).widths) == 1]
    assert set(names) < set(gated), "np is the same cell as lstm"
    assert list(names) == [name for name in gated if name in names]  # in the order of the zoo
    keys = [cg.load(name).key() for name in names]
    assert len(keys) == len(set(keys))
    assert set(keys) == {cg.load(name).key() for name in gated}
    assert [cell.name for cell in funnel.seeds(seeded("tag:gated"))] == list(names)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch):
    """Two tags that stay as they are when the zoo grows."""
    tags = {
        "torch": ["gru_reset_after", "lstm", "tanh_rnn"],
        "classic": ["gru", "gru_reset_after", "tanh_rnn"],
    }
    monkeypatch.setattr(cg.zoo, "tagged", tags.__getitem__)


@pytest.mark.usefixtures("few")
def test_a_tag_among_names():
    """What is named stays where it stands; a tag leaves out what is a seed already."""
    names = seeded("gru", "tag:torch", "np").search.seeds
    assert names == ("gru", "gru_reset_after", "tanh_rnn", "np")  # lstm is np
    names = seeded("tag:classic", "tag:torch").search.seeds
    assert names == ("gru", "gru_reset_after", "tanh_rnn", "lstm")
    assert seeded("lstm", "gru").search.seeds == ("lstm", "gru")


@pytest.mark.usefixtures("few")
def test_a_cell_of_a_file_is_known_by_its_key(tmp_path: Path):
    mine = tmp_path / "mine.cell"
    mine.write_text(str(cg.load("tanh_rnn")).replace("cell tanh_rnn(", "cell mine("))
    names = seeded(str(mine), "tag:torch", baseline="lstm").search.seeds
    assert names == (str(mine), "gru_reset_after", "lstm")


@pytest.mark.usefixtures("few")
def test_a_tag_leaves_out_what_a_search_cannot_start_from(monkeypatch: pytest.MonkeyPatch):
    projected = cg.parse("cell lstm(x, r: P, c)\n    c' = W @ x + U @ r\n    r' = V @ c'\n")
    get = cg.zoo.get
    monkeypatch.setattr(
        cg.zoo,
        "get",
        lambda name, constants=None: projected if name == "lstm" else get(name, constants),
    )
    assert seeded("gru", "tag:torch").search.seeds == ("gru", "gru_reset_after", "tanh_rnn")


def test_a_resolved_configuration_means_the_same_when_the_zoo_has_grown():
    config = seeded("tag:torch", baseline="lstm")
    stored = Config.from_dict(config.to_dict())
    assert stored == config
    assert funnel.resolved(stored) == stored
    assert "tag:" not in str(stored.to_dict())


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (
            ("gru", "tag:gatd"),
            "search.seeds: no tag 'gatd' (did you mean gated?), expected one of ",
        ),
        (("tag:",), "search.seeds: no tag '', expected one of "),
        (("tag:greff",), "search.baseline: 'gru' is not in seeds ['cifg', 'fgr', "),
    ],
)
def test_wrong_tags(seeds: tuple[str, ...], message: str):
    with pytest.raises(SearchError) as caught:
        seeded(*seeds)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("few")
def test_named_twice_is_an_error_beside_a_tag_too():
    with pytest.raises(SearchError, match="lstm is the same cell as another seed"):
        funnel.seeds(seeded("gru", "lstm", "np", "tag:torch"))
