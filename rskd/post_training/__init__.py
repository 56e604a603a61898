"""Post-training: the students of a finished distillation, tuned on conversations, scored, and their answers rated.

    BEFORE, TUNING ─► tuning.tuned ─► pack, cache, train, evaluate ─► answers ─► judge or rubric ─┐
    students of BEFORE ─► start: held-out windows, tasks ──────────────────────────────────────────┴─► Tables 7 and 8

`flows.post_train` runs it.
"""
