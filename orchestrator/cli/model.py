"""The command `backbones`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from orchestrator.cli.options import JsonOption, WeightsOption, console, print_json
from orchestrator.environment.home import weights_at
from orchestrator.errors import UserError
from trainer.catalog import BACKBONES, BackboneRow
from trainer.model.weights import WeightsError, find_weights
from trainer.names import no_such_path
from trainer.plain_text import counted

if TYPE_CHECKING:
    from trainer.model.weight_facts import WeightFacts


def backbones(weights: WeightsOption = None, as_json: JsonOption = False) -> None:
    """List the backbones and where the weights of each would come from."""
    weights = weights_at(weights)
    if weights and "://" not in weights and not Path(weights).exists():
        raise UserError(f"weights {weights}: {no_such_path(Path(weights))}")
    facts = _facts(weights)

    if as_json:
        print_json({"backbones": [_backbone_json(row, weights, facts) for row in BACKBONES.values()]})
        return

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("backbone", no_wrap=True)
    for name in ("layers", "width", "patch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("weights", overflow="fold")
    for row in BACKBONES.values():
        source = _source(row, weights) or "absent: name a file"
        if facts is not None and facts.problem(row) is not None:
            source = "the file does not fit"
        table.add_row(row.name, *map(str, (row.num_layers, row.embed_dim, row.patch_size)), source)
    console.print(table)

    if facts is not None:
        _print_facts(facts)


def _source(row: BackboneRow, weights: str | None) -> str | None:
    """Return where the weights of a backbone would come from; None if they have to be named."""
    try:
        return str(find_weights(row, weights))
    except WeightsError:
        return None


def _backbone_json(row: BackboneRow, weights: str | None, facts: WeightFacts | None) -> dict[str, Any]:
    return {
        "backbone": row.name,
        "layers": row.num_layers,
        "width": row.embed_dim,
        "patch": row.patch_size,
        "weights": _source(row, weights),
        # Null where no single file was named.
        "fits": None if facts is None else facts.problem(row) is None,
    }


def _facts(weights: str | None) -> WeightFacts | None:
    """Return the facts of a single file of this machine that is to be the weights; None for other places."""
    path = Path(weights).expanduser() if weights and "://" not in weights else None
    if path is None or not path.is_file():
        return None

    # Imported late, because it loads torch.
    from trainer.model.weight_facts import read_facts

    try:
        return read_facts(path)
    except WeightsError as error:
        raise UserError(str(error)) from None


def _print_facts(facts: WeightFacts) -> None:
    """Print what the table cannot say about a file."""
    if facts.part:
        console.print()
        console.print(f"{facts.path} holds several networks; {facts.part} is used.")

    fitting = [row.name for row in BACKBONES.values() if facts.problem(row) is None]
    if not fitting:
        shape = f"{counted(facts.num_layers, 'layer')}, width {facts.embed_dim}, patch {facts.patch_size}"
        text = f"{facts.path} fits none of these: it has {shape}."
    elif len(fitting) > 1:
        text = (
            f"{facts.path} fits {counted(len(fitting), 'backbone')}, and its tensors do not tell from which it is. "
            "Name the one that it was trained as: pixel normalization and readout follow from the name."
        )
    else:
        return
    console.print()
    console.print(text)
