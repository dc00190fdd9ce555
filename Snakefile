"""The experiment graph: cohort, models, results a pair, executed notebooks, book.

    snakemake --cores 2 --config profile=demo book
    snakemake --workflow-profile workflow/slurm --config profile=paper brats=/path book

Everything of a profile lies in runs/<profile>.
"""

import hashlib
from pathlib import Path

from odereg_core.experiments import ablation
from odereg_core.experiments.methods import METHODS
from odereg_core.profiles import load_profile

PROFILE = config.get("profile", "demo")
BRATS = config.get("brats")
UNSEEN = config.get("unseen")  # a folder in IXI's layout, in place of the synthetic heads
PAIRS = config.get("pairs")  # 0: all; otherwise the profile's samples
settings = load_profile(PROFILE)
FIG4_PAIRS = settings.evaluation.fig4 if PAIRS is None else PAIRS
RUN = f"runs/{settings.name}"
COHORT = BRATS or f"{RUN}/cohort"
if settings.cohort is None and not BRATS:
    raise WorkflowError(f"the profile '{PROFILE}' has no cohort of its own: say brats=/path/to/BraTS2020")

NOTEBOOKS = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))


def at_hand(model):
    """False for a model whose weights do not come with the package though they should."""
    return settings.weights == "train" or Path(f"odereg_core/weights/{model}.safetensors").exists()


# A row that lacks its weights is left out; Table 1 then says that it is missing.
ROWS = {key: m for key, m in METHODS.items() if all(map(at_hand, m.models))}
RESULTS = [f"{RUN}/results/{task}/{method}.csv" for method, m in ROWS.items() for task in m.tasks]
NAMES = {*filter(at_hand, settings.encoders), *(name for m in ROWS.values() for name in m.models)}
MODELS = [f"{RUN}/models/{name}.safetensors" for name in sorted(NAMES)]


def sources(*folders):
    """The package's own files that a step runs: a change in them redoes it."""
    return sorted(str(p) for folder in folders for p in Path("odereg_core").glob(folder))


def only_of(folder, *files, about=""):
    """Shell: empty a folder that other code or settings filled. What a killed job of the same left
    there is kept, for the job to go on from."""
    content = repr(about).encode() + b"".join(Path(f).read_bytes() for f in files)
    stamp = hashlib.sha256(content).hexdigest()
    return (  # the stamp goes first and comes last: a kill in between empties it again
        f"grep -qsx {stamp} {folder}.of || "
        f"( rm -rf {folder}.of {folder} && mkdir -p {folder} && echo {stamp} > {folder}.of ) && "
    )


CORE = sources("grid.py", "volume.py", "warp.py", "transforms/*.py", "cohort.py", "files.py", "precision.py")
MODEL = sources("ode/*.py", "networks/*.py", "box.py", "descriptor.py", "msodenet.py", "motion.py", "pairs.py", "metrics.py", "seen.py")
TRAIN = sources("losses.py", "similarity.py", "train/*.py")
REGISTER = sources("losses.py", "similarity.py", "optimise.py", "registration.py", "weights/*.py")


rule book:
    input:
        f"{RUN}/book/_build/html/index.html",


rule results:
    input:
        f"{RUN}/results/pairs.csv",
        f"{RUN}/results/table1.csv",
        f"{RUN}/encoders/basins.csv",
        f"{RUN}/search/search.csv",


if not BRATS and settings.cohort:

    rule cohort:
        input:
            "data_prep/phantom.py",
        output:
            f"{COHORT}/phantom.json",
        threads: 8
        params:
            c=settings.cohort,
            only=only_of(COHORT, "data_prep/phantom.py", about=settings.cohort),
        shell:
            "{params.only} python -m data_prep.phantom {COHORT} --subjects {params.c.subjects} "
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
    params:
        only=only_of(f"{RUN}/prepared", "data_prep/brats.py", *CORE, about=(settings.grid, settings.split)),
    shell:
        "{params.only} "
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
            lambda w: [f"{RUN}/models/{m}.safetensors" for m in settings.needed_for(w.model)],
            f"{RUN}/prepared/cohort.json",
            CORE,
            MODEL,
            TRAIN,
        output:
            f"{RUN}/models/{{model}}.safetensors",
            f"{RUN}/models/{{model}}.json",
        params:
            settings=lambda w: str(settings.section(w.model)),
        resources:
            gpu=1,
            mem_mb=64000,
            runtime=2880,
        shell:
            # A checkpoint is for going on after a kill; of other settings or data it is refused.
            "odereg train {wildcards.model} --profile {PROFILE} --cohort {RUN}/prepared --out {RUN}/models "
            "&& rm -f {RUN}/models/{wildcards.model}.checkpoint.safetensors"


