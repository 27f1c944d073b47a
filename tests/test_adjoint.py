"""The adjoint identities over generated problems, and the same problems against the oracle, by hypothesis.

<dy, conv(x, w)> = <conv_input_grad(dy, w), x> = <conv_weight_grad(x, dy), w>, exactly on integers; for
complex numbers <a, b> conjugates its first factor.
"""

import numpy as np
from hypothesis import given, note, settings

import cuconv

from .cases import DTYPES, check, values
from .test_problem import cases


@given(cases())
@settings(max_examples=200)
def test_adjoint_identities(case):
    problem, rng = case.problem, np.random.default_rng(case.seed)
    note(str(case))
    kind = DTYPES[case.dtype].kind
    dtype = "complex128" if kind == "c" else "int64"
    options = case.options()
    x = values(rng, problem.x_shape(case.layout), dtype, exact=True)
    w = values(rng, problem.w_shape(case.layout), dtype, exact=True)
    dy = values(rng, problem.y_shape(case.layout), dtype, exact=True)
    forward = np.vdot(dy, cuconv.conv(x, w, None, flip=case.flip, **options))
    dx = cuconv.conv_input_grad(dy, w, x.shape, flip=case.flip, **options)
    dw = cuconv.conv_weight_grad(x, dy, w.shape, flip=case.flip, **options)
    assert np.vdot(dx, x) == forward
    assert np.vdot(dw, w) == forward


@given(cases())
@settings(max_examples=200)
def test_generated_cases_match_the_oracle(case):
    note(str(case))
    check(case)
