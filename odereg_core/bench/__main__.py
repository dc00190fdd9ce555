"""python -m odereg_core.bench [warp|ode ...] [--device auto|cpu|cuda] [--threads N]"""

from __future__ import annotations

import argparse
import sys

import torch

from odereg_core.bench import BENCHES, load
from odereg_core.device import choose_device
from odereg_core.errors import tells_faults
from odereg_core.files import library_versions, provenance


@tells_faults
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m odereg_core.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--device", default="auto")
    # One, because grid_sample of one 3-D image uses no more: like is compared with like.
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU; 1")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(BENCHES)):
        parser.error(f"no benchmark '{unknown[0]}'; there are: {', '.join(BENCHES)}")
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    failed = []
    for name in options.names or BENCHES:
        table = load(name)(device)
        print(f"\n== {name}")
        shown = table.assign(holds=table.holds.map({True: "yes", False: "NO"}).fillna(""))
        print(shown.to_string(index=False, float_format=lambda v: f"{v:.4g}"), flush=True)
        failed += [f"{name}: {measure}" for measure in table.measure[table.holds.eq(False)]]
    facts = provenance(device)
    print(f"\n{facts['device']}, {facts['platform']}, Python {facts['python']}")
    print(library_versions(facts))
    print(f"odereg_core {facts['odereg_core']}, commit {facts['commit'] or 'unknown'}")
    for measure in failed:
        print(f"does not hold: {measure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
