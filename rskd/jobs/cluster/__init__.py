"""Stages as jobs on a Ray cluster (`ray.address: http://HEAD:8265`), by Ray's Jobs API.

here                                                         on the cluster
stage(config, …) ─► Call ─► <home>/jobs/<job>.json      ─► job.py: stage(config with ray.address=auto, …)
                      │     submitted, or found at work          │
                      ├─ status, polled                          │
                      ├─ log, streamed ─► lines, bars            │
                      └─ <home>/jobs/<job>.result.json  ◄────────┘ its result, or its error
"""
