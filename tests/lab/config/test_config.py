"""The configuration: every file of conf/ composes and runs, and what cannot run is refused first."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from attractor.lab.config.checks import validate, validate_comparison
from attractor.lab.config.names import MapName, OrderName, TaskName
from attractor.lab.config.schema import Config, register, typed
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.build import build_candidates
from attractor.lab.run.finished import config_from
from attractor.lab.run.folder import RunFolder
from attractor.studies.config import THEORY_SCHEMAS
from train import train

CONF = Path(__file__).parents[3] / "conf"
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml"))
# those that train; studies of theory are in tests/studies
EXPERIMENTS = sorted(
    path.stem
    for path in CONF.glob("experiment/*.yaml")
    if path.stem not in ("capacity_mnist", *THEORY_SCHEMAS)
)

# overrides -> what the message has to say
REFUSED = [
    (["train.steps=0"], r"train\.steps is 0"),
    (["train.batch_size=0"], r"train\.batch_size is 0"),
    (["train.validate_every=0"], r"train\.validate_every is 0"),
    (["train.patience=0"], r"train\.patience is 0"),
    (["train.jitter=-1"], r"train\.jitter is -1"),
    (["train.jitter=nan"], r"train\.jitter is nan"),
    (["rule.learning_rate=0"], r"rule\.learning_rate is 0"),
    (["rule.learning_rate=inf"], r"rule\.learning_rate is inf"),
    (["rule.momentum=0.5"], r"rule\.momentum"),
    (["rule.decay=-1"], r"decay .*-1"),
    (["rule.rows_per_step=0"], r"rule\.rows_per_step is 0"),
    (["rule.rows_per_step=17"], r"rows_per_step is 17, but there are 16 rows; use 1 to 16"),
    (["rule=energy_descent", "rule.rows_per_step=17"], r"rows_per_step is 17"),
    (["rule=hebb", "rule.rate=-1"], r"rate .*-1"),
    (["rule=energy_descent", "rule.start=0"], r"random start .*0"),
    (["rule=energy_descent", "rule.decay=-1"], r"decay .*-1"),
    (["model=hopfield", "rule=ridge", "rule.ridge=-1"], r"ridge .*-1"),
    (["rule=ridge"], r"closed form .* Pairwise"),
    (["model.name=memory"], r"model\.name is 'memory'"),
    (["model.name='a/b'"], r"model\.name is 'a/b'"),
    (["model.inverse_temperature=-1"], r"model\.inverse_temperature is -1"),
    (["model.inverse_temperature=nan"], r"model\.inverse_temperature is nan"),
    (["model.radius=0"], r"model\.radius is 0"),
    (["model=hopfield", "rule=ridge", "model.radius=1"], r"model\.radius is 1, but hopfield"),
    (["model.span=0"], r"span is 0"),
    (["model.span=1.5"], r"span is 1\.5"),
    (["model.patch=3"], r"patch size 3 does not divide image side 8; use 1, 2, 4 or 8"),
    (["model.projection=1"], r"projection to dimension 1"),
    (["model.measure=circles", "model.projection=6"], r"model\.projection"),
    (["model=hopfield", "rule=ridge", "model.projection=6"], r"model\.projection"),
    (["task.names=[]"], r"task\.names is empty"),
    (["task.mask_fraction=0"], r"masking a fraction 0 "),
    (["task.mask_fraction=1"], r"masking a fraction 1 "),
    (["task.mask_fraction=nan"], r"masking a fraction nan "),
    (["task.noise_variance=-1"], r"noise variance is -1"),
    (["dynamics.maps=[]"], r"dynamics\.maps is empty"),
    (["dynamics.inverse_temperatures=[]"], r"dynamics\.inverse_temperatures is empty"),
    (["dynamics.inverse_temperatures=[1.0,0.0]"], r"dynamics\.inverse_temperatures is 0"),
    (["dynamics.inertias=[]"], r"dynamics\.inertias is empty"),
    (["dynamics.inertias=[-1]"], r"dynamics\.inertias has -1"),
    (["dynamics.inertias=[0.0,nan]"], r"dynamics\.inertias has nan"),
    (["dynamics.evidence=[-2]"], r"dynamics\.evidence is -2"),
    (["dynamics.damping=1"], r"dynamics\.damping is 1"),
    (["dynamics.finalists=0"], r"dynamics\.finalists is 0"),
    (["model=hopfield", "rule=ridge", "dynamics.maps=[attention]"], r"dynamics\.maps has only attention"),
    (["data.name=mnits"], r"unknown data set 'mnits'; use one of .*digits"),
    (["data.validation=0"], r"data\.validation=1 to 511"),
    (["data.validation=512"], r"512 validation images"),
    (["eval.steps=0"], r"eval\.steps is 0"),
    (["eval.images=0"], r"eval\.images is 0"),
    (["seed=-1"], r"seed"),
    (["eval.seed=-1"], r"seed"),
    (["threads=0"], r"threads is 0"),
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes_and_validates(
    file: Path, make_config: Callable[..., object], tmp_path: Path
) -> None:
    """Every file of every group makes a valid configuration by its name alone.

    A field that was renamed in config.py and not in conf/, or a missing value, shows here.
    """
    make_config(f"{file.parent}={file.name}", f"folder={tmp_path}")


def test_the_command_without_arguments_is_valid(make_config: Callable[..., object]) -> None:
    """`uv run train.py` needs nothing: the folder too has a default, which Hydra can be given back."""
    config = make_config()
    assert config.data.name == "digits"
    assert config.task.names == [TaskName.masked, TaskName.denoise]
    assert not set("=,") & set(config.folder)


# sizes that the other images are too few for
SMALLER = {"slots_mnist": ("model.slots=10", "model.parents=2", "model.rank=20")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str, train_run: Callable[..., object], tmp_path: Path) -> None:
    """Every experiment, made small and on other images, trains and evaluates to the end.

    Lists of candidates stay the experiment's own: a map or a rule that its model refuses would show.
    """
    kept = train_run(tmp_path / "run", f"experiment={experiment}", *SMALLER.get(experiment, ()))
    assert kept.config.data.name == "synthetic"
    assert set(kept.results["tasks"]) == {task.value for task in kept.config.task.names}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+train.stepz=50", r"train\.stepz is no field; did you mean train\.steps\?"),
        ("+rule.momentun=0.5", r"rule\.momentun is no field; did you mean rule\.momentum\?"),
        ("+data.colour=red", r"data\.colour is no field; known are name, root, "),
        ("+seeed=1", r"seeed is no field; did you mean seed\?"),
    ],
)
def test_a_field_that_is_added_is_refused(
    override: str, words: str, make_config: Callable[..., object], tmp_path: Path
) -> None:
    """Hydra's message for a typo proposes the +; the run would then use the default and say nothing."""
    with pytest.raises(ConfigError, match=words):
        make_config(override, f"folder={tmp_path}")


