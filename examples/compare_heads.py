"""Train two heads under standard and adversarial training, and compare them seed by seed.

    python examples/compare_heads.py

On some of the digits and for a few epochs, to be done in a minute; more of both makes it a result.
Run it again, and what is there is not made anew.
"""

import robust_nc

configs = [
    robust_nc.RunConfig(
        data={"dataset": "digits", "train_limit": 600},
        model={"backbone": "small_cnn", "head": head},
        train={"objective": objective, "epochs": 4},
        threat={"norm": "Linf", "eps": 0.1},
        evaluation={"protocol": "fast", "examples": 60},
        measure={"steps": 5, "targets": [], "radii": [], "trajectories": 0, "test_examples": 100},
        seed=seed,
    )
    for head in ("linear", "etf")
    for objective in ("standard", "pgd")
    for seed in (0, 1)
]
robust_nc.run(configs, out="out/heads")

board = robust_nc.leaderboard("out/heads")
print(board[["model", "seeds", "clean", "robust"]].to_string(index=False))
