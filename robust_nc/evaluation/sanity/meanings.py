"""What each warning means for a verdict, and what to do about it; `docs/trust.md` shows this table.

>>> named_warning("random-output", "the logits moved by 0.3 between two equal calls").name
'random-output'
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from robust_nc.types import Warned


class Meaning(NamedTuple):
    """What is seen of a model, what that means for the verdict, and what to do."""

    seen: str
    means: str
    remedy: str


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "random-output": Meaning(
            "the same batch gets other logits when it is asked again",
            "one pass decides nothing, and single gradients are noisy",
            "use the protocol `rand`",
        ),
        "batch-dependent-output": Meaning(
            "the logits of an image change with the images beside it",
            "the verdict holds for these batches only, and an attack can be misled",
            "make the forward pass a function of each image alone (batch norm in eval mode), "
            "then use `standard`",
        ),
        "probability-output": Meaning(
            "all outputs lie in [0, 1] and every row sums to 1",
            "a softmax before the loss flattens the gradients, and robustness is overstated",
            "return what the softmax reads, then use `standard`",
        ),
        "optimisation-in-forward": Meaning(
            "the forward pass turns gradients on",
            "a defense that optimises its input at test time is rarely attacked well by gradients",
            "use `plus` and an adaptive attack, `attack=module:factory`",
        ),
        "chance-accuracy": Meaning(
            "clean accuracy at or below that of guessing among the classes",
            "the model and the images do not fit together, so neither accuracy says anything",
            "look at the normalisation, the order of the classes and the range of the pixels",
        ),
        "double-normalisation": Meaning(
            "the first layer reads pixels scaled as if normalised twice",
            "the model does not see what it was trained on, so both accuracies are off",
            "hand in plain pixels and normalise once, inside the classifier, then use `standard`",
        ),
        "no-gradient": Meaning(
            "the logits cannot be differentiated by the image",
            "attacks by gradient have nothing to climb; the verdict is that of the attacks without",
            "remove detach, no_grad or rounding, or attack a smooth stand-in by "
            "`attack=module:factory`",
        ),
        "zero-gradients": Meaning(
            "the gradients of cross-entropy and margin are zero or nearly so at examples that "
            "survived",
            "attacks by gradient do not move there, so survival shows nothing",
            "use `plus` and an adaptive attack, `attack=module:factory`",
        ),
        "unusable-gradients": Meaning(
            "gradients by the image with entries that are NaN or infinite",
            "an attack that takes them for zero leaves those pixels alone; ours moved them away "
            "from their nearer bound, the attacks of others may not have",
            "mend the forward pass (a root or a logarithm at 0, the length of nothing), then use "
            "`standard`",
        ),
        "masked-gradients": Meaning(
            "noise does more than a gradient step of that size, or the margin does not grow "
            "along its gradient",
            "the gradient does not lead to adversarial examples, so robustness is overstated",
            "use `plus` and an adaptive attack, `attack=module:factory`",
        ),
        "eps-no-zero": Meaning(
            "examples survive an attack that may change every pixel at will",
            "the attacks fail for another reason than the size of the ball",
            "use `plus` and an adaptive attack, `attack=module:factory`",
        ),
        "black-box-stronger": Meaning(
            "an attack without gradients breaks what the attacks by gradient before it missed",
            "the gradients are likely masked, and more queries would break more",
            "use `plus`, or an adaptive attack, `attack=module:factory`",
        ),
        "few-classes": Meaning(
            "the DLR loss is undefined: it needs 3 classes, or 4 if it is targeted",
            "the margin is used in its place, which depends on the scale of the logits",
            "nothing; compare `standard` with verdicts that used the margin too",
        ),
        "slow-precision": Meaning(
            "attacks in bfloat16 on a device that has no instructions for it",
            "the verdict holds, but took several times longer than in float32",
            "leave `precision` out",
        ),
        "unchecked": Meaning(
            "the model failed or ran out of memory while it was checked",
            "the verdict stands, but nobody looked for what would make it doubtful",
            "judge again, with a smaller `batch_size` where memory ran out",
        ),
    }
)


def named_warning(name: str, seen: str) -> Warned:
    """Return the warning of that name; `seen` says, with the number, what was found this time."""
    meaning = MEANINGS[name]
    return Warned(name, f"{seen}: {meaning.means}. To do: {meaning.remedy}.")
