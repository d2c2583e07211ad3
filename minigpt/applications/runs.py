"""A run's model and application, from its checkpoint."""

import contextlib
from pathlib import Path

import numpy as np

from minigpt.applications import application_class
from minigpt.training import checkpoint, strangers
from minigpt.training.config import Config


def load(path, library, folder):
    """A run's folder, or a checkpoint in it -> its model, with all weights, and its application.

    library: numpy or cupy; folder: where the data lies that the project ships or caches. Raises
    FileNotFoundError or CheckpointError.
    """
    file = path = Path(path)
    if path.is_dir():
        best = path / "best.safetensors"  # there is none before the first validation
        file = best if best.exists() else path / "last.safetensors"
    arrays, about = checkpoint.load(file, moments=False)
    if file != path:
        other = about
        with contextlib.suppress(checkpoint.CheckpointError, OSError):  # absent, or damaged
            other = checkpoint.read_about(path / "last.safetensors")
        strangers.same_run(path, about, other)
    with strangers.foreign(file):
        config = Config.restored(about, file)
        config.out = str(path)
        strangers.refuse_larger(file, config, arrays, about)
        application = application_class(about.get("application")).restore(config, about, folder)
        application.began = about.get("folder")
        model = application.build(np.random.default_rng(0)).to(library).eval()
        model.load_state_dict(arrays)
    return model, application
