"""Prints how many values differ from torch's inside jit and scan, a case: run by test_numbers with XLA's settings."""

import json

from tests.lr_scheduler.cases import CLOSED, MAIN, STEPS, differing, epochs, scan_values, torch_values

if __name__ == "__main__":
    found = {}
    for case in MAIN:
        found[case.label] = differing(scan_values(case, STEPS)[0], torch_values(case, STEPS)[0])
    for case in (case for case in MAIN if case in CLOSED):
        where = epochs(case, STEPS)
        closed = differing(scan_values(case, STEPS, where)[0], torch_values(case, STEPS, where)[0])
        found[f"{case.label}, closed form"] = closed
    print(json.dumps(found))
