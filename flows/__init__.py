"""Prefect flows: the only place that imports prefect. Each composes stages of `rskd.jobs`;
`gradient_similarity` is a command alone.

    distill ─► pack_corpus ─► cache_logits ─► train_student (each) ─► evaluate_student ─► report

Start one with `python -m flows.distill CONFIG.yaml`, or from the Prefect UI after `make up`.
"""
