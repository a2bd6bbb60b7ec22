"""MACs and memory counted from outside, against cases by hand and the package's own count."""

import gc

import pytest
import torch
from conftest import build_pixart_pipeline
from torch import library, nn
from torch.profiler import profile

from ada.evaluation.measure.counting import MacCounter, counted_macs, run_batch, weighed
from ada.evaluation.methods.base import Cases, Method
from ada.evaluation.methods.caches import num_bytes
from ada.evaluation.methods.static import full_method
from ada.rollouts import FrozenPipeline
from blockdance import Reuse, ReuseSchedule, full_compute


class Twice(nn.Module):
    """A linear layer called twice, and attention of one query."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.layer(self.layer(tokens))
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_macs_by_hand(context: type[torch.no_grad]) -> None:
    """5 tokens × 6 × 6 twice, and 5 × 5 × 6 for the scores and as many for the values; called two times."""
    model = Twice()
    with context(), counted_macs(model) as count:
        for _ in range(2):
            model(torch.rand(1, 5, 6))
    assert count.macs == 2 * (2 * 5 * 6 * 6 + 2 * 5 * 5 * 6)


def test_fused_encoder_layers_by_hand() -> None:
    """5 tokens of width 8: 4 projections, scores and values, and two layers to a width of 16 and back."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.inference_mode(), MacCounter() as count:
        layer(torch.rand(1, 5, 8))
    assert count.macs == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_runs_outside_the_model_is_not_counted() -> None:
    model = Twice()
    with torch.no_grad(), counted_macs(model) as count:
        torch.rand(50, 50) @ torch.rand(50, 50)
        model.layer(torch.rand(1, 5, 6))
    model(torch.rand(1, 5, 6))
    assert count.macs == 0


def test_a_model_that_contains_itself_is_counted() -> None:
    """cache-dit's blocks do; `FlopCounterMode` never returns from them."""
    model = Twice()
    model.itself = model  # type: ignore[assignment]
    with torch.no_grad(), counted_macs(model) as count:
        model(torch.rand(1, 5, 6))
    assert count.macs > 0


def test_blockdance_reports_what_was_counted() -> None:
    """Mixed schedules in a batch: the report and the count from outside agree to the last MAC."""
    subject = FrozenPipeline(build_pixart_pipeline(), 4, {"use_resolution_binning": False, "clean_caption": False})
    schedule = ReuseSchedule(torch.tensor([[0, 0, 1, 0], [0, 0, 2, 1]]), (Reuse(boundary=1), Reuse(boundary=3, order=1)))
    cases = Cases(["a", "b"], [1, 2], 2)
    mixed = Method(name="mixed", family="", group="blockdance", num_inference_steps=4, plan=schedule)
    ran = run_batch(subject, mixed, cases, slice(0, 2), count=True)
    assert ran.report.macs is not None
    assert (
        0 < float(ran.report.macs.sum()) == ran.macs < run_batch(subject, full_method(4), cases, slice(0, 2), count=True).macs
    )


@library.custom_op("ada_test::packed_linear", mutates_args=())
def packed_linear(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(features, weight)


@packed_linear.register_fake
def _(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return features.new_empty(*features.shape[:-1], len(weight))


class PackedLinear(nn.Module):
    """As quantised layers are: an operator of its own does the work."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.weight = layer.in_features, layer.weight

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = packed_linear(features, self.weight)
        return output


def test_packed_layers_count_as_those_that_they_stand_for() -> None:
    """In the plain pipeline as in BlockDance's report."""
    pipeline = build_pixart_pipeline()
    subject = FrozenPipeline(pipeline, 4, {"use_resolution_binning": False, "clean_caption": False})
    cases, full = Cases(["a"], [1], 1), full_method(4)
    plain = run_batch(subject, full, cases, slice(0, 1), count=True).macs
    for block in pipeline.transformer.transformer_blocks:
        block.ff.net[2] = PackedLinear(block.ff.net[2])
    planned = Method(name="planned", family="", group="static", num_inference_steps=4, plan=full_compute(1, 4))
    report = run_batch(subject, planned, cases, slice(0, 1), count=True).report
    assert report.macs is not None
    assert run_batch(subject, full, cases, slice(0, 1), count=True).macs == plain == float(report.macs)


def test_peak_memory_is_what_lives_at_once() -> None:
    """Two tensors of 4 MB, one after the other, then both of them together."""
    megabytes = 4 * 2**20

    def in_turn() -> str:
        for _ in range(2):
            held = torch.zeros(2**20)
            del held
        return "done"

    def together() -> None:
        both = [torch.zeros(2**20) for _ in range(2)]
        del both

    assert weighed(torch.device("cpu"), in_turn) == ("done", pytest.approx(megabytes, rel=0.01))
    assert weighed(torch.device("cpu"), together) == (None, pytest.approx(2 * megabytes, rel=0.01))


def test_bytes_of_a_tree_count_shared_storage_once() -> None:
    tensor = torch.zeros(10)
    assert num_bytes({"a": [tensor, tensor[:5]], "b": {"c": torch.zeros(3)}}) == 4 * 13
    assert num_bytes(nn.Linear(3, 3)) == 0


def test_the_profilers_events_do_not_pile_up() -> None:
    weighed(torch.device("cpu"), lambda: torch.zeros(10))
    assert not [found for found in gc.get_objects() if isinstance(found, profile)]
