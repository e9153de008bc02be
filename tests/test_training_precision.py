"""TF32 is for the training steps alone; CUDA graphs that write over their answers do no harm."""

import contextlib

import pytest
import torch
from helpers_models import digits, same_weights, small_config, small_model, small_run
from test_training import in_a_fresh_process

from robust_nc.config import RunConfig, TrainConfig, plain, read, training_id
from robust_nc.data.batches import Batches
from robust_nc.training import loop
from robust_nc.training.loop import products
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Standard

CHOOSES = ("validation_clean", "validation_attacked")
CUDA = torch.device("cuda")  # the switches can be turned without one


def switches() -> tuple[object, ...]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )


def test_tf32_is_allowed_inside_and_as_it_was_outside():
    torch.backends.cudnn.allow_tf32 = False
    try:
        before = switches()
        with products("tf32", CUDA):
            assert switches() == ("high", True, True)
        assert switches() == before
        with pytest.raises(RuntimeError, match="broke"), products("tf32", CUDA):
            raise RuntimeError("broke")
        assert switches() == before
        with products("float32", CUDA), products("bf16", CUDA):
            assert switches() == before
    finally:
        torch.backends.cudnn.allow_tf32 = True


def test_on_a_cpu_tf32_trains_the_same_weights_to_the_bit():
    before = switches()
    one = small_run(small_config(train={"precision": "float32"}))
    other = small_run(small_config(train={"precision": "tf32"}))
    assert same_weights(one.last, other.last)
    assert switches() == before


def test_steps_are_inside_and_what_is_measured_between_epochs_is_outside(monkeypatch):
    inside, seen = [], {"step": [], "validation": [], "probe": []}

    @contextlib.contextmanager
    def stand_in(precision, device):
        inside.append(precision)
        try:
            yield
        finally:
            inside.pop()

    class Noted(Standard):
        def __call__(self, *given, **options):
            seen["step"].append(list(inside))
            return super().__call__(*given, **options)

    def measured(name: str):
        return lambda model: seen[name].append(list(inside)) or dict.fromkeys(CHOOSES, 0.5)

    monkeypatch.setattr(loop, "products", stand_in)
    config = TrainConfig(epochs=2, batch_size=20, precision="tf32")
    loop.Trainer(
        small_model(),
        Noted(cross_entropy),
        Batches(digits(), batch_size=20, device="cpu"),
        config,
        seed=0,
        validate=measured("validation"),
        probe=measured("probe"),
    ).fit()
    assert seen == {"step": [["tf32"]] * 6, "validation": [[], []], "probe": [[], []]}


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_chooses_by_trying_in_steps_alone(deterministic, monkeypatch):
    cudnn, seen = torch.backends.cudnn, []
    monkeypatch.setattr(cudnn, "deterministic", deterministic)

    def seeing(objective, *given, **options):
        seen.append(cudnn.benchmark)
        return call(objective, *given, **options)

    call = Standard.__call__
    monkeypatch.setattr(Standard, "__call__", seeing)
    small_run(small_config(epochs=1))
    assert set(seen) == {not deterministic}
    assert not cudnn.benchmark


def test_the_new_values_name_new_weights_and_the_old_ones_keep_theirs():
    def named(**train: object) -> str:
        return training_id(read(RunConfig, {"train": train}))

    assert named() == named(precision="float32", compile=False)
    values = plain(TrainConfig())
    assert (values["precision"], values["compile"]) == ("float32", False)
    assert plain(TrainConfig(compile=True))["compile"] is True
    different = [named(), named(precision="tf32"), named(precision="bf16")]
    different += [named(compile=True), named(compile="reduce-overhead")]
    assert len(set(different)) == len(different)


REPLAYED = """
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from robust_nc.training import precision

def overwriting(shape):
    # As a CUDA graph: what has this shape is answered in memory that the next call writes over.
    def compiler(graph, inputs):
        kept = {}

        def run(*given):
            found = list(graph(*given))
            for place, value in enumerate(found):
                if isinstance(value, torch.Tensor) and value.shape == shape:
                    kept.setdefault(place, torch.empty_like(value)).copy_(value)
                    found[place] = kept[place].detach()
            return found

        return make_boxed_func(run)

    return compiler

logits = overwriting((50, 10))
backend = aot_autograd(
    fw_compiler=logits, inference_compiler=logits, bw_compiler=overwriting((50, 1, 8, 8))
)
own, modes = torch.compile, []

def stand_in(model, mode):
    modes.append(mode)
    return own(model, backend=backend)

torch.compile = stand_in

def losses(objective, how):
    torch.compiler.reset()
    config = small_config(objective=objective, train={"compile": how}, epochs=1)
    return [row["train_loss"] for row in small_run(config).history]

for name in ("pgd", "trades"):
    objective = {"name": name, "steps": 2}
    print(name, *losses(objective, False), *losses(objective, "reduce-overhead"))
precision._copied = lambda *given: None
print("uncopied", *losses(objective, "reduce-overhead"))
print("modes", *modes)
"""


@pytest.mark.slow
def test_a_replayed_training_is_the_same_though_its_answers_are_written_over():
    out = in_a_fresh_process(REPLAYED)
    found = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert found["modes"] == ["reduce-overhead"] * 3, out
    for name in ("pgd", "trades"):
        plainly, replayed = map(float, found[name])
        assert replayed == pytest.approx(plainly, rel=1e-5), out
    # The stand-in bites: without the copy TRADES compares with logits that were written over.
    assert float(found["uncopied"][0]) != pytest.approx(plainly, rel=1e-5), out
