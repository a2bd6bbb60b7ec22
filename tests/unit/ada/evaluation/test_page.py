"""The page holds everything and needs nothing else."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ada.evaluation.measure.metrics import Column, all_columns
from ada.evaluation.measure.results import MethodResult, Results, paired_difference
from ada.evaluation.report.page import data_uri, save_page
from ada.statistics import difference, mean

NODE = shutil.which("node")
PROMPTS = ["</script><b>a prompt that would break a careless page</b>", "b", "c"]


def method(name: str, group: str, saved: list[float]) -> MethodResult:
    per_prompt = {
        "quality": [1 / 3, 2.0, 3.0], "perceptual_distance": [0.1, 0.2, 0.3], "bounded_damage": [0.1, 0.2, 0.3],
        "visibly_changed": [0.0, 0.0, 1.0], "compute_saved": saved,
    }  # fmt: skip
    return MethodResult(
        name=name, family=name, group=group, note="", num_inference_steps=3,
        estimates={key: mean(values) for key, values in per_prompt.items()}, per_prompt=per_prompt,
        seconds_per_image={"2": [0.1, 0.2]}, actions=[[0, 1, 0], [-1, 1, 0], [0, 1, 0]],
        action_names=["compute", "reuse after block 3, order 0"],
    )  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> str:
    distance = Column("Distance", higher_is_better=False)
    columns = all_columns({"quality": Column("Quality"), "perceptual_distance": distance})
    methods = [method("Full compute", "plain", [0.0] * 3), method("Ada", "ada", [0.1, 0.3, 0.2])]
    gone = MethodResult(name="Gone", family="Peers", group="peers", note="", num_inference_steps=3, reason="It has no blocks.")
    results = Results(
        settings={"compared_with": "Full compute", "batch_size": 2, "visible_damage": 0.02}, environment={"torch": "2"},
        columns=columns, prompts=PROMPTS, methods=[*methods, gone],
        complexity={"edge_density": [0.1, 0.2, 0.3], "prompt_length": [1.0, 2.0, 2.0]},
        warnings=["Few images."],
    )  # fmt: skip
    save_page(results, lambda name, place: torch.rand(3, 8, 8), [1], tmp_path / "index.html")
    return (tmp_path / "index.html").read_text(encoding="utf-8")


class Scripts(HTMLParser):
    """Collects scripts, and every address that the page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.scripts: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "script"
        self.scripts += [""] if self.inside else []
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def test_the_data_survive_a_browsers_parsing(page: str) -> None:
    parser = Scripts()
    parser.feed(page)
    assert len(parser.scripts) == 2
    data = json.loads(parser.scripts[0])
    assert data["prompts"] == PROMPTS
    assert data["methods"][2]["reason"] == "It has no blocks."
    assert data["methods"][0]["per_prompt"]["quality"][0] == 0.333333
    assert data["scheduled"] == ["Ada"]
    assert data["spending"][0]["easiest"] == [1, 2, 0]
    assert set(data["thumbnails"]) == {"0", "1", "2"}
    assert "Few images." in data["notes"]
    assert "visibly changed, d > 0.02;" in data["notes"][1]
    assert data["quick_look"] is True
    assert data["action_colours"].keys() == {"compute", "reuse after block 3, order 0"}


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parser = Scripts()
    parser.feed(page)
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert not re.search(r"https?://", page)


def test_every_element_that_the_script_looks_for_is_there(page: str) -> None:
    wanted = set(re.findall(r'byId\("([^"]+)"\)', page))
    assert len(wanted) > 15
    assert wanted <= set(re.findall(r'id="([^"]+)"', page))


def run_script(page: str, expression: str) -> Any:
    """What the page's own script makes of an expression, without a document."""
    parser = Scripts()
    parser.feed(page)
    data, script = parser.scripts
    until_it_starts = script.partition("/* --- start --- */")[0]
    document = f"const document = {{ getElementById: () => ({{ textContent: {json.dumps(data)} }}) }};"
    node = """
        class Node { textContent = ""; children = [];
          append(...children) { this.children.push(...children); }
          setAttribute() {}
          get text() { return this.textContent + this.children.map((child) => child.text ?? child).join(""); } }
        document.createElement = () => new Node();"""
    code = f"{document}{node}{until_it_starts};console.log(JSON.stringify({expression}));".replace('"use strict";', "")
    assert NODE is not None
    return json.loads(subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, check=True).stdout)


