"""The experiment graph: cohort, models, results a pair, executed notebooks, book.

    snakemake --cores 2 --config profile=demo book
    snakemake --workflow-profile workflow/slurm --config profile=paper brats=/path book

Everything of a profile lies in runs/<profile>.
"""

from pathlib import Path

from odereg_core.cohort import CONTRASTS
from odereg_core.experiments import ablation
from odereg_core.experiments.kept import TABLES
from odereg_core.experiments.methods import METHODS
from odereg_core.files import digest
from odereg_core.profiles import load_profile
from workflow.imports import code_of

PROFILE = config.get("profile", "demo")
BRATS = config.get("brats")
UNSEEN = config.get("unseen")  # a folder in IXI's layout, in place of the synthetic heads
settings = load_profile(PROFILE)
RUN = f"runs/{settings.name}"
# Table 1 over all test pairs, and over the profile's sample of them, unless that is all of them.
ALL = f"{RUN}/all"
SAMPLE = f"{RUN}/results" if settings.evaluation.pairs else ALL
COHORT = BRATS or f"{RUN}/cohort"
if settings.cohort is None and not BRATS:
    raise WorkflowError(f"the profile '{PROFILE}' has no cohort of its own: say brats=/path/to/BraTS2020")

NOTEBOOKS = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))


def at_hand(model):
    """False for a model whose weights do not come with the package though they should."""
    return settings.weights == "train" or Path(f"odereg_core/weights/{model}.safetensors").exists()


# A row that lacks its weights is left out; Table 1 then says that it is missing.
ROWS = {key: m for key, m in METHODS.items() if all(map(at_hand, m.models))}
NAMES = {*filter(at_hand, settings.encoders), *(name for m in ROWS.values() for name in m.models)}
MODELS = [f"{RUN}/models/{name}.safetensors" for name in sorted(NAMES)]


def only_of(folder, files, about):
    """Shell: empty a folder that other code or settings filled. What a killed job of the same left
    there is kept, for the job to go on from."""
    stamp = digest(map(Path, files), about)
    return (  # the stamp goes first and comes last: a kill in between empties it again
        f"grep -qsx {stamp} {folder}.of || "
        f"( rm -rf {folder}.of {folder} && mkdir -p {folder} && echo {stamp} > {folder}.of ) && "
    )


# The files whose change redoes a step: all that the modules it runs import.
PHANTOM_CODE, HEADS_CODE, BRATS_CODE, UNSEEN_CODE = (
    code_of(f"data_prep.{name}") for name in ("phantom", "heads", "brats", "unseen")
)
EVALUATE_CODE = code_of("odereg_core.experiments.evaluate")


wildcard_constraints:
    folder="all|results",
    figure="4[ab]",


rule book:
    input:
        f"{RUN}/book/_build/html/index.html",


rule sample:  # what the notebooks start from
    input:
        f"{SAMPLE}/table1.csv",
        MODELS,


rule results:
    input:
        f"{ALL}/table1.csv",
        f"{RUN}/encoders/basins.csv",
        f"{RUN}/search/search.csv",


if not BRATS and settings.cohort:

    rule cohort:
        input:
            PHANTOM_CODE,
        output:
            f"{COHORT}/phantom.json",
        threads: 8
        params:
            c=settings.cohort,
            only=only_of(COHORT, PHANTOM_CODE, settings.cohort),
        shell:
            "{params.only} python -m data_prep.phantom {COHORT} --subjects {params.c.subjects} "
            "--spacing {params.c.spacing} --seed {params.c.seed} --jobs {threads}"


rule prepared:
    input:
        COHORT if BRATS else f"{COHORT}/phantom.json",
        BRATS_CODE,
    output:
        f"{RUN}/prepared/cohort.json",
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        only=only_of(f"{RUN}/prepared", BRATS_CODE, (settings.grid, settings.split)),
    shell:
        "{params.only} "
        "python -m data_prep.brats {COHORT:q} {RUN}/prepared --profile {PROFILE} --jobs {threads}"


def trainer(model):
    """The files of a model's training."""
    kinds = {"gan": settings.encoders, "baselines": settings.baselines, "registration": settings.models}
    return code_of(*(f"odereg_core.train.{kind}" for kind, names in kinds.items() if model in names))


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
            lambda w: trainer(w.model),
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


def gpu(wildcards):
    """1 for a row that has work for the GPU: all but standing still, and ANTs by itself."""
    return int(METHODS[wildcards.method].name not in ("no registration", "ANTs"))


rule evaluated:
    input:
        f"{RUN}/prepared/cohort.json",
        lambda w: [f"{RUN}/models/{m}.safetensors" for m in METHODS[w.method].models],
        EVALUATE_CODE,
    output:
        f"{RUN}/{{folder}}/{{task}}/{{method}}.csv",
        f"{RUN}/{{folder}}/{{task}}/{{method}}.json",
    params:
        pairs=lambda w: 0 if w.folder == "all" else settings.evaluation.pairs,
        seed=settings.evaluation.seed,
    resources:
        gpu=gpu,
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg evaluate --profile {PROFILE} --cohort {RUN}/prepared --models {RUN}/models "
        "--task {wildcards.task} --methods {wildcards.method} --pairs {params.pairs} "
        "--out {RUN}/{wildcards.folder}/{wildcards.task}"


