import torch

from medmdm.files import weights_hash


def test_names_types_shapes_and_values_count_but_not_their_order() -> None:
    state = {"a": torch.arange(6.0), "b": torch.zeros(2, 3), "n": torch.tensor(3), "nothing": torch.zeros(0)}
    expected = weights_hash(state)
    assert len(expected) == 64
    assert weights_hash(dict(reversed(state.items()))) == expected
    changes = [
        {"a": torch.arange(6.0) + torch.eye(6)[5] * 1e-6}, {"a": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0, dtype=torch.float64)}, {"b": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"b": torch.zeros(3, 2)}, {"b": -torch.zeros(2, 3)}, {"n": torch.tensor(4)}, {"nothing": torch.zeros(0, 1)},
        {"more": torch.zeros(1)},
    ]  # fmt: skip
    hashes = [weights_hash({**state, **change}) for change in changes]
    hashes.append(weights_hash({"c" if k == "a" else k: v for k, v in state.items()}))
    assert len({expected, *hashes}) == 1 + len(hashes)


def test_the_layout_in_memory_does_not_count() -> None:
    weight = torch.rand(4, 6)
    assert weights_hash({"w": weight.T.contiguous().T}) == weights_hash({"w": weight})
    kernel = torch.rand(2, 3, 4, 5)
    assert weights_hash({"w": kernel.to(memory_format=torch.channels_last)}) == weights_hash({"w": kernel})
    assert weights_hash({"w": torch.nn.Parameter(weight)}) == weights_hash({"w": weight})
