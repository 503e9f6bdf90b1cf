import pytest
import torch
from torch import nn

from nbsupport import rules
from nbsupport.models import Add
from nbsupport.rules import affine

TINY = 1e-12


def parts(a, w):
    z = a[:, None, :] * w  # z[n, j, i] = a_i w_ij
    return z, z.clamp(min=0), z.clamp(max=0)


def proportional(q, b, R):
    """Share R_j in proportion to q_ij, of a total that includes b_j."""
    return torch.einsum("nji,nj->ni", q, R / (q.sum(2) + b))


def epsilon(a, w, b, z, R):
    return proportional(parts(a, w)[0], b, R)


def gamma(a, w, b, z, R):
    # Terms and bias with the sign of z_j count 1 + gamma times.
    q, sign = parts(a, w)[0], z.sign()
    q = torch.where(q * sign[..., None] > 0, 1.25 * q, q)
    return proportional(q, torch.where(b * sign > 0, 1.25 * b, b), R)


def alpha_beta(alpha, beta):
    def share(a, w, b, z, R):
        _, up, down = parts(a, w)
        return proportional(up, b.clamp(min=0), alpha * R) - proportional(
            down, b.clamp(max=0), beta * R
        )

    return share


def w_squared(a, w, b, z, R):
    return proportional((w**2).expand(len(a), -1, -1), 0, R)


def flat(a, w, b, z, R):
    return (R.mean(1, keepdim=True) * R.shape[1] / a.shape[1]).expand_as(a)


def z_box(a, w, b, z, R):
    q = a[:, None] * w - -1.0 * w.clamp(min=0) - 2.0 * w.clamp(max=0)
    assert (q >= 0).all()
    return proportional(q, 0, R)


def squared(a, w, b, z, R):
    return proportional(parts(a, w)[0] ** 2, 0, R)


CASES = {
    "epsilon": (rules.Epsilon(TINY), epsilon),
    "gamma": (rules.Gamma(0.25, epsilon=TINY), gamma),
    "alpha_beta": (rules.AlphaBeta(2, 1, epsilon=TINY), alpha_beta(2, 1)),
    "z_plus": (rules.ZPlus(epsilon=TINY), alpha_beta(1, 0)),
    "w_squared": (rules.WSquared(epsilon=TINY), w_squared),
    "flat": (rules.Flat(epsilon=TINY), flat),
    "z_box": (rules.ZBox(-1, 2, epsilon=TINY), z_box),
    "squared": (rules.Squared(epsilon=TINY), squared),
}


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def dense(rng):
    layer = nn.Linear(6, 5).double().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_(generator=rng)
    return layer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("signs", ["positive", "mixed"])
def test_rule_is_its_formula(name, signs, dense, rng):
    rule, formula = CASES[name]
    a = torch.rand(3, 6, generator=rng, dtype=torch.float64)
    if signs == "mixed":
        a = 3 * a - 1  # within [-1, 2], the box of the z-box rule
    R = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    z = dense(a)
    share, _ = rule(affine(dense), a, z if rule.reads_output else None, R)
    expected = formula(a, dense.weight, dense.bias, z, R)
    assert torch.allclose(share, expected, rtol=1e-7, atol=1e-9)


def test_gamma_gives_an_image_its_share_whoever_is_beside_it():
    layer = nn.Linear(2, 2, bias=False).double().requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))
    a = torch.ones(2, 2, dtype=torch.float64)
    z, R = layer(a), torch.tensor([[1.0, 0.0], [1.0, -2.0]], dtype=torch.float64)
    assert z[0].tolist() == [0, -2]
    together, drawn = rules.Gamma()(affine(layer), a, z, R)
    alone, alone_drawn = rules.Gamma()(affine(layer), a[:1], z[:1], R[:1])
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(drawn[:1], alone_drawn)
    assert alone.sum() == pytest.approx(1, abs=1e-4)


def test_values_outside_the_box_are_refused(dense):
    a, R = torch.full((1, 6), 2.5, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"from 2.5 to 2.5, and its box is -1 to 2; give ZBox"):
        rules.ZBox(-1, 2)(affine(dense), a, None, R)