DOCUMENT = """
const elements = {};
class Element {
  children = []; style = {}; dataset = {}; own = "";
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  setAttribute() {}
  addEventListener() {}
  getContext() { return { createImageData: (width, height) => ({ data: new Uint8ClampedArray(4 * width * height) }), putImageData() {} }; }
  get value() { return this.own_value ?? (this.children.find((each) => each.selected) ?? this.children[0])?.value ?? ""; }
  set value(value) { this.own_value = value; }
  set innerHTML(text) { this.own = text; }
  set textContent(text) { this.own = text; }
  get textContent() { return this.own + this.children.map((child) => child.textContent ?? child).join(""); }
}
const find = (name) => elements[name] ??= new Element();
const document = { createElement: () => new Element(), getElementById: find, querySelector: find };
const window = { innerWidth: 1280, addEventListener() {} };
class Image extends Element {}
"""
"""As much of a document as the page's script needs."""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_script_draws_everything_at_its_start(page: str) -> None:
    parser = Scripts()
    parser.feed(page)
    data, script = parser.scripts
    given = f"document.getElementById('data').textContent = {json.dumps(data)};"
    shown = "Object.fromEntries(Object.entries(elements).map(([id, node]) => [id, node.textContent]))"
    code = f"{DOCUMENT}{given}{script};console.log(JSON.stringify({shown}));".replace('"use strict";', "")
    assert NODE is not None
    ran = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    drawn = json.loads(ran.stdout)
    assert all("Ada" in drawn[name] for name in ("plot", "legend", "#rows tbody", "maps", "shown", "spender"))
    assert "It has no blocks." in drawn["left-out"]
    assert PROMPTS[1] in drawn["cards"]
    assert "edge density" in drawn["correlations"].lower()


def difference_on_the_page(page: str, values: list[float], others: list[float], together: int = 1) -> dict[str, Any]:
    sides = [
        json.dumps({"per_prompt": {"quality": side}, "together": size}) for side, size in ((values, together), (others, 1))
    ]
    found: dict[str, Any] = run_script(page, f'difference({", ".join(sides)}, "quality")')
    return found


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize("count", [1, 2, 7])
def test_differences_of_few_prompts_are_those_of_the_package(page: str, count: int) -> None:
    values, others = [0.5, 0.1, 0.4, 0.2, 0.9, 0.3, 0.6][:count], [0.1, 0.2, 0.0, 0.4, 0.1, 0.2, 0.3][:count]
    found, expected = difference_on_the_page(page, values, others), difference(values, others)
    assert found == {name: each if each is None else pytest.approx(each) for name, each in asdict(expected).items()}


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_differences_of_batches_are_those_of_the_package(page: str) -> None:
    """Of seven batches, the last of which is smaller."""
    values, others = np.random.default_rng(1).random((2, 52)).tolist()
    found, expected = difference_on_the_page(page, values, others, 8), paired_difference("quality", values, others, 8)
    assert found == {name: pytest.approx(each) for name, each in asdict(expected).items()}
    assert expected.value == pytest.approx(np.mean(values) - np.mean(others))


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_differences_that_are_nearly_all_zero_are_those_of_the_package(page: str) -> None:
    values, others = [0.5, 0.25, 0.75, *[0.125] * 125], [0.125] * 128
    found, expected = difference_on_the_page(page, values, others), difference(values, others)
    assert expected.low is not None
    assert expected.low < 0
    assert found == {name: pytest.approx(each) for name, each in asdict(expected).items()}


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_differences_of_many_prompts_are_nearly_those_of_the_package(page: str) -> None:
    """Other resamples are drawn: the ends differ by a tenth of the width at most."""
    values, others = np.random.default_rng(0).gamma(2.0, size=(2, 60)).tolist()
    found, expected = difference_on_the_page(page, values, others), difference(values, others)
    assert expected.half_width is not None
    assert [found["low"], found["high"]] == pytest.approx([expected.low, expected.high], abs=0.2 * expected.half_width)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_a_row_beside_itself(page: str) -> None:
    assert run_script(page, "difference(measured[1], measured[1], 'quality')") == {"value": 0, "low": 0, "high": 0}


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_nothing_is_less_than_nothing(page: str) -> None:
    assert run_script(page, "[-0.001, -0.01, 0, 2].map((value) => minus(value.toFixed(2)))") == [
        "0.00",
        "−0.01",
        "0.00",
        "2.00",
    ]


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize(("ends", "text"), [((None, None), "0.250"), ((0.125, 0.375), "0.250 ±0.125")])
def test_a_verdict_shows_an_interval_where_there_is_one(page: str, ends: tuple[float | None, float | None], text: str) -> None:
    match = {"differences": {"bounded_damage": {"value": 0.25, "low": ends[0], "high": ends[1]}}, "rows": []}
    assert run_script(page, f"verdictCell({json.dumps(match)}).text").endswith(f" {text}")


def test_pictures_keep_their_pixels_and_videos_their_frames() -> None:
    image = torch.rand(3, 8, 6)
    frames = [
        Image.open(io.BytesIO(base64.b64decode(data_uri(one).partition(",")[2]))) for one in (image, torch.rand(4, 3, 8, 6))
    ]
    pixels = torch.tensor(list(frames[0].convert("RGB").tobytes())).reshape(8, 6, 3).permute(2, 0, 1)
    assert torch.equal(pixels, (image * 255).round().long())
    assert frames[1].n_frames == 4


def test_large_pictures_are_shrunk() -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(data_uri(torch.rand(3, 300, 600)).partition(",")[2])))
    assert picture.size == (256, 128)
