"""Does the warm start help? Net is trained on from net.pth, its 10 new outputs begun in several ways.

    python study.py           # trains every run that study.json lacks, some 30 s each, then draws
    python study.py --draw    # draws study.svg from study.json alone
    python study.py --table   # prints where each start ended, as docs/measured.md has it

Needs pytest-ckptcompat and, to draw, matplotlib.

The stored runs have 200 steps. Planned were 300, and where one had gone further it was cut there; the
learning rates are constant, so what a run gives by then does not depend on how long it goes on. 200 steps are
few: no run has converged, and none has its four old outputs back where net.pth had them.
"""

import argparse
import json
import math
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import torch
from faces import Crops, draw
from onet import Net
from train import loss

from pytest_ckptcompat import Recipe, append, open_checkpoint, tile

HERE = Path(__file__).parent
RESULTS, PLOT = HERE / "study.json", HERE / "study.svg"

STARTS = {
    "scratch": None,  # nothing is taken from net.pth
    "tile": lambda seed: tile("out2.*", dim=0),
    "zeros": lambda seed: append("out2.*", dim=0, init="zeros"),
    "mean": lambda seed: append("out2.*", dim=0, init="mean"),
    "kaiming": lambda seed: append("out2.*", dim=0, init="kaiming_uniform", seed=seed),
    "randn": lambda seed: append("out2.*", dim=0, init="normal", std=1.0, seed=seed),
}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.003, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.001),
}  # learning rates chosen by short runs from scratch, so as not to favour a warm start
SEEDS = (1, 2, 3)
BATCH = 32
MEASURED_AT = (0, 1, 2, 5, 10, 20, 40, 70, 100, 150, 200)  # steps
GROUPS = {"all": slice(0, 14), "box": slice(0, 4), "landmarks": slice(4, 14)}


def begin(start: str, seed: int) -> Net:
    """The new network as it is before its first step."""
    torch.manual_seed(seed)
    net = Net()
    grow = STARTS[start]
    if grow is not None:
        old = open_checkpoint(HERE / "net.pth").state_dict()
        net.load_state_dict(Recipe(grow(seed)).apply(old, net.state_dict()), strict=True)
    return net


@torch.no_grad()
def measure(net: Net, faces: Crops) -> dict[str, float]:
    """R2 on faces never trained on: the mean over all outputs, over the old ones, over the new ones."""
    net.eval()
    places = torch.cat([net(images)[1] for images in faces.images.split(100)])
    net.train()
    left = ((places - faces.places) ** 2).mean(0)
    r2 = 1 - left / faces.places.var(0, correction=0)
    return {name: r2[group].mean().item() for name, group in GROUPS.items()}


def run(start: str, optimizer: str, batches: list[Crops], faces: Crops, seed: int) -> dict[str, Any]:
    """One training; what can't be measured because a weight is no longer finite is None."""
    net = begin(start, seed)
    stepper = OPTIMIZERS[optimizer](net.parameters())
    curve = [measure(net, faces)]
    finite = True
    for step, crops in enumerate(batches, 1):
        finite = finite and learn(net, stepper, crops)
        if step in MEASURED_AT:
            curve.append(measure(net, faces) if finite else dict.fromkeys(GROUPS, math.nan))
    scores = {name: [rounded(point[name]) for point in curve] for name in GROUPS}
    return {"start": start, "optimizer": optimizer, "seed": seed, **scores}


def learn(net: Net, optimizer: torch.optim.Optimizer, crops: Crops) -> bool:
    """One step; False where the outputs or then the weights are no longer finite."""
    try:
        value = loss(net, crops)
    except RuntimeError as error:
        if "between 0 and 1" in str(error):  # what binary_cross_entropy says of a confidence that is NaN
            return False
        raise
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return all(bool(weight.isfinite().all()) for weight in net.parameters())


def rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def study() -> None:
    """Trains what is not in study.json yet; every run of a seed sees the same crops in the same order."""
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    done = {(old["seed"], old["start"], old["optimizer"]) for old in runs}
    faces = only_faces(draw(600, seed=-2))
    for seed in SEEDS:
        todo = [pair for pair in product(STARTS, OPTIMIZERS) if (seed, *pair) not in done]
        batches = (
            [draw(BATCH, seed=-1_000_000 * seed - step) for step in range(MEASURED_AT[-1])] if todo else []
        )
        for start, optimizer in todo:
            runs.append(run(start, optimizer, batches, faces, seed))
            RESULTS.write_text(written(runs))
            print(f"seed {seed}, {optimizer:4}, {start:7}: R2 {runs[-1]['all']}", flush=True)


def only_faces(crops: Crops) -> Crops:
    chosen = crops.is_face.flatten() == 1
    return Crops(*(part[chosen] for part in crops))


def written(runs: list[dict[str, Any]]) -> str:
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in runs)
    return f'{{"steps": {list(MEASURED_AT)},\n "runs": [\n{lines}\n]}}\n'


def plot() -> None:
    """R2 over steps, one column an optimizer: above the ten new outputs, below the four old ones."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "study", "font.size": 9}
    from matplotlib import pyplot as plt

    results = json.loads(RESULTS.read_text())
    steps, runs = results["steps"], results["runs"]
    marks = (0.75, 0.5, 0, -9, -99)
    figure, axes = plt.subplots(2, len(OPTIMIZERS), figsize=(8, 6), sharex=True, sharey=True)
    for (row, group), (column, optimizer) in product(enumerate(("landmarks", "box")), enumerate(OPTIMIZERS)):
        axis = axes[row][column]
        for start in STARTS:
            curves = [r[group] for r in runs if (r["start"], r["optimizer"]) == (start, optimizer)]
            low, middle, high = zip(*(unexplained(point) for point in zip(*curves, strict=True)), strict=True)
            (line,) = axis.plot(steps, middle, label=start, linewidth=1.4)
            axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(
            {"landmarks": "the 10 new outputs", "box": "the 4 old outputs"}[group] + f", {optimizer}"
        )
        axis.set_xscale("symlog", linthresh=1, linscale=0.4)
        axis.set(xlim=(0, steps[-1]), yscale="log", ylim=(300, 0.2))  # less is better, so it is above
        axis.set_xticks([0, 1, 10, 100, steps[-1]], ["0", "1", "10", "100", str(steps[-1])])
        axis.set_yticks([1 - mark for mark in marks], [f"{mark:g}" for mark in marks])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel("R² on new faces")
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(STARTS), frameon=False
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(PLOT, metadata={"Date": None})


def unexplained(scores: tuple[float | None, ...]) -> tuple[float, float, float]:
    """1 - R2, least, median and greatest over the seeds; of a run that diverged it is infinite."""
    ordered = sorted(math.inf if score is None else 1 - score for score in scores)
    return ordered[0], statistics.median(ordered), ordered[-1]


def table() -> str:
    """Mean and standard deviation of R2 over the seeds: where each start began, fell and ended."""
    results = json.loads(RESULTS.read_text())
    lines = ["| start | optimizer | all 14, before | all 14, after | 4 old, at worst | 4 old, after |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for optimizer, start in product(OPTIMIZERS, STARTS):
        runs = [r for r in results["runs"] if (r["start"], r["optimizer"]) == (start, optimizer)]
        cells = [
            spread([r["all"][0] for r in runs]),
            spread([r["all"][-1] for r in runs]),
            spread([None if None in r["box"] else min(r["box"][1:]) for r in runs]),
            spread([r["box"][-1] for r in runs]),
        ]
        lines.append(f"| {start} | {optimizer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(scores: list[float | None]) -> str:
    finite = [score for score in scores if score is not None]
    if len(finite) < len(scores):
        return f"diverged ({len(scores) - len(finite)} of {len(scores)})"
    digits = 0 if abs(min(finite)) >= 100 else 1 if abs(min(finite)) >= 10 else 2
    middle, deviation = statistics.mean(finite), statistics.stdev(finite)
    return f"{middle:.{digits}f} ± {deviation:.{digits}f}" if deviation else f"{middle:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="only draw the results there are")
    parser.add_argument("--table", action="store_true", help="only print them")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if not options.draw:
        study()
    plot()


if __name__ == "__main__":
    main()