rule evaluated:
    input:
        f"{RUN}/prepared/cohort.json",
        lambda w: [f"{RUN}/models/{m}.safetensors" for m in METHODS[w.method].models],
        CORE,
        MODEL,
        REGISTER,
        sources("baselines/*.py", "experiments/evaluate.py", "experiments/methods.py"),
    output:
        f"{RUN}/results/{{task}}/{{method}}.csv",
        f"{RUN}/results/{{task}}/{{method}}.json",
    params:
        pairs="" if PAIRS is None else f"--pairs {PAIRS}",
        sample=str(settings.evaluation),
    resources:
        gpu=lambda w: 1 if METHODS[w.method].models else 0,
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
        f"{RUN}/results/pairs.json",
    shell:
        "odereg merge {RUN}/results --out {output[0]}"


rule table:
    input:
        f"{RUN}/results/pairs.csv",
        f"{RUN}/results/pairs.json",
        sources("experiments/tables.py", "experiments/statistics.py", "experiments/paper.yaml"),
    output:
        multiext(f"{RUN}/results/table1", ".csv", ".tex", ".html", ".md"),
        f"{RUN}/results/error.png",
    shell:
        "odereg table {input[0]} --out {RUN}/results"


rule encoders:
    input:
        f"{RUN}/prepared/cohort.json",
        [path for path in MODELS if Path(path).stem in settings.encoders],
        CORE,
        MODEL,
        sources("similarity.py", "experiments/encoders.py", "experiments/landscape.py", "experiments/translation.py"),
    output:
        expand(f"{RUN}/encoders/{{name}}.{{kind}}", name=("curves", "basins", "translation"), kind=("csv", "json")),
    params:
        pairs=PAIRS or 0,
    shell:
        "odereg encoders --profile {PROFILE} --cohort {RUN}/prepared --models {RUN}/models "
        "--pairs {params.pairs} --out {RUN}/encoders"


rule search:
    input:
        f"{RUN}/prepared/cohort.json",
        f"{RUN}/models/encoder.safetensors",
        CORE,
        sources("baselines/ants.py", "experiments/search.py", "experiments/evaluate.py"),
    output:
        multiext(f"{RUN}/search/search", ".csv", ".json"),
    shell:
        "odereg search --profile {PROFILE} --cohort {RUN}/prepared --models {RUN}/models "
        "--out {output[0]}"


# Fig. 4: every model of 4a and 4b is an ordinary profile, trained and evaluated as any other.
FIG4 = f"{RUN}/fig4"


rule ablations:
    input:
        [f"{FIG4}/{figure}.csv" for figure in ("4a", "4b", "4c")],


rule ablation_profile:
    input:
        sources("experiments/ablations.yaml", "profiles/*.yaml"),
    output:
        f"{FIG4}/{{figure}}/{{variant}}/profile.yaml",
    shell:
        "odereg ablation {wildcards.figure}/{wildcards.variant} --profile {PROFILE} --out {output}"


rule ablation_prepared:
    input:
        COHORT if BRATS else f"{COHORT}/phantom.json",
        "data_prep/brats.py",
        CORE,
        profile=f"{FIG4}/4a/full/profile.yaml",
    output:
        f"{FIG4}/prepared/cohort.json",
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        only=only_of(f"{FIG4}/prepared", "data_prep/brats.py", *CORE),
    shell:
        "{params.only} python -m data_prep.brats {COHORT:q} {FIG4}/prepared "
        "--profile {input.profile} --jobs {threads}"


rule ablation_trained:
    input:
        lambda w: [] if w.model == "encoder" else encoder_of(w),
        f"{FIG4}/prepared/cohort.json",
        CORE,
        MODEL,
        TRAIN,
        profile=f"{FIG4}/{{figure}}/{{variant}}/profile.yaml",
    output:
        f"{FIG4}/{{figure}}/{{variant}}/models/{{model}}.safetensors",
        f"{FIG4}/{{figure}}/{{variant}}/models/{{model}}.json",
    params:
        encoder=lambda w: "" if w.model == "encoder" else f"--encoder {encoder_of(w)}",
    resources:
        gpu=1,
        mem_mb=64000,
        runtime=2880,
    shell:
        # A checkpoint older than the profile is another training's.
        "mkdir -p {FIG4}/{wildcards.figure}/{wildcards.variant}/models && "
        "find {FIG4}/{wildcards.figure}/{wildcards.variant}/models "
        "-name '{wildcards.model}.checkpoint.*' ! -newer {input.profile} -delete && "
        "odereg train {wildcards.model} --profile {input.profile} --cohort {FIG4}/prepared "
        "--out {FIG4}/{wildcards.figure}/{wildcards.variant}/models {params.encoder}"


