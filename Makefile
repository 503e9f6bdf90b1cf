# Two commands: `make run` (the whole chain) and `make test`. `make help` lists the rest.
PYTHON    ?= python3.11
VENV      ?= .venv
JOBS      ?= 2
GPUS      ?= 1
PROFILE   ?= demo
SCENARIOS ?= standard-s3-p15-r0
DATA      ?= auto
RUNS      ?= data/runs
DEVICE    ?= auto
MINUTES   ?=
GRID      ?= --attack standard --p 5,15 --s 1,3
KEEP      ?= ask
FILTERS   ?=
GALLERY  := poisoned_examples heatmaps composites collapse
# figures/ itself holds those of profile fast; no other profile overwrites them.
FIGURES   ?= $(if $(filter fast,$(PROFILE)),figures,figures/$(PROFILE))

SETTINGS := PYTHON VENV JOBS GPUS PROFILE SCENARIOS DATA RUNS DEVICE MINUTES GRID KEEP FILTERS FIGURES
given = $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
unknown := $(filter-out $(SETTINGS) CI,$(given))
$(if $(strip $(unknown)),$(error no setting is called $(strip $(unknown)); there are $(SETTINGS)))

$(if $(filter ask yes no,$(KEEP)),,$(error KEEP is '$(KEEP)'; choose ask, yes or no))

# Some are read by few commands; another one would pass over them and do something else.
read_by = $(if $(and $(filter $(1),$(given)),$(MAKECMDGOALS)),$(if $(filter $(2),$(MAKECMDGOALS)),,\
	$(error $(1) says nothing to 'make $(MAKECMDGOALS)'; it is read by $(2))))
$(call read_by,GRID,sweep resume-sweep)
$(call read_by,FILTERS,beyond resume-beyond)
$(call read_by,KEEP,figures)
$(call read_by,FIGURES,figures)
$(if $(and $(filter SCENARIOS,$(given)),$(filter sweep resume-sweep,$(MAKECMDGOALS))),\
	$(error a grid names its scenarios itself; give GRID without SCENARIOS, or 'make run'))

# A list made by a loop in the shell comes with line ends, which a recipe cannot hold.
define newline


endef
named := $(filter-out file,$(origin SCENARIOS))
override SCENARIOS := $(subst $(newline), ,$(SCENARIOS))

# A quoted ~ reaches no shell that would expand it.
at_home = $(if $(filter ~/%,$(firstword $(1))),$(subst ~/,$(HOME)/,$(1)),$(1))
override RUNS := $(call at_home,$(RUNS))
override VENV := $(call at_home,$(VENV))
# It is the name of a target, of which spaces would make several.
$(if $(word 2,$(VENV)),$(error VENV is '$(VENV)'; name a folder without spaces))

