"""Lets containers load that were written for version 1 of ``param``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import param

logger = logging.getLogger(__name__)

_hinted: set[str] = set()


@contextmanager
def param1_spellings() -> Iterator[None]:
    """Accepts ``param.List(class_=…)`` while it is active, and then says once per place how it is written today."""
    original = param.List.__init__
    places: list[str] = []

    def accept_class(self: Any, *args: Any, **kwargs: Any) -> None:
        if "class_" in kwargs:
            item_type = kwargs.pop("class_")
            kwargs.setdefault("item_type", item_type)
            caller = sys._getframe(1)
            places.append(f"{caller.f_code.co_filename}, line {caller.f_lineno}")
        original(self, *args, **kwargs)

    param.List.__init__ = accept_class  # type: ignore[method-assign]
    try:
        yield
    finally:
        param.List.__init__ = original  # type: ignore[method-assign]
        new_places = [place for place in places if place not in _hinted]
        _hinted.update(new_places)
        if new_places:
            logger.warning(
                "param.List(class_=…) is how version 1 of param wrote it; today it is param.List(item_type=…). "
                "It works here, but not outside the runner. Change it in: %s",
                "; ".join(new_places),
            )
