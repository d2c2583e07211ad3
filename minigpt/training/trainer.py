"""The training loop: batches in, smaller losses out, with validation and checkpoints on the way."""

import errno
import math
import signal
import statistics
import threading
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt.engine.arrays import module_of, quiet
from minigpt.engine.autograd import no_grad
from minigpt.engine.functional import IGNORED, cross_entropy, fast
from minigpt.engine.guards import check_ids
from minigpt.messages import quoted, say, visible
from minigpt.training import checkpoint, folder, stopping, strangers
from minigpt.training.optim import clip, rate_at
from minigpt.training.ranks import Alone

CLIP = 1.0  # the norm to which a longer gradient is shortened; 1 is usual since GPT-3
NEVER = 1e30  # the best loss before the first validation; JSON has no infinity
NUMBER = int | float
STATE = {"step": int, "best": NUMBER, "stale": int, "recent": NUMBER, "rows": list}  # saved
TIMED = 20  # steps that must have been timed before they tell how many fit in --minutes
RECENT = 50  # the last steps, whose median tells how fast the machine is now
LOOK = 20  # steps on a GPU between two looks at the loss, for which the CPU waits
MISSED = 0.05  # the share of --minutes by which a run may miss its end before the plan changes


def mean_loss(model, x, y, batch_size, ranks=None):
    """The exact mean loss over windows x, y (N, T), in nats per token; dropout off, no history.

    With several ranks each computes its share of the windows, and all get the mean of all.
    """
    ranks, training = ranks or Alone(), model.training
    model.eval()
    total, count = 0.0, int((y != IGNORED).sum())
    x, y = x[ranks.rank :: ranks.size], y[ranks.rank :: ranks.size]
    with no_grad(), quiet():
        for i in range(0, len(x), batch_size):
            part = slice(i, i + batch_size)
            total += cross_entropy(model(x[part]), y[part], count=count).item()
    model.train(training)
    return sum(ranks.all_gather(total))


