"""The pages of the book: README.md and the tour. Code that they quote is copied from its file.

python -m tests.pages            copy the quoted code anew, after a change of the source, and say
                                 which Chinese chapters are older than the English ones

A quotation is a block of code below one of these marks:

    <!-- file: tiny.py -->                                  the whole file
    <!-- code: engine/ops.py multiply -->                   a function, without its docstring
    <!-- code: engine/kernels.cu warp_sum -->               a function of the CUDA text
    <!-- lines: engine/ops.py first words ... last words -->    from one line to another
"""

import ast
import hashlib
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minigpt"
TOUR, CHINESE = PACKAGE / "README.md", PACKAGE / "README_zh.md"
PAGES = [ROOT / "README.md", TOUR, CHINESE]
MEASURED = re.compile(r"<!-- benchmark: .*?<!-- /benchmark -->", re.S)
MARK = r"<!-- (file|code|lines): (\S+)(?: ([^\n]*))? -->\n"
FENCED = re.compile(rf"^(?:{MARK})?```\w*\n.*?^```", re.S | re.M)
QUOTE = re.compile(rf"({MARK}```(?:python|cuda)\n).*?(```)", re.S)


def quoted(kind, file, what):
    """The code that a mark asks for, ending in a new line."""
    text = (PACKAGE / file).read_text(encoding="utf-8")
    if kind == "file":
        return text
    if kind == "code":
        return cuda(text, what) if file.endswith(".cu") else function(text, what.split("."))
    first, last = what.split(" ... ")
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith(first))
    end = next(i for i in range(start, len(lines)) if lines[i].lstrip().startswith(last))
    return textwrap.dedent("\n".join(lines[start : end + 1])) + "\n"


def function(text, names):
    """The source of a function, or of the method of a class, without its docstring."""
    nodes, lines = ast.parse(text).body, text.splitlines()
    for name in names:
        node = next(n for n in nodes if getattr(n, "name", None) == name)
        nodes = node.body
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    head, body = lines[first - 1 : node.body[0].lineno - 1], node.body[0]
    if not ast.get_docstring(node):
        return textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno])) + "\n"
    return textwrap.dedent("\n".join([*head, *lines[body.end_lineno : node.end_lineno]])) + "\n"


def cuda(text, name):
    """The source of a function in CUDA, whose last line is its only one that is just a brace."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if re.search(rf"__ .*\b{name}\(", line))
    return "\n".join(lines[start : lines.index("}", start) + 1]) + "\n"


def fill(text):
    """The page with every quotation as it stands in its file today."""
    return QUOTE.sub(lambda m: m[1] + quoted(m[2], m[3], m[4]) + m[5], text)


def chapters(text):
    """The chapters of the tour, "## 0. ..." to "## 12. ...", and the exercises at its end."""
    found = re.split(r"^(?=## \d+\. |# Predict|# 先猜)", text, flags=re.M)[1:]
    return [re.split(r"^---$", chapter, flags=re.M)[0].strip() for chapter in found]


def fingerprint(chapter):
    """What a Chinese chapter names, so that it shows which English one it says."""
    # Neither a new measurement nor a change of code, which is copied, makes a translation old.
    words = FENCED.sub("", MEASURED.sub("", chapter))
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def stale():
    """The numbers of the Chinese chapters whose English ones have changed since."""
    english = chapters(TOUR.read_text(encoding="utf-8"))
    marks = re.findall(r"<!-- of: (\d+) (\w+) -->", CHINESE.read_text(encoding="utf-8"))
    return [int(n) for n, mark in marks if fingerprint(english[int(n)]) != mark]


def main():
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
    for number in stale():
        print(f"{CHINESE.name}: chapter {number} is older than the English one")


if __name__ == "__main__":
    main()
