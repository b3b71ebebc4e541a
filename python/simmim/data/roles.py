"""Names that say which part of a data set something is: training, validation or test."""

from __future__ import annotations

import re

#: names of parts that are never classes, in any letter case
ROLES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


def split_role(name: str) -> tuple[str, str]:
    """The part of a data set that the first word of its kind in ``name`` says, and the name without that
    word: ``train_images`` gives ``train`` and ``images``. The part is empty if no word says one."""
    words = re.split(r"[\W_]", name)
    for number, word in enumerate(words):
        if word.lower() in ROLE_OF:
            return ROLE_OF[word.lower()], "_".join(words[:number] + words[number + 1 :])
    return "", name
