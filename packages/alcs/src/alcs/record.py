"""What a run of `alcs prune` was asked for, as a file: to resume it, and to train it further."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from alcs.meeting import Goal
from alcs.recipe import Recipe
from alcs.subject import Subject, open_subject
from effcv.errors import DataError
from effcv.runtime.files import atomic_write

RUN = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """A network, a goal and a recipe.

    Attributes:
        model: As for `alcs.subject.open_subject`.
        input_shape: Likewise.
        weights: Likewise.
        skip: Likewise.
        batch: Images a call.
        goal: The budget.
        recipe: The settings.
        seed: Of training and of random patterns.
        data: Images to learn from, or None.
        images: Limit of the data, or None.
        teach: Whose answers are learnt.
        mean: Subtracted from the images, or None.
        std: Divides them, or None.
    """

    model: str
    input_shape: tuple[int, ...] | None
    weights: str | None
    skip: tuple[str, ...]
    batch: int
    goal: Goal
    recipe: Recipe
    seed: int = 0
    data: str | None = None
    images: int | None = None
    teach: str = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def subject(self) -> Subject:
        """Opens the dense network."""
        return open_subject(
            self.model, input_shape=self.input_shape, weights=self.weights, skip=self.skip
        )

    def finetuned(self, seed: int, learning: Mapping[str, Any], **settings: Any) -> Self:
        """Returns the record of a run that goes on with fixed masks.

        Args:
            seed: Of its training.
            learning: Fields that say what it learns from, ``data`` to ``std``.
            settings: Of the recipe's fields, those of fine-tuning.
        """
        recipe = dataclasses.replace(self.recipe, epochs=0, **settings)
        return dataclasses.replace(self, recipe=recipe, seed=seed, **learning)

    def save(self, folder: Path) -> None:
        """Writes the record into a folder; raises `DataError` where it cannot."""
        write_facts(folder / RUN, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the record of a folder.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = folder / RUN
        try:
            facts = json.loads(path.read_text())
            shape, recipe = facts["input_shape"], facts["recipe"]
            return cls(**facts | {
                "input_shape": None if shape is None else tuple(shape),
                "skip": tuple(facts["skip"]),
                **{n: tuple(facts[n]) for n in ("mean", "std") if facts.get(n) is not None},
                "goal": Goal(**facts["goal"]),
                "recipe": Recipe(**recipe | {"group_sizes": tuple(recipe["group_sizes"])}),
            })  # fmt: skip
        except OSError:
            raise DataError(f"{folder} holds no {RUN}, expected what `alcs prune` wrote") from None
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path} is damaged, expected what `alcs prune` wrote") from None


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes facts as JSON, whole or not at all.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
