"""The smallest table that still goes through everything: settings laid over a scale, for tests."""

from typing import Any

from lib.parameters import Parameters

SETTINGS: dict[str, Any] = {
    "train_images": 60,
    "test_images": 20,
    "held_out": 12,
    "attack_steps": 2,
    "schedules": {"default": {"epochs": 2, "batch_size": 16}},
    "columns": {
        "Clean": {"attack": "clean"},
        "FGSM": {"attack": "fgsm"},
        "PGD": {"attack": "pgd", "steps": 2},
        "PGD-20": {"attack": "pgd", "steps": 3},
        "CW2": {"attack": "cw2", "steps": 5, "images": 10},
        "JSMA-published": {"attack": "jsma_as_published", "gamma": 0.1, "images": 10},
        "JSMA-wrong": {"attack": "jsma", "gamma": 0.1, "images": 10},
        "PGD-10-LAS": {"attack": "pgd_frozen", "steps": 2},
        "PGD-20-LAS": {"attack": "pgd_frozen", "steps": 3},
        "PGD-50-LAS": {"attack": "pgd_frozen", "steps": 4},
        "CW-LAS": {"attack": "cw_frozen", "steps": 2},
        "FGSM-FAT": {"attack": "fgsm_random"},
        "PGD-20-FAT": {"attack": "pgd", "steps": 3},
        "CW-FAT": {"attack": "cw", "steps": 2},
        "AA": {"attack": "autoattack", "images": 3, "stages": ["apgd-ce"]},
        "CW": {"attack": "cw", "steps": 2},
        "AA-DYNAT": {"attack": "autoattack", "images": 3, "stages": ["apgd-ce"]},
        "AA-D2R": {"attack": "autoattack", "images": 3, "stages": ["apgd-ce"]},
        "APGD-DYNAT": {"attack": "autoattack", "images": 3, "stages": ["apgd-ce"]},
        "PGD-100-DYNAT": {"attack": "pgd_frozen", "steps": 4},
    },
}


def parameters(outputs: object, **changes: Any) -> Parameters:
    """Two rows, one student, one teacher, two epochs of sixty digits."""
    settings = SETTINGS | changes.pop("settings", {})
    given = {"rows": ["PGD-AT", "DGAD"], "students": ["ResNet18"], "teachers": ["WideResNet-34-10"], "device": "cpu"}
    return Parameters(**{**given, "outputs": str(outputs), "workers": 1, "settings": settings, **changes})
