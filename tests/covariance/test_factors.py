"""Laws of every covariance factor: its fast operations against the dense matrix, its gradients against differences."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap

from mnvi.covariance import BlockDiagonal, Dense, Diagonal, Identity, Kronecker, LowRank
from mnvi.linalg import triangular
from tests.cases import FACTORS, cases
from tests.laws import assert_close, randomise

pytestmark = pytest.mark.usefixtures("float64")
SIZE = 12
EXACT = {name: factor for name, factor in FACTORS.items() if "low-rank" not in name and "nested" not in name}
SCALED = {name: factor for name, factor in FACTORS.items() if name != "identity"}


@pytest.fixture(autouse=True, params=["small", "panels"])
def path(request, monkeypatch):
    """Dense factors of both ways of computing, which their size chooses."""
    if request.param == "panels":
        monkeypatch.setattr(triangular, "SMALL", 0)


def build(description, size=SIZE, std=0.5, split=None):
    return randomise(description.build(size, split=split), std)


class Operations(nn.Module):
    """Every differentiable operation of a factor at once, so that functional_call can reach its parameters."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, e, x):
        f = self.factor
        return f.multiply(e), f.multiply_transpose(x), f.multiply_squared(e), f.variance(), f.log_det()


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (5,), (0,), (2, 3), (2, 0), (2, 1, 3)])
@cases("description", FACTORS)
def test_products_are_those_of_the_matrix(description, batch):
    factor = build(description)
    e, x = torch.randn(*batch, factor.width), torch.randn(*batch, factor.size)
    assert_close(factor.multiply(e), e @ factor.matrix().mT)
    assert_close(factor.multiply_transpose(x), x @ factor.matrix())
    assert_close(factor.multiply_squared(e), e @ factor.matrix().square().mT)


@cases("description", FACTORS)
def test_products_of_inputs_that_are_not_contiguous(description):
    factor = build(description)
    e, x = torch.randn(factor.width, 3, 2).permute(2, 1, 0), torch.randn(factor.size, 1).mT.expand(4, -1)
    assert_close(factor.multiply(e), e @ factor.matrix().mT)
    assert_close(factor.multiply_transpose(x), x @ factor.matrix())


@pytest.mark.parametrize("groups", [1, 2])
@cases("description", FACTORS)
def test_patch_norms_of_a_convolution_are_those_of_its_patches(description, groups):
    """The patches of each group of channels, cut out by ``unfold``; gradients are theirs, and 0 where the input is."""
    factor, x = build(description, split=(3, 4)), torch.randn(2, 3 * groups, 4, 5)
    x[0] = 0

    def convolve(x, kernels):
        return F.conv2d(x, kernels.unflatten(1, (3, 2, 2)), groups=groups)

    def cut(x):
        patches = F.unfold(x, 2).unflatten(1, (groups, SIZE))  # (N, groups, SIZE, locations)
        return factor.transpose_norm(patches.mT).squeeze(-1).unflatten(-1, (3, 4))

    weights = torch.randn(2, groups, 3, 4)
    tensors = (x.requires_grad_(), *factor.parameters())
    found, expected = factor.patch_norm(x, convolve, groups), cut(x)
    assert_close(found, expected)
    gradients = [torch.autograd.grad((each * weights).sum(), tensors) for each in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)
    assert not gradients[0][0][0].any()


@cases("description", FACTORS)
def test_covariance_variance_and_log_det(description):
    factor = build(description)
    covariance = factor.covariance()
    assert_close(covariance, factor.matrix() @ factor.matrix().mT)
    assert_close(factor.variance(), covariance.diagonal())
    assert_close(factor.log_det(), torch.linalg.slogdet(covariance).logabsdet)


@cases("description", FACTORS)
def test_cholesky_factor(description):
    factor = build(description)
    expected = torch.linalg.cholesky(factor.covariance())
    assert_close(factor.scale_tril(), expected)
    if (log_diagonal := factor.log_cholesky_diagonal()) is not None:
        assert_close(log_diagonal, expected.diagonal().log())


@cases("description", EXACT)
def test_cholesky_diagonal_is_at_hand_where_the_bound_of_the_entropy_needs_it(description):
    assert build(description).log_cholesky_diagonal() is not None


@cases("description", SCALED)
def test_rescaling_multiplies_the_factor(description):
    factor = build(description)
    before = factor.covariance().detach()
    factor.rescale_(torch.tensor(-0.7))
    assert_close(factor.covariance(), torch.exp(torch.tensor(-1.4)) * before)