@pytest.mark.parametrize("name", CASES)
def test_convolution_is_the_dense_layer_of_its_matrix(name, rng):
    rule, _ = CASES[name]
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2).double().requires_grad_(False)
    for parameter in conv.parameters():
        parameter.normal_(generator=rng)
    a = torch.rand(2, 2, 5, 6, generator=rng, dtype=torch.float64)
    z = conv(a)
    R = torch.randn(z.shape, generator=rng, dtype=torch.float64)
    share, drawn = rule(affine(conv), a, z, R)

    unit = torch.eye(60, dtype=torch.float64).view(60, 2, 5, 6)
    matrix = nn.Linear(60, z[0].numel()).double().requires_grad_(False)
    matrix.weight.copy_((conv(unit) - conv(0 * unit)).flatten(1).T)
    matrix.bias.copy_(conv(0 * unit[:1]).flatten())
    expected, expected_drawn = rule(affine(matrix), a.flatten(1), z.flatten(1), R.flatten(1))
    if name == "flat":
        # Flat counts the inputs of a unit; the dense layer also has those of weight 0.
        inside = matrix.weight != 0
        expected = ((R.flatten(1) / inside.sum(1)) @ inside.double()).view_as(expected)
    assert torch.allclose(share.flatten(1), expected, rtol=1e-7, atol=1e-9)
    assert torch.allclose(drawn, expected_drawn, rtol=1e-7, atol=1e-9)


