"""The rotation and the role embedding by themselves: values, identities, gradients, errors."""

import copy
import math

import pytest
import torch
from torch import nn

from bulwark.models.embeddings import DEFAULTS, RoleEmbedding, described, rotate, rotate_by

X = torch.tensor([1.0, 2.0, 3.0, 4.0])
V, HIDDEN = 11, 6
ROLES = {"response": 0, "instruction": 1, "data": 2}


def embedding(padding_idx=None, dtype=torch.float32, **description) -> RoleEmbedding:
    torch.manual_seed(0)
    return RoleEmbedding(nn.Embedding(V, HIDDEN, padding_idx=padding_idx, dtype=dtype), description)


def encoded(ids, role: str) -> torch.Tensor:
    return torch.as_tensor(ids) + V * ROLES[role]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_quarter_turn_is_exact_in_every_dtype(dtype):
    x = X.to(dtype)
    assert rotate(x, "right").tolist() == [2, -1, 4, -3]
    assert rotate(x, "left").tolist() == [-2, 1, -4, 3]
    assert rotate(x).dtype == dtype
    for angle in (math.pi / 2, 1.57079633):  # as in the published commands
        assert torch.equal(rotate_by(x, angle, "right"), rotate(x, "right"))


@pytest.mark.parametrize(
    ("angle", "right", "left"),
    [
        (math.pi / 4, [2.1213203, 0.7071068, 4.9497475, 0.7071068], [-0.7071068, 2.1213203, -0.7071068, 4.9497475]),
        (0.3, [1.5463769, 1.6151527, 4.0480903, 2.9347853], [0.3642961, 2.2061932, 1.6839286, 4.7079066]),
    ],
)
def test_general_angles(angle, right, left):
    assert torch.allclose(rotate_by(X, angle, "right"), torch.tensor(right), atol=1e-6)
    assert torch.allclose(rotate_by(X, angle, "left"), torch.tensor(left), atol=1e-6)


def test_rotation_identities():
    x = torch.randn(5, 7, HIDDEN, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rotate(rotate(x, "right"), "left"), x)
    assert torch.equal(rotate(rotate(x)), -x)
    assert torch.allclose((x * rotate(x)).sum(-1), torch.zeros(5, 7), atol=1e-6)
    assert torch.equal(rotate_by(x, 0.0), x)
    turned = rotate_by(x, 0.9)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.allclose(rotate_by(turned, 0.9, "left"), x, atol=1e-6)


def test_a_general_angle_is_computed_in_float32():
    x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(rotate_by(x, 0.3), rotate_by(x.float(), 0.3).bfloat16())


def test_vanilla_looks_the_plain_row_up_whatever_the_role():
    e = embedding(method="vanilla")
    for role in ROLES:
        assert torch.equal(e(encoded([[1, 2, 10]], role)), e.weight[torch.tensor([[1, 2, 10]])])


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("response_role", ["data", "instruction"])
def test_aside_turns_data_and_what_counts_as_data(direction, response_role):
    e = embedding(method="aside", direction=direction, response_role=response_role)
    plain = e.weight[:3]
    turned = rotate(plain, direction)
    assert torch.equal(e(encoded([0, 1, 2], "instruction")), plain)
    assert torch.equal(e(encoded([0, 1, 2], "data")), turned)
    assert torch.equal(e(encoded([0, 1, 2], "response")), turned if response_role == "data" else plain)


def test_ise_adds_a_learned_vector_per_segment():
    e = embedding(method="ise", response_role="instruction")
    ids = [0, 1, 2]
    assert e.role_shift.shape == (2, HIDDEN)
    assert 0 < e.role_shift.std() < 0.06
    assert torch.equal(e(encoded(ids, "instruction")), e.weight[ids] + e.role_shift[0])
    assert torch.equal(e(encoded(ids, "data")), e.weight[ids] + e.role_shift[1])
    assert torch.equal(e(encoded(ids, "response")), e.weight[ids] + e.role_shift[0])


