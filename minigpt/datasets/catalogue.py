"""Which kind of data do the words of --data name?

The names themselves stand beside the code that makes the data: text.TEXTS, tasks.TASKS and
examples.EXAMPLES. A name of a text is looked up first, so that the default run imports neither
tasks nor examples.
"""

from pathlib import Path

from minigpt.datasets.text import TEXTS
from minigpt.messages import check, nearest


def kind(names, target):
    """The kind of data that the words of --data name: "text", "task", "image", "sound", "table".

    Raises FileNotFoundError, or ValueError for words or a --target that do not fit together.
    """
    kinds = [kind_of(name, target) for name in names]
    one = len(names) == 1 or set(kinds) == {"text"}
    check(one, "--data", "one name of examples", " ".join(names), "train on one at a time")
    fits = not target or is_csv(names[0])
    check(fits, f"--target {target}", "a .csv file in --data", names[0], "leave --target out")
    return kinds[0]


def kind_of(name, target):
    """The kind of data that one word of --data names, by the word or by the file that it names."""
    if is_csv(name):
        check_csv(name, target)
    return kind_of_word(name) or kind_of_path(name)


def kind_of_word(name):
    """The kind of data that a name or the ending of a path promises, or None: nothing is read."""
    if name in TEXTS:
        return "text"
    from minigpt.datasets.tasks import TASKS

    if name in TASKS or Path(name).suffix.lower() == ".tsv":
        return "task"
    from minigpt.datasets.examples import EXAMPLES

    if name in EXAMPLES:
        return EXAMPLES[name].kind
    return "table" if is_csv(name) else None


def is_csv(name):
    """Whether the word is the path of a .csv file."""
    return Path(name).suffix.lower() == ".csv"


def check_csv(name, target):
    """Raise FileNotFoundError if there is no such file, ValueError if no target is given."""
    from minigpt.datasets.tables import read_csv

    if not Path(name).exists():
        raise absent(name)
    if not target:
        some = ", ".join(list(read_csv(name))[:5])
        check(False, name, "--target COLUMN", "none", f"add it with a column, say of {some}")


def kind_of_path(name):
    """The files in a folder show whether it holds images or sounds; all else is taken for text."""
    from minigpt.datasets import signals

    path = Path(name)
    if not path.exists() and nearest(name, examples_and_tasks()):
        raise absent(name)  # a misspelt name; of other words text.read_file says what is wrong
    if signals.mnist_files(path):
        return "image"
    files = signals.class_files(path)
    return signals.kind_of(signals.read_array(files[0])[0]) if files else "text"


def examples_and_tasks():
    """The names of data sets that are not texts."""
    from minigpt.datasets.examples import EXAMPLES
    from minigpt.datasets.tasks import TASKS

    return [*EXAMPLES, *TASKS]


def absent(name):
    """The error of a word that names nothing."""
    known = examples_and_tasks()
    remedy = nearest(name, known, f"check the path or use {', '.join(known)}")
    return FileNotFoundError(f"{name}: expected a file or folder, found nothing; {remedy}")
