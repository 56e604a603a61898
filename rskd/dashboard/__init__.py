"""One page for everything under a storage root.

manifests, students, evaluations ─► gather ─► rows of plain JSON ─► rskd.pages.dashboard ─► one HTML file
registry and runs of MLflow ────────┘
"""
