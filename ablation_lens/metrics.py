"""`ablation_lens.measure.metrics` under the name that the root shows, for `import ablation_lens.metrics`."""

import sys

from ablation_lens.measure import metrics

# The module itself, not a copy of its names: what is changed in one must be changed in the other.
sys.modules[__name__] = metrics
