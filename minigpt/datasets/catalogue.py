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


def found(names, run, began=None):
    """Where the data of a run may lie: lists of paths, the likeliest first; [names] if nowhere.

    began: the folder in which its training was started, as seen from the run's. From there its
    words of --data lead to its data. An older checkpoint does not say, and a run or its data may
    have moved: so the current folder, that of the run and each around it are tried as well.
    """
    run = Path(run if os.path.isdir(run) else os.path.dirname(run))  # of a checkpoint, its folder
    here, run = os.path.realpath("."), run.resolve()
    folders = [here, str(run), *map(str, run.parents)]
    if began is not None:
        folders.insert(0, os.path.realpath(run / str(began)))
    ways = []
    for folder in folders:
        paths = names if folder == here else [_within(folder, name) for name in names]
        if paths not in ways and all(is_name(path) or os.path.exists(path) for path in paths):
            ways.append(paths)
    return ways or [names]


def _within(folder, name):
    """A word of --data, said in a folder, as it is said here."""
    if is_name(name) or os.path.isabs(name):
        return name
    return seen_from(".", os.path.join(folder, name))


def seen_from(folder, path):
    """A path as it is said in a folder: it stays right if both move together."""
    try:
        return os.path.relpath(path, os.path.realpath(folder))
    except ValueError:  # another drive of Windows
        return path


def is_name(word):
    """Whether a word of --data is a name, not a path."""
    if word in TEXTS:
        return True  # the default run imports no other kind of data
    from minigpt.datasets.examples import EXAMPLES
    from minigpt.datasets.tasks import TASKS

    return word in TASKS or word in EXAMPLES
