"""`python -m ablation_lens.zoo.train`."""

import sys

from ablation_lens.zoo.train.training import main

sys.exit(main())
