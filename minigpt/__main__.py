"""python -m minigpt [FOLDER]: the runs in a folder (default out/), and what to do next."""

import argparse
import shlex
from datetime import datetime
from pathlib import Path

import minigpt
from minigpt.training.checkpoint import CheckpointError, read_about
from minigpt.training.trainer import NEVER


def main(words=None):
    parser = argparse.ArgumentParser("python -m minigpt", description=__doc__)
    parser.add_argument("folder", nargs="?", default="out", metavar="FOLDER")
    parser.add_argument("--version", action="version", version=f"minigpt {minigpt.__version__}")
    folder = Path(parser.parse_args(words).folder)
    files = sorted(folder.glob("*/last.safetensors"), key=lambda file: file.stat().st_mtime)
    if not files:
        print(f"no runs in {folder}/ yet; next: python train.py")
        return
    for file in files:
        print(describe(file))
    run = shlex.quote(str(files[-1].parent))
    print(f"next: python sample.py {run}, or python train.py --resume --out {run}")


def describe(file):
    """A line about a run: its folder, what it learns, how far it came, when it stopped."""
    when = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    try:
        about = read_about(file)
        config, state = about["config"], about["state"]
        data = " ".join(config["data"])
        steps = f"step {state['step']} of {config['steps'] or '?'}"
        loss = f"loss {state['best']:.3f}" if state["best"] < NEVER else "no validation yet"
        what = f"{config['model']} on {data}: {steps}, {loss}"
    except (CheckpointError, KeyError) as error:
        what = f"cannot be read: {error}"
    return f"{when}  {file.parent}  {what}"


if __name__ == "__main__":
    main()
