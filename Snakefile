"""The paper as a graph of papermill runs.

    snakemake --cores 2 --config profile=demo scenarios=standard-s3-p15-r0

Snakemake decides which notebooks run, where and in what order; papermill runs each one. Settings
(`--config name=value`): profile, scenarios (ids, or "paper"), runs, data, device, minutes, filters
(for every_beyond: what is dropped before a second training).
"""

import math
import os
import shutil
import sys

from snakemake.exceptions import WorkflowError

from nbsupport.artifacts import CHAIN, FILTERS, STAGES, USUAL_FILTERS, wanted
from nbsupport.scenarios import DEVICES, PROFILES, Profile, Scenario, expand

KNOWN = {"profile", "scenarios", "runs", "data", "device", "minutes", "filters"}
if unknown := set(config) - KNOWN:
    sys.exit(f"unknown settings {sorted(unknown)}; choose among {sorted(KNOWN)}")

try:
    PROFILE = Profile.parse(str(config.get("profile", "demo")))
    SCENARIOS = expand(str(config.get("scenarios", "standard-s3-p15-r0")))
except ValueError as error:
    sys.exit(str(error))

# Snakemake reads "filters=" as None.
DROP = str(config.get("filters") or " ".join(USUAL_FILTERS)).replace(",", " ").split()
if unknown := set(DROP) - set(FILTERS):
    sys.exit(f"unknown filters {sorted(unknown)}; choose among {', '.join(FILTERS)}")

# A surrogate has no poison to detect, and no results.
POISONED = [scenario for scenario in SCENARIOS if scenario.attack != "clean"]
RUNS = str(config.get("runs", "data/runs"))
DEVICE = str(config.get("device", "auto"))
if DEVICE not in DEVICES:
    sys.exit(f"device is {DEVICE!r}; choose among {', '.join(DEVICES)}")
DATA = str(config.get("data", "auto"))
RUN = f"{RUNS}/{PROFILE}/{{scenario}}"
# Generous: five times what one core without bfloat16 needs for the longest step, the training (fast:
# 120 minutes); more epochs than usual take longer. A hung job ends instead of holding the batch.
LIMITS = {"tiny": 20, "demo": 120, "fast": 600}
USUAL = PROFILES[PROFILE.name.partition("-")[0]]
LIMIT = math.ceil(LIMITS.get(USUAL.name, 1440) * max(1, PROFILE.epochs / USUAL.epochs))
MINUTES = str(config.get("minutes", LIMIT))
if not MINUTES.isdecimal() or int(MINUTES) < 1:
    sys.exit(f"minutes is {MINUTES!r}; the time limit of a step is a whole number from 1 on")
