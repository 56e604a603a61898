"""The paper's experiments on language models, at the size that a machine allows.

tables (what the paper compares) ─► setting (text, tokenizer, teacher, caches) ─► cells (a student each) ─► report
"""
