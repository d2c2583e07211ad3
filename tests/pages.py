"""The pages of the book: README.md and the tour. Code that they quote is copied from its file.

python -m tests.pages            copy the quoted code anew, after a change of the source

A quotation is a block of code below one of these marks:

    <!-- file: tiny.py -->                                  the whole file
    <!-- code: engine/ops.py multiply -->                   a function, without its docstring
    <!-- lines: engine/ops.py first words ... last words -->    from one line to another
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minigpt"
PAGES = [ROOT / "README.md", PACKAGE / "README.md"]
QUOTE = re.compile(r"(<!-- (file|code|lines): (\S+) ?(.*?) -->\n```python\n).*?(```)", re.S)


def quoted(kind, file, what):
    """The code that a mark asks for, ending in a new line."""
    text = (PACKAGE / file).read_text(encoding="utf-8")
    if kind == "file":
        return text
    if kind == "code":
        return function(text, what.split("."))
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


def fill(text):
    """The page with every quotation as it stands in its file today."""
    return QUOTE.sub(lambda m: m[1] + quoted(m[2], m[3], m[4]) + m[5], text)


def main():
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
