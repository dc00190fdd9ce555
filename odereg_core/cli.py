"""The `odereg` command. Bad input gives one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from odereg_core import __version__
from odereg_core.errors import InputError, tells_faults

app = typer.Typer(
    name="odereg",
    help="Multi-scale neural ODEs for 3-D medical image registration.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProfileOption = Annotated[str, typer.Option(help="smoke, demo, paper, or a profile's YAML file.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
CohortOption = Annotated[Path, typer.Option(help="Prepared cohort (see data_prep.brats).")]
TransformOption = Annotated[
    str, typer.Option(help="The kind of map: rigid, bspline, dense, rigid+bspline, rigid+dense.")
]
RefineOption = Annotated[
    int,
    typer.Option(help="Steps of direct optimisation from the model's answer, e.g. 15.", min=0),
]
WeightsOption = Annotated[
    list[Path] | None,
    typer.Option(help="Weights other than the shipped ones; once for each stage."),
]


@app.command()
def register(
    moving: Annotated[Path, typer.Argument(help="The NIfTI volume to be warped.")],
    fixed: Annotated[Path, typer.Argument(help="The NIfTI volume it is brought to.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if need be.")],
    transform: TransformOption = "rigid",
    weights: WeightsOption = None,
    moving_mask: Annotated[
        Path | None, typer.Option(help="What of MOVING to register, e.g. the brain.")
    ] = None,
    fixed_mask: Annotated[
        Path | None, typer.Option(help="What of FIXED to register, e.g. the brain.")
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="A label volume of MOVING to carry along; as often as there are files."),
    ] = None,
    refine: RefineOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Register any two 3-D NIfTI volumes of a head.

    Writes warped.nii.gz (on the fixed volume's grid), displacement.nii.gz (an ITK displacement
    field on that grid holding the whole map), affine.mat (ITK; the rigid part, where there is
    one), labels_NAME.nii.gz for each file of labels, and report.json into OUT.
    """
    from odereg_core.registration import register as run
    from odereg_core.registration import spare

    files = [moving, fixed, moving_mask, fixed_mask, *(labels or ())]
    spare([file for file in files if file], out, labels or ())
    result = run(
        moving,
        fixed,
        transform,
        weights,
        device,
        moving_mask=moving_mask,
        fixed_mask=fixed_mask,
        labels=labels or (),
        refine=refine,
    )
    result.save(out)
    for warning in result.report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    found = result.report
    parts = [f"displacement {found['displacement_mm']['mean']} mm on average"]
    if "rotation_deg" in found:
        after = " from centre to centre of mass" if found["start"] != "shared grid" else ""
        parts.insert(0, f"translation {found['translation_mm']} mm{after}")
        parts.insert(0, f"rotation {found['rotation_deg']} deg")
    print(", ".join(parts), f"{found['seconds']} s -> {out}", sep=", ")


@app.command()
def register_batch(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns moving and fixed, and if wanted name, moving_mask, "
            "fixed_mask and labels (several with ; between). Paths are relative to its folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for summary.csv and a folder for each pair.")],
    transform: TransformOption = "rigid",
    weights: WeightsOption = None,
    refine: RefineOption = 0,
    jobs: Annotated[int, typer.Option(help="Pairs at a time, each a process.", min=1)] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Register many pairs; goes on where it stopped, and past pairs that cannot be registered.

    Exit code 1 where some pair failed: summary.csv says which, and why.
    """
    from odereg_core.batch import read_pairs, run

    table = run(read_pairs(pairs), out, transform, weights, refine, device, jobs)
    failed = int((table.status == "failed").sum())
    print(f"{len(table) - failed} of {len(table)} pairs registered -> {out / 'summary.csv'}")
    if failed:
        raise typer.Exit(1)


@app.command()
def train(
    model: Annotated[
        str,
        typer.Argument(
            help="As the profile names it: rigid, bspline, dense, encoder, vm, vm_i2i, vm_told, "
            "rcn."
        ),
    ],
    cohort: CohortOption,
    out: Annotated[Path, typer.Option(help="Folder for weights, log and checkpoint.")],
    init: Annotated[
        Path | None, typer.Option(help="Weights of such a model to start from: fine-tuning.")
    ] = None,
    profile: ProfileOption = "demo",
    encoder: Annotated[
        Path | None, typer.Option(help="The encoder it needs; else OUT/encoder.safetensors.")
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[
        int, typer.Option(help="Processes that share each batch, a device each.", min=1)
    ] = 1,
) -> None:
    """Train a model; goes on from OUT's checkpoint where there is one."""
    from odereg_core.cohort import Cohort
    from odereg_core.device import choose_device
    from odereg_core.profiles import load_profile
    from odereg_core.train import baselines, gan, registration
    from odereg_core.train.team import assemble

    settings = load_profile(profile)
    known = [*settings.models, *settings.encoders, *settings.baselines]
    if model not in known:
        raise InputError(
            f"the profile '{settings.name}' describes no model '{model}'; it has: "
            + ", ".join(known)
        )
    if devices > 1 and model in settings.encoders:
        raise InputError(f"'{model}' trains on one device; all but encoders on several")
    command = f"odereg train {model} --profile {profile}"
    chosen, team = assemble(choose_device(device), devices)
    common = (model, settings, Cohort(cohort), out, chosen, command)
    if model in settings.encoders:
        weights = gan.train(*common, init)
    elif model in settings.baselines:
        weights = baselines.train(*common, encoder, init, team)
    else:
        weights = registration.train(*common, encoder, init, team)
    print(f"weights: {weights}")


