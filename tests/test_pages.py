"""The tour: its numbers are what Python answers, its code that of the files, its links exist."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pages
import pytest

from minigpt.datasets.text import load

ROOT = Path(__file__).resolve().parents[1]
TOUR = (ROOT / "minigpt/README.md").read_text(encoding="utf-8")
CHAPTERS = re.split(r"^## (?=\d+\. )", TOUR, flags=re.M)[1:]
BLOCK = re.compile(rf"(?:({pages.MARK}))?```python\n(.*?)```", re.S)


def examples(chapter):
    """The blocks of a chapter that are typed into Python; quotations are not."""
    return [match[5] for match in BLOCK.finditer(chapter) if not match[1]]


def squeezed(text):
    """Without the white space by which NumPy lines up its columns."""
    return re.sub(r"\s+", "", text)


def answers(code, names):
    """Run a block in a dictionary of names -> (line, what Python answers, what the page says)."""
    lines = code.splitlines()
    for node in ast.parse(code).body:
        line = lines[node.end_lineno - 1]
        expected = line.partition("# -> ")[2].strip()
        if isinstance(node, ast.Expr) and expected:
            value = eval(compile(ast.Expression(node.value), "page", "eval"), names)
            yield line, squeezed(repr(value)), squeezed(expected)
        else:
            assert not expected, f"only an expression has an answer: {line}"
            exec(compile(ast.Module([node], []), "page", "exec"), names)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[c.partition("\n")[0] for c in CHAPTERS])
def test_python_answers_what_a_chapter_says(chapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a file
    names = {"__name__": "page"}
    for code in examples(chapter):
        for line, answer, expected in answers(code, names):
            assert answer == expected, line


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_quoted_code_is_that_of_its_file(page):
    text = page.read_text(encoding="utf-8")
    assert pages.fill(text) == text, "run python -m tests.pages"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_github_renders_the_formulas(page):
    text = page.read_text(encoding="utf-8")
    assert "\\operatorname" not in text  # "not allowed", says GitHub
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.S | re.M)
    for formula in re.findall(r"\$([^$\n]+)\$", prose):  # Markdown takes \, for an escaped comma
        assert not re.search(r"\\[^A-Za-z]", formula), formula


def test_the_first_chapters_quote_what_they_say_they_do():
    assert CHAPTERS[1].count("def gpt(weights, ids):") == 1
    assert CHAPTERS[2].count("def multiply(a, b):") == 1


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    anchors |= set(re.findall(r'<a id="(.*?)"></a>', text))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if not file:
            assert anchor in anchors, target
        elif "://" not in target:
            assert (page.parent / file).exists(), target


def test_every_test_that_the_tour_names_exists():
    named = set(re.findall(r"`tests/(test_\w+\.py)::(test_\w+)`", TOUR))
    assert len(named) > 5
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


def test_every_test_that_a_promise_names_exists():
    rows = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "tests/README.md").read_text("utf-8"))
    assert len(rows) > 20
    for file, name in rows:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {name}(" in source or f"class {name}" in source, name


def test_every_chapter_of_the_table_has_its_heading():
    table = re.findall(r"^\| \[(\d+)\]\(#", TOUR, re.M)
    assert table == [c.partition(".")[0] for c in CHAPTERS]


CHINESE = pages.chapters(pages.CHINESE.read_text(encoding="utf-8"))
ENGLISH = pages.chapters(TOUR)


def facts(chapter):
    """What does not depend on the language: blocks of code and formulas, pictures, tests."""
    blocks = [match[0] for match in pages.FENCED.finditer(chapter)]
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", chapter)
    tests = sorted(re.findall(r"`tests/[^`]+`", chapter))
    edit = r"^(?:Change|把) `(.*?)` (?:to|改成) `(.*?)`.*?\*\*([\d.]+)\*\*"
    edits = re.findall(edit, chapter, re.M)
    return blocks, pictures, tests, edits


@pytest.mark.parametrize("number", range(len(CHINESE)))
def test_a_chinese_chapter_has_the_code_formulas_pictures_and_tests_of_the_english_one(number):
    chinese, english = facts(CHINESE[number]), facts(ENGLISH[number])
    assert chinese[0] and chinese == english


def test_chinese_chapters_have_the_anchors_of_the_english_ones_and_name_them():
    text = pages.CHINESE.read_text(encoding="utf-8")
    anchors = re.findall(r'<a id="(.*?)"></a>\n<!-- of: (\d+) \w+ -->', text)
    expected = re.findall(r"^\| \[(\d+)\]\(#(.*?)\)", TOUR, re.M)
    assert [(n, a) for a, n in anchors] == [*expected, ("13", "predict-then-run")]


EDITS = re.findall(r"^Change `(.*?)` to `(.*?)`\. It prints \*\*([\d.]+)\*\*", TOUR, re.M)
UNCHANGED = re.search(r"Unchanged it prints \*\*([\d.]+)\*\*", TOUR)[1]


def edited(old, new):
    """tiny.py with 300 steps and one change."""
    source = (ROOT / "minigpt/tiny.py").read_text(encoding="utf-8")
    for before, after in (("3000", "300"), (old, new)):
        assert source.count(before) == 1 or not before, before
        source = source.replace(before, after) if before else source
    return source


def test_twelve_exercises_change_one_place_of_tiny():
    assert len(EDITS) == 12
    for old, new, _ in EDITS:
        ast.parse(edited(old, new))


def printed(old, new, folder):
    """What tiny.py with a change says after 300 steps, on the documentation of this Python."""
    (folder / "mine.py").write_text(edited(old, new), encoding="utf-8")
    (folder / "text.txt").write_text(load(["manual"], folder), encoding="utf-8")
    command = [sys.executable, str(folder / "mine.py"), str(folder / "text.txt")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.check_output(command, cwd=ROOT, text=True, env=environment)
    return float(re.search(r"([\d.]+) nats", said)[1])


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    return printed("", "", tmp_path_factory.mktemp("unchanged"))


def agrees(old, new, expected, unchanged, folder):
    """The difference that a change makes is the tour's. Another processor, and the documentation of
    another Python, move both figures by some hundredths, and their difference less."""
    change = printed(old, new, folder) - unchanged
    assert change == pytest.approx(float(expected) - float(UNCHANGED), abs=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("number", np.random.default_rng(0).permutation(12)[:3].tolist())
def test_an_exercise_changes_what_the_tour_says(number, unchanged, tmp_path):
    agrees(*EDITS[number], unchanged, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("old, new, expected", EDITS)
def test_every_exercise_changes_what_the_tour_says(old, new, expected, unchanged, tmp_path):
    agrees(old, new, expected, unchanged, tmp_path)
