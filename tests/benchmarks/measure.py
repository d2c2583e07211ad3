"""How the benchmarks measure: processes that work in turns, their memory, medians and spreads.

This process imports no NumPy: whoever maps a library too takes its part of the other's PSS.
"""

import json
import platform
import re
import select
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 0.4  # s between two turns: idle BLAS threads spin for a while


class Competitor:
    """A process that works on command; competitor.py is its other end."""

    def __init__(self, module, task, options):
        what = ["tests.benchmarks.competitor", module, task, json.dumps(options)]
        how = {"cwd": ROOT, "text": True, "start_new_session": True}
        how |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-m", *what], **how)

    def ask(self, *arguments, meanwhile=None):
        """The arguments' answer; until it comes, call `meanwhile` every 10 ms."""
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        while meanwhile and not select.select([self.process.stdout], [], [], 0.01)[0]:
            meanwhile()
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"{' '.join(self.process.args[3:])}: ended without an answer")

    def close(self):
        self.process.communicate()


@contextmanager
def running(commands):
    """{name: (module, task, options)} -> {name: Competitor}, which all end with the block."""
    with ExitStack() as stack:
        yield {n: stack.enter_context(closing(Competitor(*c))) for n, c in commands.items()}


def in_turns(competitors, rounds, *arguments):
    """-> {name: ms of each timed turn, a list of lists}, {name: what else each turn answered}; one
    turn more, the first, warms up and is not timed."""
    ms, rest = ({name: [] for name in competitors} for _ in range(2))
    for number in range(rounds + 1):
        for name, competitor in competitors.items():
            took, answer = competitor.ask(*arguments)
            ms[name] += [took] if number else []
            rest[name].append(answer)
            time.sleep(PAUSE)
    return ms, rest


def peak_mb(command, *arguments):
    """The most memory that a competitor, running alone, and its workers hold in its second turn:
    the sum of their PSS, in MB; None where the system does not tell."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    with closing(Competitor(*command)) as competitor:
        competitor.ask(*arguments)
        family, seen = [*members(competitor.process.pid)], [0]
        competitor.ask(*arguments, meanwhile=lambda: seen.append(sum(map(pss, family))))
    return max(seen) / 1e6


def members(session):
    """The ids of the processes of a session: of its first, `session`, and all that it started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state = path.read_text().rpartition(")")[2]  # the name before it may contain anything
            if int(state.split()[3]) == session:
                yield int(path.parent.name)


def pss(pid):
    """Bytes of memory; of a page that n processes share, one n-th."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(re.search(r"^Pss: +(\d+)", text, re.M)[1])


def spread(values):
    """[median, 10 %, 90 %] of two or more values."""
    tenths = quantiles(values, n=10, method="inclusive")
    return [tenths[4], tenths[0], tenths[8]]


def ratio(turns, others):
    """The spread of median(turn) / median(the other's), turn by turn."""
    return spread([median(a) / median(b) for a, b in zip(turns, others, strict=True)])


def cores():
    """The physical cores that a process may use, as minigpt counts them."""
    code = "from minigpt.training.processes import physical_cores; print(physical_cores())"
    return int(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))


def machine():
    """What the figures depend on."""
    cpu = platform.machine()
    with suppress(OSError, TypeError):
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    libraries = {name: version(name) for name in ("numpy", "torch", "transformers")}
    return {"cpu": cpu, "cores": cores(), "python": platform.python_version()} | libraries