BIN   := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin
READY := $(VENV)/.nbsupport-ready
# Installed from another folder (this one was moved, or two checkouts share VENV): install anew.
# Scripts of other packages still name the old folder: recipes call modules of python instead.
ifneq ($(shell cat "$(READY)" 2> /dev/null),$(CURDIR))
.PHONY: $(READY)
endif
export PATH := $(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

PLACE   = --profile $(PROFILE) --runs "$(RUNS)"
MACHINE = --jobs $(JOBS) --gpus $(GPUS)
BATCH   = $(PLACE) $(MACHINE) --data "$(DATA)" --device $(DEVICE) \
	$(if $(MINUTES),--minutes $(MINUTES))

# What to say where a command of the workflow did not come to its end.
# (2 is the answer to settings that cannot be, and says all.)
stopped = || { test $$? = 2 || \
	echo "Stopped. What is finished stays: 'make $(1)' goes on with the rest."; exit 1; }

.PHONY: help run resume resume-sweep resume-ablation resume-beyond sweep surrogate status \
	ablation beyond figures gallery test test-fast lint strip \
	lab site clean

help:  ## show this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' Makefile

run: $(READY)  ## poison, train, explain, detect: PROFILE=demo SCENARIOS="..." DATA=folder JOBS=2
	@nbsupport run $(BATCH) $(UNLOCK) --scenarios $(SCENARIOS) $(call stopped,resume)
	@nbsupport summary $(PLACE) --scenarios $(SCENARIOS)

resume resume-sweep resume-ablation resume-beyond: UNLOCK = --unlock
resume: run  ## go on after an interruption (give the same settings)
resume-sweep: sweep  ## the same for a grid
resume-ablation: ablation  ## the same for the ablation
resume-beyond: beyond  ## the same for what lies beyond the paper

sweep: $(READY)  ## a grid: GRID="--attack standard --p 1,2,5 --s 1,2,3 --repetitions 5 --dry-run"
	@nbsupport sweep $(BATCH) $(UNLOCK) $(GRID) $(call stopped,resume-sweep)

surrogate: $(READY)  ## take the published clean network, which some attacks need: PROFILE=fast
	@nbsupport surrogate $(PLACE) --data "$(DATA)"

status: $(READY)  ## what is finished, what is missing, how long the rest will take
	@nbsupport status $(PLACE) $(MACHINE) $(if $(named),--scenarios $(SCENARIOS))

ablation: $(READY)  ## is it LRP or is it GW? every representation, distance and clusterer
	@nbsupport run $(BATCH) $(UNLOCK) --stage ablation --scenarios $(SCENARIOS) \
		$(call stopped,resume-ablation)

beyond: $(READY)  ## which class is it, and what is left of the backdoor after detection (notebook 6)
	@nbsupport run $(BATCH) $(UNLOCK) --stage beyond $(if $(FILTERS),--filters $(FILTERS)) \
		--scenarios $(SCENARIOS) $(call stopped,resume-beyond)

figures: $(READY)  ## write figures/ anew, without training: KEEP=yes leaves published runs in
	python -m papermill --engine nbsupport --kernel python3 notebooks/05_results.ipynb \
		"$(RUNS)/$(PROFILE)/05_results.ipynb" -p profile $(PROFILE) -p runs "$(RUNS)" \
		-p data "$(DATA)" -p interactive False -p figures_folder "$(FIGURES)" -p keep $(KEEP)

gallery:  ## copy the pictures of the README from a finished demo run (drawn signs only)
	mkdir -p figures/gallery
	cd "$(RUNS)/demo/standard-s3-p15-r0/figures" && cp \
		$(foreach name,$(GALLERY),$(name).png $(name).json) "$(CURDIR)/figures/gallery/"

# A file at a time to each worker, and one thread to each of its processes: on busy cores, threads
# that wait for each other take up to nine times as long.
SUITE = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m pytest --numprocesses $(JOBS) \
	--dist loadfile --no-loadscope-reorder

test: $(READY) lint  ## lint, unit tests, and the chain of notebooks on a tiny data set
	$(SUITE)

test-fast: $(READY)  ## unit tests alone
	$(SUITE) -m "not notebooks"

STRIP = python -m nbstripout --extra-keys "metadata.papermill metadata.widgets cell.metadata.papermill"

lint: $(READY)  ## ruff on code and notebooks; notebooks must be stripped of outputs
	python -m ruff check .
	python -m ruff format --check .
	$(STRIP) --verify notebooks/*.ipynb

strip: $(READY)  ## take outputs out of the notebooks again, after working in them
	$(STRIP) notebooks/*.ipynb

lab: $(READY)  ## open JupyterLab on the overview
	python -m jupyterlab notebooks/00_overview.ipynb

site: $(READY)  ## executed notebooks of PROFILE as HTML, with an index: site/index.html
	python -m papermill --engine nbsupport --kernel python3 notebooks/00_overview.ipynb \
		"$(RUNS)/$(PROFILE)/00_overview.ipynb" -p profile $(PROFILE) -p runs "$(RUNS)" \
		-p interactive False
	python -m nbsupport.site $(PLACE)

clean:  ## remove caches and the runs of PROFILE=tiny; finished runs stay
	rm -rf .pytest_cache .ruff_cache site data/runs/tiny

$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about 6 GB, most of it torch with its GPU libraries;"
	@echo "two to four minutes on a fast line. VENV=<folder> installs into one you have."
	@# One without pip is half made: by a Python without ensurepip, or interrupted.
	@"$(BIN)/python" -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[workflow,test]'
	@echo "$(CURDIR)" > $@
