"""What laws are checked with: tolerances, the dense oracle, z-scores, refusals of a command line."""

import re

import pytest
import torch


def assert_close(actual, expected, c=100.0):
    """Equal up to c·n·eps of the largest number, n the count of numbers; the only tolerance of exact tests."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    bound = c * max(expected.numel(), 10) * torch.finfo(actual.dtype).eps
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound * scale)


def assert_refused(program, options, message, folder, capsys):
    """The command line ``program(folder, *options)`` stops with a usage error like ``message`` and makes no folder."""
    with pytest.raises(SystemExit) as stopped:
        program(folder, *options)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not folder.exists()


def randomise(module, std=0.5):
    """The module with every parameter drawn anew: any real values are valid, also those that are stored for nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn_like(parameter))
    return module


def build(family, shape=(4, 6), std=0.5):
    return randomise(family.build(shape), std)


def dense_covariance(posterior):
    """Cov of the row-major flattened deviation, from the dense factors of its parts."""
    if type(posterior).__name__.startswith("Corrected"):
        factor = torch.kron(posterior.matrix_normal.row.scale_tril(), posterior.matrix_normal.column.scale_tril())
        factor = factor * posterior.log_scale.exp().flatten()
        return factor @ factor.mT
    if hasattr(posterior, "matrix_normal") and hasattr(posterior, "log_scale"):
        scale = posterior.log_scale.exp().flatten()
        return scale.unsqueeze(-1) * dense_covariance(posterior.matrix_normal) * scale
    if hasattr(posterior, "matrix_normal"):
        return dense_covariance(posterior.matrix_normal) + dense_covariance(posterior.diagonal)
    if hasattr(posterior, "log_scale"):
        return (2 * posterior.log_scale).exp().flatten().diag_embed()
    row, column = posterior.row.matrix(), posterior.column.matrix()
    return torch.kron(row @ row.mT, column @ column.mT)


def assert_moments(draws, mean, covariance, limit=5.0):
    """|z| < limit for every mean and covariance of draws (D, k), by the standard errors of a normal sample.

    Where a draw is only conditionally normal or a covariance is None, that entry is left out (NaN in ``covariance``).
    """
    count = draws.shape[0]
    known = covariance.diagonal()
    error = draws - mean
    floor = 1e-12 * known.max()
    z_mean = error.mean(0) / (known / count + floor).sqrt()
    spread = (torch.outer(known, known) + covariance.square()) / count
    z_covariance = (error.mT @ error / count - covariance) / (spread + floor**2).sqrt()
    assert z_mean.abs().max() < limit
    assert z_covariance[~covariance.isnan()].abs().max() < limit
