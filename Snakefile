"""The experiment graph: cohort, models, results a pair, executed notebooks, book.

    snakemake --cores 2 --config profile=demo book
    snakemake --workflow-profile workflow/slurm --config profile=paper brats=/path book

Everything of a profile lies in runs/<profile>.
"""

from pathlib import Path

from odereg_core.experiments.methods import METHODS
from odereg_core.profiles import load_profile

PROFILE = config.get("profile", "demo")
BRATS = config.get("brats")
PAIRS = config.get("pairs")  # 0: all; otherwise the profile's sample
settings = load_profile(PROFILE)
RUN = f"runs/{settings.name}"
COHORT = BRATS or f"{RUN}/cohort"
if settings.cohort is None and not BRATS:
    raise WorkflowError(f"the profile '{PROFILE}' has no cohort of its own: say brats=/path/to/BraTS2020")

NOTEBOOKS = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))
RESULTS = [
    f"{RUN}/results/{task}/{method}.csv" for method, m in METHODS.items() for task in m.tasks
]
NAMES = {*settings.encoders, *(name for m in METHODS.values() for name in m.models)}
MODELS = [f"{RUN}/models/{name}.safetensors" for name in sorted(NAMES)]


def sources(*folders):
    """The package's own files that a step runs: a change in them redoes it."""
    return sorted(str(p) for folder in folders for p in Path("odereg_core").glob(folder))


CORE = sources("grid.py", "volume.py", "warp.py", "transforms/*.py", "cohort.py", "files.py")
MODEL = sources("ode/*.py", "networks/*.py", "msodenet.py", "motion.py", "pairs.py", "metrics.py", "seen.py")
TRAIN = sources("losses.py", "similarity.py", "train/*.py")


rule book:
    input:
        f"{RUN}/book/_build/html/index.html",


rule results:
    input:
        f"{RUN}/results/pairs.csv",


if not BRATS and settings.cohort:

    rule cohort:
        input:
            "data_prep/phantom.py",
        output:
            f"{COHORT}/phantom.json",
        threads: 8
        params:
            c=settings.cohort,
        shell:
            "rm -rf {COHORT} && python -m data_prep.phantom {COHORT} --subjects {params.c.subjects} "
            "--spacing {params.c.spacing} --seed {params.c.seed} --jobs {threads}"


rule prepared:
    input:
        COHORT if BRATS else f"{COHORT}/phantom.json",
        "data_prep/brats.py",
        CORE,
    output:
        f"{RUN}/prepared/cohort.json",
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
    shell:
        "rm -rf {RUN}/prepared && "
        "python -m data_prep.brats {COHORT:q} {RUN}/prepared --profile {PROFILE} --jobs {threads}"


if settings.weights == "shipped":

    rule shipped_model:
        input:
            "odereg_core/weights/{model}.safetensors",
            "odereg_core/weights/{model}.json",
        output:
            f"{RUN}/models/{{model}}.safetensors",
            f"{RUN}/models/{{model}}.json",
        shell:
            "cp {input[0]} {output[0]} && cp {input[1]} {output[1]}"

else:

    rule trained_model:
        input:
            # L_sim needs the encoder first.
            lambda w: [] if w.model == "encoder" else f"{RUN}/models/encoder.safetensors",
            f"{RUN}/prepared/cohort.json",
            CORE,
            MODEL,
            TRAIN,
        output:
            f"{RUN}/models/{{model}}.safetensors",
            f"{RUN}/models/{{model}}.json",
        resources:
            gpu=1,
            mem_mb=64000,
            runtime=2880,
        shell:
            "odereg train {wildcards.model} --profile {PROFILE} --cohort {RUN}/prepared --out {RUN}/models"


rule evaluated:
    input:
        f"{RUN}/prepared/cohort.json",
        lambda w: [f"{RUN}/models/{m}.safetensors" for m in METHODS[w.method].models],
        CORE,
        MODEL,
        sources("baselines/*.py", "experiments/evaluate.py", "experiments/methods.py"),
    output:
        f"{RUN}/results/{{task}}/{{method}}.csv",
        f"{RUN}/results/{{task}}/{{method}}.json",
    params:
        pairs="" if PAIRS is None else f"--pairs {PAIRS}",
    resources:
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg evaluate --profile {PROFILE} --cohort {RUN}/prepared --models {RUN}/models "
        "--task {wildcards.task} --methods {wildcards.method} {params.pairs} "
        "--out {RUN}/results/{wildcards.task}"


rule merged:
    input:
        RESULTS,
    output:
        f"{RUN}/results/pairs.csv",
    shell:
        "odereg merge {RUN}/results --out {output}"


rule notebook:
    input:
        "notebooks/{name}.ipynb",
        f"{RUN}/results/pairs.csv",
        f"{RUN}/prepared/cohort.json",
        MODELS,
        CORE,
        MODEL,
        TRAIN,
        sources("experiments/*.py", "experiments/*.yaml", "experiments/figures/*.py", "register.py", "batch.py", "optimise.py"),
    output:
        f"{RUN}/notebooks/{{name}}.ipynb",
    resources:
        mem_mb=8000,
        runtime=120,
    shell:
        "python book/execute.py {input[0]} {output} --profile {PROFILE} --run-dir {RUN}"


rule html:
    input:
        expand(f"{RUN}/notebooks/{{name}}.ipynb", name=NOTEBOOKS),
        [str(p) for p in Path("book").rglob("*") if p.is_file() and "__pycache__" not in str(p)],
    output:
        f"{RUN}/book/_build/html/index.html",
    shell:
        "python book/assemble.py {RUN}/notebooks {RUN}/book"
