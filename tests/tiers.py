"""How much the tests do: `make quick`, `make test` or `make nightly` (CONTRIBUTING.md).

The environment variable LESSONKIT_TIER says which of the three; without it, it is `test`. Tests
marked `slow` are left out of `make quick`; only `make nightly` runs those marked `nightly`.
"""
import os

import pytest
from hypothesis import settings

TIER = os.environ.get("LESSONKIT_TIER", "test")
MINUTES = dict(quick=4, test=25, nightly=75)     # what each should take, at most, on two cores
NOTEBOOK_SECONDS = 90   # that notebooks may take in `make quick`, all processes together
LEFT_OUT = dict(quick={"slow", "nightly"}, test={"nightly"}, nightly=set())[TIER]
SHARE = dict(quick=.25, test=1, nightly=10)[TIER]   # of the examples a property test asks for


def examples(n, **options):
    "Settings for a property test: about `n` examples in `make test`; `options` as in hypothesis."
    return settings(max_examples=max(2, round(n * SHARE)), deadline=None, **options)


def few(n, values):
    "For parametrize: the first `n` of `values` in `make test`, all of them in `make nightly`."
    rest = [value if isinstance(value, tuple) else (value,) for value in values[n:]]
    nightly = [pytest.param(*value, marks=pytest.mark.nightly) for value in rest]
    return [*values[:n], *nightly]
