"""Trains a BlockDance-Ada policy.

    python train.py                                      the embedded text-to-emoji model, on a laptop's CPU
    python train.py --config configs/pixart_alpha.yaml   PixArt-α, on GPUs
    python train.py --help                               every option; any key of the YAML is one

The same command run again resumes a killed run. The run's folder is `trainer.default_root_dir`.
"""

import sys
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ada.rewards import RewardError
from ada.schedules import LadderError
from ada.training import NothingLearntError, Run, RunError
from blockdance import BlockDanceError


class TrainingCLI(LightningCLI):
    """LightningCLI with the one option that is neither trainer's, model's nor data's."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--require_gain", type=bool, default=False, help="fail unless the policy beats the mixture of static schedules"
        )


def main(arguments: list[str] | None = None) -> LightningModule:
    """Trains, or goes on training, and exports the policy; `arguments` are those of the command line."""
    cli = TrainingCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=arguments,
        run=False,
        seed_everything_default=0,
        save_config_callback=None,
        parser_kwargs={
            "default_config_files": [str(Path(__file__).parent / "configs" / "default.yaml")],
            "allow_abbrev": False,
        },
    )
    module: LightningModule = cli.model
    Run(cli.trainer, module, cli.datamodule, cli.config).train(require_gain=bool(cli.config["require_gain"]))
    return module


if __name__ == "__main__":
    try:
        main()
    except (OSError, BlockDanceError, LadderError, RewardError, RunError, NothingLearntError) as error:
        sys.exit(f"error: {error}")
