"""`vecmem info`, `checkpoint` and `verify`: what an operator looks at."""

from __future__ import annotations

from pathlib import Path

import click

from vecmem.cli.session import Session, facts, grid, plain, with_session

CHECKPOINT_SECONDS_MAX = 3_600.0


@click.command()
@click.argument("data_dir", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_session
def info(session: Session, *, data_dir: Path | None) -> None:
    """Show what a server is and how it came up; with DATA_DIR, what a stopped server's directory holds."""
    if data_dir is not None:
        from vecmem.store.verify import verify_data_directory

        document = plain(verify_data_directory(data_dir))
        session.write(document, facts(document))
        return
    with session.client() as client:
        found = client.server_info()
    document = plain(found)
    recovery = {f"recovery.{key}": value for key, value in document["recovery"].items()}
    session.write(found, facts({key: value for key, value in document.items() if key != "recovery"} | recovery))


@click.command()
@with_session
def checkpoint(session: Session) -> None:
    """Write a checkpoint now; return when it is published. Serving goes on meanwhile."""
    with session.client() as client:
        published = client.create_checkpoint(timeout_seconds=CHECKPOINT_SECONDS_MAX)
    session.write(published, facts(plain(published)))


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_session
def verify(session: Session, *, data_dir: Path) -> int:
    """Check a data directory offline; nothing in it is changed. Exits 1 when something is damaged."""
    from vecmem.store.verify import verify_data_directory

    report = verify_data_directory(data_dir)
    document = plain(report)
    damage = document["damage"]
    summary = {key: value for key, value in document.items() if key != "damage"}
    headings = {"reason": False, "file": False, "position": False, "what": False}
    rows = [[each["reason"], each.get("path"), each.get("position"), each["message"]] for each in damage]
    verdict = f"{len(damage)} damages" if damage else "no damage"
    session.write(document, facts(summary | {"verdict": verdict}), *([grid(headings, rows)] if damage else []))
    return 1 if damage else 0
