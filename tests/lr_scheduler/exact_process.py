"""Prints how many values differ from torch's inside jit and scan, a case: run by test_numbers with XLA's settings."""

import json

from tests.lr_scheduler.cases import MAIN, MORE, MORE_STEPS, STEPS, differing, epochs, scan_values, torch_values

if __name__ == "__main__":
    found = {}
    for cases, steps in ((MAIN, STEPS), (MORE, MORE_STEPS)):
        for case in cases:
            found[case.label] = differing(scan_values(case, steps)[0], torch_values(case, steps)[0])
            if case.spec[0] not in ("SequentialLR", "ChainedScheduler"):
                where = epochs(case, steps)
                closed = differing(scan_values(case, steps, where)[0], torch_values(case, steps, where)[0])
                found[f"{case.label}, closed form"] = closed
    print(json.dumps(found))