def test_an_experiment_changes_what_it_says(make_config: Callable[..., object], tmp_path: Path) -> None:
    """Deltas reach the configuration, those of mnist through mnist_4x4 too; the command line wins.

    Without `_self_` in its place an experiment would be composed and then silently overridden.
    """
    four = make_config("experiment=mnist_4x4", f"folder={tmp_path}")
    assert (four.data.name, four.model.patch, four.train.steps) == ("mnist", 4, 400)
    mine = make_config(
        "experiment=mnist_4x4", "data=digits", "train.steps=7", "model.patch=1", f"folder={tmp_path}"
    )
    assert (mine.data.name, mine.model.patch, mine.train.steps) == ("digits", 1, 7)


@pytest.mark.parametrize(
    "override",
    [
        "train.stepz=3",
        "rule.momentun=0.1",
        "model.layers=5",
        "modell=hopfield",
        "train.steps=many",
        "train.steps=1.5",
        "figures=perhaps",
        "model.measure=torus",
        "dynamics.maps=[atention]",
        "task=everything",
    ],
)
def test_unknown_fields_and_wrong_types_are_refused(override: str, make_raw: Callable[..., object]) -> None:
    """A typo is refused while composing, and named: it must never be a setting that nobody reads."""
    with pytest.raises(HydraException) as caught:
        make_raw(override)
    name, _, value = override.partition("=")
    said = str(caught.value) + str(caught.value.__cause__)
    assert name.split(".")[-1] in said or value.strip("[]") in said


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda value: str(value)[:48])
def test_what_cannot_run_is_refused_before_any_work(
    overrides: list[str],
    message: str,
    make_raw: Callable[..., object],
    tiny: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """A ConfigError that names the field and the value given, before the run folder is made.

    Otherwise the mistake is a traceback in the middle of a run, or a run that means nothing.
    """
    path = tmp_path / "run"
    config = typed(make_raw(*tiny, f"folder={path}", *overrides))

    def start() -> None:
        validate(config)
        train(config, RunFolder(path, ""))

    with pytest.raises(ConfigError, match=message):
        start()
    assert not path.exists()


def test_candidates_are_all_combinations(make_config: Callable[..., object], tmp_path: Path) -> None:
    """maps x temperatures x inertias, times the strengths of evidence; draws of gibbs by the run's seed.

    For a Gaussian the attention map is left out, since its force is unbounded, and tokens go one by one.
    """
    lists = (
        "dynamics.maps=[attention,gibbs]",
        "dynamics.inverse_temperatures=[1.0,0.5]",
        "dynamics.inertias=[0.0,0.5,0.7]",
        "dynamics.evidence=[1.0,4.0]",
        "seed=5",
        f"folder={tmp_path}",
    )
    config = make_config(*lists)
    free, given = (build_candidates(config, evidence=evidence) for evidence in (False, True))
    assert len(set(free)) == 12
    assert len(set(given)) == 24
    assert {c.evidence for c in free} == {0.0}
    assert {c.evidence for c in given} == {1.0, 4.0}
    assert {(c.seed, c.order, c.steps) for c in free + given} == {(5, OrderName.synchronous, None)}
    gaussian = build_candidates(make_config("model=hopfield", *lists), evidence=False)
    assert {(c.map, c.order) for c in gaussian} == {(MapName.gibbs, OrderName.sequential)}


def test_missing_values_are_named() -> None:
    """A value that nobody gave is a ConfigError with its full name, not OmegaConf's traceback."""
    with pytest.raises(ConfigError, match=r"data.name, folder, model.name"):
        typed(OmegaConf.structured(Config))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runs=[]", "runs is empty"),
        ("steps=0", "steps is 0"),
        ("images=0", "images is 0"),
        ("batch_size=-1", "batch_size is -1"),
        ("threads=0", "threads is 0"),
        ("seed=-1", "seed"),
    ],
)
def test_comparisons_are_validated_too(
    override: str, message: str, make_raw: Callable[..., object]
) -> None:
    """evaluate.py refuses what it cannot use, with the name of the field."""
    config = typed(make_raw("runs=[a]", "folder=b", override, name="evaluate"))
    with pytest.raises(ConfigError, match=message):
        validate_comparison(config)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["rule=energy_descent", "rule.decay=0.1"],
        ["model=local_attention", "rule.rows_per_step=3"],
        ["rule=hebb"],
        ["model=slots", "rule.ridge=0.01"],
        ["model=hopfield", "rule=ridge", "model.projection=null", "train.patience=3"],
    ],
    ids=str,
)
def test_plain_values_come_back_as_the_same_configuration(
    overrides: list[str], make_config: Callable[..., object], tmp_path: Path
) -> None:
    """config -> plain values of a checkpoint -> config is the identity, whichever the rule.

    A rule that is mistaken for another, or an enum that stays a word, would change the run that is loaded.
    """
    register()
    config = make_config(f"folder={tmp_path}", *overrides)
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    again = config_from(plain)
    assert again == config
    assert type(again.rule) is type(config.rule)