rule merged:
    input:
        EVALUATE_CODE,
        rows=[f"{RUN}/{{folder}}/{task}/{row}.csv" for row, m in ROWS.items() for task in m.tasks],
    output:
        f"{RUN}/{{folder}}/pairs.csv",
        f"{RUN}/{{folder}}/pairs.json",
    shell:
        "odereg merge {input.rows} --out {output[0]}"


rule table:
    input:
        f"{RUN}/{{folder}}/pairs.csv",
        f"{RUN}/{{folder}}/pairs.json",
        EVALUATE_CODE,
        code_of("odereg_core.experiments.tables", "odereg_core.experiments.figures.results"),
        "odereg_core/experiments/paper.yaml",
    output:
        multiext(f"{RUN}/{{folder}}/table1", ".csv", ".tex", ".html", ".md"),
        f"{RUN}/{{folder}}/error.png",
    shell:
        "odereg table {input[0]} --out {RUN}/{wildcards.folder}"


rule encoders:
    input:
        f"{RUN}/prepared/cohort.json",
        [path for path in MODELS if Path(path).stem in settings.encoders],
        code_of("odereg_core.experiments.encoders"),
    output:
        expand(f"{RUN}/encoders/{{name}}.{{kind}}", name=("curves", "basins", "translation"), kind=("csv", "json")),
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg encoders --profile {PROFILE} --cohort {RUN}/prepared --models {RUN}/models "
        "--out {RUN}/encoders"


rule search:
    input:
        f"{RUN}/prepared/cohort.json",
        f"{RUN}/models/encoder.safetensors",
        code_of("odereg_core.experiments.search"),
    output:
        multiext(f"{RUN}/search/search", ".csv", ".json"),
    params:
        seed=settings.evaluation.seed,
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg search --profile {PROFILE} --cohort {RUN}/prepared --models {RUN}/models "
        "--out {output[0]}"


# Fig. 4: every model of 4a and 4b is an ordinary profile, trained and evaluated as any other.
FIG4 = f"{RUN}/fig4"
FIG4_GRID = ablation.derived(ablation.find("4a", ablation.OWN_ENCODER), PROFILE).get("grid")


rule ablations:
    input:
        [f"{FIG4}/{figure}.csv" for figure in ("4a", "4b", "4c")],


rule ablation_profile:
    output:
        f"{FIG4}/{{figure}}/{{variant}}/profile.yaml",
    params:
        # What it will hold: no other change to code or profiles is one to what is trained.
        content=lambda w: str(ablation.derived(ablation.find(w.figure, w.variant), PROFILE)),
    shell:
        "odereg ablation {wildcards.figure}/{wildcards.variant} --profile {PROFILE} --out {output}"


rule ablation_prepared:
    input:
        COHORT if BRATS else f"{COHORT}/phantom.json",
        BRATS_CODE,
        profile=f"{FIG4}/4a/full/profile.yaml",
    output:
        f"{FIG4}/prepared/cohort.json",
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        only=only_of(f"{FIG4}/prepared", BRATS_CODE, (settings.grid, settings.split, FIG4_GRID)),
    shell:
        "{params.only} python -m data_prep.brats {COHORT:q} {FIG4}/prepared "
        "--profile {input.profile} --jobs {threads}"


rule ablation_trained:
    input:
        lambda w: [] if w.model == "encoder" else encoder_of(w),
        f"{FIG4}/prepared/cohort.json",
        lambda w: trainer(w.model),
        profile=f"{FIG4}/{{figure}}/{{variant}}/profile.yaml",
    output:
        f"{FIG4}/{{figure}}/{{variant}}/models/{{model}}.safetensors",
        f"{FIG4}/{{figure}}/{{variant}}/models/{{model}}.json",
    params:
        settings=lambda w: str(settings.section(w.model)),  # what the profile extends
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
        "--out {FIG4}/{wildcards.figure}/{wildcards.variant}/models {params.encoder} && "
        "rm -f {FIG4}/{wildcards.figure}/{wildcards.variant}/models/{wildcards.model}.checkpoint.safetensors"


def encoder_of(wildcards):
    figure, variant = ablation.find(wildcards.figure, wildcards.variant).encoder
    return f"{FIG4}/{figure}/{variant}/models/encoder.safetensors"


def trained_for(wildcards):
    found = ablation.find(wildcards.figure, wildcards.variant)
    return [f"{FIG4}/{found.figure}/{found.name}/models/{m}.safetensors" for m in found.models]


