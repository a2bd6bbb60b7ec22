"""Trains a BlockDance-Ada policy.

    python train.py                                      the embedded text-to-emoji model, on a laptop's CPU
    python train.py --config configs/pixart_alpha.yaml   PixArt-α, on GPUs
    python train.py --help                               every option; any key of the YAML is one

The same command run again resumes a killed run. The run's folder is `trainer.default_root_dir`.
"""

import sys

from lightning.pytorch import LightningModule

from ada.training import EXPECTED_ERRORS, Run, TrainingCLI, quieten_libraries


def main(arguments: list[str] | None = None) -> LightningModule:
    """Trains, or goes on training, and exports the policy; `arguments` are those of the command line."""
    quieten_libraries()
    cli = TrainingCLI(arguments)
    module: LightningModule = cli.model
    Run(cli.trainer, module, cli.datamodule, cli.config).train(require_gain=bool(cli.config["require_gain"]))
    return module


if __name__ == "__main__":
    try:
        main()
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