@pytest.mark.parametrize("description", [Identity(), Kronecker(Identity(), Identity())])
def test_an_identity_has_no_scale(description):
    factor = description.build(SIZE)
    assert not factor.has_scale
    with pytest.raises(ValueError, match="Identity"):
        factor.rescale_(torch.tensor(1.0))


@cases("description", SCALED)
def test_reset_gives_a_scaled_identity(description):
    factor = build(description)
    factor.set_scale_(0.3)
    expected = 0.09 * torch.eye(SIZE)
    if description in EXACT.values():
        assert_close(factor.covariance(), expected)
    else:  # low-rank loadings must not start at 0, a saddle point
        assert (factor.covariance() - expected).abs().max() < 0.1 * 0.09
        assert (factor.covariance() - expected).abs().max() > 0


@pytest.mark.parametrize(("size", "split"), [(12, None), (7, None), (1, None), (12, (6, 2))])
@cases("description", FACTORS)
def test_size_and_number_of_parameters(description, size, split):
    factor = description.build(size, split=split)
    assert sum(p.numel() for p in factor.parameters()) == description.num_parameters(size, split)
    assert (factor.size, factor.width) == tuple(factor.matrix().shape)
    assert factor.size == size


@cases("description", FACTORS)
def test_dtype_and_device_are_taken_and_followed(description):
    assert description.build(6, dtype=torch.float32).matrix().dtype == torch.float32
    assert description.build(6, dtype=torch.float32).double().variance().dtype == torch.float64
    assert all(p.is_meta for p in description.build(6, device="meta").parameters())


@cases("description", FACTORS)
def test_state_dict_round_trip(description):
    factor, copy = build(description), description.build(SIZE)
    copy.load_state_dict(factor.state_dict())
    assert torch.equal(copy.matrix(), factor.matrix())


@pytest.mark.parametrize("description", [Dense(), BlockDiagonal(150), Kronecker(Dense(), Dense())], ids=str)
def test_noise_on_every_parameter_leaves_a_valid_covariance(description):
    """Weight noise and averages of checkpoints fill whatever is stored; what is read must agree with one matrix."""
    factor = description.build(450)  # several panels
    factor.set_scale_(1.0)
    before = factor.matrix()
    with torch.no_grad():
        for parameter in factor.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    matrix = factor.matrix()
    assert not torch.equal(matrix, before)
    assert_close(matrix.diagonal().log().sum(), factor.log_volume())
    assert_close(torch.linalg.slogdet(matrix @ matrix.mT).logabsdet, factor.log_det())
    assert_close(factor.multiply(torch.eye(factor.width)).mT, matrix)
    assert_close(factor.multiply_transpose(torch.eye(factor.size)), matrix)
    assert_close(factor.variance(), matrix.square().sum(-1))
    assert_close(factor.trace(), matrix.square().sum())
    assert_close(factor.scale_tril(), torch.linalg.cholesky(matrix @ matrix.mT))


def test_what_is_stored_for_nothing_may_be_anything():
    factor = build(Dense(), 450)
    outputs = lambda: [factor.multiply(e), factor.multiply_transpose(x), factor.transpose_norm(x), factor.trace()]  # noqa: E731
    e, x = torch.randn(3, 450), torch.randn(3, 450)
    expected = [*outputs(), factor.variance(), factor.matrix()]
    ones = torch.autograd.grad(factor.matrix().sum(), factor.off_diagonal)[0]
    with torch.no_grad():
        factor.off_diagonal.masked_fill_(ones == 0, torch.nan)
    actual = [*outputs(), factor.variance(), factor.matrix()]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    for output in actual:
        (gradient,) = torch.autograd.grad(output.sum(), factor.off_diagonal, retain_graph=True)
        assert (gradient[ones == 0] == 0).all()
        assert gradient.isfinite().all()


# Gradients ------------------------------------------------------------------------------------------------------------


def differentiable(factor):
    """Operations as a function of unconstrained tensors, and points to differentiate it at."""
    points = [p.detach().clone().requires_grad_() for p in factor.parameters()]

    def function(e, x, *raw):
        parameters = {f"factor.{n}": r for (n, _), r in zip(factor.named_parameters(), raw, strict=True)}
        outputs = functional_call(Operations(factor), parameters, (e, x))
        return tuple(output for output in outputs if output.requires_grad)

    inputs = [torch.randn(2, factor.width), torch.randn(3, factor.size)]
    return function, [t.requires_grad_() for t in inputs] + points


