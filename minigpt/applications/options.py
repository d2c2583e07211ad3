"""From the words of a command line to a run.

The defaults of an option depend on the data and on the model, a model's name may stand for a shape,
and a run that is resumed keeps its options.
"""

import os
from pathlib import Path

from minigpt.applications.application import model_shape
from minigpt.datasets import catalogue
from minigpt.messages import check
from minigpt.nn import FAMILIES, PAPERS, model_class
from minigpt.nn.presets import SIZES
from minigpt.training import checkpoint, strangers
from minigpt.training.config import Config

SHAPE = ("n_layer", "n_head", "n_embd", "block_size")  # the options that a row of SIZES gives


def folder_of(given):
    """Where the run of these options lies: --out, or a name made of its data and its model, or of
    what it begins with."""
    run = {"data": Config().data, "model": Config().model, "out": None, "init": None} | given
    names = [Path(name).stem for name in run["data"]]
    names = "+".join(names if len(names) < 4 else [*names[:2], f"{len(names) - 2}-more"])
    if run["init"]:
        origin = Path(run["init"]).resolve()
        origin = origin.parent if os.path.isfile(origin) else origin
        names += f"-from-{origin.name}"
    else:
        names += f"-{run['model']}"
    return Path(run["out"] or f"out/{names}")


def configure(given, resume, overwrite, origin=None):
    """The options that were given -> kind of data, Config, the checkpoint to go on from (or None).

    origin: what --init names (origin.Origin). Raises ValueError if they do not fit together or if
    the folder holds another run.
    """
    usual = Config()
    run = {"data": usual.data, "model": usual.model} | given
    out = folder_of(given)
    if {"minutes", "steps"} <= given.keys():
        raise ValueError("--steps: expected --minutes or --steps, got both; leave one out")
    saved, tokenizer = None, {"tokenizer", "vocab_size"} & given.keys()
    if resume:
        file = out / "last.safetensors"
        saved = checkpoint.load(file)
        with strangers.foreign(file):
            strangers.refuse_larger(file, Config.restored(saved[1], file), *saved)
            said = saved[1]["config"]["data"]
            data = catalogue.found(said, out, saved[1].get("folder"))[0]
            given = continued({"data": data} | given, saved[1])
        run |= given
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} is not empty; --resume continues its run, --overwrite replaces it")
    kind = catalogue.kind(run["data"], given.get("target"))
    if origin:
        given = origin.options_with(given)
    if kind not in ("text", "task"):
        check(not given.get("init"), "--init", "text or a task", f"{kind}s", "leave it out")
        *others, last = FAMILIES
        expected, remedy = f"{', '.join(others)} or {last} for examples", "choose one of these"
        check(run["model"] not in PAPERS, "--model", expected, run["model"], remedy)
        for name in sorted(tokenizer):
            name = f"--{name.replace('_', '-')}"
            check(False, name, "text or a task", f"{kind}s", "leave it out")
    config = fitted(kind, given)
    config.out = str(out)
    model_shape(config, 1)  # raises ValueError for an impossible shape, before data is read
    if config.tokenizer == "char" and config.vocab_size != usual.vocab_size:
        need = "expected --tokenizer bpe beside it"
        raise ValueError(f"--vocab-size: {need}, got char; add that or leave --vocab-size out")
    return kind, config, saved


def continued(given, about):
    """The options of a resumed run. Raises ValueError for what would make it another run."""
    before = about["config"]
    for name in given.keys() - strangers.FREE:
        if given[name] != before.get(name):
            what = f"--{name.replace('_', '-')}: this run has {before.get(name)}"
            other = "set --steps" if name == "minutes" else "leave it out"
            remedy = f"{other}, or start a new run in another --out"
            raise ValueError(f"{what}, got {given[name]}; {remedy}")
    at = about["state"]["step"]
    if given.get("steps", at) < at:
        got = f"got {given['steps']}"
        raise ValueError(f"--steps: expected at least {at}, where this run is, {got}")
    return before | given


def fitted(kind, given):
    """The options: what is given, else the shape of the model, else this data's defaults."""
    model = given.get("model", Config().model)
    own = {}
    if kind != "text" or not model_class(model).heads:  # Config has the defaults of gpt on text
        from minigpt.training.defaults import DEFAULTS

        for name in (kind, ""), (kind, model), (given.get("data", [""])[0], ""):
            own |= DEFAULTS.get(name, {})
    if given.get("init"):
        from minigpt.training.defaults import INIT

        own |= INIT
    if model in SIZES:
        own |= dict(zip(SHAPE, SIZES[model], strict=True))
    if "minutes" in given:
        own.pop("steps", None)
    return Config(**own | given)
