"""Module: a thing with parameters. Initialisers, and all parameters as one flat vector."""

import numpy as np

from minigpt.engine.arrays import module_of, to_numpy
from minigpt.engine.autograd import Tensor


def normal(rng, shape, std):
    """A parameter drawn from N(0, std^2) by the Generator rng, float32."""
    return Tensor(rng.standard_normal(shape, np.float32) * std, requires_grad=True)


def constant(shape, value):
    """A parameter that starts at value everywhere, float32."""
    return Tensor(np.full(shape, value, np.float32), requires_grad=True)


class Module:
    """Parameters (Tensors) and children (Modules, lists of them) are attributes set in __init__.

    Each lists its own parameters, then its children's, in order of assignment; the dotted attribute
    names are the checkpoint's names.
    """

    training = True  # dropout asks
    table = False  # a table of rows to look up, which Muon leaves to AdamW

    def __call__(self, *args, **options):
        return self.forward(*args, **options)

    def children(self):
        """Yield (name, child module), lists unrolled as name.0, name.1, ..."""
        for name, value in vars(self).items():
            found = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
            for i, child in found:
                if isinstance(child, Module):
                    yield name if i is None else f"{name}.{i}", child

    def modules(self):
        """Yield this module and all below it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self):
        """{name: Tensor}; a parameter used in two places is listed once, under its first name."""
        pairs = [(name, p) for name, p in vars(self).items() if isinstance(p, Tensor)]
        for name, child in self.children():
            pairs += [(f"{name}.{inner}", p) for inner, p in child.named_parameters().items()]
        first = {}
        for name, p in pairs:
            first.setdefault(id(p), (name, p))
        return dict(first.values())

    @property
    def library(self):
        """The library, NumPy or CuPy, that owns the weights."""
        return module_of(next(iter(self.named_parameters().values())).data)

    def parameter_count(self):
        """How many numbers the model learns."""
        return sum(p.size for p in self.named_parameters().values())

    def state_dict(self):
        """{name: NumPy array} of all parameters; not copies where they are in NumPy already."""
        return {name: to_numpy(p.data) for name, p in self.named_parameters().items()}

    def load_state_dict(self, arrays):
        """Copy arrays into the parameters. Raises ValueError unless names and shapes agree."""
        parameters = self.named_parameters()
        for name in sorted(parameters.keys() | arrays.keys()):
            expected, got = (getattr(x.get(name), "shape", None) for x in (parameters, arrays))
            if expected != got:
                raise ValueError(f"weights: {name}: expected shape {expected}, got {got}")
        for name, p in parameters.items():
            p.data[...] = module_of(p.data).asarray(arrays[name])

    def train(self, training=True):
        """Turn dropout on (or off) in this module and all below it; returns self."""
        for module in self.modules():
            module.training = training
        return self

    def eval(self):
        """Turn dropout off: for validation and sampling; returns self."""
        return self.train(False)

    def to(self, xp=np, dtype=np.float32):
        """Move the parameters to library xp (numpy or cupy) and dtype, before Flat(model)."""
        for p in self.named_parameters().values():
            data = to_numpy(p.data) if xp is np else xp.asarray(p.data)
            p.data, p.grad = data.astype(dtype), None
        return self


class Mixer(Module):
    """mixer(x, mask, state) -> y, state; new_state(B, block_size) is what it remembers at first."""

    limited = False  # to block_size positions

    def flops(self, T):
        """FLOPs to train on one of T tokens beyond 6 per weight"""
        return 0


class Flat:
    """All parameters of a model as views of one vector `data`, all gradients of another, `grad`.

    So an optimizer's step, clipping or saving is one call. The first `hidden` numbers are the
    matrices of hidden layers, places and shapes in `matrices`; up to `decayed` those of embeddings,
    which weight decay may shrink as well; then come biases and norms. Slices start at 64 bytes.
    From here on p.data and p.grad stay what they are: write into them, never rebind them.
    ranks (training/parallel.py): the processes that share the vector of gradients, None: no others.
    """

    def __init__(self, model, ranks=None):
        looked_up = {id(m.weight) for m in model.modules() if m.table}

        def kind(p):
            """0: a hidden matrix, 1: a table, 2: the rest"""
            return 2 if p.ndim < 2 else int(id(p) in looked_up)

        parameters = sorted(model.named_parameters().values(), key=kind)
        sizes = [-(-p.size // 16) * 16 for p in parameters]
        xp, dtype = module_of(parameters[0].data), parameters[0].dtype
        self.ranks, zeros = ranks, ranks and ranks.zeros or xp.zeros
        self.data, self.grad = (make(sum(sizes), dtype) for make in (xp.zeros, zeros))
        self.hidden, self.decayed = (
            sum(n for p, n in zip(parameters, sizes, strict=True) if kind(p) <= most)
            for most in (0, 1)
        )
        start, self.matrices = 0, []
        for p, n in zip(parameters, sizes, strict=True):
            place, start = slice(start, start + p.size), start + n
            self.data[place] = p.data.reshape(-1)
            p.data, p.grad = self.data[place].reshape(p.shape), self.grad[place].reshape(p.shape)
            if kind(p) == 0:
                self.matrices.append((place, (p.size // p.shape[-1], p.shape[-1])))
