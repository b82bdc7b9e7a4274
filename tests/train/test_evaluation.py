"""What an evaluation encodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from perpeft_ray.encoder.items import TowerItemEncoder
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.evaluation import CatalogueContents
from perpeft_ray.train.job import open_job


def test_images_are_embedded_once_for_all_groups(workspace: Any, make_trial: Any) -> None:
    job = open_job(make_trial(groups=3), workspace, Alone(), torch.device("cpu"), 4.0)
    model, generator = job.model.eval(), torch.Generator().manual_seed(0)
    modules = {
        group: {
            name: torch.nn.Parameter(p + 0.1 * torch.randn(p.shape, generator=generator))
            for name, p in model.new_module().items()
        }
        for group in range(3)
    }
    assert model.tower is not None
    encoder = model.tower.encoder
    assert isinstance(encoder, TowerItemEncoder)
    assert encoder.towers.image is not None
    embedded: list[int] = []
    encoder.towers.image.tower.embeddings.register_forward_hook(
        lambda module, inputs, output: embedded.append(len(output))
    )

    contents = CatalogueContents()
    found = contents.of(modules, model, modules, Alone())
    contents.of(modules, model, modules, Alone())  # known by now

    items = np.arange(1, workspace.num_items + 1)
    assert sum(embedded) == len(items)
    for group, module in modules.items():
        with torch.no_grad():
            expected = model.content(items, module)
        torch.testing.assert_close(found[group][1:], expected, rtol=1e-4, atol=1e-6)
