"""Kills training runs by SIGKILL at random moments: each must end, resumed, with the weights of a run that nobody killed.

    python benchmarks/kill.py                                  the embedded model, four schedules of six steps on two captions, 20 kills
    python benchmarks/kill.py --kills 5 --config my.yaml       another run: further options are those of train.py
    python benchmarks/kill.py --kept model.init_args.table model.init_args.tape --config configs/paper_ada.yaml

Every run has a folder and a table of its own. A run is a child forked from this process, so that its moments fall
into the work and not into Python's imports. Prints a line a kill; fails unless all weights are equal, to the bit unless told otherwise.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ada.schedules import Ladder

train = run_path(str(Path(__file__).parents[1] / "train.py"))["main"]
RUNGS = ("000000", "000010", "000020", "000110")


def small_run(folder: Path) -> list[str]:
    """Settings of a run of seconds, whose ladder has some rungs of six steps."""
    actions = torch.tensor([[int(action) for action in rung] for rung in RUNGS])
    ladder = replace(Ladder.load("configs/ladders/emoji.json"), actions=actions, decision_steps=(2, 3))
    ladder.save(folder / "ladder.json")
    return [
        "--data.init_args.ladder", str(folder / "ladder.json"), "--data.init_args.pipeline.init_args.num_inference_steps", "6",
        "--data.init_args.train_limit", "2", "--data.init_args.rollout_batch_size", "1", "--model.init_args.folds", "2",
        "--trainer.max_epochs", "20",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--kept", nargs="+", default=["data.init_args.table"], metavar="SETTING",
        help="those that name folders that runs share: tables and tapes",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest difference of a weight: other batches round otherwise"
    )
    options, given = parser.parse_known_args()
    moments, kept = random.Random(options.seed), options.kept
    with tempfile.TemporaryDirectory() as place:
        settings = given or small_run(Path(place))
        whole = Path(place) / "whole"
        started = time.monotonic()
        if run(whole, settings, kept) != 0:
            sys.exit("The run fails by itself.")
        duration = time.monotonic() - started
        expected = learnt(whole)
        print(f"Uninterrupted: {duration:.1f} s, {len(expected)} tensors")
        different = 0
        for number in range(options.kills):
            folder = Path(place) / str(number)
            # a run that was faster than its kill tells the machine's pace today, and is begun anew
            while True:
                started, after = time.monotonic(), moments.uniform(0, duration)
                if run(folder, settings, kept, after) != 0:
                    break
                duration = min(duration, time.monotonic() - started)
                shutil.rmtree(folder)
            reached = state_of(folder)
            if run(folder, settings, kept) == 0:
                distance = difference(learnt(folder), expected)
                different += distance > options.tolerance
                verdict = "equal" if distance <= options.tolerance else "DIFFERENT"
                print(f"killed after {after:5.1f} s ({reached}): {verdict}, largest difference {distance:.1e}", flush=True)
            else:
                different += 1
                print(f"killed after {after:5.1f} s ({reached}): DID NOT RESUME", flush=True)
    sys.exit(f"{different} of {options.kills} runs ended otherwise." if different else 0)


def run(folder: Path, settings: list[str], kept: list[str], kill_after: float | None = None) -> int:
    """Trains in a child; returns its exit status, 0 where it was faster than the kill, or the negative signal."""
    child = os.fork()
    if child == 0:
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = 1
        try:
            train([*settings, *folders(folder, kept)])
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def folders(folder: Path, kept: list[str]) -> list[str]:
    """The options that give a run places of its own."""
    places = {"trainer.default_root_dir": folder, "trainer.logger.init_args.save_dir": folder}
    places |= {name: folder / name.rpartition(".")[2] for name in kept}
    return [word for name, place in places.items() for word in (f"--{name}", str(place))]


def learnt(folder: Path) -> dict[str, Tensor]:
    """The exported weights and those of the last state."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return load_file(folder / "policy" / "model.safetensors") | {f"last.{name}": value for name, value in last.items()}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of any weight."""
    if found.keys() != expected.keys():
        return float("inf")
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def state_of(folder: Path) -> str:
    """What a killed run had reached."""
    last = folder / "checkpoints" / "last.ckpt"
    if (folder / "policy").is_dir():
        return "at the export"
    if last.is_file():
        return f"after epoch {torch.load(last, weights_only=True)['epoch'] + 1}"
    rows = len(list((folder / "tables").glob("*/*.safetensors")))
    return f"{rows} batches of rollouts" if rows else "before anything was kept"


if __name__ == "__main__":
    main()
