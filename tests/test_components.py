"""Components and their configs."""

import json

import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from medmdm.components import to_config
from tests.made import refused


def test_records_tell_weights_of_losses_and_settings_of_inferers_apart() -> None:
    """What a study's cell depends on must not look the same where it differs."""
    losses = [nn.CrossEntropyLoss(weight=torch.tensor([1.0, w])) for w in (1.0, 2.0)]
    inferers = [SlidingWindowInferer([8, 8], overlap=o, mode="gaussian") for o in (0.2, 0.5)]
    for first, second in (losses, inferers):
        assert to_config(first, strict=False) != to_config(second, strict=False)
        assert json.loads(json.dumps(to_config(first, strict=False)))
        refused('"_mode_": "callable"', to_config, first)
