"""What the tests of this folder share."""

import pytest

collect_ignore = ["around.py", "cases.py", "harness.py"]  # they need torch, and have no doctests


def selected_names(request: pytest.FixtureRequest) -> set[str]:
    """The values of `name` in the parametrized tests that are selected: what an expensive fixture has to prepare."""
    specs = (getattr(item, "callspec", None) for item in request.session.items)
    return {spec.params["name"] for spec in specs if spec is not None and "name" in spec.params}
