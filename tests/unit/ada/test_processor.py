"""Linear layers by oneDNN: the same products, only where they can be and where MKL holds the processor back."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from conftest import build_pixart_pipeline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ada import processor
from ada.evaluation.measure.counting import MacCounter
from ada.processor import LEAST_PRODUCTS, fast_linear, is_held_back, onednn_linear, processor_facts, processor_name
from ada.rollouts import FrozenPipeline
from blockdance import full_compute

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
MKL = F.linear


class Names(TorchDispatchMode):
    """Notes which operations run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.found.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def runs_by_onednn(*operands: Tensor | None) -> bool:
    with Names() as names:
        onednn_linear(*operands)  # type: ignore[arg-type]
    return "mkldnn::_linear_pointwise" in names.found


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor of another maker than Intel's, in a torch that has both libraries."""
    monkeypatch.setattr(processor, "processor_facts", lambda: {"vendor_id": "AuthenticAMD"})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    is_held_back.cache_clear()
    yield
    is_held_back.cache_clear()


def operands(*shape: int, width: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(*shape, 128), torch.randn(width, 128), torch.randn(width)


@needs_onednn
@pytest.mark.parametrize("shape", [(64,), (4, 16), (2, 2, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_those_of_double_precision(shape: tuple[int, ...], with_bias: bool) -> None:
    inputs, weight, bias = operands(*shape)
    given = (inputs, weight, bias if with_bias else None)
    assert runs_by_onednn(*given)
    expected = inputs.double() @ weight.double().T + (bias.double() if with_bias else 0)
    product = onednn_linear(*given)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=2e-4)


@needs_onednn
def test_strided_operands_are_read_as_they_lie() -> None:
    inputs, weight, bias = operands(64)
    turned, wide = weight.T.contiguous().T, torch.stack([inputs, inputs + 1], -1)[..., 0]
    assert not turned.is_contiguous()
    assert not wide.is_contiguous()
    assert runs_by_onednn(wide, turned, bias)
    torch.testing.assert_close(onednn_linear(wide, turned, bias), MKL(inputs, weight, bias), rtol=0, atol=2e-4)


def test_what_does_not_fit_is_left_to_torch() -> None:
    inputs, weight, bias = operands(64)
    few = LEAST_PRODUCTS // (128 * 256) - 1
    learnt = weight.clone().requires_grad_()
    left: list[tuple[Tensor, Tensor, Tensor]] = [
        (inputs[:few], weight, bias),
        (inputs.double(), weight.double(), bias.double()),
        (inputs.bfloat16(), weight.bfloat16(), bias.bfloat16()),
        (inputs, learnt, bias),
        (inputs[0], torch.randn(2**14, 128), torch.randn(2**14)),
    ]
    for given in left:
        assert not runs_by_onednn(*given)
        assert torch.equal(onednn_linear(*given), MKL(*given))


@needs_onednn
def test_gradients_are_kept_where_they_are_asked_for() -> None:
    inputs, layer = torch.randn(64, 128), nn.Linear(128, 256)
    onednn_linear(inputs, layer.weight, layer.bias).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((256,), 64.0))
    with torch.no_grad():
        assert runs_by_onednn(inputs, layer.weight, layer.bias)


def test_autocast_keeps_its_precision() -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert onednn_linear(*operands(64)).dtype == torch.bfloat16


@needs_onednn
def test_the_compiler_chooses_for_itself(amd: None) -> None:
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _: object) -> GraphModule:
        graphs.append(graph)
        return graph

    layer, inputs = nn.Linear(128, 256), torch.randn(64, 128)
    with torch.inference_mode(), fast_linear(CPU):
        torch.compile(layer, backend=backend)(inputs)
    assert len(graphs) == 1
    assert "mkldnn" not in graphs[0].code


def test_tensors_of_other_kinds_are_left_alone() -> None:
    with FakeTensorMode():
        product = onednn_linear(*operands(64))
    assert product.shape == (64, 256)
    assert type(product) is not Tensor
    assert onednn_linear(*(each.to("meta") for each in operands(64))).shape == (64, 256)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [({"vendor_id": "AuthenticAMD"}, True), ({"vendor_id": "HygonGenuine"}, True), ({"vendor_id": "GenuineIntel"}, False)],
)
@needs_onednn
def test_mkl_holds_back_all_makers_but_its_own(
    amd: None, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], expected: bool
) -> None:
    monkeypatch.setattr(processor, "processor_facts", lambda: facts)
    assert is_held_back() == expected


def test_a_torch_without_mkl_holds_nothing_back(amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not is_held_back()


def test_only_a_cpu_that_is_held_back_changes_anything(amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with fast_linear(torch.device("cuda")):
        assert F.linear is MKL
    monkeypatch.setattr(processor, "processor_facts", lambda: {"vendor_id": "GenuineIntel"})
    with fast_linear(CPU):
        assert F.linear is MKL


@needs_onednn
def test_layers_are_as_before_afterwards(amd: None) -> None:
    def fail() -> None:
        with fast_linear(CPU), fast_linear(CPU):
            assert F.linear is onednn_linear
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert F.linear is MKL


@needs_onednn
def test_threads_leave_in_any_order(amd: None) -> None:
    first, second = fast_linear(CPU), fast_linear(CPU)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert F.linear is onednn_linear
    second.__exit__(None, None, None)
    assert F.linear is MKL


def test_what_others_put_in_its_place_stays(amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return MKL(input, weight, bias)

    monkeypatch.setattr(F, "linear", theirs)
    with fast_linear(CPU):
        assert F.linear is theirs
    assert F.linear is theirs


@needs_onednn
def test_as_many_macs_are_counted(amd: None) -> None:
    layer, inputs = nn.Linear(128, 256), torch.randn(4, 16, 128)
    counted = []
    for context in (nullcontext(), fast_linear(CPU)):
        with torch.inference_mode(), context, MacCounter() as counter:
            layer(inputs)
        counted.append(counter.macs)
    assert counted == [64 * 128 * 256] * 2


@needs_onednn
def test_a_frozen_pipeline_computes_by_it_and_images_stay_the_same(amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "LEAST_PRODUCTS", 1)
    frozen = FrozenPipeline(build_pixart_pipeline(), 4, {"guidance_scale": 2.0, "use_resolution_binning": False})
    plain = copy.copy(frozen)
    found = []
    for pipeline, held in ((plain, False), (frozen, True)):
        monkeypatch.setattr(processor, "is_held_back", lambda held=held: held)
        with Names() as names:
            images = pipeline.generate(["a dog", "sun"], [0, 1], full_compute(2, 4)).images
        found.append(("mkldnn::_linear_pointwise" in names.found, images))
    assert [by_onednn for by_onednn, _ in found] == [False, True]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-4)
    assert F.linear is MKL


def test_the_processor_has_a_name() -> None:
    assert processor_name()
    facts = processor_facts()
    assert not facts or {"vendor_id", "model name"} <= facts.keys() or "CPU implementer" in facts
