"""Run one notebook through papermill: python book/execute.py IN OUT --profile P --run-dir DIR."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import papermill


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a cell")
    options = parser.parse_args()
    # Relative to the notebook, so that no page names a folder of the machine that built it.
    run_dir = os.path.relpath(options.run_dir, options.source.parent)
    parameters = {"profile": options.profile, "run_dir": run_dir}
    # papermill only warns of a parameter that the notebook does not have.
    if unknown := set(parameters) - set(papermill.inspect_notebook(str(options.source))):
        print(f"error: {options.source} has no parameter '{min(unknown)}'", file=sys.stderr)
        return 2
    options.target.parent.mkdir(parents=True, exist_ok=True)
    # The kernel inherits these: a page has no sliders (odereg_core.experiments.widgets), and what
    # libraries keep of themselves stays in the run.
    os.environ["ODEREG_STATIC"] = "1"
    for name in ("MPLCONFIGDIR", "IPYTHONDIR"):
        own = options.run_dir.resolve() / ".cache" / name.lower()
        own.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(own)
    partial = options.target.with_name(f".{options.target.stem}.partial.ipynb")
    try:
        papermill.execute_notebook(
            str(options.source),
            str(partial),
            parameters,
            kernel_name="python3",
            cwd=str(options.source.parent),
            execution_timeout=options.timeout,
            progress_bar=False,
            # Its channels are this machine's own, and it has nothing left to say when it ends.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            shutdown_kernel="immediate",
        )
    except papermill.PapermillExecutionError as error:
        print(f"error: {options.source} failed; see {partial}\n{error}", file=sys.stderr)
        return 1
    os.replace(partial, options.target)
    print(f"executed {options.source.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
