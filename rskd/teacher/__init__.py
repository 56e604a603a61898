"""The teacher side: from packed windows to sampled targets.

model_files ─► transformers_teacher ─► hidden states ─► lm_head ─► logits, a few rows at a time ─► sampling
"""
