"""The Bayesian filter: what a user's own good mail and spam look like, learnt message by message (docs/bayes.md).

`Filter` scores and may be used from any thread; `Trainer` learns, one at a time a folder. A folder (`.Bayesian`) has two
tables, `good` and `spam`. Roles call these two; the features and the arithmetic are the kernel `_native/bayes`.
"""

from iems.bayes.filter import Filter, Score
from iems.bayes.prior import Prior
from iems.bayes.trainer import Outcome, Trainer

__all__ = ["Filter", "Outcome", "Prior", "Score", "Trainer"]
