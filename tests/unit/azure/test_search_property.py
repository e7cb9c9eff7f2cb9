"""What a search in AzureML says about itself, for those who read its results."""

from __future__ import annotations

import json

from health_ml.azure.command import encoded_names
from health_ml.azure.sweep_body import search_property
from health_ml.planning.fan_out import space_of_seeds, space_of_sweep


def test_it_names_what_azureml_renamed() -> None:
    space = space_of_sweep("trainer.max_steps=1,2 l_rate=0.1,0.2")
    found = search_property(space, encoded_names(space.parameter_names), longest=1000)
    assert json.loads(found) == {
        "primary_metric": None,
        "goal": "minimize",
        "names": {"trainer_max_steps": "trainer.max_steps"},
    }


def test_it_says_that_no_metric_ranks_seeds() -> None:
    space = space_of_seeds(2)
    assert json.loads(search_property(space, {"random_seed": "random_seed"}, longest=1000))["primary_metric"] is None


def test_it_is_never_longer_than_a_property_may_be() -> None:
    space = space_of_sweep(" ".join(f"trainer.a_long_name_{index}=1,2" for index in range(40)))
    found = search_property(space, encoded_names(space.parameter_names), longest=1000)
    assert len(found) < 1000
    assert json.loads(found) == {"primary_metric": None, "goal": "minimize"}
