"""Application: what a run is for, as train.py and sample.py see it.

train.py calls the first methods, in the order of its six steps; sample.py calls the others on an
application that `restore` has made from a checkpoint. Neither asks which application it holds.
"""

from tqdm import tqdm

from minigpt.drawing import leave
from minigpt.messages import say, silent
from minigpt.nn import model_class
from minigpt.nn.gpt import GPTConfig


def model_shape(config, vocab_size):
    """The shape that the options give to a model.  config: a training.config.Config"""
    heads = config.n_head if model_class(config.model).heads else 1  # no heads: any n_embd fits
    shape = config.block_size, config.n_layer, heads, config.n_embd
    return GPTConfig(vocab_size, *shape, dropout=config.dropout)


def in_words(config):
    """The shape of a model of text: "4 layers, 4 heads, 128 wide, context 256" """
    heads = f"{config.n_head} heads, " if model_class(config.model).heads else ""
    return f"{config.n_layer} layers, {heads}{config.n_embd} wide, context {config.block_size}"


class Application:
    """One run's data and what is done with it.

    config: the options (training.config.Config); folder: where the data lies that the project ships
    or caches. After preprocess() an application has `crc`, the checksum of its data, and `uniform`,
    the loss of guessing blindly. It can be pickled: each process of a training gets a copy.
    """

    scale = 1.0  # from the model's loss to the one that is printed
    unit = "token"  # what flops_per_token() counts for: a token, or an example
    shared = 0  # bytes of a file that the processes of a training map
    writes = False  # whether it makes text, as classifiers do not
    began = None  # the folder in which train.py was started, as seen from the run's
    places = None  # lists of paths where its data may lie (catalogue.found)
    origin = None  # what a checkpoint says of the model that the run began with (origin.Origin)

    def __init__(self, config, folder):
        self.config, self.folder = config, folder
        self.first = None  # the loss before the first step; train.py sets it
        self.to_beat = {}  # {name: loss}, shown as lines in the picture of the losses
        self.samples = []  # (step, seconds, what the model wrote) that samples.txt lacks yet

    # What train.py does:

    def preprocess(self):
        """1: read the data, turn it into arrays, and say how much it is and what must be beaten."""
        raise NotImplementedError

    def build(self, rng):
        """2: the model, its first weights drawn from the Generator rng."""
        raise NotImplementedError

    def form(self):
        """2: the shape of that model in words."""
        return in_words(self.config)

    def windows(self):
        """3 to 5: x and y of the whole validation part."""
        raise NotImplementedError

    def stream(self):
        """4: batches of the training part, without end (see datasets/stream.py)."""
        raise NotImplementedError

    def report(self, trainer, loss, best):
        """4: say and draw at each evaluation how it goes; loss: of now; best: the lowest before."""
        tqdm.write(self.progress(trainer, loss) + self.remark(trainer, loss, best))
        if sample := self.sample(trainer):
            tqdm.write(f"{'':<14} {sample}")
            self.samples.append((trainer.step, trainer.seconds, sample))
        if trainer.step:
            about = f"{self.config.model} on {' '.join(self.config.data)}"
            leave(trainer.out, self.first, self.to_beat, self.samples, about)
            self.samples = []

    def remark(self, trainer, loss, best):
        """What the line of an evaluation says at its end."""
        return ""

    def sample(self, trainer):
        """What the model writes now, on one line; None if it does not write."""

    def progress(self, trainer, loss):
        """The line of an evaluation; before the first step it says "untrained"."""
        figures = f"loss {trainer.recent:.3f}, validation {loss:.3f}"
        if not trainer.step:
            figures = "trained on other data" if self.origin else "untrained"
        place = f"step {trainer.step:>5} {trainer.seconds:>4.0f} s"
        return f"{'':<14} {place}  epoch {trainer.stream.epoch + 1}  {figures}"

    def validate(self, loss):
        """5: say what the mean loss over the whole validation part means."""
        raise NotImplementedError

    def apply(self, model):
        """6: let the trained model do what it is for, and say how to go on."""
        first, *rest = self.scores(model)
        say("6 apply", f"held out: {first}")
        for line in rest:
            say("", line)

    # What a checkpoint keeps of it.

    def about(self):
        """What restore needs besides the options, as JSON."""
        raise NotImplementedError

    @classmethod
    def restore(cls, config, about, folder):
        """The application of a checkpoint, without its data."""
        raise NotImplementedError

    # What sample.py does.

    def listen(self, how, prompt):
        """Prepare to reply; how: the options of sample.py (temperature, ...); prompt: its --prompt.

        Raises ValueError if it cannot.
        """
        wanted = f"expected a model that writes, {self.config.out} classifies"
        raise ValueError(f"--prompt: {wanted}; use --input")

    def reply(self, model, words, rng):
        """Print what the model makes of a user's words."""
        raise NotImplementedError

    def predict(self, model, path):
        """Print what the model makes of a file."""
        wanted = f"expected a classifier, {self.config.out} writes"
        raise ValueError(f"--input: {wanted}; use --prompt")

    def without_prompt(self, model, how, read):
        """Print the scores of the test part, whose data is read again for that.

        Or return the words to reply to: read() gives those that are piped into sample.py.
        how.given: the options that say how to write; nothing is written here.
        """
        if how.given:
            need = "expected a text to write, got the report"
            raise ValueError(f"{how.given[0]}: {need}; leave it out")
        self.read_again()
        print("\n".join(self.scores(model)))

    def read_again(self):
        """Read the data once more, at the first of `places` where it is what the model has read.

        Raises the error of the first place, a ValueError or OSError, if it is nowhere.
        """
        errors, remedy = [], "or name it with --data"
        for names in self.places or [self.config.data]:
            self.config.data = names
            try:
                if self.read() == self.crc:
                    return
                wrong = f"{names[0]}: not what this run has read; restore it, {remedy}"
                errors.append(ValueError(wrong))
            except FileNotFoundError as e:
                errors.append(FileNotFoundError(f"{e}, {remedy}"))
            except (ValueError, OSError) as e:
                errors.append(e)
        raise errors[0]

    def read(self, tell=silent):
        """Read or generate the data -> a checksum of it (CRC-32).  tell: see messages.note"""
        raise NotImplementedError

    def scores(self, model):
        """Lines that say how good the model is on the test part, which training has not used."""
        raise NotImplementedError