POOLINGS = {
    "windows": nn.AvgPool2d(2),
    "overlapping": nn.AvgPool2d((3, 2), stride=(2, 1), padding=(1, 0)),
    "global": nn.AdaptiveAvgPool2d(1),
    "uneven windows": nn.AdaptiveAvgPool2d((2, 4)),
    "to more pixels": nn.AdaptiveAvgPool2d(7),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_average_pooling_is_the_dense_layer_of_its_matrix(name, pooling, rng):
    rule, _ = CASES[name]
    pool = POOLINGS[pooling]
    a = 3 * torch.rand(2, 2, 5, 6, generator=rng, dtype=torch.float64) - 1
    z = pool(a)
    R = torch.randn(z.shape, generator=rng, dtype=torch.float64)
    layer = affine(pool, a)
    assert torch.allclose(layer.forward(a, layer.weight), z)
    share, drawn = rule(layer, a, z, R)

    matrix = nn.Linear(60, z[0].numel(), bias=False).double().requires_grad_(False)
    unit = torch.eye(60, dtype=torch.float64).view(60, 2, 5, 6)
    matrix.weight.copy_(pool(unit).flatten(1).T)
    expected, _ = rule(affine(matrix), a.flatten(1), z.flatten(1), R.flatten(1))
    if name == "flat":  # see above
        inside = matrix.weight != 0
        expected = (R.flatten(1) / inside.sum(1)) @ inside.double()
    assert torch.allclose(share.flatten(1), expected, rtol=1e-7, atol=1e-9)
    assert (drawn == 0).all()


@pytest.mark.parametrize("wanted", [3, (4, None), (None, 2), [5, 6]])
def test_adaptive_windows_are_found_row_by_row_and_column_by_column(wanted, monkeypatch):
    pool, a = nn.AdaptiveAvgPool2d(wanted), torch.rand(2, 3, 9, 7, dtype=torch.float64)
    made, eye = [], torch.eye
    monkeypatch.setattr(torch, "eye", lambda n, **kind: made.append(n) or eye(n, **kind))
    layer = affine(pool, a)
    assert torch.allclose(layer.forward(a, layer.weight), pool(a))
    assert made == [9, 7], "a square of all pixels does not fit into memory for large images"


@pytest.mark.parametrize("name", CASES)
def test_addition_is_the_dense_layer_of_its_matrix(name, rng):
    rule, _ = CASES[name]
    a = 3 * torch.rand(4, 2, 5, generator=rng, dtype=torch.float64) - 1  # two summands of 5 units
    z = Add()(*a.unbind(1))
    R = torch.randn(z.shape, generator=rng, dtype=torch.float64)
    share, drawn = rule(affine(Add()), a, z, R)

    matrix = nn.Linear(10, 5, bias=False).double().requires_grad_(False)
    matrix.weight.copy_(torch.eye(5).repeat(1, 2))
    expected, _ = rule(affine(matrix), a.flatten(1), z, R)
    if name == "flat":
        expected = (R / 2).repeat(1, 2)
    assert torch.allclose(share.flatten(1), expected, rtol=1e-7, atol=1e-9)
    assert (drawn == 0).all()


def test_summands_share_in_proportion_or_by_their_squares():
    a = torch.tensor([[[3.0], [-1.0]]])
    z, R = torch.tensor([[2.0]]), torch.tensor([[4.0]])
    proportional, _ = rules.Epsilon(TINY)(affine(Add()), a, z, R)
    assert proportional.flatten().tolist() == [6, -2]
    squares, _ = rules.Squared(epsilon=TINY)(affine(Add()), a, None, R)
    assert squares.flatten().tolist() == pytest.approx([3.6, 0.4])
    # Summands that cancel: the stabiliser bounds what they receive.
    cancelling, _ = rules.Epsilon(0.5)(affine(Add()), a - torch.tensor([[2.0], [0.0]]), 0 * z, R)
    assert cancelling.flatten().tolist() == [8, -8]


@pytest.mark.parametrize("name", ["epsilon", "gamma", "z_plus"])
def test_inputs_and_bias_receive_everything(name, dense, rng):
    rule, _ = CASES[name]
    a = torch.rand(3, 6, generator=rng, dtype=torch.float64)
    R = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    share, drawn = rule(affine(dense), a, dense(a), R)
    assert drawn.abs().min() > 1e-3
    assert torch.allclose(share.sum(1) + drawn, R.sum(1), rtol=1e-8)


@pytest.mark.parametrize("name", ["w_squared", "flat", "z_box", "squared"])
def test_rules_without_bias_give_everything_to_the_inputs(name, dense, rng):
    rule, _ = CASES[name]
    a = torch.rand(3, 6, generator=rng, dtype=torch.float64)
    R = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    share, drawn = rule(affine(dense), a, None, R)
    assert (drawn == 0).all()
    assert torch.allclose(share.sum(1), R.sum(1), rtol=1e-8)


def test_epsilon_absorbs_relevance_and_a_dead_unit_divides_by_epsilon(dense, rng):
    a = torch.rand(3, 6, generator=rng, dtype=torch.float64)
    R = torch.ones(3, 5, dtype=torch.float64)
    small, large = (rules.Epsilon(e)(affine(dense), a, dense(a), R)[0] for e in (TINY, 1e3))
    assert large.abs().max() < 1e-2 * small.abs().max()
    dense.bias.zero_()
    share, drawn = rules.Epsilon()(affine(dense), 0 * a, dense(0 * a), R)
    assert (share == 0).all()
    assert (drawn == 0).all()


def test_batch_norm_is_a_scale_and_a_bias(rng):
    norm = nn.BatchNorm2d(3).double()
    norm(torch.randn(8, 3, 4, 4, generator=rng, dtype=torch.float64) * 2 + 1)
    norm.eval().requires_grad_(False)
    norm.weight.uniform_(0.5, 2, generator=rng)
    norm.bias.normal_(generator=rng)
    a = torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.float64)
    view = affine(norm)
    assert torch.allclose(view.forward(a, view.weight, view.bias), norm(a))
    # Lapuschkin 2019: R_i = a_i w_i / z_i R_i, one input to each output.
    R = torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.float64)
    share, _ = rules.Epsilon(TINY)(view, a, norm(a), R)
    assert torch.allclose(share, a * view.weight[:, None, None] / norm(a) * R, rtol=1e-6)


def test_settings():
    assert rules.Gamma(0.1) == rules.Gamma(gamma=0.1, epsilon=1e-6)
    assert affine(nn.ReLU()) is None
    with pytest.raises(ValueError, match="alpha - beta = 1"):
        rules.AlphaBeta(2, 0.5)
    with pytest.raises(ValueError, match="beta >= 0"):
        rules.AlphaBeta(0, -1)
