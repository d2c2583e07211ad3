"""The tour: its numbers are what Python answers, its code that of the files, its links exist."""

import ast
import re
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR = (ROOT / "minigpt/README.md").read_text(encoding="utf-8")
CHAPTERS = re.split(r"^## (?=\d+\. )", TOUR, flags=re.M)[1:]
BLOCK = re.compile(r"(<!-- (?:file|code|lines): .*? -->\n)?```python\n(.*?)```", re.S)


def examples(chapter):
    """The blocks of a chapter that are typed into Python; quotations are not."""
    return [code for quotation, code in BLOCK.findall(chapter) if not quotation]


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
def test_python_answers_what_a_chapter_says(chapter):
    names = {"__name__": "page"}
    for code in examples(chapter):
        for line, answer, expected in answers(code, names):
            assert answer == expected, line


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: p.parent.name)
def test_quoted_code_is_that_of_its_file(page):
    text = page.read_text(encoding="utf-8")
    assert pages.fill(text) == text, "run python -m tests.pages"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: p.parent.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
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


def test_every_chapter_of_the_table_has_its_heading():
    table = re.findall(r"^\| \[(\d+)\]\(#", TOUR, re.M)
    assert table == [c.partition(".")[0] for c in CHAPTERS]
