"""mre_lowshot: segment all scans of one kind from one to three annotated ones.

>>> import mre_lowshot
>>> [name for name in sorted(dir(mre_lowshot)) if name[0].isupper()]
['Dataset', 'Predictor', 'Volume']

Everything is loaded when it is first used; importing the package alone is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mre_lowshot.data.dataset import Dataset
    from mre_lowshot.data.volume import Volume
    from mre_lowshot.inference.predictor import Predictor
    from mre_lowshot.workflows.add_case import add_case
    from mre_lowshot.workflows.evaluate import evaluate
    from mre_lowshot.workflows.export_model import export_model
    from mre_lowshot.workflows.importing import import_dataset
    from mre_lowshot.workflows.install_model import install_model
    from mre_lowshot.workflows.plan import plan
    from mre_lowshot.workflows.predict import list_scans, predict
    from mre_lowshot.workflows.report import write_report
    from mre_lowshot.workflows.suggest import suggest
    from mre_lowshot.workflows.train import train
    from mre_lowshot.workflows.view import view

__version__ = "0.2.0"
__all__ = [
    "Dataset",
    "Predictor",
    "Volume",
    "add_case",
    "evaluate",
    "export_model",
    "import_dataset",
    "install_model",
    "list_scans",
    "plan",
    "predict",
    "suggest",
    "train",
    "view",
    "write_report",
]

_HOMES = {
    "Dataset": "data.dataset",
    "Predictor": "inference.predictor",
    "Volume": "data.volume",
    "add_case": "workflows.add_case",
    "evaluate": "workflows.evaluate",
    "export_model": "workflows.export_model",
    "install_model": "workflows.install_model",
    "list_scans": "workflows.predict",
    "import_dataset": "workflows.importing",
    "plan": "workflows.plan",
    "predict": "workflows.predict",
    "write_report": "workflows.report",
    "suggest": "workflows.suggest",
    "train": "workflows.train",
    "view": "workflows.view",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
