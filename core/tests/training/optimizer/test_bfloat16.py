"""Updates of bfloat16 weights: what rounding loses, what it may not depend on, and torch's own optimizers in float32."""

from functools import partial

import pytest
import torch
from apr_train.training.optimizer import bfloat16
from apr_train.training.optimizer.bfloat16 import Float32Updates, random_bits, random_table, round_stochastically_
from apr_train.training.optimizer.make import MOMENTS

RATE = {"AdamW": 1e-3, "Muon": 1e-2}
KINDS = {"AdamW": partial(torch.optim.AdamW, fused=True), "Muon": partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(*shapes, seed=1):
    return [torch.nn.Parameter(torch.randn(shape, generator=draws(seed)).bfloat16()) for shape in shapes]


def give_gradients(parameters, step):
    """The same gradients for a step whatever the order and the type of the parameters."""
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=draws(100 * step + parameter.numel())).bfloat16()
        parameter.grad = drawn.to(parameter.dtype)


def wrapped(parameters, kind="AdamW", *, master=False, seed=0, names=None):
    return Float32Updates(
        [{"params": parameters, "lr": RATE[kind]}],
        KINDS[kind],
        moments=MOMENTS[kind],
        elementwise=kind == "AdamW",
        master=master,
        names=names or {parameter: f"of {parameter.numel()}" for parameter in parameters},
        seed=seed,
    )


def steps_of(optimizer, parameters, count=3, begin=1):
    for step in range(begin, begin + count):
        give_gradients(parameters, step)
        optimizer.step()


def same(one, other):
    return all(torch.equal(a.detach().view(torch.int16), b.detach().view(torch.int16)) for a, b in zip(one, other, strict=True))


def test_a_number_goes_to_one_of_its_two_neighbours_and_to_itself_in_the_mean():
    values = torch.tensor([1.0 + 1 / 512, -1.0 - 1 / 512, 3.1415926, -2e-30, 7e20, 1e-3])
    count = 40_000
    bits = torch.stack([random_bits(random_table(), 0, count, seed=(7, number)) for number in range(len(values))])
    drawn = round_stochastically_(values[:, None].expand(-1, count).contiguous(), bits).double()
    down = values.view(torch.int32).bitwise_and(-65536).view(torch.float32)  # toward zero
    up = torch.nextafter(down.bfloat16(), torch.full_like(down, torch.inf).copysign(down).bfloat16()).double()
    below = down.double()
    for number, low, high, seen in zip(values.double(), below, up, drawn, strict=True):
        assert set(seen.unique().tolist()) == {float(low), float(high)}
        share = float((number - low) / (high - low))
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(float((seen == high).double().mean()) - share) < 5 * spread


SEEDS = [(0, 0), (1, 1), (2**32 - 1, 2**31), (0x01234567, 0x89ABCDEF), (0xDEADBEEF, 0)]


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_are_a_function_of_place_and_seed_and_any_part_of_them_can_be_had_alone(monkeypatch, seed):
    monkeypatch.setattr(bfloat16, "PIECE", 100)
    table = random_table()
    words = [(word * (seed[0] | 1) + seed[1]) % 2**32 for word in table.tolist()]
    wanted = [word % 2**16 ^ word >> 16 for word in words] + [word >> 16 for word in words]
    assert random_bits(table, 0, 100, seed=seed).tolist() == wanted
    for begin, end in ((0, 1), (1, 2), (3, 8), (0, 50), (50, 100), (49, 51), (4, 99), (99, 100)):
        assert random_bits(table, begin, end, seed=seed).tolist() == wanted[begin:end]


def test_bits_of_other_seeds_and_places_have_nothing_to_do_with_one_another():
    """Every bit is one in half of the numbers, and agrees with any other one, of a neighbour too, in half of them."""
    table = random_table()
    drawn = torch.stack([random_bits(table, 0, 2**18, seed=seed) for seed in SEEDS[2:]]).unflatten(1, (2, -1)).flatten(0, 1)
    places = torch.arange(16)
    bits = ((drawn[:, None] >> places[:, None]) & 1).flatten(0, 1).float() * 2 - 1  # [bit of a seed's half, number], -1 and 1
    bits = torch.cat([bits[:, :-1], bits[:, 1:]])
    agree = bits @ bits.T / bits.shape[1]
    agree.fill_diagonal_(0)
    assert float(bits.mean(1).abs().max()) < 5 / bits.shape[1] ** 0.5
    assert float(agree.abs().max()) < 6 / bits.shape[1] ** 0.5


def test_what_is_a_bfloat16_number_stays_whatever_is_drawn():
    finite = torch.randn(1001, generator=draws()).bfloat16().float()
    exact = torch.cat([finite, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.finfo(torch.bfloat16).max])])
    for seed in range(20):
        rounded = round_stochastically_(exact.clone(), random_bits(random_table(), 0, len(exact), seed=(seed, seed)))
        assert torch.equal(rounded.view(torch.int32), exact.view(torch.int32))
    assert bool(round_stochastically_(torch.tensor([torch.nan]), random_bits(random_table(), 0, 1, seed=(0, 0))).isnan())


def test_small_updates_arrive_in_the_mean_where_rounding_to_nearest_loses_all_of_them():
    rate, count, taken = 1e-4, 20_000, 50
    nearest, stochastic = (torch.nn.Parameter(torch.ones(count).bfloat16()) for _ in range(2))
    plain = torch.optim.AdamW([nearest], lr=rate, weight_decay=0.0, fused=True)
    ours = wrapped([stochastic])
    ours.param_groups[0].update(lr=rate, weight_decay=0.0)
    for _ in range(taken):
        for parameter, optimizer in ((nearest, plain), (stochastic, ours)):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert bool((nearest == 1).all())
    assert float(stochastic.detach().double().mean()) == pytest.approx(
        1 - taken * rate, abs=1e-4
    )  # AdamW moves each by the rate


