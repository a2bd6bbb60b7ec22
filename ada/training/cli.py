"""The command line of training: LightningCLI, with the errors of settings in one line."""

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ada.training.errors import RunError

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "default.yaml"
USAGE = "train.py [--config FILE] [--OPTION VALUE …]"
"""It stands above every error, so it does not list the options."""


class TrainingCLI(LightningCLI):
    """LightningCLI with the one option that is neither trainer's, model's nor data's.

    Raises:
        RunError: settings that are refused: by the class that they are meant for, or because the machine has no such device.
    """

    def __init__(self, arguments: list[str] | None = None) -> None:
        given = sys.argv[1:] if arguments is None else arguments
        if any(word.partition("=")[0] == "--ckpt_path" for word in given):
            raise RunError(
                "There is no `--ckpt_path`: a run goes on from its own `checkpoints/last.ckpt` when the same command is given again. To go "
                "on elsewhere, copy the run's folder and name it by `--trainer.default_root_dir`."
            )
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            run=False,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,  # each algorithm has its own
            trainer_defaults={"enable_checkpointing": False},  # the run keeps checkpoints of its own
            parser_kwargs={"default_config_files": [str(DEFAULT_CONFIG)], "allow_abbrev": False, "usage": USAGE},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--require_gain", type=bool, default=False, help="fail unless the policy beats the mixture of static schedules"
        )

    def before_instantiate_classes(self) -> None:
        """Gives the one seed to whatever has none of its own, and the run's folder to loggers without one, and looks for the device before
        any model is loaded."""
        assert isinstance(self.config, Namespace)
        for part in ("model", "data"):
            settings = self.config[part].get("init_args", {})
            if "seed" in settings and settings["seed"] is None:
                settings["seed"] = int(self.config["seed_everything"])
        _place_logs(self.config["trainer"])
        if any("ModelCheckpoint" in callback["class_path"] for callback in _listed(self.config["trainer"]["callbacks"])):
            raise RunError(
                "A run keeps the checkpoints that it needs by itself, in `checkpoints/` of its folder. Leave `ModelCheckpoint` out of "
                "`trainer.callbacks`."
            )
        wanted = str(self.config["trainer"]["accelerator"])
        found = CUDAAccelerator.is_available() or (wanted == "gpu" and MPSAccelerator.is_available())
        if wanted in ("gpu", "cuda") and not found:
            raise RunError(
                f"`trainer.accelerator` is {wanted}, and this machine has no GPU that torch can use. Run it on one that has, or give "
                "`--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto`, which suits small models only."
            )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause = _refusal(error)
            if isinstance(cause, OSError | ValueError):
                raise RunError(str(cause)) from error
            raise


def _place_logs(trainer: Namespace) -> None:
    """Lets loggers that have an empty `save_dir` write into the run's folder."""
    for logger in _listed(trainer["logger"]):
        settings = logger.get("init_args") if isinstance(logger, Namespace) else None
        if settings is not None and settings.get("save_dir") == "" and trainer["default_root_dir"] is not None:
            settings["save_dir"] = trainer["default_root_dir"]


def _listed(given: Any) -> list[Any]:
    """What was given one of, or several, or nothing."""
    return given if isinstance(given, list) else [given] if given else []


def _refusal(error: BaseException) -> BaseException:
    """What a class itself said: jsonargparse wraps it once for every union of types that it tried."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__ is not None:
        error = error.__cause__
    return error
