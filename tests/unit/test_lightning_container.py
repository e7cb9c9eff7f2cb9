from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule

from health_ml.deep_learning_config import OptimizerParams
from health_ml.errors import ArgumentsError, ContainerError
from health_ml.lightning_container import LightningContainer, LightningModuleWithOptimizer


class TinyModel(LightningModuleWithOptimizer):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.extra_validations = 0

    def test_step(self, batch: Any, batch_index: int) -> None:
        """Nothing to do."""

    def on_run_extra_validation_epoch(self) -> None:
        self.extra_validations += 1


class TinyContainer(LightningContainer):
    def create_model(self) -> LightningModule:
        return TinyModel()


def test_what_a_subclass_has_to_override_says_so() -> None:
    container = LightningContainer()
    with pytest.raises(NotImplementedError, match="has to override create_model"):
        container.create_model()
    with pytest.raises(NotImplementedError, match="has to override get_data_module"):
        container.get_data_module()


def test_the_model_is_known_after_it_was_created() -> None:
    container = TinyContainer()
    with pytest.raises(ValueError, match="No Lightning module has been set yet"):
        _ = container.model
    model = container.create_lightning_module()
    assert container.model is model
    assert container.has_custom_test_step()


def test_the_model_gets_copies_of_the_parameters() -> None:
    container = TinyContainer(l_rate=0.5, max_epochs=7)
    container.min_l_rate = 0.25
    model = container.create_lightning_module()
    assert isinstance(model, TinyModel)
    container.l_rate = 0.75
    container.max_epochs = 8
    assert (model.optimizer_params.l_rate, model.optimizer_params.min_l_rate) == (0.5, 0.25)
    assert model.trainer_params.max_epochs == 7


def test_two_models_do_not_share_their_parameters() -> None:
    first, second = TinyModel(), TinyModel()
    first.optimizer_params.l_rate = 0.5
    assert second.optimizer_params.l_rate == OptimizerParams().l_rate


@pytest.mark.parametrize("returned", [None, "model", torch.nn.Linear(1, 1)], ids=["None", "text", "module"])
def test_create_model_has_to_return_a_lightning_module(returned: object) -> None:
    class Wrong(LightningContainer):
        def create_model(self) -> Any:
            return returned

    container = Wrong()
    with pytest.raises(ContainerError, match=r"Wrong\.create_model returned .* not a LightningModule"):
        container.create_lightning_module()


def test_an_unknown_variant_is_refused() -> None:
    container = TinyContainer()
    container.set_model_variant("")
    with pytest.raises(ArgumentsError, match="TinyContainer has no model variant 'large'"):
        container.set_model_variant("large")


def test_validate_names_everything_that_is_wrong_at_once() -> None:
    container = TinyContainer(run_inference_only=True, azure_datasets=["a"], local_datasets=[Path("x"), Path("y")])
    container.pl_profiler = "fast"
    with pytest.raises(ArgumentsError, match=r"Cannot run inference.*Invalid dataset setup.*Unsupported profiler"):
        container.validate()


def test_the_experiment_is_named_after_the_container_unless_given() -> None:
    assert TinyContainer().effective_experiment_name == "TinyContainer"
    assert TinyContainer(experiment="mine").effective_experiment_name == "mine"


def test_the_extra_validation_hook_reaches_the_model() -> None:
    container = TinyContainer()
    container.on_run_extra_validation_epoch()
    model = container.create_lightning_module()
    container.on_run_extra_validation_epoch()
    assert isinstance(model, TinyModel)
    assert model.extra_validations == 1


def test_the_summary_lists_parameters_and_attributes() -> None:
    container = TinyContainer(max_epochs=3)
    container.my_attribute = "mine"  # type: ignore[attr-defined]
    text = str(container)
    assert f"\t{'max_epochs':40}: 3" in text
    assert f"\t{'my_attribute':40}: mine" in text


def test_the_summary_holds_no_secrets() -> None:
    container = TinyContainer()
    container.hub_token = "hunter2"  # type: ignore[attr-defined]
    container.address = "https://me:hunter2@host/data"  # type: ignore[attr-defined]
    container.login = {"user": "me", "password": "hunter2"}  # type: ignore[attr-defined]
    container.no_password = None  # type: ignore[attr-defined]
    text = str(container)
    assert "hunter2" not in text
    assert f"\t{'login':40}: {{'user': 'me', 'password': '***'}}" in text
    assert f"\t{'no_password':40}: None" in text


def test_weights_of_a_checkpoint_replace_those_of_the_model(tmp_path: Path) -> None:
    container = TinyContainer()
    with pytest.raises(ContainerError, match="No Lightning module has been set yet"):
        container.load_model_checkpoint(tmp_path / "x.ckpt")
    model = container.create_lightning_module()
    assert isinstance(model, TinyModel)
    weights = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights, "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.6.6"}, path)
    container.load_model_checkpoint(path)
    assert all(bool((value == 0.5).all()) for value in container.model.state_dict().values())