@pytest.mark.parametrize("kind", MOMENTS)
def test_bits_depend_on_seed_step_and_name_and_not_on_the_order(kind):
    shapes = ((6, 5), (3, 8))
    ends = []
    for order in ((0, 1), (1, 0)):
        parameters = weights(*shapes)
        steps_of(wrapped([parameters[place] for place in order], kind), parameters)
        ends.append(parameters)
    assert same(*ends)
    for other in ({"seed": 1}, {"names": {}}):
        parameters = weights(*shapes)
        if "names" in other:
            other = {"names": dict.fromkeys(parameters, "another")}
        steps_of(wrapped(parameters, kind, **other), parameters)
        assert not same(ends[0], parameters)


def test_two_steps_draw_other_bits():
    ones = torch.nn.Parameter(torch.ones(4000).bfloat16())
    optimizer = wrapped([ones])
    optimizer.param_groups[0].update(lr=1e-3, betas=(0.0, 0.0), weight_decay=0.0)
    moved = []
    for _ in range(2):
        before = ones.detach().clone()
        ones.grad = torch.ones_like(ones)
        optimizer.step()
        moved.append(ones.detach() != before)
    assert not torch.equal(*moved)


@pytest.mark.parametrize("kind", MOMENTS)
def test_a_master_copy_goes_the_way_of_torchs_own_optimizer_in_float32(monkeypatch, kind):
    monkeypatch.setattr(bfloat16, "PIECE", 7)
    parameters = weights((6, 5), (3, 8))
    theirs = [torch.nn.Parameter(parameter.detach().float()) for parameter in parameters]
    ours = wrapped(parameters, kind, master=True)
    steps_of(ours, parameters)
    steps_of(KINDS[kind](theirs, lr=RATE[kind]), theirs)
    for mine, other in zip(parameters, theirs, strict=True):
        assert torch.equal(ours.state[mine]["master"], other.detach())
        assert torch.equal(mine.detach(), other.detach().bfloat16())


@pytest.mark.parametrize("kind", MOMENTS)
def test_a_step_that_is_rounded_stochastically_is_torchs_own_from_the_same_state(kind):
    """To a neighbour of what torch computes in float32 from the same numbers; moments to the nearest one."""
    parameters = weights((6, 5), (3, 8))
    ours = wrapped(parameters, kind)
    steps_of(ours, parameters)
    theirs = [torch.nn.Parameter(parameter.detach().float()) for parameter in parameters]
    torchs = KINDS[kind](theirs, lr=RATE[kind])
    for mine, other in zip(parameters, theirs, strict=True):
        torchs.state[other] = {key: value.float() for key, value in ours.state[mine].items()}
    steps_of(ours, parameters, 1, begin=4)
    steps_of(torchs, theirs, 1, begin=4)
    for mine, other in zip(parameters, theirs, strict=True):
        exact = other.detach()
        low = exact.view(torch.int32).bitwise_and(-65536).view(torch.float32).bfloat16()
        high = torch.nextafter(low, torch.full_like(low, torch.inf).copysign(low))
        assert bool(((mine.detach() == low) | (mine.detach() == high)).all())
        for key in MOMENTS[kind]:
            assert torch.equal(ours.state[mine][key], torchs.state[other][key].bfloat16())


def test_a_parameter_without_a_gradient_is_left_alone():
    used, idle = weights((4, 4), (2, 2))
    optimizer = wrapped([used, idle])
    before = idle.detach().clone()
    used.grad = torch.ones_like(used)
    optimizer.step()
    assert torch.equal(idle.detach(), before)
    assert not optimizer.state.get(idle)


@pytest.mark.parametrize("master", [False, True])
def test_torchs_state_dict_goes_there_and_back_as_it_is(master):
    ends = []
    for again in (False, True):
        parameters = weights((6, 5), (3, 8))
        optimizer = wrapped(parameters, master=master)
        steps_of(optimizer, parameters, 2)
        if again:
            saved = optimizer.state_dict()
            optimizer = wrapped(parameters, master=master)
            optimizer.load_state_dict(saved)
        steps_of(optimizer, parameters, 2, begin=3)
        ends.append([*parameters, *(value for item in parameters for value in optimizer.state[item].values())])
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_parameter_whose_rows_do_not_follow_one_another_is_updated_too():
    ends = []
    for turned in (False, True):
        drawn = torch.randn(6, 5, generator=draws()).bfloat16()
        parameter = torch.nn.Parameter(drawn.T.contiguous().T if turned else drawn)
        assert parameter.is_contiguous() != turned
        optimizer = wrapped([parameter], master=True)
        steps_of(optimizer, [parameter])
        ends.append(parameter.detach())
    assert torch.equal(*ends)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", MOMENTS)
@pytest.mark.parametrize("master", [False, True])
def test_on_cuda_equal_steps_give_equal_bits(kind, master):
    ends = []
    for _ in range(2):
        parameters = [torch.nn.Parameter(item.detach().cuda()) for item in weights((600, 500), (64, 32))]
        optimizer = wrapped(parameters, kind, master=master)
        for step in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=draws(step)).bfloat16().cuda()
            optimizer.step()
        ends.append([item.detach().cpu() for item in parameters])
    assert same(*ends)
