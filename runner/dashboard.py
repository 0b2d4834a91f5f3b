"""task=dashboard: W&B workspaces as code, one for each method, from dashboards.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from runner.errors import ConfigError, MissingPackage
from runner.explain import experiments

DASHBOARDS = Path(__file__).with_name("dashboards.yaml")


def dashboard(settings: Mapping[str, Any], *, dry: bool = False) -> dict[str, float]:
    """Write a W&B workspace for each method into the project of `logger.wandb`.

    Runs are grouped by arm, curves are means over seeds with their deviation. Each call makes new
    workspaces; those that are there stay as they are.

    Args:
        settings: The resolved config.
        dry: Print what would be written, as JSON, and write nothing; needs no account.

    Returns:
        `workspaces`: how many.

    Raises:
        ConfigError: W&B is not among the loggers, or the extra is not installed.
    """
    logger = (settings["logger"] or {}).get("wandb")
    if logger is None:
        raise ConfigError("task=dashboard writes to W&B; leave logger=csv out")
    if not (dry or logger["entity"]):
        raise ConfigError(
            "logger.wandb.entity: name the account or team whose project gets the workspaces, or "
            "take dry=true to see them"
        )
    made = [_workspace(each, logger["entity"] or "", logger["project"]) for each in dashboards()]
    if dry:
        shown = [each._to_model().model_dump(by_alias=True, exclude_none=True) for each in made]
        print(json.dumps(shown, indent=1))
    for each in made if not dry else ():
        each.save()  # it says where
    return {"workspaces": float(len(made))}


def dashboards() -> list[dict[str, Any]]:
    """Return what dashboards.yaml says."""
    content: list[dict[str, Any]] = yaml.safe_load(DASHBOARDS.read_text(encoding="utf-8"))
    return content


def experiments_of(node: Mapping[str, Any]) -> list[str]:
    """Return the names of the experiments whose runs a dashboard shows."""
    return [n for n in experiments() if any(fnmatch(n, each) for each in node["experiments"])]


def _workspace(node: Mapping[str, Any], entity: str, project: str) -> Any:
    try:
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.expr import Config
    except ImportError as error:
        raise MissingPackage(
            "task=dashboard needs the package wandb-workspaces, of the extra dashboard: "
            "pip install wandb-workspaces -c constraints.txt"
        ) from error
    return ws.Workspace(
        entity=entity,
        project=project,
        name=node["name"],
        sections=[
            ws.Section(name=section["name"], panels=_panels(section), is_open=True)
            for section in node["sections"]
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=f"Config('experiment') in {experiments_of(node)}",
            groupby=[Config("name"), Config("arm")],
            pinned_columns=[f"summary:{name}" for name in node["columns"]],
        ),
    )


def _panels(section: Mapping[str, Any]) -> list[Any]:
    from wandb_workspaces.reports.v2 import interface as wr

    mean: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    found: list[Any] = []
    for line in section.get("lines", ()):
        over, look = line["over"], dict(mean)
        if "smoothed" in line:
            look |= {"smoothing_type": "exponential", "smoothing_factor": line["smoothed"]}
        found.append(wr.LinePlot(x=over, y=line["y"], title_x=over, **look))
    found += [wr.BarPlot(metrics=each, **mean) for each in section.get("bars", ())]
    found += [wr.MediaBrowser(media_keys=[name]) for name in section.get("pictures", ())]
    found += [wr.WeavePanelSummaryTable(table_name=name) for name in section.get("tables", ())]
    for place, panel in enumerate(found):
        panel.layout = wr.Layout(x=8 * (place % 3), y=6 * (place // 3), w=8, h=6)
    return found
