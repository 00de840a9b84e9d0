"""The report of `alcs analyze`: one page that needs nothing else, and the same facts as JSON."""

import json
import re
from html.parser import HTMLParser

import pytest

from alcs import report
from alcs.engine import SparseEngine
from alcs.report import Analysis
from alcs.roofline import Machine
from alcs.segments import LayerTime, native_module
from effcv.errors import DataError

LAYERS = [
    LayerTime("stem<script>", "conv", "dense", 1, 1.0, 1_000_000, 50_000, 3e-5),
    LayerTime("pw1", "conv", "k1", 4, 0.1, 200_000, 30_000, 1e-5),
    LayerTime("pool", "global_pool", "", 0, 1.0, 0, 30_000, 2e-6),
    LayerTime("in place", "concat", "", 0, 1.0, 0, 30_000, 0.0),
]


@pytest.fixture
def analysis():
    machine = Machine("avx512", 2, peak=200.0, cache=80.0, memory=12.0)
    notes = ["Softmax 'tail' runs in onnxruntime"]
    return Analysis("net & co", machine, LAYERS, {"pw1": "64x8x8"}, 0.05, {"weights": 7}, notes)


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def error(self, message):
        raise AssertionError(message)


def test_the_page_is_whole_by_itself(analysis):
    page = report.render(analysis)
    parsed = _Page(page)
    assert "svg" in parsed.tags
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert all(link.startswith("#") for link in parsed.links)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page


def test_every_layer_and_note_is_on_the_page_and_nothing_is_markup(analysis):
    page = report.render(analysis)
    for words in ("pw1", "global pool", "k1, groups of 4", "64x8x8",
                  "stem&lt;script&gt;", "net &amp; co",
                  "Softmax &#39;tail&#39;", "2 threads"):  # fmt: skip
        assert words in page


def test_rows_share_out_the_time(analysis):
    rows = analysis.rows()
    assert sum(row["share_of_time"] for row in rows) == pytest.approx(1)
    assert rows[1]["gflops"] == pytest.approx(40)
    assert rows[1]["share_of_roofline"] == pytest.approx(40 / 200)
    assert rows[2]["share_of_roofline"] == 0
    # 2.4 MFLOP in 42 us
    assert "57 GFLOP/s: 29% of the peak" in analysis.sentence


def test_files_hold_the_same_facts(analysis, tmp_path):
    paths = report.write(analysis, tmp_path / "a" / "b")
    found = json.loads((tmp_path / "a" / "b" / "report.json").read_text())
    assert set(paths) == {"report", "json"}
    assert found == json.loads(json.dumps(analysis.to_json()))
    assert found["layers"][0]["layer"] == "stem<script>"


def test_a_folder_that_is_a_file_is_refused(analysis, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(DataError, match="cannot be written"):
        report.write(analysis, path)
    assert path.read_text() == "mine"


@pytest.mark.skipif(native_module() is None, reason="the native kernels are not built")
def test_layers_of_an_engine_take_no_longer_than_the_whole(every_layer):
    engine = SparseEngine(every_layer, num_threads=1)
    found = report.analyze(engine, facts={}, rounds=15)
    names = [layer.name for segment in every_layer.segments[:1] for layer in segment.layers]
    assert [layer.name for layer in found.layers][: len(names)] == names
    spent = 1e3 * sum(layer.seconds for layer in found.layers)
    assert 0 < spent < 3 * found.whole_ms
    assert "a note" in found.notes
    assert any("Softmax" in note for note in found.notes)
