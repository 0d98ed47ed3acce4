# make install   the environment in .venv, with everything
# make demo      synthetic smoke -> teacher -> student -> CAMs -> masks -> metrics -> runs/demo/report.html
# make test      lint, types and the test suite
# make chaos     the long tests: runs that are killed at random and must go on bit for bit
# make docs      the site of docs/ and the docstrings, in site/
# make clean     forget the demo's shards and runs

PYTHON ?= python3
BIN := .venv/bin
WSSS := $(BIN)/wsss

.PHONY: install demo test types suite chaos docs clean

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[all,test]'
	$(BIN)/python -c 'import pydensecrf' 2>/dev/null || { $(BIN)/pip install --quiet cython setuptools wheel \
	  && $(BIN)/pip install --quiet --no-build-isolation pydensecrf2; }  # its own Cython knows no Python above 3.12
	touch $@

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs 2 types suite

types: install
	$(BIN)/mypy

suite: install
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# CHAOS_KILLS=50 CHAOS_SEED=1 for more, or other, kills
chaos: install
	$(BIN)/pytest -m slow -s

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site:  site/index.html   (its search needs a server: $(BIN)/mkdocs serve)"

RUNS := $(or $(WSSS_RUNS),runs)
DEMO_RUNS := teacher student lambda0 untrained

demo: install data/demo/train data/demo/tune data/demo/val
	$(WSSS) train configs/demo/teacher.yaml
	$(WSSS) train configs/demo/student.yaml
	$(WSSS) train configs/demo/student.yaml name=demo/lambda0 method.align_weight=0 'cam.kinds=[class_map,grad]'
	$(WSSS) train configs/demo/student.yaml name=demo/untrained train.steps=0 train.warmup_steps=0
	for run in $(DEMO_RUNS); do $(WSSS) infer runs/demo/$$run || exit 1; done
	for run in teacher student; do $(WSSS) refine runs/demo/$$run || exit 1; done
	for run in $(DEMO_RUNS); do $(WSSS) evaluate runs/demo/$$run || exit 1; done
	$(WSSS) report runs/demo --control runs/demo/lambda0
	@echo
	@echo "Metrics, curves and overlays:  $(RUNS)/demo/report.html"
	@echo "Runs and CAM galleries:        $(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///$(RUNS)/mlflow.db"

# In training, seven of ten times a chimney says whether there is smoke; in validation it says nothing.
# Without a teacher (lambda0) nothing trains the student's projected map, so its classifier's own maps are read.
data/demo/train: | install
	$(WSSS) shards synthetic --out data/demo --split train --images 2048 --size 96 --cooccurrence 0.7

data/demo/tune: | install
	$(WSSS) shards synthetic --out data/demo --split tune --images 96 --size 96 --cooccurrence 0.5 --masks

data/demo/val: | install
	$(WSSS) shards synthetic --out data/demo --split val --images 192 --size 96 --cooccurrence 0.5 --masks

clean:
	rm -rf data/demo $(RUNS)/demo
