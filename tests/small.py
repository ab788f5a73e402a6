"""The smallest table that still goes through everything: settings laid over a scale, for tests."""

from typing import Any

from lib.evaluate import ATTACKS, PRESETS
from lib.experiment.parameters import Parameters

SETTINGS: dict[str, Any] = {
    "train_images": 60,
    "test_images": 20,
    "held_out": 12,
    "attack_steps": 2,
    "schedules": {"default": {"epochs": 2, "batch_size": 16}},
    "sanity_images": 8,
    "columns": {
        **{name: {"steps": min(preset.steps, 2)} for name, preset in PRESETS.items() if ATTACKS[preset.attack].loss},
        "PGD-20": {"steps": 3},
        "PGD-20-frozen": {"steps": 3},
        "PGD-50-frozen": {"steps": 4},
        "PGD-50": {"steps": 4},
        "CW2": {"steps": 5, "images": 10},
        "JSMA-as-published": {"gamma": 0.1, "images": 10},
        "JSMA": {"gamma": 0.1, "images": 10},
        **{name: {"images": 3, "stages": ["apgd-ce"]} for name in ("AA", "AA-whole", "AA-0.031", "AA-0.031-1000")},
        "APGD-CE-0.031-1000": {"images": 3},
    },
}


def parameters(outputs: object, **changes: Any) -> Parameters:
    """Two rows, one student, one teacher, two epochs of sixty digits."""
    settings = SETTINGS | changes.pop("settings", {})
    given = {"rows": ["PGD-AT", "DGAD"], "students": ["ResNet18"], "teachers": ["WideResNet-34-10"], "device": "cpu"}
    workers = 0 if changes.get("executor") == "ray" else 1
    return Parameters(**{**given, "outputs": str(outputs), "workers": workers, "settings": settings, **changes})
