"""The paper's synthetic studies (Figure 2, Appendices B and K), with systematic sampling added.

    zipf: one known distribution ─► what each method makes of it ─► bias and variance                     Figure 2a
    tasks: Gaussian classes, noisy images ─┬─► teacher ─► targets of each method ─► student ─► calibration  2b, 2c
                                           └─► labels ──────────────────────────────┘
    study: both ─► synthetic.html, synthetic.json

Targets come from `rskd.teacher.sampling` and losses from `rskd.student.objective`: what is studied is what is used.
"""
