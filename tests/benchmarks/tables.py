"""results.json, and the Markdown made from it, for the terminal and for the pages."""

import json
import re
from pathlib import Path
from statistics import mean

from tests.benchmarks.suite import FLOOR, HUGGING_FACE, TORCH

RESULTS = Path(__file__).with_name("results.json")
ROOT = Path(__file__).resolve().parents[2]
FILES = "README.md", "minigpt/README.md", "minigpt/README_zh.md", "tests/benchmarks/README.md"
PAGES = [ROOT / file for file in FILES]
BLOCK = re.compile(r"(<!-- benchmark: (\S+) -->\n).*?(<!-- /benchmark -->)", re.S)


def load():
    """{name: result}, empty before the first run."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(name, result):
    """Replace one result of the file, all numbers rounded to four digits."""
    results = json.dumps(load() | {name: result})
    results = json.loads(results, parse_float=lambda digits: float(f"{float(digits):.4g}"))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def fill(text, results):
    """The text with what stands between each pair of markers made anew from the results."""

    def made(match):
        name = match[2]
        inside = summary(results) if name == "summary" else render(name, results[name])
        return f"{match[1]}{inside}\n{match[3]}"

    return BLOCK.sub(made, text)


def summary(results):
    """The one ratio of each kind of work that README shows."""

    def ratio(name, rung):
        return results[name]["rows"][f"minigpt, {rung}"]["ratio"][0]

    _, ours, theirs = results["sampling"]["batches"][0]  # ms a token of one text
    lines = [
        ["a training step, GPT-2's form, 4 layers of 128", f"{ratio('gpt', 'workers'):.2f}"],
        ["the same, 6 layers of 384", f"{ratio('large', 'workers'):.2f}"],
        ["the same, one text of 1,024 characters", f"{ratio('long', 'pairs'):.2f}"],
        ["a step of an LSTM; of a CNN", "{:.2f}; {:.2f}".format(
            ratio("lstm", "workers"), ratio("cnn", "workers"))],
        ["writing with the first model, one text", f"{ours / theirs:.2f}"],
    ]  # fmt: skip
    return table(["what takes the time", "our time / theirs"], *lines)


def render(name, result):
    """The tables of a result, what else it says, and what it was measured with."""
    *parts, said = KINDS.get(name, training)(result)
    if "machine" not in result:  # it does not depend on one
        return "\n\n".join([*parts, said])
    form = "{cpu}, {cores} cores, Python {python}, NumPy {numpy}, PyTorch {torch}"
    on = f"{form}, transformers {{transformers}}.".format(**result["machine"])
    return "\n\n".join([*parts, f"{said}\n{on}".lstrip()])


def table(head, *rows):
    """Rows of strings as Markdown; all but the first column stand on the right."""
    rows = head, ["---", *["--:"] * (len(head) - 1)], *rows
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def ranged(three, form):
    """[median, 10 %, 90 %] -> "median (10 % to 90 %)" """
    return "{:{form}} ({:{form}} to {:{form}})".format(*three, form=form)


def training(result):
    floor, theirs, lines = result["rows"][FLOOR], result["rows"][TORCH], []
    for name, row in result["rows"].items():
        line = [name, ranged(row["ms"], ".1f"), f"{row['tokens_per_s']:,.0f}"]
        line += [ranged(row["ratio"], ".2f"), f"{floor['ms'][0] / row['ms'][0]:.0%}"]
        memory = [f"{row['mb']:.0f}", f"{row['mb'] / theirs['mb']:.2f}"] if row["mb"] else "--"
        lines.append([*line, *memory, str(row["lines"] or "")])
    head = ["", "ms a step (10 to 90 %)", "tokens/s", "time / PyTorch's (10 to 90 %)"]
    yield table([*head, "of the floor", "memory, MB", "/ PyTorch's", "lines"], *lines)
    yield f"In {result['steps']} steps losses differ by at most {result['loss_difference']:.0e}."


def pairs(result):
    lines = []
    for name, row in result["rows"].items():
        longer = ranged([100 * (r - 1) for r in row["ratio"]], ".0f")
        lines.append([name, ranged(row["ms"], ".3g"), longer])
    yield table(["", "ms (10 to 90 %)", "longer, % (10 to 90 %)"], *lines)
    yield ""


def sampling(result):
    lines = []
    for name, row in result["rows"].items():
        form = ",.0f" if row["tokens_per_s"][0] > 100 else ".1f"
        lines.append([name, ranged(row["tokens_per_s"], form), ranged(row["ratio"], ".2f")])
    yield table(["", "tokens/s (10 to 90 %)", f"/ {result['best']} (10 to 90 %)"], *lines)
    if "batches" in result:
        lines = []
        for B, *two in result["batches"]:
            cells = (cell for ms in two for cell in (f"{ms:.2f}", f"{1000 * B / ms:,.0f}"))
            lines.append([str(B), *cells, f"{two[1] / two[0]:.2f}"])
        names, units = ("minigpt", HUGGING_FACE), ("ms a token", "tokens/s")
        head = (f"{name}, {unit}" for name in names for unit in units)
        yield table(["texts at once", *head, "ratio of tokens/s"], *lines)
    same = f"the first {result['agree']} are {HUGGING_FACE}'s"
    yield f"Of {result['tokens']} greedy tokens, {same}."


def imports(result):
    lines = [[f"`import {name}`", f"{s:.2f}"] for name, s in result["seconds"].items()]
    yield table(["", "s"], *lines)
    yield ""


def budgets(result):
    lines = []
    for seconds, steps, losses in result["rows"]:
        line = [f"{mean(seconds):.0f} s", f"{mean(steps):,.0f}", f"{mean(losses):.3f}"]
        lines.append([*line, ", ".join(f"{loss:.3f}" for loss in losses)])
    head = ["training time", "steps", "nats per character", "of each seed"]
    yield table(head, *lines)
    yield f"The text is {result['data']}; the loss that of its whole validation split at the end."


def ablation(result):
    lines, before = [], None
    for name, row in result["rows"].items():
        change = "" if before is None else f"{row['loss'] - before:+.3f}"
        lines.append(ablated(name, change, row))
        before = row["loss"]
    for name, row in result["left_out"].items():
        lines.append(ablated(f"with {name}: left out", f"{row['loss'] - before:+.3f}", row))
    head = ["each row adds to those above", "nats per character", "change", "of each seed"]
    yield table([*head, "tokens/s", "steps", "parameters"], *lines)
    yield f"The text is {result['data']}; the loss that of its whole validation split."


def ablated(name, change, row):
    seeds = ", ".join(f"{loss:.3f}" for loss in row["losses"])
    figures = f"{row['tokens_per_s']:,.0f}", f"{row['steps']:,}", f"{row['parameters']:,}"
    return [name, f"{row['loss']:.3f}", change, seeds, *figures]


def scale(result):
    lines, seconds = [], f"{result['seconds']:g} s"
    for n_layer, n_embd, tokens, timed in result["sizes"]:
        line = [f"{n_layer} x {n_embd}", f"{tokens['parameters']:,}"]
        for row in (tokens, timed):
            line += [f"{row['loss']:.3f}", f"{row['seconds']:.0f}", f"{row['steps']:,}"]
        lines.append(line)
    head = ["layers x width", "parameters"]
    for what in ("equal tokens", f"equal time, {seconds}"):
        head += [f"loss, {what}", "s", "steps"]
    yield table(head, *lines)
    small, best = result["small"], min(result["small"]["curve"], key=lambda row: row[2])
    at = "{} ({:.3f}; training {:.3f})"
    (step, train, loss), (end, last_train, last) = best, small["curve"][-1]
    said = f"Of the first {small['characters']:,} characters alone, validation is best at step "
    said += f"{at.format(step, loss, train)}, then rises to {at.format(end, last, last_train)}; "
    stops = f"stops at step {small['stop']}" if small["stop"] else "does not stop it"
    yield f"The text is {result['data']}. {said}`--patience` {stops}."


def stack(result):
    lines = [
        [name, ranged(row["ms"], ".1f"), ranged(row["ratio"], ".2f")]
        for name, row in result["rows"].items()
    ]
    yield table(["", "ms a step (10 to 90 %)", "time / PyTorch's (10 to 90 %)"], *lines)
    yield f"In {result['steps']} steps losses differ by at most {result['loss_difference']:.0e}."


def families(result):
    lines = []
    for name, row in result["rows"].items():
        figures = f"{row['loss']:.3f}", f"{row['parameters']:.2f} M", f"{row['tokens_per_s']:,.0f}"
        lines.append([f"`--model {name}`", *figures, f"{row['steps']:,}", row["form"]])
    head = ["", "nats per character", "parameters", "tokens/s", "steps", "form"]
    yield table(head, *lines)
    yield f"The text is {result['data']}; the loss that of its whole validation split."


def applications(result):
    head, lines = ["`--data`"], []
    for name, row in result["rows"].items():
        head = ["`--data`", *row]
        lines.append([f"`{name}`", *map(scored, row.values())])
    yield table(head, *lines)
    yield ""


def scored(cell):
    auc = f", AUC {cell['auc']:.3f}" if "auc" in cell else ""
    return f"{cell['accuracy']:.1f} %{auc}, {cell['seconds']:.0f} s"


def tasks(result):
    for name, row in result["rows"].items():
        kinds = {kind: n for kind, (_, n) in row["attention"]["kinds"].items()}
        lines = []
        for kind, n in kinds.items():
            percents = (of_seeds(cell["kinds"][kind][0]) for cell in row.values())
            lines.append([f"{kind}, of {n:,}", *percents])
        easy = [kind for kind in kinds if "3 facts" not in kind]
        count, whole = sum(map(kinds.get, easy)), {"qa": "one and two facts"}.get(name, "both")
        parts = (
            [[p * kinds[k] / count for p in cell["kinds"][k][0]] for k in easy]
            for cell in row.values()
        )
        percents = (of_seeds([sum(seed) for seed in zip(*part, strict=True)]) for part in parts)
        lines.append([f"{whole}, of {count:,}", *percents])
        lines += [["s in all", *(f"{cell['seconds']:.0f}" for cell in row.values())]]
        yield table([f"`{name}`, exact answers, %", *row], *lines)
        yield ""


def of_seeds(values, digits=1):
    """The mean, and the value of each seed if there are several"""
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{mean(values):.{digits}f} ({each})" if len(values) > 1 else each


def finetuning(result):
    head, lines = ["a minute at most on ...", "score"], []
    for title, row in result["rows"].items():
        score, *hows = row
        digits = 1 if "%" in row[score] else 3
        lines.append([title, row[score], *(of_seeds(row[how], digits) for how in hows)])
        head = [*head[:2], *hows]
    yield table(head, *lines)
    yield f"The characters are the first of {result['data']}; seeds 1337, 1, 2."


def folds(result):
    lines = []
    for name, models in result["rows"].items():
        for model, row in models.items():
            accuracy, auc, gain = row["accuracy"], row["auc"], row["gain"]
            line = [f"`{name}`", model, f"{accuracy[0]:.1%} ± {accuracy[1]:.1%}"]
            line += [f"{auc[0]:.4f} ± {auc[1]:.4f}", f"{gain[0]:+.4f} ± {gain[1]:.4f}"]
            lines.append([*line, f"{row['wins']} of {row['folds']}"])
    head = ["", "model", "accuracy", "AUC (± over folds)", "AUC - regression's", "folds won"]
    yield table(head, *lines)
    yield "± is the standard deviation over folds; of the difference, its standard error."


def launches(result):
    yield table(*counted(result["rows"]))
    lines = []
    for name, row in result["rows"].items():
        bar = f" (bar {row['bars'][2]})" if row["bars"] and row["bars"][2] else ""
        moved = (sum(kind[i] for kind in row["kinds"].values()) / 1e9 for i in (1, 2))
        line = [name, *(f"{n:,.1f}" for n in moved), f"{row['peak'] / 1e9:.1f}{bar}"]
        line += [str(sum(row["waits"].values())), f"{sum(row['uploads']) / 1e3:,.0f}"]
        for ms in row["predicted"].values():
            line.append(f"{ms:,.0f} ms, {row['tokens'] / ms:,.0f}k tokens/s")
        lines.append(line)
    head = ["one step", "GB read", "GB written", "peak GB", "waits", "kB up"]
    yield table([*head, *(f"predicted, {name}" for name in row["predicted"])], *lines)
    h = result["hardware"]
    rates = ", ".join(f"{rate / 1e12:g} TFLOP/s in {name}" for name, rate in h["rates"].items())
    cost = f"{1e6 * h['cupys']:g} µs of the CPU for a launch of CuPy's, {1e6 * h['ours']:g} of ours"
    yield (
        "Counted by the rules of CuPy 14.2, on no GPU. Times are predictions that nobody has "
        f"measured: {h['bandwidth'] / 1e12:.2f} TB/s, {rates}, {cost}."
    )


def counted(rows):
    """The head and the lines of launches by kind; the largest of the first step stand first."""
    head, kinds = ["launches, and (bytes read + written) / A"], {}
    for name, row in rows.items():
        head += [name, f"/ A = {row['unit'] / 1e6:.1f} MB"]
        moved = ((-read - written, kind) for kind, (_, read, written) in row["kinds"].items())
        kinds |= dict.fromkeys(kind for _, kind in sorted(moved))  # the largest first
    yield head
    for kind in kinds:
        yield [kind, *sum(([*figures(row, [kind])] for row in rows.values()), [])]
    yield ["**all**", *sum(([*figures(row, row["kinds"])] for row in rows.values()), [])]
    bars = ((row["bars"] or (None, None))[:2] for row in rows.values())
    yield ["bar", *("" if n is None else f"{n:,}" for pair in bars for n in pair)]


def figures(row, kinds):
    """Launches of these kinds, and bytes moved / A, as text."""
    found = [row["kinds"][kind] for kind in kinds if kind in row["kinds"]]
    yield f"{sum(count for count, _, _ in found):,}" if found else ""
    yield f"{sum(r + w for _, r, w in found) / row['unit']:,.1f}" if found else ""


ABOUT = "part", "table", "name"  # of a line of gpu.py; all else are figures


def gpu(result):
    """A table for each title, as far as it was measured; then what failed."""
    groups, failed = {}, []
    for line in result["lines"]:
        row = {key: value for key, value in line.items() if key not in ABOUT}
        if "error" in row:
            failed.append(f"{line['part']}, {line['name']}: {row['error'].splitlines()[-1]}")
        else:
            groups.setdefault(line["table"], []).append((line["name"], row))
    for title, rows in groups.items():
        heads = [*dict.fromkeys(head for _, row in rows for head in row)]
        lines = ([name, *(written(row.get(head, "")) for head in heads)] for name, row in rows)
        yield table([title, *heads], *lines)
    if failed:
        yield "\n".join(["Failed:", "", *(f"- {text}" for text in failed)])
    yield "" if groups else "Nobody has measured it yet."


def written(figure):
    """Four digits of a number, and commas between thousands."""
    if not isinstance(figure, float):
        return f"{figure:,}" if isinstance(figure, int) else str(figure)
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.4g}"


KINDS = {
    "launches": launches,
    "gpu": gpu,
    "lstm": stack,
    "cnn": stack,
    "families": families,
    "applications": applications,
    "folds": folds,
    "finetuning": finetuning,
    "tasks": tasks,
    "budgets": budgets,
    "ablation": ablation,
    "scale": scale,
    "pairs": pairs,
    "sampling": sampling,
    "gpt2": sampling,
    "import": imports,
}  # the others train
