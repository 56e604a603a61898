"""Runs in the environment of make vllm-env: `.venv-vllm/bin/python -m pytest -m vllm tests/vllm_engine`."""

import os

os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