@cases("description", FACTORS)
def test_first_gradients(description):
    assert gradcheck(*differentiable(build(description, 6)))


@cases("description", FACTORS)
def test_second_gradients(description):
    assert gradgradcheck(*differentiable(build(description, 6)), fast_mode=True)


@cases("description", FACTORS)
def test_gradients_do_not_depend_on_what_else_needs_one(description):
    factor = build(description)
    e = torch.randn(3, factor.width, requires_grad=True)
    x = torch.randn(3, factor.size, requires_grad=True)
    everything = [e, x, *factor.parameters()]
    outputs = lambda e, x: (factor.multiply(e).sin() * factor.multiply_transpose(x).cos()[:, :1]).sum()  # noqa: E731
    expected = torch.autograd.grad(outputs(e, x), everything, materialize_grads=True)
    if any(True for _ in factor.parameters()):
        actual = torch.autograd.grad(outputs(e.detach(), x.detach()), list(factor.parameters()))
        for a, b in zip(actual, expected[2:], strict=True):
            assert_close(a, b)
    factor.requires_grad_(False)
    for a, b in zip(torch.autograd.grad(outputs(e, x), [e, x]), expected[:2], strict=True):
        assert_close(a, b)


def loss_of(factor, e, x):
    return (factor.multiply(e).sin().sum() + factor.multiply_transpose(x).cos().sum()) + factor.variance().sum()


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_dense_gradient_moves_the_lower_triangle_and_nothing_else(std):
    factor = build(Dense(), std=std)
    before = factor.multiply(torch.eye(SIZE)).mT
    loss_of(factor, torch.randn(5, SIZE), torch.randn(2, 3, SIZE)).backward()
    torch.optim.SGD(factor.parameters(), lr=1.0).step()
    after = factor.multiply(torch.eye(SIZE)).mT
    assert torch.equal(after != before, torch.ones(SIZE, SIZE).tril().bool())


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"foreach": True, "amsgrad": True}])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_dense_factor_stays_lower_triangular_in_training(kind, options):
    factor = build(Dense())
    optimiser = kind(factor.parameters(), lr=0.05, **options)
    for _ in range(50):
        optimiser.zero_grad()
        (loss_of(factor, torch.randn(5, SIZE), torch.randn(5, SIZE)) - factor.log_det()).backward()
        optimiser.step()
    product = factor.multiply(torch.eye(SIZE)).mT.detach()
    assert torch.equal(product, product.tril())
    assert_close(product, factor.matrix())


# torch.func -----------------------------------------------------------------------------------------------------------


@cases("description", FACTORS)
def test_vmap_over_inputs(description):
    factor = build(description)
    e, x = torch.randn(4, 3, factor.width), torch.randn(4, 3, factor.size)
    assert_close(vmap(factor.multiply)(e), factor.multiply(e))
    assert_close(vmap(factor.multiply_transpose)(x), factor.multiply_transpose(x))
    assert_close(vmap(vmap(factor.multiply))(e), factor.multiply(e))