class Trainer:
    """Trains a model on a stream of batches and keeps last.safetensors, best.safetensors, log.csv.

    `validation` is (x, y), all windows of the split. Dropout draws from the Generator `rng`.
    `about` goes into the checkpoint. `on_evaluate(trainer, loss, best)` prints. Every one of the
    `ranks` trains, but only rank 0 writes and prints.
    """

    def __init__(
        self, model, optimizer, stream, validation, config, rng, out, about, on_evaluate, ranks=None
    ):
        self.model, self.optimizer, self.flat = model, optimizer, optimizer.flat
        self.stream, self.config, self.rng, self.ranks = stream, config, rng, ranks or Alone()
        self.first = self.ranks.rank == 0
        self.out, self.about, self.on_evaluate = Path(out), about, on_evaluate
        self.step, self.best, self.seconds, self.recent = 0, NEVER, 0.0, 0.0
        self.steps = config.steps  # None: as many as fit in --minutes, which plan() finds out
        self.said = 0  # the number of steps that plan() has printed
        self.stopped = False  # or the number of the signal that asked for it: 2 is Ctrl-C
        self.rows = []  # what log.csv says of each validation, but for the seconds
        self.replaces = False  # whether another run was set aside, until this one has saved
        self.stale = 0  # validations without a new best, since the rate has been falling
        tqdm.set_lock(threading.RLock())  # by default a semaphore, which a killed rank would leak
        # While training, a fixed sample is validated: a fifth as many windows as training reads
        # between two validations. A forward pass alone is a third of a step: about 7 % of the time.
        n = min(len(validation[0]), max(1, config.eval_every * config.batch_size // 5))
        sample = np.linspace(0, len(validation[0]) - 1, n).astype(int)
        self.windows = validation
        self.validation = [part[module_of(part).asarray(sample)] for part in validation]
        queued = fast("Queued", self.flat.data)  # on a GPU: a step for which the CPU does not wait
        self.queued = queued and queued(optimizer, CLIP)

    def fit(self, saved=None):
        """Train from the start or from `saved`, a loaded checkpoint; say how it begins and ends."""
        try:
            with stopping.heeded(self._interrupt) if self.first else nullcontext():
                self.begin(saved)
                if self.stopped and not saved:  # nothing is worth replacing what lies there
                    raise stopping.Stop(self.stopped)
                self.run()
                self.end()
        except BaseException as error:
            # A terminal that is gone fails between two steps. A rank that died fails within one,
            # whose weights must not be saved.
            terminal = isinstance(error, OSError) and error.errno == errno.EIO
            if self.first and self.stopped and self.step and terminal:
                self.look(now=True)
                return self.save("last")
            if self.first:
                folder.failed(self.out, error)
            raise

    def begin(self, saved):
        """Try the folder, restore the checkpoint if there is one, and say what lies ahead."""
        c = self.config
        if self.first:
            self.try_folder()
        if saved:
            if self.first and saved[1]["state"].get("rows") == []:  # samples.txt lacks step 0 yet
                self.on_evaluate(self, math.inf, math.inf)
            self.restore(*saved)
            if self.first:
                folder.forget(self.out)  # a kill may have come just before
                folder.cut_back(self.out, self.rows, self.step)
        elif self.first:
            folder.set_aside(self.out)
            self.replaces = True
        if not self.first:
            return
        crew = f", {self.ranks.size} workers" if self.ranks.size > 1 else ""
        if saved:
            if (numpy := visible(str(saved[1].get("numpy")))) != np.__version__:
                say("", f"begun with NumPy {numpy}: last digits may differ from there on")
            size = f" of {self.steps}" if self.steps else f", {c.minutes:g} minutes"
            say("4 train", f"continues after step {self.step}{size}{crew}")
            return
        T = self.stream.block_size
        size = f"{c.steps} steps" if c.steps else f"{c.minutes:g} minutes, in steps"
        most = " at most" if T != c.block_size else ""
        batch = f"{c.batch_size} rows" if T == 1 else f"{c.batch_size} x {T} tokens{most}"
        say("4 train", f"{size} of {batch}{crew}")
        self.on_evaluate(self, math.inf, math.inf)

    def try_folder(self):
        """Save once before the first step, so that a full disk is not found after an hour."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            folder.clear(self.out)
            self.save("last", keep=False)
        except OSError as error:
            raise folder.unusable(self.out, error) from None

    def end(self):
        """Say why the run is over, if it is not because all steps are done."""
        c = self.config
        if self.first and self.stale >= c.patience and self.step != self.steps:
            remedy = "more text or --dropout 0.2 may help, --resume --patience N goes on"
            say("", f"step {self.step}: no new best in {c.patience} validations; {remedy}")
        if self.first and self.stopped:
            if self.replaces:
                folder.forget(self.out)
            command = f"python train.py --resume --out {quoted(str(self.out))}"
            say("", f"stopped after step {self.step}; continue: {command}")

    def validate(self):
        """Load the best checkpoint into the model -> its mean loss over the whole split."""
        if self.first:  # the others may be on machines that do not see the folder
            weights, about = checkpoint.load(self.out / "best.safetensors", moments=False)
            strangers.same_run(self.out, about, self.about)
            self.model.load_state_dict(weights)
        # The weights of rank 0 travel as a gradient would: as a sum, to which the others add zero.
        self.flat.grad[:] = self.flat.data if self.first else 0.0
        self.ranks.all_reduce(self.flat.grad)
        self.flat.data[:] = self.flat.grad
        self.flat.grad[:] = 0.0
        return mean_loss(self.model, *self.windows, 2 * self.config.batch_size, self.ranks)

    def train_step(self):
        """One update from one batch -> its mean loss, in nats per token; on a GPU nothing.

        The batch comes in `accumulate` parts, and each rank takes its share of every part; the
        gradients add up. If the loss or the gradient is not finite, the weights stay as they were,
        and this raises FloatingPointError; on a GPU look() does.
        """
        c, xp, ranks = self.config, module_of(self.flat.data), self.ranks
        rate = self.rate()
        self.step += 1
        # What dropout draws follows from these three, so that a checkpoint need not keep it.
        self.rng.bit_generator.state = np.random.PCG64((c.seed, self.step, ranks.rank)).state
        x, y = self.stream.batch(c.batch_size)
        if xp is not np and hasattr(self.model, "new_state"):  # kernels do not check tokens
            check_ids("batch", x, self.model.config.vocab_size)
        count = int((y != IGNORED).sum())  # scored targets of the whole batch
        x, y = xp.asarray(x), xp.asarray(y)
        loss, size = 0.0, c.batch_size // c.accumulate
        for i in range(0, c.batch_size, size):
            mine = slice(i + ranks.rank, i + size, ranks.size)  # every size-th, from rank on
            part = cross_entropy(self.model(x[mine]), y[mine], count=count)
            part.backward()  # adds to flat.grad, which the last step has left zero
            loss = loss + (part.data if self.queued else part.item())
        share = max(1 / self.step, 0.02)  # for a running mean, in the end of about 50 steps
        ranks.all_reduce(self.flat.grad)  # now the gradient of the whole batch
        if self.queued:
            ranks.all_reduce(loss)  # where it lies, on the GPU
            return self.queued.step(loss, rate, self.step, self.stream.scale, share)
        loss = sum(ranks.all_gather(loss))
        norm = clip(self.flat.grad, CLIP)
        if not math.isfinite(loss + norm):
            self._refuse(loss)
        self.optimizer.step(rate, self.step)
        self.recent += (loss * self.stream.scale - self.recent) * share
        return loss

    def rate(self):
        """The learning rate of the next step; flat until plan() turns --minutes into steps."""
        c = self.config
        return rate_at(self.step, self.steps or math.inf, c.learning_rate, c.warmup, c.schedule)

    def _refuse(self, loss):
        """Raise FloatingPointError naming the step and the first parameter that is not finite."""
        named = self.model.named_parameters().items()
        arrays = [(f"the weight of {name}", p.data) for name, p in named]  # they are the cause
        arrays += [(f"the gradient of {name}", p.grad) for name, p in named]
        bad = [name for name, a in arrays if not module_of(a).isfinite(a).all()]
        why = f"{bad[0]} is not finite" if bad else "the loss or the gradient's norm overflows"
        hint = "checkpoints stay as they were; try a lower --learning-rate"
        raise FloatingPointError(f"step {self.step}: loss {loss}, {why}; {hint}")

    def run(self):
        """Train up to self.steps, or until Ctrl-C, or until --patience is at its end."""
        c, tokens = self.config, self.config.batch_size * self.stream.block_size
        hide = None if self.first else True  # None: show it if the output is a terminal
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=hide, leave=False)
        times = deque(maxlen=RECENT)
        # The other ranks ignore these signals, and end when rank 0 does.
        with stopping.heeded(self._interrupt) if self.first else nullcontext(), bar:
            while not self.stopped and self.step != self.steps and self.stale < c.patience:
                start, before = time.perf_counter(), self.step
                with quiet():  # the losses and gradients are looked at
                    self.train_step()
                    while not self.look() and not self.stopped:  # on a GPU, several steps
                        self.train_step()
                seconds, done = time.perf_counter() - start, self.step - before
                self.seconds += seconds
                times.extend([took := seconds / done] * done)
                if c.steps is None:
                    self.plan(times)
                    bar.total = self.steps
                speed = f"{tokens / took:,.0f} {self.stream.unit}/s"
                bar.set_postfix_str(f"loss {self.recent:.3f}, {speed}", refresh=False)
                bar.update(done)
                if self.step % c.eval_every == 0 or self.step == self.steps:
                    self.evaluate()
            if self.stopped:
                self.look(now=True)
                self.save("last")

    def look(self, now=False):
        """On a GPU: read how the steps went, if it is time or `now` -> whether it was.

        Raises FloatingPointError if one of them failed, after which no step has changed anything.
        """
        if not self.queued:
            return True
        due = self.step % LOOK == 0 or self.step % self.config.eval_every == 0
        if not now and not due and self.step != self.steps:
            return False
        self.recent, failed = self.queued.read()
        if failed:
            self.step = failed
            self._refuse(self.recent)
        return True

    def plan(self, times):
        """Turn --minutes into a number of steps, anew after every look; rank 0 has the clock.

        The number of further steps is the rest of the time divided by the median of `times`, the
        seconds of the last steps. While the rate is flat, no step depends on how many will follow.
        So the run equals one with the last plan of this phase as its --steps, bit for bit.
        Once the rate falls, the plan changes only if the run would miss its end by MISSED.
        """
        c, steps, whole = self.config, self.steps, 60 * self.config.minutes
        if len(times) >= TIMED or sum(times) > whole / 10:
            step, left = statistics.median(times), whole - self.seconds
            missed = abs((steps or 0) - self.step - left / step) * step
            if steps is None or self.rate() == c.learning_rate or missed > MISSED * whole:
                steps = self.step + max(0, round(left / step))
        # A text is read at most `epochs` times, as more of the same is learned by heart.
        epochs = self.stream.epochs
        most = max(self.step, epochs * len(self.stream) // c.batch_size)
        self.steps = self.ranks.all_gather(steps and min(steps, most))[0]
        due = not self.said or self.step % c.eval_every == 0  # not too often
        if self.first and self.steps and due and abs(self.steps - self.said) > self.said / 10:
            why = f"fit in {c.minutes:g} min"
            if self.steps == most:
                why = f"read this data {epochs} times, more learns it by heart; --steps N forces it"
            tqdm.write(f"{'':<14} {'now ' if self.said else ''}{self.steps} steps {why}")
            self.said = self.steps

    def _interrupt(self, number, _):
        if number == getattr(signal, "SIGHUP", None):
            stopping.leave_terminal()
        if self.stopped:  # a second signal does not wait for the step
            raise stopping.Stop(number)
        self.stopped = number

    def evaluate(self):
        """Validate on the fixed sample; save `last`, and `best` if the loss is a new best; log."""
        c, scale = self.config, self.stream.scale
        loss = scale * mean_loss(self.model, *self.validation, 2 * c.batch_size, self.ranks)
        if not math.isfinite(loss):
            self._refuse(loss)
        best, self.best = self.best, min(self.best, loss)
        # While the rate is flat the loss may rest on a plateau, which the falling rate ends.
        flat = self.rate() == c.learning_rate
        self.stale = 0 if loss < best or flat else self.stale + 1
        tokens = self.step * c.batch_size * self.stream.block_size
        self.rows.append(f"{self.step},{self.recent:.4f},{loss:.4f},{tokens}")
        if not self.first:
            return
        if loss < best:
            self.save("best")  # before `last`: a run resumed from `last` relies on this file
        self.save("last")
        if self.replaces:
            folder.forget(self.out)
        with open(self.out / "log.csv", "w" if len(self.rows) == 1 else "a", newline="\n") as file:
            head = "" if file.tell() else folder.HEAD + "\n"
            file.write(f"{head}{self.rows[-1]},{self.seconds:.1f}\n")
        self.on_evaluate(self, loss, best)

    def save(self, name, keep=True):
        """Write OUT/name.safetensors: weights, moments, and where the stream of batches stands.

        keep=False only tries whether it can be written.
        """
        moments = {
            checkpoint.OPTIMIZER + key: array for key, array in self.optimizer.moments.items()
        }
        state = {key: getattr(self, key) for key in STATE} | {"stream": self.stream.position}
        if self.config.steps is None:
            state |= {"steps": self.steps, "seconds": self.seconds}
        config = asdict(self.config) | {"out": None}  # the folder may move
        about = self.about | {"config": config, "state": state}
        arrays = self.model.state_dict() | moments
        checkpoint.save(self.out / f"{name}.safetensors", arrays, about, keep)

    def restore(self, arrays, about):
        """Continue from a loaded checkpoint as if the run had never stopped.

        Raises CheckpointError if it is not of this run, or not what save() writes.
        """
        with strangers.foreign(self.out / "last.safetensors"):
            state, best = about["state"], self.out / "best.safetensors"
            for name, kind in STATE.items():
                if not isinstance(state[name], kind):
                    raise TypeError(f"{name}: expected {kind}, got {state[name]!r:.60}")
            if bad := [row for row in state["rows"] if not folder.ROW.fullmatch(row)]:
                raise TypeError(f"rows: expected numbers, got {bad[0]!r:.60}")
            if self.first and state["best"] < NEVER and best.exists():
                strangers.same_run(self.out, checkpoint.read_about(best), about)
            self.model.load_state_dict(checkpoint.weights(arrays))
            for name, moment in self.optimizer.moments.items():
                saved = arrays[checkpoint.OPTIMIZER + name]
                if saved.shape != moment.shape:
                    raise TypeError(f"{name}: expected shape {moment.shape}, got {saved.shape}")
                moment[...] = module_of(moment).asarray(saved)
            self.stream.position = state["stream"]
            for name in STATE:
                setattr(self, name, state[name])
            if self.queued:
                self.queued.recent.fill(self.recent)
            if self.config.steps is None:  # the rest of the minutes
                self.steps, self.seconds = state["steps"], state["seconds"]
                self.said = self.steps or 0