MINUTES = int(MINUTES)
GPU = DEVICE == "cuda" or (DEVICE == "auto" and shutil.which("nvidia-smi") is not None)
# Several scenarios share the cores of a machine best when each job keeps to few threads; the last
# ones of a batch have them to themselves. A cluster counts jobs and not cores: its profile tells the
# threads of each rule (set-threads).
LEFT = [s for s in SCENARIOS if not os.path.exists(f"{RUNS}/{PROFILE}/{s}/{wanted(s)[-1]}.json")]
try:
    THREADS = max(1, workflow.cores // len(LEFT or SCENARIOS))
except WorkflowError:
    THREADS = 1

# Kernels and papermill must come from the environment that runs Snakemake.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]

# The folder of runs is told by where the output shall be: it differs where Snakemake keeps files in
# a storage of its own and works on copies.
COMMON = (
    "python -m papermill --engine nbsupport --kernel python3 "
    "--execution-timeout $(( 60 * {resources.runtime} )) "
    "{input.notebook:q} {log.notebook:q} -p profile {PROFILE} -p interactive False "
)
ONE = (
    COMMON + "-p scenario {wildcards.scenario} -p data {DATA:q} -p device {DEVICE} "
    '-p runs "$(cd "$(dirname {output[0]:q})/../.." && pwd)" '
)
# What belongs to a filter lies two folders deeper.
DEEP = ONE.replace("/../..", "/../../../..")


def made(*stages, scenario="{scenario}"):
    """Files of earlier stages. Payloads decide whether a rule is out of date: a record also tells
    seconds, which change without the content."""
    folder = f"{RUNS}/{PROFILE}/{scenario}"
    payloads = [f"{folder}/{STAGES[stage].payload}" for stage in stages]
    return payloads + [ancient(f"{folder}/{stage}.json") for stage in stages]


def surrogate(wildcards):
    """The attacker's network, for the attacks that need one."""
    scenario = Scenario.parse(wildcards.scenario)
    if not scenario.needs_surrogate:
        return []
    return made("attack", "training", scenario=scenario.surrogate)


def finished(_):
    """All that the results are made of; their rates stand in records, so these count too."""
    files = []
    for scenario in POISONED:
        files += made(*CHAIN, scenario=scenario)
        files += [f"{RUNS}/{PROFILE}/{scenario}/{stage}.json" for stage in CHAIN]
        if scenario.needs_surrogate:
            files += made("attack", "training", scenario=scenario.surrogate)
    return files


def modules(*names):
    """Files of the package whose change makes the results of a quick rule old.

    The slow rules (attack, training, relevance) go by the version of their stage instead, which
    rises when results change: a better sentence in a notebook must not cost hours.
    """
    return [local(f"nbsupport/{name}.py") for name in names]


localrules: all, every_ablation, every_beyond


wildcard_constraints:
    scenario="[^/]+",
    filter="[a-z_]+",


rule all:
    input:
        [f"{RUNS}/{PROFILE}/results.csv"] if POISONED else [],
        # Named one by one: results that are there ask for no run that is not.
        [f"{RUNS}/{PROFILE}/{s}/detection.json" for s in POISONED],
        [f"{RUNS}/{PROFILE}/{s}/training.json" for s in SCENARIOS if s.attack == "clean"],


rule attacks:
    input:
        surrogate=surrogate,
        notebook=ancient(local("notebooks/01_attacks.ipynb")),
    output:
        f"{RUN}/attack.npz",
        f"{RUN}/attack.json",
    log:
        notebook=f"{RUN}/01_attacks.ipynb",
    params:
        version=STAGES["attack"].version,
        # Not DATA: another spelling of the same folder is no other data. Notebooks compare the
        # fingerprint of the images.
        images=(PROFILE.data, PROFILE.scale),
    resources:
        runtime=MINUTES,
    shell:
        ONE


rule training:
    input:
        surrogate,
        made("attack"),
        notebook=ancient(local("notebooks/02_training.ipynb")),
    output:
        f"{RUN}/model.safetensors",
        f"{RUN}/training.json",
    log:
        notebook=f"{RUN}/02_training.ipynb",
    params:
        version=STAGES["training"].version,
        recipe=repr(PROFILE),
    threads: THREADS
    resources:
        gpu=int(GPU),
        runtime=MINUTES,
    retries: 1
    shell:
        ONE


rule lrp:
    input:
        surrogate,
        made("attack", "training"),
        notebook=ancient(local("notebooks/03_lrp.ipynb")),
    output:
        f"{RUN}/relevance.npz",
        f"{RUN}/relevance.json",
    log:
        notebook=f"{RUN}/03_lrp.ipynb",
    params:
        version=STAGES["relevance"].version,
    threads: THREADS
    resources:
        gpu=int(GPU),
        runtime=MINUTES,
    shell:
        ONE


rule gw_clustering:
    input:
        surrogate,
        made("attack", "training", "relevance"),
        notebook=local("notebooks/04_gw_clustering.ipynb"),
        modules=modules(
            "gw", "distances", "transport", "barycentres", "detectors", "embeddings", "clusterers",
            "baselines", "heatmap_clustering", "embedding_clustering", "evidence",
            "poison_detector", "detection", "metrics",
        ),
    output:
        f"{RUN}/detection.npz",
        f"{RUN}/detection.json",
    log:
        notebook=f"{RUN}/04_gw_clustering.ipynb",
    resources:
        runtime=MINUTES,
    shell:
        ONE


rule ablation:
    input:
        surrogate,
        made("attack", "training", "relevance"),
        notebook=local("notebooks/07_ablation.ipynb"),
        modules=modules(
            "ablation", "gw", "distances", "transport", "barycentres", "detectors", "embeddings",
            "clusterers", "baselines", "lrp", "graph", "tracing", "rules", "attribution", "gradients",
            "heatmap_clustering", "embedding_clustering", "poison_detector", "detection", "evidence",
            "metrics",
        ),
    output:
        f"{RUN}/ablation.npz",
        f"{RUN}/ablation.json",
    log:
        notebook=f"{RUN}/07_ablation.ipynb",
    threads: THREADS
    resources:
        gpu=int(GPU),
        runtime=MINUTES,
    shell:
        ONE


# A side road: results do not wait for it.
rule every_ablation:
    input:
        [f"{RUNS}/{PROFILE}/{s}/ablation.json" for s in POISONED],


rule scan:
    input:
        surrogate,
        made("attack", "training"),
        notebook=ancient(local("notebooks/06_beyond.ipynb")),
    output:
        f"{RUN}/scan.npz",
        f"{RUN}/scan.json",
    log:
        notebook=f"{RUN}/06_scan.ipynb",
    params:
        version=STAGES["scan"].version,
    threads: THREADS
    resources:
        gpu=int(GPU),
        runtime=MINUTES,
    shell:
        ONE + "-p make scan"


# Its files change only if other images are accused: new scores alone cost no training.
rule filters:
    input:
        made("detection"),
        notebook=ancient(local("notebooks/06_beyond.ipynb")),
    output:
        [f"{RUN}/retrained/{name}/removed.npz" for name in FILTERS],
        [f"{RUN}/retrained/{name}/filter.json" for name in FILTERS],
    log:
        notebook=f"{RUN}/06_filters.ipynb",
    params:
        version=[STAGES[f"retrained/{name}/filter"].version for name in FILTERS],
    resources:
        runtime=MINUTES,
    shell:
        DEEP + "-p make filters"


rule retraining:
    input:
        surrogate,
        made("attack", "training"),
        f"{RUN}/retrained/{{filter}}/removed.npz",
        ancient(f"{RUN}/retrained/{{filter}}/filter.json"),
        notebook=ancient(local("notebooks/06_beyond.ipynb")),
    output:
        # Snakemake would delete them before the job; the notebook keeps them if the same images are
        # taken away as before.
        update(f"{RUN}/retrained/{{filter}}/model.safetensors"),
        update(f"{RUN}/retrained/{{filter}}/training.json"),
    log:
        notebook=f"{RUN}/retrained/{{filter}}/06_beyond.ipynb",
    params:
        version=lambda wildcards: STAGES[f"retrained/{wildcards.filter}/training"].version,
        recipe=repr(PROFILE),
    threads: THREADS
    resources:
        gpu=int(GPU),
        runtime=MINUTES,
    retries: 1
    shell:
        DEEP + "-p make {wildcards.filter}"


def compared(wildcards):
    """All that notebook 6 shows of one run, and the scan of the clean network beside it."""
    clean = Scenario.parse(wildcards.scenario).surrogate
    trained = [f"retrained/{name}/training" for name in DROP]
    files = made(*CHAIN, "scan", *trained, scenario=wildcards.scenario)
    return files + made("attack", "training", "scan", scenario=clean)


rule beyond:
    input:
        compared,
        notebook=local("notebooks/06_beyond.ipynb"),
        modules=modules(
            "detection", "evidence", "figures", "metrics", "patterns", "pictures", "plots",
            "results", "retraining", "scan", "tables",
        ),
    output:
        f"{RUN}/beyond.csv",
    log:
        notebook=f"{RUN}/06_beyond.ipynb",
    resources:
        runtime=MINUTES,
    shell:
        ONE + "-p make none"


rule every_beyond:
    input:
        [f"{RUNS}/{PROFILE}/{s}/beyond.csv" for s in POISONED],
        [f"{RUNS}/{PROFILE}/{s}/scan.json" for s in SCENARIOS if s.attack == "clean"],


rule results:
    input:
        finished,
        notebook=local("notebooks/05_results.ipynb"),
        modules=modules(
            "ablation", "audits", "claims", "evidence", "figures", "gw", "metrics", "paper",
            "pictures", "plots", "poison_detector", "published", "results", "retraining", "scan",
            "tables",
        ),
    output:
        f"{RUNS}/{PROFILE}/results.csv",
    log:
        notebook=f"{RUNS}/{PROFILE}/05_results.ipynb",
    resources:
        runtime=MINUTES,
    shell:
        COMMON + "-p data {DATA:q} "
        '-p runs "$(cd "$(dirname {output:q})/.." && pwd)"'
