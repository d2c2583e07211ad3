"""Pictures: numbers stand where they belong, any text may stand in them, browsers can read them."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from minigpt.drawing import Axes, Picture, curve, leave, ticks

ROOT = Path(__file__).resolve().parents[1]
SVG = "{http://www.w3.org/2000/svg}"


def test_axes_put_the_ends_into_the_corners_and_the_middle_into_the_middle():
    axes = Axes(Picture(100, 100, "t"), (10, 20, 90, 80), (0, 4), (1, 3))
    assert axes.at(0, 1) == (10, 80) and axes.at(4, 3) == (90, 20) and axes.at(2, 2) == (50, 50)


def test_a_logarithmic_axis_puts_equal_factors_equally_far_apart():
    axes = Axes(Picture(100, 100, "t"), (0, 0, 100, 100), (0, 1), (1, 100), log=True)
    assert axes.at(0, 10)[1] == pytest.approx(50)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 180, [0, 50, 100, 150]),
        (1.17, 4.7, [2, 3, 4]),
        (0, 0.004, [0, 0.001, 0.002, 0.003, 0.004]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_few_round_numbers_between_the_ends(low, high, expected):
    assert ticks(low, high) == expected


def test_text_may_hold_what_means_something_in_svg():
    picture = Picture(10, 10, "a < b & c")
    picture.text(1, 2, '"</text><script>')
    tree = ET.fromstring(str(picture))
    assert tree.find(f"{SVG}title").text == "a < b & c"
    assert tree.find(f"{SVG}text").text == '"</text><script>'
    assert tree.find(f".//{SVG}script") is None


def test_a_curve_goes_down_as_the_loss_does_and_names_what_it_passes():
    rows = [(0.0, 4.0, 4.2), (10.0, 2.0, 2.5), (20.0, 1.0, 1.5)]
    bars = {"uniform": 4.7, "bzip2": 1.8, "best n-gram": 1.79}
    tree = ET.fromstring(curve(rows, bars, [("0 s", '"<&"')], "title"))
    words = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"uniform 4.70", "bzip2 1.80", "best n-gram 1.79", '"<&"', "validation"} <= {*words}
    lines = [line.get("points").split() for line in tree.iter(f"{SVG}polyline")]
    validation = [line for line in lines if len(line) == 3][-1]
    heights = [float(point.split(",")[1]) for point in validation]
    assert heights == sorted(heights)  # y counts from the top
    named = {text.text: float(text.get("y")) for text in tree.iter(f"{SVG}text")}
    assert abs(named["bzip2 1.80"] - named["best n-gram 1.79"]) >= 15  # both can be read


def test_a_curve_of_one_evaluation_can_be_drawn():
    ET.fromstring(curve([(1.0, 2.0, 2.0)], {}, [], "title"))


DRAWN = "0-bars 1-code 3-blame 4-shapes 5-triangle 8-temperature 9-waterfall 10-memories 12-ladder"


@pytest.mark.parametrize("name", DRAWN.split())  # the others hang on the last digits of long sums
def test_a_picture_is_what_its_numbers_give_today(name):
    from tests import pictures

    file = ROOT / "minigpt/pictures" / f"{name}.svg"
    assert str(pictures.PICTURES[name]()) == file.read_text("utf-8"), "python -m tests.pictures"


def test_every_picture_is_one_that_a_browser_can_read():
    from tests import pictures

    names = {file.stem for file in (ROOT / "minigpt/pictures").glob("*.svg")}
    assert names - {"curve"} == pictures.PICTURES.keys()
    for name in names:
        assert ET.parse(ROOT / "minigpt/pictures" / f"{name}.svg").getroot().tag == f"{SVG}svg"


def test_a_run_leaves_its_curve_and_goes_on_with_its_samples_when_it_is_resumed(tmp_path):
    head, log = "step,training,validation,tokens,seconds\n", tmp_path / "log.csv"
    log.write_text(head + "10,2.0,2.5,100,5.0\n")
    first = [(0, 0.0, '"}{"'), (10, 5.0, '"the"')]
    leave(tmp_path, 4.1, {"uniform": 4.2}, first, "gpt on text")
    log.write_text(log.read_text() + "20,1.0,1.5,200,10.0\n")
    leave(tmp_path, 4.1, {"uniform": 4.2}, [(20, 10.0, '"then"')], "gpt on text")
    lines = (tmp_path / "samples.txt").read_text().splitlines()
    assert lines == ['step 0\t0 s\t"}{"', 'step 10\t5 s\t"the"', 'step 20\t10 s\t"then"']
    words = [text.text for text in ET.parse(tmp_path / "curve.svg").iter(f"{SVG}text")]
    assert {"uniform 4.20", '"}{"', '"then"'} <= {*words}


def test_a_resumed_run_whose_clock_begins_anew_goes_on_to_the_right(tmp_path):
    head = "step,training,validation,tokens,seconds\n"
    (tmp_path / "log.csv").write_text(head + "10,2,2.5,1,5.0\n20,1,2,1,9.0\n30,1,1.5,1,4.0\n")
    leave(tmp_path, 4.1, {}, [], "gpt on text")
    lines = [line.get("points").split() for line in ET.parse(tmp_path / "curve.svg").iter(
        f"{SVG}polyline")]  # fmt: skip
    across = [float(p.split(",")[0]) for p in max(lines, key=len)]
    assert len(across) == 4 and across == sorted(across)


def test_a_sample_may_hold_any_character(tmp_path):
    (tmp_path / "log.csv").write_text("step,training,validation,tokens,seconds\n1,2,3,4,5\n")
    odd = '"a\u2028b\u0085c\x1cd"'
    leave(tmp_path, 4.1, {}, [(1, 1.0, odd), (2, 2.0, odd)], "gpt on text")
    assert (tmp_path / "samples.txt").read_text("utf-8").count(odd) == 2


def test_what_a_user_or_a_power_cut_left_in_the_files_ends_no_training(tmp_path):
    head = "step,training,validation,tokens,seconds\n"
    (tmp_path / "log.csv").write_text(
        head + "10,2,2.5,1,5.0\n20,1,2,1,9.0\n30,1\n\n40,1,1.5,1,12.0\n"
    )
    (tmp_path / "samples.txt").write_text('step 0\t0 s\t"a"\nmy own note\n\n')
    leave(tmp_path, math.nan, {}, [(30, 12.0, '"b"')], "gpt on text")
    tree = ET.parse(tmp_path / "curve.svg")
    words = [text.text for text in tree.iter(f"{SVG}text")]
    assert {'"a"', '"b"'} <= {*words} and "my own note" not in words
    assert max(len(line.get("points").split()) for line in tree.iter(f"{SVG}polyline")) == 3
    assert "my own note" in (tmp_path / "samples.txt").read_text()


def test_a_model_that_does_not_write_leaves_no_samples(tmp_path):
    (tmp_path / "log.csv").write_text("step,training,validation,tokens,seconds\n1,2,3,4,5\n")
    leave(tmp_path, 4.1, {}, [], "conv on digits")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curve.svg", "log.csv"]
