# make reproduce   films, scores, table, curves and gallery of the tiny world (5 to 10 minutes on two cores)
# make test        lint, types, import contracts and tests (under 10 minutes on two cores)
#
# Both set everything up in .venv first; a second call installs nothing.

PROMPTS ?= 2
SEEDS ?= 1
SECONDS ?= 60
# The paper's rows, the baselines and the references; tiny/all has every row.
SYSTEMS ?= tiny/ours,tiny/uniform-1,tiny/uniform-2,tiny/no-cdmd,tiny/absolute,tiny/no-slow,$\
    tiny/self-forcing,tiny/longlive,tiny/infinity-rope,tiny/rendered-truth,tiny/frozen
OUT ?= out/reproduce
# What results/tiny/report is about: both series of context lengths, and the published systems.
SERIES ?= tiny/ours,tiny/no-slow,tiny/slow-2,tiny/slow-4,tiny/slow-8,tiny/longlive,$\
    tiny/longlive-3.75,tiny/longlive-5.25,tiny/longlive-6,tiny/longlive-9,tiny/longlive-12,$\
    tiny/uniform-1,tiny/uniform-2,tiny/pooled,tiny/self-forcing,tiny/infinity-rope,$\
    tiny/rendered-truth,tiny/frozen
RESULT_PROMPTS ?= 6
PROBES ?= 6
RESULTS ?= out/results
# What results/tiny/final is about, the rows of the paper first.
ROWS ?= tiny/rendered-truth,tiny/ours,tiny/uniform-1,tiny/uniform-2,tiny/no-cdmd,tiny/absolute,$\
    tiny/self-forcing,tiny/longlive,tiny/infinity-rope,tiny/no-slow,tiny/no-sink,tiny/surprisal-1,$\
    tiny/tau-0.95,tiny/tau-0.90,tiny/rolling-forcing,tiny/causvid,tiny/streaming-llm,$\
    tiny/ours-released,tiny/commit-forcing,tiny/pooled
FINAL ?= out/final
FINAL_PROMPTS ?= 256

BIN := .venv/bin
# The set-up is redone when what it installs changes, or when the checkout has moved.
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | cut -d ' ' -f 1)
CORE := .venv/.installed-core-$(KEY)
DEV := .venv/.installed-dev-$(KEY)
STUDY := .venv/.installed-study-$(KEY)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce readme results final check-results study test lint golden parity format coverage \
    preview clean

help:
	@sed -n '/^# make/s/^# //p; /^##/s/^## /make /p' Makefile

# A run with gaps (exit code 3) has a page too, which says where they are.
reproduce: $(CORE)
	@set -x; $(BIN)/cfbench run --systems $(SYSTEMS) --prompts $(PROMPTS) --seeds $(SEEDS) \
	    --seconds $(SECONDS) --out '$(OUT)'; { code=$$?; set +x; } 2>/dev/null; \
	case $$code in 0|3) echo "report page: $(abspath $(OUT))/index.html";; esac; exit $$code

## study       a blind study of the films of make reproduce, at http://127.0.0.1:7860
study: $(STUDY)
	test -f out/study/design.json || $(BIN)/cfbench study build --out '$(OUT)' --study out/study
	$(BIN)/cfbench study serve --study out/study

## readme      put picture and table of the last make reproduce into README.md
readme: $(CORE)
	$(BIN)/cfbench report --out '$(OUT)' --readme README.md

## results     films, scores, forgetting curve, survey: results/tiny/report anew (about an hour on two cores)
results: $(CORE)
	$(BIN)/cfbench generate --systems $(SERIES) --prompts $(RESULT_PROMPTS) --seeds $(SEEDS) --out '$(RESULTS)'
	$(BIN)/cfbench score --out '$(RESULTS)'
	$(BIN)/cfbench recall --count $(PROBES) --free 3,12 --workers 0 --out '$(RESULTS)/recall' > /dev/null
	rm -rf results/tiny/report
	$(BIN)/cfbench report --out '$(RESULTS)' --to results/tiny/report --no-films --survey \
	    --recall '$(RESULTS)/recall'

