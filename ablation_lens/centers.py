"""`ablation_lens.neurons.centers` under the name that the root shows, for `import ablation_lens.centers`."""

import sys

from ablation_lens.neurons import centers

# The module itself, not a copy of its names: the registry of centers must exist once.
sys.modules[__name__] = centers
