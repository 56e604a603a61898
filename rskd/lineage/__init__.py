"""What each output was made from, and whether that is still what the configuration says.

configuration ─► Inputs ─► recipe of an output ─┬─► a stage that makes it
                                                ├─► later stages, which refuse one of another recipe
                                                └─► status: done, stale, unfinished or missing
"""
