import functools

import pytest

slowly = functools.partial(pytest.param, marks=pytest.mark.slow)
"""A case of a parametrization that compiles for seconds what other cases cover, if less alone."""
