"""Models of either side: where their files are, how they are loaded, and what they compute.

    hub id, directory, .gguf, package: ─► files ─► directory ─┬─► load ─► causal_lm ─► hidden states ─► output_head
                                                              └─► tokenizer

The only room that calls `from_pretrained`. `output_head` needs torch alone.
"""
