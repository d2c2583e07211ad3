"""Fast pairs on CuPy arrays; see fast_numpy.py. For CuPy 14.2.0, timed on no GPU yet."""

from minigpt.engine.arrays import module_of


def softmax_forward(x, axis=-1):
    """In place, and keeps y alone: one array where the definition keeps four."""
    y = x - x.max(axis=axis, keepdims=True)
    module_of(y).exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y, (y, axis)


def softmax_backward(dy, saved):
    """dx = y (dy - sum y dy)"""
    y, axis = saved
    dx = y * dy
    dx -= y * dx.sum(axis=axis, keepdims=True)
    return (dx,)
