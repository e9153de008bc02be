"""What it costs to judge a model from outside of its process: both ways, in turn, on Linux.

    python -m robust_nc.benchmarks.races.isolation MODEL --dataset fashion_mnist --examples 1000

Seconds of all processes on their cores, and of the clock, without those that the process takes to
start, which are told beside them.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

from torch import nn

from robust_nc.data.load import load_dataset
from robust_nc.evaluation import evaluate
from robust_nc.threat import Ball
from robust_nc.zoo.isolation import isolated_model
from robust_nc.zoo.reference import open_model


def cpu_seconds(process: int) -> float:
    """Return what a process and those below it have taken of cores so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    taken = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return taken + sum(cpu_seconds(int(one)) for one in below)


def main() -> None:
    """Run the race and print its medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--examples", type=int, default=360)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    images, labels = (part[: asked.examples] for part in load_dataset(asked.dataset, split="test"))
    channels, height, width = images.shape[1:]
    shape, classes = (channels, height, width), int(labels.max()) + 1

    def run(model: nn.Module) -> tuple[float, float]:
        cpu, clock = cpu_seconds(os.getpid()), time.perf_counter()
        found = evaluate(model, images, labels, Ball("Linf", asked.eps), protocol=asked.protocol)
        taken = cpu_seconds(os.getpid()) - cpu, time.perf_counter() - clock
        print(f"{taken[0]:.2f} s, {taken[1]:.2f} s by the clock, {found.robust_accuracy:.2%}")
        return taken

    plain = open_model(asked.model, num_classes=classes, image_shape=shape).model
    began = time.perf_counter()
    with isolated_model(asked.model, num_classes=classes, image_shape=shape) as other:
        print(f"started in {time.perf_counter() - began:.2f} s")
        rounds = [[run(plain), run(other.model)] for _ in range(asked.rounds)]
    for place, name in enumerate(("on cores", "by the clock")):
        one, two = (statistics.median(each[who][place] for each in rounds) for who in (0, 1))
        print(f"{name}: {one:.2f} s, isolated {two:.2f} s, {two / one:.2f} times")


if __name__ == "__main__":
    main()
