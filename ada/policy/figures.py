"""Measured figures as a card shows them: Markdown, and the Hub's `model-index`."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ada.policy.folder import IncompatiblePolicyError
from ada.policy.hub import hub_id

PLOT, SUMMARY, TABLE, RESULTS = "damage-compute.png", "summary.md", "table.md", "results.json"
"""What a card takes from `evaluate.py`'s output folder."""


def levels_table(outcome: Mapping[str, Any]) -> str:
    """The measured levels as a Markdown table.

    Args:
        outcome: as `Outcome.to_dict` gives it.
    """
    policies = outcome.get("num_policies", 1)
    crossed = (
        f"Each image is decided by one of {policies} policies that did not see its caption; the one that lies here learnt from all of "
        "them in the same way. "
    )
    lines = [
        f"## On {outcome['num_cases']} images{', cross-fitted' if policies > 1 else ' of held-out captions'}",
        "",
        f"{crossed if policies > 1 else ''}"
        "Damage is d/(d + τ) of the distance d to the image with every step computed, between 0 and 1, one half where a person just sees "
        "the change. Mixture: the best two static schedules, drawn without looking at the image, at the same mean compute. Oracle: the "
        "best choice that hindsight could make. Brackets are 95 % intervals, paired over images.",
        "",
        "| compute saved | damage | mixture of static | oracle | advantage | gap closed | visibly changed | mixture |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for level in outcome["levels"]:
        mean, low, high = level["advantage"]
        lines.append(
            f"| {level['saved']:.0%} | {level['policy']:.4f} | {level['mixture']:.4f} | {level['oracle']:.4f} "
            f"| {mean:+.4f} ({low:+.4f} … {high:+.4f}) | {level['gap_closed']:.0%} "
            f"| {level['changed_policy']:.1%} | {level['changed_mixture']:.1%} |"
        )
    return "\n".join(lines)


def outcome_results(outcome: Mapping[str, Any], task: str, source: str, dataset: str | None) -> list[EvalResult]:
    """The levels for `model-index`: damage, and the advantage over the mixture as "x ± y".

    An interval by bootstrap-t is not symmetric; y reaches its farther end.

    Args:
        outcome: as `Outcome.to_dict` gives it.
        task: the Hub's name of the task.
        source: of the captions.
        dataset: their Hub id, if they have one.
    """
    found, way = [], "cross-fitted" if outcome.get("num_policies", 1) > 1 else "held-out"
    for level in outcome["levels"]:
        mean, low, high = level["advantage"]
        values = {
            "bounded damage": f"{level['policy']:.4f}",
            "advantage over the best static mixture": f"{mean:.4f} ± {max(high - mean, mean - low):.4f}",
        }
        found += [
            EvalResult(
                task_type=task,
                dataset_type=dataset or "captions",
                dataset_name=f"{source}, {way}",
                metric_type=name.replace(" ", "_"),
                metric_name=f"{name}, {level['saved']:.0%} of the compute saved",
                metric_value=value,
            )
            for name, value in values.items()
        ]
    return found


def evaluation_results(folder: Path, task: str, digest: str) -> list[EvalResult]:
    """The policy's rows of an evaluation for `model-index`, as "x ± y": y is half the width of the 95 % interval.

    Args:
        folder: output folder of `evaluate.py`.
        task: the Hub's name of the task.
        digest: of the policy's weights.

    Raises:
        FileNotFoundError: it is no such folder.
        IncompatiblePolicyError: another policy was evaluated.
    """
    missing = [name for name in (RESULTS, SUMMARY, TABLE, PLOT) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no output folder of an evaluation: it has no {', '.join(missing)}. `python evaluate.py --policy … --output "
            f"{folder}` makes one."
        )
    content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    settings = content["settings"]
    if settings.get("policy_weights") != digest:
        raise IncompatiblePolicyError(
            f"The evaluation in {folder} is of another policy than the one to publish. Run `python evaluate.py --policy …` on that one."
        )
    rows = [method for method in content["methods"] if method["group"] == "ada" and method["reason"] is None]
    return [
        EvalResult(
            task_type=task,
            dataset_type=hub_id(str(settings.get("prompts"))) or "captions",
            dataset_name=f"{settings['num_prompts']} prompts of {settings.get('prompts', 'a list')}",
            dataset_split=settings.get("split"),
            metric_type=metric,
            metric_name=f"{metric.replace('_', ' ')}, {method['name']}",
            metric_value=_plus_minus(method["estimates"][metric]),
        )
        for method in rows
        for metric in ("bounded_damage", "visibly_changed", "compute_saved", "speed_up_alone")
        if metric in method["estimates"]
    ]


def evaluation_section(evaluation: Path, folder: Path) -> str:
    """Copies the plot and the whole table of an evaluation into a policy's folder; returns what the card says of them."""
    for name in (PLOT, TABLE):
        shutil.copyfile(evaluation / name, folder / name)
    summary = (evaluation / SUMMARY).read_text(encoding="utf-8").strip()
    return f"## Beside other methods\n\n![Damage over the compute saved]({PLOT})\n\n{summary}\n\n[Every row]({TABLE})."


def pictures_section(names: Sequence[str]) -> str:
    """The pictures that training drew."""
    titles = {"outcome.png": "Damage over the compute saved", "decisions.png": "Held-out captions, and what each saved"}
    return "\n\n".join(f"![{titles[name]}]({name})" for name in names if name in titles)


def _plus_minus(estimate: Mapping[str, Any]) -> str:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ± {(high - low) / 2:.4f}"
