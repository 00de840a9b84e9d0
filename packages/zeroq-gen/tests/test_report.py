"""The report is one whole page with what was measured in it, and JSON that any tool reads."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from effcv.bench import Interval
from effcv.errors import DataError
from zeroq_gen.compare import Comparison, Layer, Speed
from zeroq_gen.imageset import ImageSet
from zeroq_gen.metrics import Score
from zeroq_gen.report import PRIVACY, Report, render, shown, write

VOID = {"meta", "img", "br", "path", "use", "rect", "circle", "line", "stop"}


class Page(HTMLParser):
    """Python's own parser, with the stack that says whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.text, self.tags = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def score(noise):
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(30, 10, generator=draw)
    return Score(a, a + noise * torch.randn(30, 10, generator=draw))


def comparison(**changes):
    layers = tuple(Layer(f"tensor_{i}", "Conv", 40.0 - i, -1.0, float(i)) for i in range(30))
    values = {
        "score": {"logits": score(0.05)}, "layers": layers, "reference_bytes": 1_000_000,
        "quantized_bytes": 270_000, "operators": {"QLinearConv": 12}, "pictures": 30,
        "speed": Speed(4.0, 1.6, Interval(2.5, 2.4, 2.6, 15), 2, ""),
    }  # fmt: skip
    return Comparison(**values | changes)


@pytest.fixture(scope="module")
def images():
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (6, 3, 32, 32), generator=draw, dtype=torch.uint8)
    return ImageSet(
        pictures, torch.arange(6), mean=(0.5,) * 3, std=(0.5,) * 3, kind="synthetic",
        provenance={"seed": 7, "trace": [1, 2]},
    )  # fmt: skip


@pytest.fixture
def report(images):
    arms = {"synthetic": score(0.05), "dead-leaves": score(0.2), "gaussian-noise": score(1.0)}
    return Report(
        "ResNet-8, W8A8", comparison(), model={"name": "resnet8"}, settings={"wbits": 8},
        arms=arms, images=images, diversity={"cosine": 0.31},
        trace={"statistics": [4.0, 2.0, 1.0]}, seconds={"synthesis": 3.2}, notes=["a note"],
    )  # fmt: skip


def test_the_page_is_whole_closed_and_needs_no_network(report):
    page = Page(render(report))
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)", render(report))


def test_the_page_follows_light_and_dark(report):
    assert "@media (prefers-color-scheme: dark)" in render(report)


def test_the_page_shows_what_was_measured(report):
    text = " ".join(" ".join(Page(render(report)).text).split())
    same = report.comparison.score["logits"].value("agreement")
    for expected in (
        f"{100 * same:.1f} %", "0.270 of its size", "2.50 times as fast", "Every convolution runs",
        "dead-leaves", "gaussian-noise", "a note", "10 more", PRIVACY, "QLinearConv", "synthesis",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_worst_tensor_comes_first(report):
    rows = re.findall(r"tensor_\d+", render(report))
    assert rows[0] == "tensor_29"
    assert rows[-1] == "tensor_0"
    assert len(rows) == 30


def test_the_contact_sheet_in_the_page_is_that_of_the_set(report, images):
    (link,) = [link for link in Page(render(report)).links if link.startswith("data:")]
    found = Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(found), images.sheet())


def test_names_from_foreign_files_cannot_inject_markup(report):
    hostile = "<script>alert(1)</script>"
    layers = (Layer(hostile, "Conv", 10.0, 0.0, 1.0), Layer("plain", hostile, 11.0, 0.0, 1.0))
    changed = Report(hostile, comparison(layers=layers), model={hostile: hostile}, notes=[hostile])
    page = Page(render(changed))
    assert "script" not in page.tags
    assert page.open == []


def test_a_network_with_float_convolutions_or_without_classes_says_so():
    maps = torch.randn(5, 1, 8, 8)
    found = comparison(
        score={"map": Score(maps, maps + 0.01)}, operators={"Conv": 2}, speed=None, layers=()
    )
    report = Report("detector", found)
    text = " ".join(Page(render(report)).text)
    assert "2 convolutions still run in floating point" in text
    assert "keep their class" not in report.sentence
    assert "times as fast" not in report.sentence


def test_the_files_are_written_and_the_json_holds_the_same_numbers(report, tmp_path):
    paths = write(report, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(paths) == {"report", "json"}
    assert facts["outputs"]["logits"] == report.comparison.score["logits"].to_json()
    assert facts["arms"]["dead-leaves"] == report.arms["dead-leaves"].to_json()
    assert facts["size_ratio"] == 0.27
    assert facts["speed"]["times_faster"]["value"] == 2.5
    assert facts["images"] == {"kind": "synthetic", "count": 6, "size": [32, 32], "seed": 7}
    assert facts["layers"][0]["tensor"] == "tensor_0"
    assert facts["privacy"] == PRIVACY
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_named(report, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file.* cannot be written"):
        write(report, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (True, "yes"), (0.123456, "0.1235"), ({"a": 1.0}, "a 1"), ([], "-"), (3, "3")],
)
def test_values_are_worded_for_people(value, expected):
    assert shown(value) == expected