@cases("description", SCALED)
def test_vmap_over_factors_and_gradients_of_single_examples(description):
    factors = [build(description) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state([Operations(f) for f in factors])
    e, x = torch.randn(2, factors[0].width), torch.randn(2, factors[0].size)

    def loss(parameters, e, x):
        products = functional_call(Operations(factors[0]), parameters, (e, x))[:2]
        return sum(product.sin().sum() for product in products)

    batched = vmap(grad(loss), in_dims=(0, None, None))(stacked, e, x)
    for i, factor in enumerate(factors):
        single = torch.autograd.grad(loss(dict(Operations(factor).named_parameters()), e, x), list(factor.parameters()))
        for (name, _), expected in zip(factor.named_parameters(), single, strict=True):
            assert_close(batched[f"factor.{name}"][i], expected)


# Structure ------------------------------------------------------------------------------------------------------------


def test_dense_reaches_any_covariance():
    target = torch.randn(5, 7)
    target = target @ target.mT
    factor = Dense().build(5)
    optimiser = torch.optim.LBFGS(
        factor.parameters(), max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def divergence():  # twice KL(factor ‖ target), up to a constant
        optimiser.zero_grad()
        value = torch.linalg.solve(target, factor.covariance()).trace() - factor.log_det()
        value.backward()
        return value

    optimiser.step(divergence)
    torch.testing.assert_close(factor.covariance(), target, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [257, 513, 1100])
def test_a_large_dense_factor(size):
    """A factor may be stored in pieces: products, variances and gradients against the plain matrix."""
    factor = build(Dense(), size, std=0.1)
    assert sum(p.numel() for p in factor.parameters()) == Dense().num_parameters(size)
    e, x, weights = torch.randn(3, size), torch.randn(2, size), torch.randn(size)

    def values(product, transposed, variance):
        return product.sin().sum() + transposed.cos().sum() + variance @ weights

    matrix = factor.matrix()
    assert torch.equal(matrix, matrix.tril())
    plain = values(e @ matrix.mT, x @ matrix, matrix.square().sum(-1))
    fast = values(factor.multiply(e), factor.multiply_transpose(x), factor.variance())
    assert_close(fast, plain)
    parameters = list(factor.parameters())
    expected = torch.autograd.grad(plain, parameters)
    for actual, gradient in zip(torch.autograd.grad(fast, parameters), expected, strict=True):
        assert_close(actual, gradient)
    assert_close(factor.log_det(), torch.linalg.slogdet(matrix).logabsdet * 2)


def test_diagonal_has_no_covariances():
    covariance = build(Diagonal()).covariance()
    assert torch.equal(covariance, covariance.diagonal().diag_embed())


@pytest.mark.parametrize(("size", "block"), [(6, 2), (7, 3), (4, 9), (3, 1)])
def test_blocks_are_independent_and_dense_inside(size, block):
    covariance = build(BlockDiagonal(block), size).covariance()
    index = torch.arange(size) // block
    assert torch.equal(covariance != 0, index.unsqueeze(0) == index.unsqueeze(1))


def test_low_rank_couples_two_groups_of_coordinates_by_that_rank():
    covariance = build(LowRank(2), 9).covariance()
    assert torch.linalg.matrix_rank(covariance[:4, 4:]) == 2


@pytest.mark.parametrize(("size", "split", "shape"), [(12, None, (3, 4)), (7, None, (1, 7)), (12, (6, 2), (6, 2))])
def test_kronecker_covariance_is_the_product_of_its_parts(size, split, shape):
    factor = randomise(Kronecker(Dense(), LowRank(1)).build(size, split=split))
    left, right = factor.left.covariance(), factor.right.covariance()
    assert (left.shape[0], right.shape[0]) == shape
    expected = torch.einsum("ij,kl->ikjl", left, right).reshape(size, size)  # the right axis varies fastest
    assert_close(factor.covariance(), expected)


def test_low_rank_log_det_of_nearly_parallel_loadings_over_a_tiny_diagonal():
    factor = LowRank(2).build(4)
    with torch.no_grad():
        factor.log_diagonal.fill_(-6.0)
        factor.loading.copy_(torch.ones(4, 2) + 1e-3 * torch.randn(4, 2))
    expected = torch.linalg.slogdet(factor.covariance()).logabsdet
    torch.testing.assert_close(factor.log_det(), expected, rtol=0, atol=1e-4)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BlockDiagonal, LowRank])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_sizes_are_positive_integers(kind, value, error):
    with pytest.raises(error, match=str(value)):
        kind(value)


@pytest.mark.parametrize("argument", [{"left": Dense}, {"right": Diagonal}, {"left": 3}, {"right": None}])
def test_kronecker_takes_descriptions(argument):
    with pytest.raises(TypeError, match=next(iter(argument))):
        Kronecker(**argument)


@cases("description", FACTORS)
def test_descriptions_are_immutable_values(description):
    with pytest.raises(AttributeError):
        description.rank = 3
    assert hash(description) == hash(eval(repr(description)))
    assert description == eval(repr(description))


@pytest.mark.parametrize(("size", "rank"), [(3, 4), (3, 3), (5, 2)])
@pytest.mark.parametrize("log_diagonal", [-2.0, -12.0])
def test_low_rank_log_det_in_float32_where_the_diagonal_is_small(size, rank, log_diagonal):
    factor = LowRank(rank).build(size, dtype=torch.float32)
    torch.manual_seed(0)
    factor.loading.data.normal_()
    factor.log_diagonal.data.fill_(log_diagonal)
    exact = factor.log_det().item()
    assert exact == pytest.approx(copy.deepcopy(factor).double().log_det().item(), rel=1e-4)
    dense = copy.deepcopy(factor).double().covariance().logdet().item()
    assert exact == pytest.approx(dense, rel=1e-4)
