"""Prefect flows: the only place that imports prefect. Each composes stages of `rskd.jobs`;
`gradient_similarity` is a command alone.

    distill ─► pack_corpus ─► cache_logits ─► train_student (each) ─► evaluate_student ─► report
    judge: students answer sets of prompts ─► a large model rates the answers

Start one with `python -m flows.distill CONFIG.yaml`, or from the Prefect UI after `make up`.
"""

import sys

from rskd import interrupts

if sys.argv[0] == "-m":  # Python is about to run one of these modules: Prefect takes seconds to import
    interrupts.end_at_once()
