"""See layer by layer what an attack does to a network that was never made for this package.

    python examples/profile_network.py

Layers are found by themselves, or named: `MeasureConfig(taps=("1", "3"))`. Takes seconds.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import robust_nc

train = robust_nc.load_dataset("digits", split="train", limit=500)
test = robust_nc.load_dataset("digits", split="test", limit=200)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(512, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(model(train[0]), train[1]).backward()
    optimizer.step()

measured = robust_nc.profile(
    model.eval(),
    {"train": [train], "test": [test]},
    robust_nc.Ball("Linf", 0.1),
    measure=robust_nc.MeasureConfig(steps=10, radii=(), targets=(), trajectories=0),
)
leaps = measured.values("leap_rate", split="test", grouping="none")
print(leaps.pivot(index="tap", columns="condition", values="value").loc[list(measured.taps)])
robust_nc.figures.story(measured.frame).savefig("layers.png", dpi=150, bbox_inches="tight")
print("wrote layers.png; all rows are in measured.frame")
