"""The report is one page that needs nothing beside itself and hides nothing that a record holds."""

import base64
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcv.bench import Claim, Measure
from effcv.errors import BenchError
from effcv_bench.discover import Package
from effcv_bench.plots import pareto, trade_off
from effcv_bench.report import render, tables, write
from effcv_bench.store import Result

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and collects attributes, ids and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.ids, self.words = [], [], [], []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def result(record, **changes):
    facts = {"package": record.package, "case": record.case, "version": record.version}
    return Result(**(facts | {"seconds": record.seconds, "record": record} | changes))


def measures(*rows):
    return tuple(Measure(arm, name, value, "u", better) for arm, name, value, better in rows)


def test_the_page_nests_refers_only_to_itself_and_has_no_script(record, tmp_path):
    (tmp_path / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    figure = record(case="drawn", figures=(str(tmp_path / "a.svg"),))
    html = render([result(record()), result(figure)], [record()])
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for _, name, value in page.attributes:
        if name in ("src", "href", "srcset"):
            assert value.startswith("data:") or value.removeprefix("#") in page.ids
    assert "<script" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_what_a_case_writes_is_shown_as_text_never_run(record):
    hostile = "<script>alert(1)</script>\"'&"
    claims = (Claim(hostile, 1.0, "<= 1", True),)
    bad = record(claims=claims, notes=(hostile,), measures=measures((hostile, "m", 1.0, "higher")))
    failed = Result("q", "d", "1", 1.0, error=hostile, traceback=hostile)
    html = render([result(bad), failed], [])
    assert "<script>" not in html
    assert Page(html).text.count(hostile) == 5


def test_every_verdict_has_a_word_and_a_sign_beside_its_colour(record):
    claims = [Claim(str(holds), 1.0, "== 1", holds) for holds in (True, False, None)]
    text = Page(render([result(record(claims=tuple(claims)))], [])).text
    for words in ("True = 1 ✓ held 1", "False = 1 ✗ missed 1", "None = 1 ○ not judged 1"):
        assert words in text


def test_each_record_shows_command_seed_version_machine_load_and_date(record):
    env = {"cpu": "a fast one", "cores": 2, "load": 0.25, "command": "effcv-bench run p:c"}
    env |= {"date": "2026-01-02T03:04:05+00:00", "libraries": {"torch": "2.6"}}
    text = Page(render([result(record(env=env, seed=11, version="3.2.1"))], [])).text
    for fact in (
        "seed 11",
        "version 3.2.1",
        "a fast one, 2 cores",
        "0.25",
        "run p:c",
        "2026-01-02",
    ):
        assert fact in text
    assert "torch 2.6" in text.replace("\xa0", " ")


def test_a_committed_record_stands_beside_the_fresh_run(record):
    accuracy = {"text": "better", "value": 1.7, "bound": "> 0", "low": 0.6, "high": 2.8}
    fresh = record(claims=(Claim(**accuracy, holds=None),))
    kept = record(claims=(Claim(**accuracy, holds=True),), profile="claims", version="0.9")
    text = Page(render([result(fresh)], [kept])).text
    assert "better > 0 ○ not judged 1.7 [0.6, 2.8] ✓ held 1.7 [0.6, 2.8]" in text
    assert "claims, seed 0, 1.5 s, version 0.9, 2026-01-02, a cpu, 2 cores" in text


def test_failures_broken_packages_and_lost_figures_are_named(record):
    failed = Result("q", "d", "1", 1.0, error="ValueError: no", traceback="Traceback of it")
    lost = record(figures=("/gone/curve.svg",))
    page = render([failed, result(lost)], [], [Package("z", "1", broken="cannot be loaded")])
    text = Page(page).text
    for words in ("ValueError: no", "Traceback of it", "/gone/curve.svg is no longer there"):
        assert words in text
    assert "z did not load: cannot be loaded" in text


def test_an_empty_report_says_so():
    assert "No case has run" in Page(render([], [])).text


def test_measures_become_a_table_of_arms_with_the_best_marked(record):
    rows = [
        ("a", "time", 1.25, "lower"),
        ("b", "time", 2.0, "lower"),
        ("a", "size", 3.0, "neither"),
    ]
    [(arms, columns)] = tables(record(measures=measures(*rows)))
    assert arms == ["a", "b"]
    assert [(c.name, c.best) for c in columns] == [("time", 1.25), ("size", None)]
    assert columns[0].texts == {"a": "1.25", "b": "2.00"}
    assert (columns[0].place("a"), columns[0].place("b")) == (62.5, 100.0)
    assert columns[1].place("b") is None
    text = Page(render([result(record(measures=measures(*rows)))], [])).text
    assert "a 1.25 (best) 3 b 2.00 \u2013" in text


@given(st.lists(st.floats(-1e300, 1e300) | st.just(float("nan")), min_size=1, max_size=6))
def test_a_dot_lies_on_its_line_whatever_the_values(values):
    from effcv_bench.report import Column

    column = Column("m", "u", "higher", {str(i): value for i, value in enumerate(values)})
    places = [column.place(arm) for arm in column.values]
    assert all(place is None or 0 <= place <= 100 for place in places)
    assert len(column.texts) == len(values)


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(points)
def test_the_front_holds_exactly_the_points_that_nothing_dominates(points):
    def dominates(q, p):
        return q[0] <= p[0] and q[1] >= p[1] and q != p

    expected = {p for p in points if not any(dominates(q, p) for q in points)}
    assert set(pareto(points)) == expected


def test_the_trade_off_is_well_formed_and_follows_a_dark_page(record):
    rows = [(arm, "top1", value, "higher") for arm, value in (("a", 1.0), ("b<", 2.0), ("c", 1.5))]
    rows += [(arm, "time", value, "lower") for arm, value in (("a", 1.0), ("b<", 200.0), ("c", 3))]
    svg = trade_off(record(measures=measures(*rows)))
    root = ElementTree.fromstring(svg.encode())
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"a", "b<", "c", "top1 (u), higher is better"} <= texts
    assert "prefers-color-scheme:dark" in svg
    html = render([result(record(measures=measures(*rows)))], [])
    assert base64.b64encode(svg.encode()).decode() in html


def test_no_trade_off_is_drawn_from_two_arms_or_beside_a_cases_own_figure(record, tmp_path):
    two = measures(("a", "top1", 1.0, "higher"), ("b", "top1", 2.0, "higher"))
    assert trade_off(record(measures=two)) is None
    rows = [(arm, name, 1.0, name) for arm in "abc" for name in ("higher", "lower")]
    path = tmp_path / "own.svg"
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for figures, drawn in (((), True), ((str(path),), False)):
        made = record(measures=measures(*rows), figures=figures)
        assert ("trade-off" in Page(render([result(made)], [])).text) is drawn


def test_a_page_that_cannot_be_written_is_a_bench_error(record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"report .*report.html cannot be written"):
        write([], [], tmp_path / "file" / "report.html")
