"""Trains a BlockDance-Ada policy.

    python train.py                                      the embedded text-to-emoji model, on a laptop's CPU
    python train.py --config configs/pixart_alpha.yaml   the paper's settings on PixArt-α
    python train.py --help                               every option; any key of the YAML is one

The same command run again resumes a killed run. The run's folder is `trainer.default_root_dir`.
"""

import sys
import time
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from ada.data import PromptDataModule
from ada.module import AdaModule
from ada.rewards import RewardError
from ada.summary import print_summary
from blockdance import BlockDanceError


def main(arguments: list[str] | None = None) -> AdaModule:
    """Trains, or goes on training, and exports the policy; `arguments` are those of the command line."""
    cli = LightningCLI(
        AdaModule,
        PromptDataModule,
        args=arguments,
        run=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "default_config_files": [str(Path(__file__).parent / "configs" / "default.yaml")],
            "allow_abbrev": False,
        },
    )
    trainer, output = cli.trainer, Path(cli.trainer.default_root_dir)
    module: AdaModule = cli.model
    # an epoch's end is where a resumed run continues exactly: every epoch's order of prompts depends on its number alone
    trainer.callbacks.append(  # type: ignore[attr-defined]
        ModelCheckpoint(output / "checkpoints", save_last=True, save_on_train_epoch_end=True)
    )
    last = output / "checkpoints" / "last.ckpt"
    started = time.monotonic()
    if not last.is_file():
        trainer.validate(module, cli.datamodule, verbose=False)
    trainer.fit(module, cli.datamodule, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if trainer.is_global_zero:
        module.export(output / "policy")
        print_summary(module, output, (time.monotonic() - started) / 60)
    return module


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, BlockDanceError, RewardError) as error:
        sys.exit(f"error: {error}")
