"""`ablation_lens.measure.resampling` under the name that the root shows, for `import ablation_lens.resampling`."""

import sys

from ablation_lens.measure import resampling

# The module itself, not a copy of its names: what is changed in one must be changed in the other.
sys.modules[__name__] = resampling
