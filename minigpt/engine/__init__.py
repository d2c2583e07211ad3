"""The autograd engine: arrays that remember how they were computed, and formulas made of them.

Here stands which files have fast functions, for which library; functional.fast imports them.
"""

from minigpt.engine import functional

functional.PAIRS["numpy"] = [
    "minigpt.engine.fast_numpy",
    "minigpt.engine.fast_convolution",
    "minigpt.engine.fast_recurrence",
]
functional.PAIRS["cupy"] = ["minigpt.engine.fast_cupy", "minigpt.engine.fast_elementwise"]
