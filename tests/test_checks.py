"""The checks of arguments: what passes comes back, what does not is named with what came and what was expected."""

from fractions import Fraction

import numpy
import pytest
import torch
from torch import nn

from mnvi import covariance, posteriors, priors
from mnvi._checks import instance, number, one_of, positive_float, positive_int

NAN, INFINITY = float("nan"), float("inf")
NO_NUMBERS = [None, "1", True, [1], 1j, torch.tensor(1.0)]


@pytest.mark.parametrize("value", [1, 7, numpy.int64(3)])
def test_positive_integers_come_back_as_int(value):
    checked = positive_int("count", value)
    assert type(checked) is int
    assert checked == value


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0, NAN])
def test_what_is_no_integer_is_a_type_error(value):
    with pytest.raises(TypeError, match="count must be an int, got"):
        positive_int("count", value)


@pytest.mark.parametrize("value", [0, -3])
def test_integers_below_one_are_a_value_error(value):
    with pytest.raises(ValueError, match=f"count must be at least 1, got {value}"):
        positive_int("count", value)


@pytest.mark.parametrize("value", [2, 0.5, numpy.float32(0.25), Fraction(1, 3)])
def test_numbers_come_back_as_float(value):
    for checked in (positive_float("scale", value), number("scale", value)):
        assert type(checked) is float
        assert checked == float(value)


@pytest.mark.parametrize("check", [positive_float, number])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
def test_what_is_no_number_is_a_type_error(check, value):
    with pytest.raises(TypeError, match="scale must be a number, got"):
        check("scale", value)


@pytest.mark.parametrize("value", [0, -1.0, NAN, INFINITY, -INFINITY])
def test_positive_numbers_are_finite_and_above_zero(value):
    with pytest.raises(ValueError, match=f"scale must be finite and positive, got {value}"):
        positive_float("scale", value)


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("bounds", [{}, {"low": 0}, {"high": 1}, {"low": 0, "high": 1, "below": True}])
def test_a_number_is_finite_whatever_its_bounds(value, bounds):
    with pytest.raises(ValueError, match=f"share must be finite.*, got {value}"):
        number("share", value, **bounds)


# value, bounds, and what the message says was expected; None where the value passes.
BOUNDS = [
    (0, {"low": 0}, None),
    (-0.1, {"low": 0}, "finite, at least 0, got -0.1"),
    (1, {"low": 0, "high": 1}, None),
    (1.5, {"low": 0, "high": 1}, "finite, at least 0, at most 1, got 1.5"),
    (0.999, {"low": 0, "high": 1, "below": True}, None),
    (1, {"low": 0, "high": 1, "below": True}, "finite, at least 0, below 1, got 1"),
    (-5, {"high": -4}, None),
    (-3, {"high": -4}, "finite, at most -4, got -3"),
]


@pytest.mark.parametrize(("value", "bounds", "message"), BOUNDS)
def test_bounds_of_a_number(value, bounds, message):
    if message is None:
        assert number("share", value, **bounds) == value
    else:
        with pytest.raises(ValueError, match=f"share must be {message}$"):
            number("share", value, **bounds)


def test_one_of_several_words():
    assert one_of("groups", "rows", ("rows", "columns")) == "rows"
    with pytest.raises(ValueError, match="groups must be one of 'rows', 'columns', got 'cells'"):
        one_of("groups", "cells", ("rows", "columns"))


@pytest.mark.parametrize("kind", [posteriors.PosteriorSpec, priors.PriorSpec, covariance.FactorSpec])
def test_an_instance_is_asked_for_with_examples_that_are_some(kind):
    with pytest.raises(TypeError, match=r"it must be an object such as mnvi\.\w+\.\w+\(\), mnvi.*, got 3$") as caught:
        instance("it", 3, kind)
    package = {posteriors.PosteriorSpec: posteriors, priors.PriorSpec: priors, covariance.FactorSpec: covariance}[kind]
    for named in str(caught.value).split("such as ")[1].split(", got")[0].split(", "):
        assert issubclass(getattr(package, named.split(".")[-1].removesuffix("()")), kind)


def test_an_instance_comes_back_and_a_class_gets_a_hint():
    given = posteriors.Diagonal()
    assert instance("posterior", given, posteriors.PosteriorSpec) is given
    with pytest.raises(TypeError, match=r"did you mean Diagonal\(\)\?"):
        instance("posterior", posteriors.Diagonal, posteriors.PosteriorSpec)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got 3"):
        instance("model", 3, nn.Module)
