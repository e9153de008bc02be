"""Give a network of your own a verdict, and save pictures of what broke it.

    python examples/evaluate_model.py

Any `torch.nn.Module` from images in [0, 1] to logits will do; here a small one is trained on
handwritten digits, which come along. Takes seconds.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import robust_nc

images, labels = robust_nc.load_dataset("digits", split="train")
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()

images, labels = robust_nc.load_dataset("digits", split="test", limit=60)
ball = robust_nc.Ball("Linf", 0.1)
outcome = robust_nc.evaluate(model.eval(), images, labels, ball, protocol="standard")
print(outcome)

broken = (outcome.clean_correct & ~outcome.robust).nonzero().flatten()[:5].tolist()
fig, axes = plt.subplots(2, len(broken), figsize=(7, 3), squeeze=False)
for column, row in zip(axes.T, broken, strict=True):
    for ax, image in zip(column, (images[row], outcome.adversarials[row]), strict=True):
        ax.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        ax.set_axis_off()
        ax.set_title(f"taken for {model(image[None]).argmax().item()}", fontsize=8)
fig.savefig("broken.png", dpi=150)
print("wrote broken.png: originals above, attacked below")
