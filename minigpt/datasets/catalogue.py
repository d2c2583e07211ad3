"""Which kind of data do the words of --data name?"""

import os
from pathlib import Path

from minigpt.datasets.text import TEXTS
from minigpt.messages import check, nearest


def kind(names, target):
    """The kind of data that the words of --data name: "text", "task", "image", "sound", "table".

    Raises FileNotFoundError, or ValueError for words or a --target that do not fit together.
    """
    if not target and all(name in TEXTS for name in names):
        return "text"  # the default run imports no other kind of data
    kinds = [kind_of(name, target) for name in names]
    one = len(names) == 1 or set(kinds) == {"text"}
    check(one, "--data", "one name of examples", " ".join(names), "train on one at a time")
    fits = not target or is_csv(names[0])
    check(fits, f"--target {target}", "a .csv file in --data", names[0], "leave --target out")
    return kinds[0]


def kind_of_word(name):
    """The kind of data that a name or the ending of a path promises, or None: nothing is read."""
    from minigpt.datasets.examples import EXAMPLES
    from minigpt.datasets.tasks import TASKS

    if name in TEXTS:
        return "text"
    if name in TASKS or Path(name).suffix.lower() == ".tsv":
        return "task"
    if name in EXAMPLES:
        return EXAMPLES[name].kind
    return "table" if is_csv(name) else None


def is_csv(name):
    return Path(name).suffix.lower() == ".csv"


def kind_of(name, target):
    """The kind of data that one word of --data names, by the word or by the files there."""
    from minigpt.datasets import examples, signals, tables, tasks

    word, path, table = kind_of_word(name), Path(name), is_csv(name)
    if word and not table:
        return word
    known = [*examples.EXAMPLES, *tasks.TASKS]
    # A word close to a name is misspelt; of all other words text.read_file says what is wrong.
    if not path.exists() and (table or nearest(name, known)):
        remedy = nearest(name, known, f"check the path or use {', '.join(known)}")
        raise FileNotFoundError(f"{name}: expected a file or folder, found nothing; {remedy}")
    if table:
        if not target:
            some = ", ".join(list(tables.read_csv(name).columns)[:5])
            check(False, name, "--target COLUMN", "none", f"add it with a column, say of {some}")
        return "table"
    return signals.kind_of_folder(path) if path.is_dir() else "text"


def found(names, run):
    """Where the data of a run lies: a path that leads nowhere from here is tried as seen from the
    run's folder and from each folder around it. In one of these its training was started."""
    run, paths = Path(run).resolve(), []
    for name in names:
        places = [name, *(str(folder / name) for folder in (run, *run.parents))]
        there = [place for place in places if os.path.exists(place)]
        paths.append(there[0] if there and not is_name(name) else name)
    return paths


def is_name(word):
    """Whether a word of --data is a name, not a path."""
    from minigpt.datasets.examples import EXAMPLES
    from minigpt.datasets.tasks import TASKS

    return word in TEXTS or word in TASKS or word in EXAMPLES