@app.command()
def calibrate(
    weights: Annotated[Path, typer.Argument(help="Weights of a registration model.")],
    cohort: CohortOption,
    device: DeviceOption = "auto",
) -> None:
    """Measure what a model has seen and keep it in its weights file, for register's warnings.

    `odereg train` does so at its end.
    """
    from odereg_core.cohort import Cohort
    from odereg_core.device import choose_device
    from odereg_core.train.calibrate import calibrate as run

    seen = run(weights, Cohort(cohort), choose_device(device))
    for name, (low, high) in seen.ranges.items():
        print(f"{name:16} {low:.4g} to {high:.4g}")


@app.command()
def evaluate(
    cohort: CohortOption,
    models: Annotated[Path, typer.Option(help="Folder of weights.")],
    out: Annotated[Path, typer.Option(help="Folder for METHOD.csv and METHOD.json.")],
    methods: Annotated[str, typer.Option(help="Methods, separated by commas; see odereg info.")],
    task: Annotated[str, typer.Option(help="rigid, deformable or hybrid.")] = "rigid",
    profile: ProfileOption = "demo",
    pairs: Annotated[
        int | None, typer.Option(help="Test pairs, 0 for all; else the profile's.", min=0)
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; ANTs always takes one.", min=1)] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Run methods on a task's simulated test pairs; one line a pair, with provenance.

    Goes on where it stopped.
    """
    import torch

    from odereg_core.cohort import Cohort
    from odereg_core.device import choose_device
    from odereg_core.experiments.evaluate import evaluate_all
    from odereg_core.profiles import load_profile

    torch.set_num_threads(threads)
    names, settings = [name.strip() for name in methods.split(",")], load_profile(profile)
    chosen = choose_device(device)
    for method, table in evaluate_all(
        names, task, settings, Cohort(cohort), models, out, pairs, chosen
    ):
        error, path = table.rmse_phi_mm.mean(), out / f"{method}.csv"
        print(f"{method}: RMSE(phi) {error:.2f} mm over {len(table)} pairs -> {path}")


@app.command()
def encoders(
    cohort: CohortOption,
    models: Annotated[Path, typer.Option(help="Folder of weights.")],
    out: Annotated[Path, typer.Option(help="Folder for curves, basins and translation.")],
    profile: ProfileOption = "demo",
    pairs: Annotated[int, typer.Option(help="Test pairs, 0 for all.", min=0)] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Measure a run's encoders as metrics (the landscape about alignment) and as translators."""
    from odereg_core.cohort import Cohort
    from odereg_core.device import choose_device
    from odereg_core.experiments.encoders import encoders_of, measure
    from odereg_core.experiments.landscape import landscape_keys, summary
    from odereg_core.profiles import load_profile

    settings, subjects = load_profile(profile), Cohort(cohort)
    found = measure(
        encoders_of(settings, models),
        subjects,
        landscape_keys(subjects, pairs),
        out,
        choose_device(device),
        profile=settings.name,
    )
    print(summary(found, subjects.grid.spacing[0]).round(1).to_string())


@app.command()
def search(
    cohort: CohortOption,
    models: Annotated[Path, typer.Option(help="Folder that holds encoder.safetensors.")],
    out: Annotated[Path, typer.Option(help="The table to write; its provenance goes beside it.")],
    profile: ProfileOption = "demo",
    pairs: Annotated[int, typer.Option(help="Validation pairs a task, 0 for all.", min=0)] = 10,
    device: DeviceOption = "auto",
) -> None:
    """Try ANTs' settings on validation pairs, and rank them. Goes on where it stopped."""
    from shutil import rmtree

    from odereg_core.cohort import INDEX, Cohort
    from odereg_core.device import choose_device
    from odereg_core.experiments.evaluate import is_table, write_results
    from odereg_core.experiments.search import ranking
    from odereg_core.experiments.search import search as run
    from odereg_core.files import code, digest
    from odereg_core.networks.disentangle import Disentangler
    from odereg_core.profiles import load_profile
    from odereg_core.weights import load_model, weights_of

    is_table(out)  # rather now than after the hours
    settings, subjects, chosen = load_profile(profile), Cohort(cohort), choose_device(device)
    weights, kept = weights_of(models, "encoder"), out.with_suffix(".kept")
    encoder = load_model(weights, chosen, Disentangler)
    kept.mkdir(parents=True, exist_ok=True)
    of = digest([weights, cohort / INDEX], code())
    found = run(subjects, encoder, pairs, settings.evaluation.seed, chosen, kept, of)
    voxel = subjects.grid.spacing[0]
    facts = {"profile": settings.name, "split": "val", "voxel_mm": voxel}
    write_results(found, out, chosen, **facts, cohort=subjects.settings)
    rmtree(kept)
    print(ranking(found, voxel).round(2).to_string())


@app.command()
def merge(
    results: Annotated[
        list[Path],
        typer.Argument(help="Tables <task>/<method>.csv, or a folder that holds such."),
    ],
    out: Annotated[Path, typer.Option(help="The table to write.")],
) -> None:
    """Put results tables into one, and their provenance beside it."""
    from odereg_core.experiments.evaluate import merge as run
    from odereg_core.experiments.evaluate import merged_facts, write_table

    write_table(run(*results), out, merged_facts(*results))


@app.command()
def table(
    results: Annotated[Path, typer.Argument(help="The merged table of results (pairs.csv).")],
    out: Annotated[Path, typer.Option(help="Folder for table1.* and error.png.")],
) -> None:
    """Table 1 of a run, beside the paper's: numbers, LaTeX, HTML, and error against motion."""
    from odereg_core.experiments.evaluate import read_results, voxel_mm
    from odereg_core.experiments.figures.results import error_figure
    from odereg_core.experiments.methods import METHODS
    from odereg_core.experiments.tables import write_table1
    from odereg_core.files import atomic

    rows = read_results(results)
    write_table1(rows, voxel_mm(results), out)
    with atomic(out / "error.png") as temporary:
        names = {key: method.name for key, method in METHODS.items()}
        error_figure(rows, names).savefig(temporary, metadata={"Software": ""})
    print(f"table1.csv, .tex, .html, .md, error.png -> {out}")


@app.command()
def ablation(
    name: Annotated[str, typer.Argument(help="Figure and variant, as 4a/mi; see odereg info.")],
    out: Annotated[Path, typer.Option(help="The profile to write.")],
    profile: ProfileOption = "demo",
) -> None:
    """Write the profile of one model of Fig. 4a or 4b, for odereg train and odereg evaluate."""
    from odereg_core.experiments.ablation import find, write_profile

    write_profile(find(*(f"{name}/".split("/")[:2])), profile, out)


@app.command()
def collect(
    figure: Annotated[str, typer.Argument(help="4a or 4b.")],
    folder: Annotated[Path, typer.Argument(help="Holds a folder a variant, trained, evaluated.")],
    out: Annotated[Path, typer.Option(help="The table to write; its provenance goes beside it.")],
) -> None:
    """Put the results of all variants of Fig. 4a or 4b into one table."""
    from odereg_core.experiments.ablation import collect as run
    from odereg_core.experiments.evaluate import write_table

    table, facts = run(folder, figure)
    write_table(table, out, facts)


@app.command()
def keep(
    run: Annotated[Path, typer.Argument(help="A run's folder, as runs/demo.")],
    out: Annotated[Path, typer.Option(help="Folder to keep them in, as results/demo.")],
) -> None:
    """Copy a run's results and their provenance to where later runs are shown beside them."""
    from odereg_core.experiments.kept import keep as copy

    print(", ".join(copy(run, out)), "->", out)


@app.command()
def info(
    weights: Annotated[Path | None, typer.Argument(help="A weights file to describe.")] = None,
) -> None:
    """Versions, devices, profiles, methods and shipped weights; or what a weights file holds."""
    import json

    import torch

    from odereg_core.experiments.ablation import variants
    from odereg_core.experiments.methods import METHODS
    from odereg_core.files import library_versions, provenance
    from odereg_core.profiles import BUILT_IN
    from odereg_core.weights import HERE, describe, kind_of, load_model

    if weights is not None:
        print(json.dumps(describe(load_model(weights, kind=kind_of(weights))), indent=1))
        return
    facts = provenance()
    commit = facts["commit"] or "unknown"
    print(f"odereg-core {__version__} (commit {commit}), Python {facts['python']}")
    print(f"libraries:  {library_versions(facts)}")
    print(f"device:     {'cuda' if torch.cuda.is_available() else 'cpu'} ({facts['device']})")
    print(f"profiles:   {', '.join(BUILT_IN)}")
    print(f"weights:    {', '.join(sorted(p.stem for p in HERE.glob('*.safetensors'))) or 'none'}")
    for key, method in METHODS.items():
        print(f"method:     {key:12} {method.name} ({', '.join(method.tasks)})")
    print(f"ablations:  {', '.join(f'{v.figure}/{v.name}' for v in variants())}")


@tells_faults
def main() -> int:
    """Run the command."""
    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