def encoder_of(wildcards):
    figure, variant = ablation.find(wildcards.figure, wildcards.variant).encoder
    return f"{FIG4}/{figure}/{variant}/models/encoder.safetensors"


def trained_for(figure, variant):
    found = ablation.find(figure, variant)
    return [f"{FIG4}/{figure}/{variant}/models/{m}.safetensors" for m in found.models]


rule ablation_evaluated:
    input:
        lambda w: trained_for(w.figure, w.variant),
        REGISTER,
        sources("experiments/evaluate.py", "experiments/methods.py"),
        profile=f"{FIG4}/{{figure}}/{{variant}}/profile.yaml",
    output:
        directory(f"{FIG4}/{{figure}}/{{variant}}/results"),
    params:
        variant=lambda w: ablation.find(w.figure, w.variant),
    resources:
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg evaluate --profile {input.profile} --cohort {FIG4}/prepared "
        "--models {FIG4}/{wildcards.figure}/{wildcards.variant}/models --pairs {FIG4_PAIRS} "
        "--task {params.variant.task} --methods {params.variant.method} --out {output}"


rule ablation_collected:
    input:
        lambda w: [f"{FIG4}/{w.figure}/{v.name}/results" for v in ablation.variants(w.figure)],
    output:
        f"{FIG4}/{{figure,4[ab]}}.csv",
        f"{FIG4}/{{figure}}.json",
    shell:
        "odereg collect {wildcards.figure} {FIG4}/{wildcards.figure} --out {output[0]}"


# Fig. 4c: another cohort, of heads with skulls (or the user's own in IXI's layout), and the run's
# own models and baselines on its hybrid pairs.
HEADS = {
    "subjects": min(25, max(2, (settings.cohort.subjects if settings.cohort else 90) // 3)),
    "spacing": settings.grid.spacing,
}
HYBRID = [name for name, m in ROWS.items() if "hybrid" in m.tasks]

if not UNSEEN:

    rule unseen_cohort:
        input:
            "data_prep/heads.py",
            "data_prep/phantom.py",
        output:
            f"{FIG4}/heads/heads.json",
        threads: 8
        params:
            only=only_of(f"{FIG4}/heads", "data_prep/heads.py", "data_prep/phantom.py", about=HEADS),
        shell:
            "{params.only} python -m data_prep.heads {FIG4}/heads --subjects {HEADS[subjects]} "
            "--spacing {HEADS[spacing]} --jobs {threads}"


rule unseen_prepared:
    input:
        UNSEEN or f"{FIG4}/heads/heads.json",
        "data_prep/unseen.py",
        "data_prep/strip.py",
        CORE,
    output:
        f"{FIG4}/unseen/cohort.json",
    params:
        folder=UNSEEN or f"{FIG4}/heads",
        together="" if UNSEEN else "--together",
    threads: 8
    resources:
        mem_mb=32000,
        runtime=480,
    shell:
        "python -m data_prep.unseen {params.folder:q} {FIG4}/unseen --profile {PROFILE} "
        "{params.together} --jobs {threads}"


rule unseen_evaluated:
    input:
        f"{FIG4}/unseen/cohort.json",
        lambda w: [f"{RUN}/models/{m}.safetensors" for m in METHODS[w.method].models],
        CORE,
        MODEL,
        REGISTER,
        sources("baselines/*.py", "experiments/evaluate.py", "experiments/methods.py"),
    output:
        f"{FIG4}/4c/hybrid/{{method}}.csv",
        f"{FIG4}/4c/hybrid/{{method}}.json",
    resources:
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg evaluate --profile {PROFILE} --cohort {FIG4}/unseen --models {RUN}/models "
        "--task hybrid --methods {wildcards.method} --pairs {FIG4_PAIRS} --out {FIG4}/4c/hybrid"


rule unseen_merged:
    input:
        expand(f"{FIG4}/4c/hybrid/{{method}}.csv", method=HYBRID),
    output:
        f"{FIG4}/4c.csv",
        f"{FIG4}/4c.json",
    shell:
        "odereg merge {FIG4}/4c --out {output[0]}"


def figure4(wildcards):
    """Fig. 4's tables, where `make ablations` has made them; the book does not wait for them."""
    made = [f"{FIG4}/{figure}.csv" for figure in ("4a", "4b", "4c")]
    wanted = wildcards.name in ("09_fig4", "10_discussion")
    return [path for path in made if wanted and Path(path).exists()]


rule notebook:
    input:
        "notebooks/{name}.ipynb",
        figure4,
        f"{RUN}/results/pairs.csv",
        f"{RUN}/prepared/cohort.json",
        MODELS,
        CORE,
        MODEL,
        TRAIN,
        sources("experiments/*.py", "experiments/*.yaml", "experiments/figures/*.py", "batch.py"),
        REGISTER,
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
