"""What the paper's section 4 and Fig. 4 say, claim by claim, and whether the tables at hand bear it
out.

The paper speaks of accuracy and names no measure: here means of RMSE(phi) over pairs are compared,
and where one method is to be better than others, with every one of them. While a row that a claim
names has not been run it counts as not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pandas.io.formats.style import Styler

from odereg_core.experiments.ablation import BEYOND, OWN_ENCODER, variants
from odereg_core.experiments.methods import METHODS
from odereg_core.experiments.tables import TASKS

Outcome = Literal["holds", "fails", "not measured"]
CLASSICAL = ("ANTs", "ANTs+I2I")
LEARNED = ("RCN", "VM*", "VM*+I2I")
"""The learned methods of the task that is both rigid and deformable."""
BOTH = TASKS["hybrid"]


@dataclass(frozen=True)
class Evidence:
    """What there is to judge by: means a (task, method) of Table 1 and of Fig. 4c, by the paper's
    names; a line a variant of Figs. 4a and 4b. Empty where not measured.

    `coarser`: Fig. 4a's voxels over Table 1's, in mm; None where the two are of different profiles.
    `memory`: MiB of a training step, a line a number of steps, columns `aca` and `backprop`."""

    table1: pd.DataFrame
    fig4a: pd.DataFrame
    fig4b: pd.DataFrame
    fig4c: pd.DataFrame
    coarser: float | None = 1.0
    memory: pd.DataFrame | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome and the numbers it rests on."""

    outcome: Outcome
    numbers: str


@dataclass(frozen=True)
class Claim:
    """A claim in our words, what shows it, and the judge."""

    text: str
    shown_in: str
    judge: Callable[[Evidence], Verdict]


MISSING = Verdict("not measured", "–")
MEANS = ["rmse_phi_mm", "rmse_x", "dice", "seconds"]


def means(results: pd.DataFrame | None, by: list[str]) -> pd.DataFrame:
    """Means of the measures by the columns named, methods and tasks by the paper's names."""
    if results is None:
        return pd.DataFrame(columns=MEANS)
    named = results.assign(
        method=[METHODS[m].name if m in METHODS else m for m in results["method"]],
        task=[TASKS.get(t, t) for t in results["task"]],
    )
    return named.groupby(by, sort=False)[MEANS].mean()


def evidence(
    table1: pd.DataFrame | None,
    fig4a: pd.DataFrame | None = None,
    fig4b: pd.DataFrame | None = None,
    fig4c: pd.DataFrame | None = None,
    coarser: float | None = 1.0,
    memory: pd.DataFrame | None = None,
) -> Evidence:
    """From the tidy tables, each None where there is none; the rest as `Evidence` has it."""
    return Evidence(
        means(table1, ["task", "method"]),
        means(fig4a, ["variant"]).drop(BEYOND, errors="ignore"),
        means(fig4b, ["variant"]),
        means(fig4c, ["task", "method"]),
        coarser,
        memory,
    )


def _block(table: pd.DataFrame, task: str) -> pd.DataFrame:
    if task not in table.index.get_level_values(0):
        return pd.DataFrame(columns=MEANS)
    return table.loc[task]


def _papers(task: str, ours: bool) -> list[str]:
    """Of a task's rows in the paper its own, or the others; no claim is about ours beyond them."""
    rows = [m for m in METHODS.values() if m.in_paper and task in (TASKS[t] for t in m.tasks)]
    return [row.name for row in rows if row.ours == ours]


def _of(
    block: pd.DataFrame, names: Iterable[str], measure: str = "rmse_phi_mm"
) -> pd.Series | None:
    """A measure of the rows named; None unless all of them were run."""
    values = block[measure].astype(float).dropna()
    return values[list(names)] if set(names) <= set(values.index) else None


def _told(errors: pd.Series, unit: str = "mm") -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in errors.items()) + f" {unit}"