def test_linear_shift_is_added_after_the_rotation():
    e = embedding(method="aside", linear_shift=True)
    assert torch.equal(e(encoded([4], "data")), rotate(e.weight[[4]]) + e.role_shift[1])
    assert torch.equal(e(encoded([4], "instruction")), e.weight[[4]] + e.role_shift[0])


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("alpha", [math.pi / 2, 0.4])
def test_a_learned_rotation_starts_as_the_fixed_one(alpha, direction):
    learned = embedding(method="aside", alpha=alpha, direction=direction, learned=True)
    ids = encoded([3, 4], "data")
    expected = rotate_by(learned.weight[[3, 4]], alpha, direction)
    assert torch.allclose(learned(ids), expected, atol=1e-6)
    assert learned.rotation.requires_grad
    with torch.no_grad():
        learned.rotation.mul_(2)
    assert torch.allclose(learned(ids), 2 * expected, atol=1e-6)


def test_the_angle_can_grow_while_training():
    e = embedding(method="aside")
    plain = e.weight[[5]]
    e.angle = 0.0
    assert torch.equal(e(encoded([5], "data")), plain)
    assert e.description["angle"] == 0.0
    e.angle = 0.3
    assert torch.allclose(e(encoded([5], "data")), rotate_by(plain, 0.3))
    e.angle = e.alpha
    assert torch.equal(e(encoded([5], "data")), rotate(plain))
    assert "angle" not in e.description


def test_a_learned_matrix_waits_until_the_angle_is_alpha():
    e = embedding(method="aside", learned=True, angle=0.2)
    e(encoded([5], "data")).sum().backward()
    assert e.rotation.grad is None
    e.angle = e.alpha
    e(encoded([5], "data")).sum().backward()
    assert e.rotation.grad is not None


@pytest.mark.parametrize("alpha", [math.pi / 2, 0.7])
@pytest.mark.parametrize("direction", ["right", "left"])
def test_gradients_against_the_dense_product(alpha, direction):
    e = embedding(method="aside", alpha=alpha, direction=direction, linear_shift=True)
    matrix = torch.zeros(HIDDEN, HIDDEN)
    for i in range(0, HIDDEN, 2):
        matrix[i, i] = matrix[i + 1, i + 1] = math.cos(alpha)
        matrix[i, i + 1], matrix[i + 1, i] = -math.sin(alpha), math.sin(alpha)
    matrix = matrix if direction == "right" else matrix.T
    ids = torch.tensor([[1, 2, 2, 9], [7, 2, 1, 0]])
    roles = torch.tensor([[1, 1, 2, 0], [1, 2, 2, 0]])
    target = torch.randn(2, 4, HIDDEN, generator=torch.Generator().manual_seed(2))

    (e(ids + V * roles) * target).sum().backward()
    weight = e.weight.detach().clone().requires_grad_()
    shift = e.role_shift.detach().clone().requires_grad_()
    as_data = roles != 1
    rows = weight[ids]
    by_hand = torch.where(as_data[..., None], rows @ matrix, rows) + shift[as_data.long()]
    (by_hand * target).sum().backward()
    assert torch.allclose(e.weight.grad, weight.grad, atol=1e-6)
    assert torch.allclose(e.role_shift.grad, shift.grad, atol=1e-6)


def test_gradients_numerically_first_and_second_order():
    e = embedding(dtype=torch.float64, method="aside", alpha=0.7)
    ids = torch.tensor([[1, 2 + V, 3 + 2 * V]])

    def of_weight(weight):
        return torch.func.functional_call(e, {"weight": weight}, (ids,)).pow(2).sum(-1)

    weight = e.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of_weight, (weight,))
    assert torch.autograd.gradgradcheck(of_weight, (weight,))