## final       results/tiny/final anew: 256 prompts x 2 seeds, 60 s, every row; for a GPU, goes on where it stopped
final: $(CORE)
	test -d '$(FINAL)' || test ! -f results/tiny/final/inputs/records.parquet || \
	    $(BIN)/cfbench unpack results/tiny/final/inputs/records.parquet --out '$(FINAL)'
	$(BIN)/cfbench measure --systems $(ROWS) --prompts $(FINAL_PROMPTS) --seeds 2 --batch 32 \
	    --attention sdpa --out '$(FINAL)'
	$(BIN)/cfbench report --out '$(FINAL)' --to results/tiny/final --no-films

## check-results  whether results/tiny is what its own inputs give, to the byte
check-results: $(CORE)
	$(BIN)/cfbench report --check --to results/tiny/report
	$(BIN)/cfbench report --check --to results/tiny/final

# One torch thread a worker: workers share the cores instead of fighting for them.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

## lint        style, types and import contracts alone
lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

## golden      the authors' films anew, and how far ours are; PEERS names a folder of checkouts
golden: $(DEV)
	$(BIN)/python -m tests.parity.record --peers '$(PEERS)'
	$(BIN)/python -m tests.parity.compare

## parity      VBench's own scores beside ours; DINO names a checkout of facebookresearch/dino
parity: $(DEV)
	$(BIN)/cfbench vbench-env create --to out/vbench-env
	$(BIN)/python -m tests.parity.compare_vbench --env out/vbench-env --dino '$(DINO)'

## format      apply the formatter and the safe fixes
format: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

## coverage    tests with a line and branch report
coverage: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --cov --cov-report=term

## preview     a contact sheet of the tiny world, in out/
preview: $(CORE)
	mkdir -p out
	$(BIN)/python -m cfmodel.tinyworld preview --out out/tinyworld.png

## clean       remove .venv, caches and build leftovers; films and results in out/ stay
clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info .coverage*
	find cfmodel cfbench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up ---------------------------------------------------------------------------------------

# An environment that is whole is kept; one that was cut short or moved is made anew.
define ENVIRONMENT
set -e; \
if .venv/bin/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
for python in $(PYTHON) python3 python3.11 python3.12 python3.13 python; do \
    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
        echo "creating .venv with $$("$$python" --version)"; \
        "$$python" -m venv --clear .venv || { \
            echo "could not create .venv; on Debian and Ubuntu install python3-venv first" >&2; exit 2; }; \
        exit 0; \
    fi; \
done; \
echo "no Python of 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
exit 2
endef

# Only Linux on x86-64 has two builds to choose from. The dry run resolves torch alone and reads
# metadata; whatever it meets, the installation below decides and reports.
define WARN_CUDA_BUILD
if [ "$$(uname -sm)" = "Linux x86_64" ] && ! ls /dev/nvidia[0-9]* /dev/dxg >/dev/null 2>&1 && \
    ! $(BIN)/python -c 'import torch' >/dev/null 2>&1; then \
    if $(BIN)/python -m pip install --dry-run --quiet --no-deps --report - -c constraints.txt torch 2>/dev/null \
        | $(BIN)/python -c 'import json, sys; v = json.load(sys.stdin)["install"][0]["metadata"]["version"]; sys.exit("+" in v)' 2>/dev/null; then \
        echo "note: no NVIDIA GPU here, yet pip resolves torch to its CUDA build (about 3 GB; it runs on CPUs too). For the small CPU build, offer pip PyTorch's own CPU wheels through PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS, then run make clean and this command again." >&2; \
    fi; \
fi
endef

define INSTALL
@$(ENVIRONMENT)
@$(WARN_CUDA_BUILD)
$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e $(1)
@rm -f .venv/.installed-*
endef

$(CORE):
	$(call INSTALL,.)
	@touch $@

# Beside whatever else is installed: it takes nothing away.
$(STUDY): $(CORE)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[study]'
	@touch $@

$(DEV):
	$(call INSTALL,'.[dev]')
	@touch $(CORE) $@
