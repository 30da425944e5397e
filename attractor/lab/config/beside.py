"""The runs that stand beside another one in its table, as configurations of their own."""

from dataclasses import replace

from attractor.lab.config.names import Objective
from attractor.lab.config.rules import StoreConfig
from attractor.lab.config.schema import BesideConfig, Config


def configurations(config: Config) -> dict[str, Config]:
    """Field of `beside` -> the run of that model alone; the model of the run itself is not repeated.

    What is drawn depends on eval.seed, so that the rows of all training seeds are the same.
    """
    beside = config.beside
    rules = {"memory": StoreConfig(), "slots": beside.rule}
    found = {}
    for name, rule in rules.items():
        model = getattr(beside, name)
        if model is not None and rule is not None and type(model) is not type(config.model):
            found[name] = replace(
                config,
                model=model,
                rule=rule,
                beside=BesideConfig(),
                dynamics=replace(config.dynamics, validation_images=beside.validation_images),
                seed=config.eval.seed,
                objective=Objective.val,
            )
    return found


def names_of(name: str) -> dict[str, str]:
    """Fields of a run of that model alone -> fields of the run that it stands beside, for errors."""
    fields = {"model.": f"beside.{name}.", "rule.": "beside.rule."}
    return fields | {"dynamics.validation_images": "beside.validation_images"}