def _better(
    table: pd.DataFrame,
    task: str,
    others: Iterable[str],
    slack: float = 1.0,
) -> Verdict:
    """Whether all our rows of a task have a lower RMSE(phi) than every one of `others`, times
    `slack`."""
    block = _block(table, task)
    ours, theirs = _of(block, _papers(task, ours=True)), _of(block, others)
    if ours is None or theirs is None:
        return MISSING
    holds = ours.max() < slack * theirs.min()
    return Verdict("holds" if holds else "fails", f"{_told(ours)}; {_told(theirs)}")


def rigid_beats_classical(e: Evidence) -> Verdict:
    return _better(e.table1, "rigid", CLASSICAL)


def deformable_as_good_as_classical(e: Evidence) -> Verdict:
    # "Similar": within a tenth.
    return _better(e.table1, "deformable", CLASSICAL, 1.1)


def hybrid_beats_classical(e: Evidence) -> Verdict:
    return _better(e.table1, BOTH, CLASSICAL)


def always_faster(e: Evidence) -> Verdict:
    ratios = {}
    for task in TASKS.values():
        block = _block(e.table1, task)
        ours = _of(block, _papers(task, ours=True), "seconds")
        theirs = _of(block, CLASSICAL, "seconds")
        if ours is None or theirs is None:
            return MISSING
        ratios[task] = theirs.min() / ours.max()
    told = ", ".join(f"{task} {ratio:.1f}" for task, ratio in ratios.items())
    holds = min(ratios.values()) > 1
    return Verdict("holds" if holds else "fails", f"fastest ANTs over slowest MS-ODENet: {told}")


def ants_suffers_from_rotation(e: Evidence) -> Verdict:
    alone, both = (_of(_block(e.table1, task), ["ANTs"]) for task in ("deformable", BOTH))
    if alone is None or both is None:
        return MISSING
    # The paper: 1.21 to 2.99 mm. Half as much again counts as suffering.
    told = f"ANTs {alone['ANTs']:.2f} mm on deformations, {both['ANTs']:.2f} mm with rigid motion"
    return Verdict("holds" if both["ANTs"] > 1.5 * alone["ANTs"] else "fails", f"{told} besides")


def deformable_beats_learned(e: Evidence) -> Verdict:
    return _better(e.table1, "deformable", ("VM", "VM+I2I"))


def hybrid_beats_learned(e: Evidence) -> Verdict:
    return _better(e.table1, BOTH, LEARNED)


def steps_help(e: Evidence) -> Verdict:
    error = _of(e.fig4b, [v.name for v in variants("4b")])  # fewest steps first
    if error is None:
        return MISSING
    return Verdict("holds" if error.is_monotonic_decreasing else "fails", _told(error))


def _ablated(e: Evidence) -> pd.Series | None:
    names = [v.name for v in variants("4a") if v.name not in (OWN_ENCODER, *BEYOND)]
    return _of(e.fig4a, names)


def every_part_helps(e: Evidence) -> Verdict:
    full, ablated = _of(e.fig4a, [OWN_ENCODER]), _ablated(e)
    if full is None or ablated is None:
        return MISSING
    holds = full.max() < ablated.min()
    return Verdict("holds" if holds else "fails", _told(pd.concat([full, ablated])))


def ablated_beat_learned(e: Evidence) -> Verdict:
    ablated, theirs = _ablated(e), _of(_block(e.table1, BOTH), LEARNED)
    if ablated is None or theirs is None:
        return MISSING
    if e.coarser is None:
        return Verdict("not measured", "Fig. 4a and Table 1 are of different profiles here")
    holds, told = ablated.max() < theirs.min(), f"{_told(ablated)}; {_told(theirs)}"
    if e.coarser != 1:  # larger voxels are a handicap: who wins in spite of them wins
        told += f"; Fig. 4a on voxels {e.coarser:g} times as wide"
        if e.coarser < 1 or not holds:
            return Verdict("not measured", told)
    return Verdict("holds" if holds else "fails", told)


