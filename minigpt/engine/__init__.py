"""The autograd engine. Here the definitions in functional meet their fast pairs."""

from minigpt.engine import fast_cupy, fast_numpy, functional

functional.PAIRS.update(numpy=fast_numpy, cupy=fast_cupy)
