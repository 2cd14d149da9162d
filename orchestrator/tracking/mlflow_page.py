"""What MLflow's page shows at first sight: its training mode, the columns of a sweep's table, and its charts.

MLflow documents none of these names; they are those of the page of MLflow 3.17. A page that does not know one of them
shows its own choice instead. `tests/integration/test_browser.py` looks at the page itself.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Sequence
from typing import Any

from orchestrator.tracking.mlflow_client import connect
from orchestrator.tracking.mlflow_locations import SHARED_VIEW
from trainer.metric_names import TRAIN_LOSS, VAL_ACCURACY, accuracy_of

log = logging.getLogger(__name__)
VIEW = SHARED_VIEW.rpartition(".")[2]
"""Key of our shared view."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags by which the page of an experiment shows training runs, not traces of language models."""
APP = "sptune"
"""Name of our server (`mlflow_server_app.py`) among the entry points `mlflow.app`."""
TEST_ACCURACY = accuracy_of("test")
CURVES = (VAL_ACCURACY, TRAIN_LOSS)
"""Metrics whose charts come first."""
MODE = "machine_learning"
"""The page's mode for training runs. Its other one is for language models."""
WIDTHS = {"attributes.`Run Name`": 240, "runDateAndNestInfo": 150, "duration": 75}
"""Columns that every table has, and their widths in pixels. The page's own width cuts the names of studies."""
RUN_CHARTS = r"-RunPage-\w+-model-chartUIState$"
"""Pattern of the names under which the page keeps the charts of single runs."""
HEAD = b"<head>"
"""Where the first choices are inserted, before any script of the page."""


def experiment_tags(params: Sequence[str]) -> dict[str, str]:
    """Return the tags of an experiment that decide what its page shows.

    Args:
        params: searched parameters, which become columns of the table.
    """
    return EXPERIMENT_TAGS | {SHARED_VIEW: json.dumps(_view(params))}


def view_paths(uri: str) -> dict[str, str]:
    """Return the path of each sweep's table with our columns, to be appended to a server's address."""
    experiments = connect(uri).search_experiments()
    # MLflow returns the newest first.
    return {
        experiment.name: f"/#/experiments/{experiment.experiment_id}/runs?workflowType={MODE}&viewStateShareKey={VIEW}"
        for experiment in reversed(experiments)
        if SHARED_VIEW in experiment.tags
    }


def server_options() -> list[str]:
    """Return the options of `mlflow server` that make it serve its page with our first choices."""
    if any(entry.name == APP for entry in importlib.metadata.entry_points(group="mlflow.app")):
        return ["--app-name", APP]
    log.warning(
        "sptune was installed before it had its page of MLflow, so MLflow opens in its mode for language models. "
        "Install sptune again."
    )
    return []


def with_first_choices(page: bytes) -> bytes:
    """Return the page of MLflow's server, opening with our first choices."""
    if HEAD not in page:
        log.warning("This version of MLflow has another page, so it opens with its own choices.")
        return page

    # The page asks the browser for what a person chose before. Where there is no choice yet, the answer is ours.
    choices = {name: json.dumps(choice) for name, choice in _first_choices().items()}
    script = f"""<script>{{
        const own = Storage.prototype.getItem;
        const choices = new Map(Object.entries({json.dumps(choices)}));
        const ofRuns = {json.dumps(json.dumps(_run_charts()))};
        Storage.prototype.getItem = function (name) {{
            const chosen = own.call(this, name);
            if (chosen !== null || this !== localStorage) return chosen;
            return choices.get(name) ?? (/{RUN_CHARTS}/.test(name) ? ofRuns : null);
        }};
    }}</script>"""
    return page.replace(HEAD, HEAD + script.encode(), 1)


def _first_choices() -> dict[str, Any]:
    """Return what the page finds in the browser, by name, before a person has chosen anything."""
    return {
        "mlflow.workflowType_v1": MODE,
        # The panel of a language model's assistant would take a fourth of the page. Its button stays.
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    }


def _run_charts() -> dict[str, Any]:
    """Return the charts of a run's page, of which the page adds those that are missing."""
    return {
        "isAccordionReordered": True,
        "compareRunSections": [_section(TRAIN_LOSS)],
        "compareRunCharts": [_line_chart(TRAIN_LOSS)],
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _view(params: Sequence[str]) -> dict[str, Any]:
    """Return a view of an experiment's runs with our columns and charts, in the form that "Share view" stores."""
    metrics = [f"metrics.`{name}`" for name in (VAL_ACCURACY, TEST_ACCURACY)]
    tags = [f"tags.`{name}`" for name in ("state", "trials")]
    columns = [*metrics, *(f"params.`{name}`" for name in params), *tags]
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [*WIDTHS, *columns],
        "columnWidths": WIDTHS | {tags[-1]: 170},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        # Without this, the page sorts the sections by name.
        "isAccordionReordered": True,
        "compareRunSections": [_section(name) for name in (*CURVES, TEST_ACCURACY)],
        "compareRunCharts": [_line_chart(name) for name in CURVES],
    }


def _section(metric: str) -> dict[str, Any]:
    """Return the section with the charts of a metric and of all others with its prefix. The page adds the others."""
    name = metric.rpartition("/")[0]
    return {"uuid": f"{VIEW}-{name}", "name": name, "display": True, "isReordered": True, "isGenerated": True}


def _line_chart(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"{VIEW}-{metric}",
        "metricSectionId": _section(metric)["uuid"],
        "isGenerated": True,
        "deleted": False,
        "metricKey": metric,
        "displayName": metric,
        "runsCountToCompare": 10,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