def unseen_beats_all(e: Evidence) -> Verdict:
    return _better(e.fig4c, BOTH, _papers(BOTH, ours=False))


def rcn_generalises_poorly(e: Evidence) -> Verdict:
    rows = _papers(BOTH, ours=False) + _papers(BOTH, ours=True)
    compared = _of(_block(e.fig4c, BOTH), rows)
    if compared is None:
        return MISSING
    return Verdict("holds" if compared.idxmax() == "RCN" else "fails", _told(compared))


def adjoint_saves_memory(e: Evidence) -> Verdict:
    if e.memory is None:
        return MISSING
    most = e.memory.loc[e.memory.index.max()]
    told = f"{e.memory.index.max()} steps: {most['aca']:.0f} MiB, {most['backprop']:.0f} MiB"
    return Verdict("holds" if most["aca"] < most["backprop"] else "fails", told)


CLAIMS = (
    Claim(
        "Rigid: MS-ODENet is more accurate than ANTs, with or without image translation.",
        "Table 1, rigid", rigid_beats_classical,
    ),
    Claim(
        "Deformable: both MS-ODENets are about as accurate as ANTs or more.",
        "Table 1, deformable", deformable_as_good_as_classical,
    ),
    Claim(
        "Rigid and deformable: both MS-ODENets are more accurate than ANTs.",
        "Table 1, rigid+deformable", hybrid_beats_classical,
    ),
    Claim(
        "MS-ODENet is faster than ANTs in every task (the paper: much faster, 31 times or more).",
        "Table 1, time", always_faster,
    ),
    Claim(
        "A rigid motion on top of the deformation costs ANTs much of its accuracy.",
        "Table 1, ANTs", ants_suffers_from_rotation,
    ),
    Claim(
        "Deformable: both MS-ODENets are more accurate than VoxelMorph, with or without "
        "translation.",
        "Table 1, deformable", deformable_beats_learned,
    ),
    Claim(
        "Rigid and deformable: both MS-ODENets are more accurate than RCN and VoxelMorph after a "
        "rigid stage.",
        "Table 1, rigid+deformable", hybrid_beats_learned,
    ),
    Claim(
        "Every part adds accuracy (our reading of Fig. 4a): the full model is the best.",
        "Fig. 4a", every_part_helps,
    ),
    Claim(
        "Even without one of its parts the method beats the other learned ones.",
        "Fig. 4a, Table 1", ablated_beat_learned,
    ),
    Claim("The error falls with each doubling of the solver's steps.", "Fig. 4b", steps_help),
    Claim(
        "On unseen scans both MS-ODENets are more accurate than every other method.",
        "Fig. 4c", unseen_beats_all,
    ),
    Claim(
        "RCN generalises poorly (our reading: it is the least accurate on unseen scans).",
        "Fig. 4c", rcn_generalises_poorly,
    ),
    Claim(
        "The adjoint saves memory (here: beside back-propagation through the solver).",
        "chapter 3, memory", adjoint_saves_memory,
    ),
)  # fmt: skip


def styled(table: pd.DataFrame, uuid: str = "claims") -> Styler:
    """`verdicts` as a page shows them."""
    marks = {"holds": "✓ holds", "fails": "✗ fails"}
    left = {"text-align": "left"}
    printed = Styler(table, uuid=uuid).hide(axis="index").set_properties(**left)
    printed.format({"verdict": lambda outcome: marks.get(outcome, outcome)})
    return printed.set_table_attributes('class="dataframe"')


def verdicts(found: Evidence) -> pd.DataFrame:
    """A line a claim: claim, where it is shown, verdict, numbers (RMSE(phi) unless said)."""
    lines = []
    for claim in CLAIMS:
        verdict = claim.judge(found)
        lines.append([claim.text, claim.shown_in, verdict.outcome, verdict.numbers])
    return pd.DataFrame(lines, columns=["claim", "shown in", "verdict", "numbers"])
