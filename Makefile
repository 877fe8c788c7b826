# Every target makes .venv by itself on a fresh machine. PYTHON: a Python of 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
# torch first and alone: a looser requirement, resolved together with others, can pull another build of it.
TORCH := torch==2.13.0
EXTRAS := cpu,embedded,eval,lora,openvino,ray,dev

.PHONY: install demo test test-slow test-gpu-wheel test-databases lint bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "retrokit needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/retrokit demo --json retrokit-demo/result.json

test: install
	$(BIN)/pytest -n 2

test-slow: install
	$(BIN)/pytest -m slow

# FAISS' wheel for GPUs shares its module's name with faiss-cpu: it is tried in an environment of its own, GPU or not.
test-gpu-wheel: .venv-gpu/.installed
	PYTHONPATH=. .venv-gpu/bin/python tests/gpu_wheel.py

.venv-gpu/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --constraint constraints.txt 'faiss-gpu>=1.15.1,<1.16' pyarrow
	touch $@

# The clients of other search engines are not retrokit's to install either.
test-databases: install .venv-databases/.installed
	mkdir -p build/databases
	PYTHONPATH=. $(BIN)/python tests/databases.py export build/databases
	.venv-databases/bin/python tests/databases.py load build/databases

.venv-databases/.installed:
	$(PYTHON) -m venv .venv-databases
	.venv-databases/bin/pip install --quiet lancedb milvus-lite pyarrow pymilvus qdrant-client
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.encoding.throughput
	$(BIN)/python -m benchmarks.pretraining.throughput

clean:
	rm -rf .venv .venv-gpu .venv-databases retrokit-demo build *.egg-info
