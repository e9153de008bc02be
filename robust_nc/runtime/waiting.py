"""How long OpenMP's threads wait for each other before they sleep: to be set before torch loads.

By default they burn their core for milliseconds at the end of every operation. Where other
processes want the cores, the thread that is waited for gets none meanwhile, and a pass takes up to
a hundred times as long.

>>> environment = {}
>>> wait_briefly(environment)
>>> environment
{'GOMP_SPINCOUNT': '1000', 'OMP_WAIT_POLICY': 'passive'}
>>> wait_briefly(theirs := {"KMP_BLOCKTIME": "200"})
>>> theirs
{'KMP_BLOCKTIME': '200'}
"""

import os
from collections.abc import MutableMapping

# GNU's library (torch for Linux) heeds the first, in rounds: on an idle machine it is hardly faster
# with its own 300,000, and slower with none. LLVM's and Intel's heed the second.
_BRIEF = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "passive"}
_NAMES = (*_BRIEF, "KMP_BLOCKTIME", "KMP_LIBRARY")


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads wait briefly, here and in processes to come, unless the user set how."""
    if not wait_policy(environment):
        environment.update(_BRIEF)


def wait_policy(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that are set for how OpenMP's threads wait."""
    return {name: environment[name] for name in _NAMES if name in environment}
