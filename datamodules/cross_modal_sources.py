"""Where image-text pairs come from: their options, and which settings cannot work together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from typing_extensions import TypedDict

from datamodules.array_files import SUFFIXES
from datamodules.feature_arrays import MatrixAxes, PictureAxes
from datamodules.settings import Seed, Whole

Source = Literal["features", "generated", "folder"]


class Fields(TypedDict, total=False):
    """Names of the fields in feature files."""

    image: str
    text: str
    labels: str


class Axes(TypedDict, total=False):
    """How the axes of the fields lie in feature files."""

    image: MatrixAxes | PictureAxes
    text: MatrixAxes
    labels: MatrixAxes


class RenderOptions(TypedDict, total=False):
    """Arguments of `generated.pictures.render`."""

    count: Whole
    size: Annotated[int, Ge(16)]
    seed: Seed
    label_words_in_captions: bool


class FolderOptions(TypedDict, total=False):
    """Arguments of `picture_folders.encode_folder`."""

    table: str | None
    image_encoder: str
    text_encoder: str
    batch_size_encode: Whole
    on_bad: Literal["refuse", "skip"]


class Options(RenderOptions, FolderOptions, total=False):
    """`datamodule.options`, of whatever source."""


OPTIONS: dict[str, tuple[str, ...]] = {
    "features": (),
    "generated": tuple(RenderOptions.__annotations__),
    "folder": tuple(FolderOptions.__annotations__),
}


def check(settings: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> None:
    """Refuse settings that cannot work together; reads no data. Sizes of a model are not used.

    Raises:
        ValueError: Names the config key, what is wrong with it and what is allowed.
    """
    source = settings.get("source", "features")
    for name in settings.get("options") or {}:
        if name not in OPTIONS[source]:
            known = ", ".join(OPTIONS[source]) or "none"
            raise ValueError(
                f"datamodule.options.{name}: source={source} has no such option; it has {known}"
            )
    paths = paths_of(settings.get("path"))
    if source == "features":
        if not paths:
            raise ValueError(
                "datamodule.path=null: give a feature file (.npz, .mat or .h5), or a list of them"
            )
        for path in paths:
            if not path.is_file():
                raise ValueError(f"datamodule.path={path}: no such file")
            if path.suffix.lower() not in SUFFIXES:
                raise ValueError(
                    f"datamodule.path={path}: must end with one of {', '.join(SUFFIXES)}"
                )
    if source == "folder" and not (len(paths) == 1 and paths[0].is_dir()):
        raise ValueError(
            f"datamodule.path={settings.get('path')}: must be one folder of pictures and texts"
        )
    for key in ("fields", "class_names", "axes"):
        if settings.get(key) and source != "features":
            raise ValueError(
                f"datamodule.{key}: of feature files; source={source} finds it by itself"
            )


def paths_of(path: str | Sequence[str] | None) -> list[Path]:
    """Return the files that `datamodule.path` names."""
    return [Path(each) for each in ([path] if isinstance(path, str) else path or [])]
