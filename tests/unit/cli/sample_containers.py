"""Containers with a parameter of every type, for the tests of the command line."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import param
from pytorch_lightning import LightningModule

from health_ml.experiment_config import ExperimentConfig
from health_ml.lightning_container import LightningContainer, LightningModuleWithOptimizer
from health_ml.param_types import CustomTypeParam, IntTuple, ListOrDictParam, RunIdOrListParam


class Colour(Enum):
    RED = "red"
    DARK_BLUE = "blue"


class Even:
    """A type with rules of its own."""

    def __init__(self, text: str) -> None:
        if int(text) % 2:
            raise ValueError(f"{text} is odd, and only even numbers make pairs")
        self.number = int(text)

    def __str__(self) -> str:
        return str(self.number)


class Celsius(CustomTypeParam):
    def _validate(self, val: Any) -> None:
        if val is not None and val < -273.15:
            raise ValueError(f"{val} degrees is below absolute zero")

    def from_string(self, x: str) -> float:
        return float(x.removesuffix("C"))


class Everything(LightningContainer):
    an_integer = param.Integer(default=3, bounds=(0, 10))
    a_number = param.Number(default=0.5)
    a_count_or_share = param.Number(default=None, allow_None=True)
    a_switch = param.Boolean(default=False, doc="A switch that is off.")
    a_true_switch = param.Boolean(default=True)
    a_text = param.String(default="x")
    a_text_or_none = param.String(default=None, allow_None=True)
    a_colour = param.ClassSelector(class_=Colour, default=Colour.RED)
    a_path = param.ClassSelector(class_=Path, default=None, allow_None=True)
    a_file = param.Path(default=None, allow_None=True, check_exists=False)
    an_even = param.ClassSelector(class_=Even, default=None, allow_None=True)
    a_choice = param.Selector(default="a", objects=["a", "b", "c"])
    some_texts = param.List(default=["p"], item_type=str)
    some_integers = param.List(default=[], item_type=int)
    some_paths = param.List(default=[], item_type=Path)
    some_colours = param.List(default=[], item_type=Colour)
    a_pair = IntTuple(default=(1, 2), length=2)
    two_numbers = param.NumericTuple(default=(0.1, 0.2), length=2)
    a_dictionary = param.Dict(default={})
    a_temperature = Celsius(default=20.0)
    a_list_or_dictionary = ListOrDictParam(default=[])
    some_runs = RunIdOrListParam(default=[])
    a_date = param.CalendarDate(default=None, allow_None=True)
    an_object = param.Parameter(default=None)

    def set_model_variant(self, variant_name: str) -> None:
        if variant_name == "hot":
            self.a_temperature = 40.0
            self.some_texts.append("hot")
        elif variant_name:
            raise ValueError(f"There is no variant called {variant_name}, only hot.")

    def validate(self) -> None:
        super().validate()
        if self.a_text == "forbidden":
            raise ValueError("a_text must not be forbidden")


class Preset(LightningContainer):
    """Has defaults of its own for parameters of the package."""

    max_epochs = param.Integer(default=7, bounds=(1, None))

    def __init__(self) -> None:
        super().__init__()
        self.l_rate = 0.25
        self.output_to = Path("results")


class Mover(LightningContainer):
    """Changes the experiment config by its own parameters."""

    share = param.Number(default=0.5)

    def update_experiment_config(self, experiment_config: ExperimentConfig) -> None:
        experiment_config.tracking_uri = f"none-{self.share}"
        experiment_config.docker_shm_size = "1g"
        self.share = 0.75


class Namesake(LightningContainer):
    """Has a parameter with the name of a flag of the runner."""

    config = param.String(default="mine")


class Hub(LightningContainer):
    """Has parameters that hold secrets, and some that only sound like it."""

    hub_token = param.String(default="")
    pin_password = param.Integer(default=0)
    pad_token = param.String(default="")
    address = param.String(default="")


class PlainModel(LightningModule):
    pass


class ModelWithOptimizer(LightningModuleWithOptimizer):
    pass


class PlainContainer(LightningContainer):
    def create_model(self) -> LightningModule:
        return PlainModel()


class ReadingContainer(LightningContainer):
    """Hands one of the optimizer parameters to a model that makes its optimizer itself."""

    def create_model(self) -> LightningModule:
        model = PlainModel()
        model.rate = self.l_rate  # type: ignore[assignment]
        return model


class OptimizerContainer(LightningContainer):
    def create_model(self) -> LightningModule:
        return ModelWithOptimizer()
