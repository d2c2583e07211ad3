"""python -m minigpt [FOLDER]: the runs in a folder (default out/), and what to do next."""

import os
import sys
from datetime import datetime
from pathlib import Path

import minigpt
from minigpt.messages import nobody_reads, quoted, replace_unknown, visible
from minigpt.training import strangers
from minigpt.training.checkpoint import read_about
from minigpt.training.config import Parser
from minigpt.training.trainer import NEVER


def main(words=None):
    """Print a line about each run, the latest last, and the commands that go on with it."""
    parser = Parser("python -m minigpt", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", nargs="?", default="out", metavar="FOLDER")
    parser.add_argument("--version", action="version", version=f"minigpt {minigpt.__version__}")
    folder, latest = Path(parser.parse_args(words).folder), None
    for file in sorted(folder.glob("*/last.safetensors"), key=lambda file: file.stat().st_mtime):
        when = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        try:
            with strangers.foreign(file):
                what = describe(read_about(file))
            latest = quoted(str(file.parent))
        except (ValueError, OSError) as error:
            what = f"cannot be read: {error}"
        print(visible(f"{when}  {file.parent}  {what}"), flush=True)
    if latest:
        print(f"next: python sample.py {latest}, or python train.py --resume --out {latest}")
    else:
        print(f"no runs to go on with in {folder}/; next: python train.py")


def describe(about):
    """What a run learns, how far it came, and the lowest loss so far."""
    config, state = about["config"], about["state"]
    steps = f"step {state['step']} of {config['steps'] or '?'}"
    loss = f"loss {state['best']:.3f}" if state["best"] < NEVER else "no validation yet"
    strangers.shape_of(about)  # raises if what it says of an origin is none
    begun = ""
    if origin := about.get("origin"):
        begun = f" (begun with {origin['from']}, {origin['sha256'][:8]})"
    return f"{config['model']} on {' '.join(config['data'])}{begun}: {steps}, {loss}"


if __name__ == "__main__":
    replace_unknown(sys.stdout, sys.stderr)
    try:
        main()
    except OSError as error:
        if not nobody_reads(error):
            raise
        os._exit(0)  # no flush into a closed pipe