rule ablation_evaluated:
    input:
        trained_for,
        f"{FIG4}/prepared/cohort.json",
        EVALUATE_CODE,
        profile=f"{FIG4}/{{figure}}/{{variant}}/profile.yaml",
    output:
        f"{FIG4}/{{figure}}/{{variant}}/results/{{method}}.csv",
        f"{FIG4}/{{figure}}/{{variant}}/results/{{method}}.json",
    params:
        task=lambda w: ablation.find(w.figure, w.variant).task,
        pairs=settings.evaluation.fig4,
        seed=settings.evaluation.seed,
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg evaluate --profile {input.profile} --cohort {FIG4}/prepared "
        "--models {FIG4}/{wildcards.figure}/{wildcards.variant}/models --pairs {params.pairs} "
        "--task {params.task} --methods {wildcards.method} "
        "--out {FIG4}/{wildcards.figure}/{wildcards.variant}/results"


rule ablation_collected:
    input:
        code_of("odereg_core.experiments.ablation"),
        lambda w: [
            f"{FIG4}/{w.figure}/{v.name}/results/{v.method}.csv" for v in ablation.variants(w.figure)
        ],
    output:
        f"{FIG4}/{{figure}}.csv",
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
            HEADS_CODE,
        output:
            f"{FIG4}/heads/heads.json",
        threads: 8
        params:
            only=only_of(f"{FIG4}/heads", HEADS_CODE, HEADS),
        shell:
            "{params.only} python -m data_prep.heads {FIG4}/heads --jobs {threads} "
            "--subjects {HEADS[subjects]} --spacing {HEADS[spacing]}"


rule unseen_prepared:
    input:
        UNSEEN or f"{FIG4}/heads/heads.json",
        UNSEEN_CODE,
    output:
        f"{FIG4}/unseen/cohort.json",
    params:
        only=only_of(f"{FIG4}/unseen", UNSEEN_CODE, (settings.grid, CONTRASTS, UNSEEN)),
        contrasts=",".join(CONTRASTS),  # the encoder knows no others
        folder=UNSEEN or f"{FIG4}/heads",
        together="" if UNSEEN else "--together",
    threads: 8
    resources:
        mem_mb=32000,
        runtime=480,
    shell:
        "{params.only} python -m data_prep.unseen {params.folder:q} {FIG4}/unseen "
        "--profile {PROFILE} --contrasts {params.contrasts} {params.together} --jobs {threads}"


rule unseen_evaluated:
    input:
        f"{FIG4}/unseen/cohort.json",
        lambda w: [f"{RUN}/models/{m}.safetensors" for m in METHODS[w.method].models],
        EVALUATE_CODE,
    output:
        f"{FIG4}/4c/hybrid/{{method}}.csv",
        f"{FIG4}/4c/hybrid/{{method}}.json",
    params:
        pairs=settings.evaluation.fig4,
        seed=settings.evaluation.seed,
    resources:
        gpu=gpu,
        mem_mb=16000,
        runtime=1440,
    shell:
        "odereg evaluate --profile {PROFILE} --cohort {FIG4}/unseen --models {RUN}/models "
        "--task hybrid --methods {wildcards.method} --pairs {params.pairs} --out {FIG4}/4c/hybrid"


rule unseen_merged:
    input:
        EVALUATE_CODE,
        rows=expand(f"{FIG4}/4c/hybrid/{{method}}.csv", method=HYBRID),
    output:
        f"{FIG4}/4c.csv",
        f"{FIG4}/4c.json",
    shell:
        "odereg merge {input.rows} --out {output[0]}"


SHOWN = {  # which of the tables of experiments/kept.py a chapter shows
    "04_encoder": ("curves", "basins", "translation"),
    "07_table1": ("pairs", "search"),
    "08_fig3": ("pairs",),
    "09_fig4": ("4a", "4b", "4c"),
    "10_discussion": ("pairs", "4a", "4b", "4c"),
}


def table1(wildcards):
    """The pairs that a chapter waits for: a sample, unless `make results` has evaluated all."""
    shown = "pairs" in SHOWN.get(wildcards.name, ())
    whole = SAMPLE != ALL and Path(f"{ALL}/pairs.csv").exists()
    return [f"{SAMPLE}/pairs.csv"] if shown and not whole else []


def at_hand_tables(wildcards):
    """A digest of the tables that a chapter shows but does not wait for, this run's and the kept
    ones: where they change it is executed anew, but none is made for it."""
    names = SHOWN.get(wildcards.name, ())
    own = {Path(RUN, TABLES[name]) for name in names} - {*map(Path, table1(wildcards))}
    kept = [path for name in names for path in Path("results").glob(f"*/{name}.csv")]
    files = [file for path in sorted([*own, *kept]) for file in (path, path.with_suffix(".json"))]
    return digest(file for file in files if file.exists())


rule notebook:
    input:
        "notebooks/{name}.ipynb",
        "book/execute.py",
        f"{RUN}/prepared/cohort.json",
        MODELS,
        table1,
        lambda w: code_of(f"notebooks/{w.name}.ipynb"),
        ["odereg_core/experiments/ablations.yaml", "odereg_core/experiments/paper.yaml"],
        sorted(str(path) for path in Path("odereg_core/weights").glob("*.safetensors")),
    output:
        f"{RUN}/notebooks/{{name}}.ipynb",
    params:
        settings=lambda w: str(settings),
        tables=at_hand_tables,
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
