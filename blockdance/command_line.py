"""The options of `python -m blockdance`."""

import argparse
import ast
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from blockdance.outcome import DEFAULT_DAMAGE
from blockdance.similarity import DEFAULT_TOLERANCE

_DTYPES = ("float32", "bfloat16", "float16")
BY = {"features": ("block_caching", "figure"), "outcome": ("seeds", "most", "batch_size")}
"""Ways to calibrate, and the options that are each one's own."""
_ARGUMENTS = {"prompt": "--prompts", "num_inference_steps": "--steps"}
"""Arguments of the pipeline that have options of their own."""


def command_parser(commands: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    """What the commands take; `command` of what is parsed is the one that was named.

    Args:
        commands: by name, `inspect` and `calibrate`.
    """
    parser = argparse.ArgumentParser(prog="python -m blockdance", allow_abbrev=False)
    named = parser.add_subparsers(required=True, metavar="{inspect,calibrate}")
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("model", help="folder or Hub id of a diffusers pipeline")
    common.add_argument("--prompts", nargs="+", default=["a photograph of a dog"], metavar="TEXT")
    common.add_argument("--prompt-file", type=Path, help="text file with one prompt per line")
    common.add_argument("--component", metavar="NAME", help="one of several transformers, such as transformer_2 of Wan 2.2")
    common.add_argument("--dtype", choices=_DTYPES, default="float32")
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    common.add_argument(
        "--option",
        type=_named_value,
        action=_Collect,
        default={},
        metavar="NAME=VALUE",
        help="passed to the pipeline, such as guidance_scale=4.5 (repeatable)",
    )
    inspecting = named.add_parser("inspect", parents=[common], help="which layout was found, what would be skipped, MACs")
    inspecting.add_argument(
        "--steps", type=_count, default=2, help="denoising steps; more where a second transformer runs late"
    )
    inspecting.set_defaults(command=commands["inspect"])
    calibrating = named.add_parser("calibrate", parents=[common], help="choose boundary, range and N by measurement")
    calibrating.set_defaults(command=commands["calibrate"])
    calibrating.add_argument("--steps", type=_count, default=20, help="denoising steps")
    calibrating.add_argument(
        "--by",
        choices=tuple(BY),
        default="features",
        help="how much features change in one generation; or what many schedules do to the final latents",
    )
    limit = calibrating.add_mutually_exclusive_group()
    limit.add_argument(
        "--tolerance",
        type=_positive,
        help=f"largest relative L1 error of the injected features ({DEFAULT_TOLERANCE:g}), or by outcome relative distance of the final "
        f"latents ({DEFAULT_DAMAGE:g})",
    )
    calibrating.add_argument("--seeds", type=_count, help="by outcome: noises of every prompt (1)")
    calibrating.add_argument("--most", type=_count, help="by outcome: schedules to try (100)")
    calibrating.add_argument("--batch-size", type=_count, help="by outcome: images of one call of the pipeline (16)")
    limit.add_argument(
        "--block-caching",
        type=_positive,
        metavar="THRESHOLD",
        help="by features: make a Block Caching schedule with this threshold instead",
    )
    calibrating.add_argument("--output", type=Path, default=Path("blockdance.json"), help="file for the plan")
    calibrating.add_argument("--figure", type=Path, help="by features: file for a heat map of the measured changes")
    return parser


def _count(text: str) -> int:
    with suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no finite number above 0")


def _named_value(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if name in _ARGUMENTS:
        raise argparse.ArgumentTypeError(f"give {name} with {_ARGUMENTS[name]}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


class _Collect(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, getattr(namespace, self.dest) | dict([values]))
