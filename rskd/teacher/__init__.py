"""The teacher side: from packed windows to sampled targets.

models/files ─► transformers_teacher ─► hidden states ─► hidden_to_targets ─► logits, a few rows at a time ─► sampling
"""