def test_padding_row_gets_no_gradient():
    e = embedding(padding_idx=3, method="aside")
    e(torch.tensor([3, 3 + V, 3 + 2 * V, 4])).sum().backward()
    assert e.weight.grad[3].abs().sum() == 0
    assert e.weight.grad[4].abs().sum() > 0


def test_plain_embeddings_with_given_roles():
    e = embedding(method="aside", linear_shift=True)
    ids, roles = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 2]])
    assert torch.equal(e.with_roles(e.weight[ids], roles), e(ids + V * roles))


@pytest.mark.parametrize("ids", [[0, 3 * V], [-1, 2]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(IndexError, match=r"must lie in \[0, 33\).*Found ids from"):
        embedding(method="aside")(torch.tensor(ids))


def test_an_id_out_of_range_leaves_the_table_also_without_the_check():
    """On a GPU there is no check of values, so the decoded id itself must fail the look-up."""
    ids = torch.tensor([0, V - 1, V, 3 * V - 1, 3 * V, 5 * V + 2, -1])
    roles = torch.div(ids, V, rounding_mode="floor").clamp(0, 2)
    plain = ids - roles * V
    assert ((plain >= 0) & (plain < V)).tolist() == [True] * 4 + [False] * 3


def test_the_weight_is_shared_and_nothing_is_copied():
    plain = nn.Embedding(V, HIDDEN, padding_idx=2).eval()
    e = RoleEmbedding(plain, {"method": "ise"})
    assert e.weight is plain.weight
    assert (e.padding_idx, e.num_embeddings, e.training) == (2, V, False)
    assert list(e.state_dict()) == ["weight", "role_shift"]
    assert list(RoleEmbedding(plain, {"method": "aside"}).state_dict()) == ["weight"]
    assert torch.equal(copy.deepcopy(e)(torch.tensor([14])), e(torch.tensor([14])))


def test_odd_hidden_size_is_an_error_that_says_so():
    plain = nn.Embedding(V, 5)
    with pytest.raises(ValueError, match=r"hidden size of this model is odd \(5\)"):
        RoleEmbedding(plain, {"method": "aside"})
    assert RoleEmbedding(plain, {"method": "ise"})(torch.tensor([V])).shape == (1, 5)


def test_an_unknown_kind_of_look_up_is_refused():
    class Doubled(nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    with pytest.raises(ValueError, match="Doubled is neither a plain nor a scaled one"):
        RoleEmbedding(Doubled(V, HIDDEN), {"method": "aside"})


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"methods": "aside"}, "no key 'methods'"),
        ({"method": "asde"}, "method must be one of vanilla, ise, aside, found 'asde'"),
        ({"method": "aside", "direction": "up"}, "direction must be one of right, left"),
        ({"method": "aside", "response_role": "system"}, "response_role must be one of instruction, data"),
        ({"method": "aside", "learned": 1}, "learned must be true or false"),
        ({"method": "aside", "alpha": "1.57"}, "alpha must be a finite number of radians"),
        ({"method": "aside", "alpha": math.inf}, "alpha must be a finite number of radians"),
        ({"method": "ise", "learned": True}, 'learned belongs to "aside", not to "ise"'),
        ({"method": "vanilla", "linear_shift": True}, 'linear_shift belongs to "aside"'),
    ],
)
def test_a_wrong_description_is_refused(description, message):
    with pytest.raises(ValueError, match=message):
        described(description)


def test_a_description_survives_the_round_trip():
    assert described({}) == DEFAULTS
    given = described({"method": "aside", "alpha": 1, "learned": True, "linear_shift": True, "direction": "left"})
    assert RoleEmbedding(nn.Embedding(V, HIDDEN), given).description == given


def test_only_aside_has_an_angle():
    with pytest.raises(ValueError, match='this embedding is "ise"'):
        embedding(method="ise").angle = 1.0
    with pytest.raises(ValueError, match="finite number"):
        embedding(method="aside").angle = math.nan
