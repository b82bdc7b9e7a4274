"""What a trial says of memory."""

from __future__ import annotations

import pytest
import torch

from perpeft_ray.train.memory import naming_what_to_lower


def test_a_full_gpu_names_the_settings_to_change():
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    told = pytest.raises(MemoryError, match=r"`train\.batch_size`.*`gpus_per_worker`")
    with told, naming_what_to_lower():
        raise full
