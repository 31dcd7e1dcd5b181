"""The demo: index real documents, answer real questions, be killed, come back, answer the same.

Everything it says is checked: it exits 0 only when the answers after `kill -9` are the answers before, those of the
graph (which are the ones shown) as well as the exact ones, every acknowledged point is there, and recall against exact
search is what it ought to be. The graph's answers must be the same because the checkpoint holds the whole graph, and
nothing is written to its collection afterwards.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.console import Console
from rich.text import Text

from bench.datasets import Dataset, Question, load, recall, worst_true_scores
from bench.engines.vecmem_server import wait_for_graph
from bench.report import percentile_ms
from bench.server import ROOT, Server, ServerError, work_directory
from vecmem_client import Client, Hit, Hits, Point, ProgressBar, RetryPolicy, VecmemClientError, VectorConfig

if TYPE_CHECKING:
    import argparse

COLLECTION: Final = "packages"
JOURNAL: Final = "journal"
QUESTIONS_SHOWN: Final = 10
ANSWERS_SHOWN: Final = 3
K: Final = 10
RECALL_MIN: Final = 0.95
JOURNAL_POINTS_BEFORE_KILL: Final = 200

Answers = list[Hits]
"""The hits of each question."""


@dataclass(frozen=True)
class AllAnswers:
    """What all questions were answered, by the graph and by an exact scan."""

    graph: Answers
    exact: Answers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dataset", type=Path, default=ROOT / "bench" / "data", help="directory of the data set")
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".demo", help="where the server's data goes meanwhile")


def run(arguments: argparse.Namespace) -> int:
    """Run it. Returns 0 when all promises held, else 1."""
    console = Console(highlight=False)
    dataset = load(arguments.dataset)
    if not dataset.questions:
        console.print(f"{arguments.dataset}: has no questions to ask", style="red")
        return 1
    with work_directory(arguments.work_dir) as directory, Server(directory / "data") as server:
        try:
            failures = _run(console, dataset, server)
        except (VecmemClientError, ServerError, TimeoutError) as error:
            failures = [f"{error}; the last words of the server:\n{server.last_words()}"]
    for failure in failures:
        console.print(Text(f"FAILED: {failure}", style="bold red"))
    if not failures:
        console.print("All of it held.", style="bold green")
    return 1 if failures else 0


def _run(console: Console, dataset: Dataset, server: Server) -> list[str]:
    """All of it, in order. Returns what did not hold."""
    failures: list[str] = []
    console.rule("1. A server, and real documents")
    server.start()
    console.print(f"Process {server.pid} serves on {server.address}.")
    with Client(server.address) as client:
        _load(console, client, dataset)
        console.rule("2. Questions")
        _settle(console, client, dataset)
        before = _ask(client, dataset)
        _print_answers(console, dataset, before.graph)
        failures += _measure(console, client, dataset)
        journal = _Journal(server.address)
        console.rule("3. kill -9, in the middle of writing")
        journal.run_until_killed(server)
        console.print(f"Killed. {len(journal.acknowledged):,} single points had been acknowledged meanwhile.")
    started_at = server.start()
    with Client(server.address) as client:
        _ask_one(client, dataset, 0)
        seconds = time.perf_counter() - started_at
        console.print(f"Started again as process {server.pid}: first answer after [bold]{seconds:.2f} s[/bold].")
        failures += _compare(console, client, dataset, before, journal)
    server.stop()
    return failures


def _load(console: Console, client: Client, dataset: Dataset) -> None:
    dimension = int(dataset.vectors.shape[1])
    client.create_collection(COLLECTION, VectorConfig(dimension, dataset.metric))
    started_at = time.perf_counter()
    client.upsert_bulk(COLLECTION, dataset.ids, dataset.vectors[:], dataset.payloads, progress=ProgressBar("import"))
    seconds = time.perf_counter() - started_at
    console.print(
        f"{len(dataset):,} packages with vectors of {dimension} dimensions and their texts are durable after "
        f"{seconds:.1f} s ({len(dataset) / seconds:,.0f}/s), and searchable already."
    )


def _ask_one(client: Client, dataset: Dataset, index: int) -> Hits:
    return client.query(COLLECTION, dataset.question_vectors[index], limit=K)


def _ask(client: Client, dataset: Dataset) -> AllAnswers:
    """Ask every question, both ways."""
    return AllAnswers(
        [_ask_one(client, dataset, index) for index in range(len(dataset.questions))],
        [client.query(COLLECTION, vector, limit=K, exact=True) for vector in dataset.question_vectors],
    )


def _print_answers(console: Console, dataset: Dataset, answers: Answers) -> None:
    known = set(dataset.ids)
    answerable = [index for index, question in enumerate(dataset.questions) if known.intersection(question.relevant)]
    step = max(1, len(answerable) // QUESTIONS_SHOWN)
    for index in answerable[::step][:QUESTIONS_SHOWN]:
        question = dataset.questions[index]
        console.print(Text(question.text, style="bold"))
        for hit in answers[index][:ANSWERS_SHOWN]:
            console.print(_answer_line(question, hit), no_wrap=True, overflow="ellipsis", crop=True)
    console.print("A tick marks an answer that the questions' author named as right.\n")


def _answer_line(question: Question, hit: Hit) -> Text:
    tick = "✓" if hit.id in question.relevant else " "
    summary = str(hit.payload.get("summary", ""))
    return Text.assemble(f"  {hit.score:.3f} {tick} ", (f"{hit.id:<24.24}", "cyan"), f" {summary}")


def _settle(console: Console, client: Client, dataset: Dataset) -> None:
    """Wait for the graph, so that answers and recall are the graph's and not an exact scan's, and take a checkpoint.

    The journal's collection is created between the two: a checkpoint that the server took by itself before the graph
    was whole then does not stand for this one.
    """
    started_at = time.perf_counter()
    wait_for_graph(client, COLLECTION, len(dataset))
    console.print(f"The graph behind it is complete {time.perf_counter() - started_at:.1f} s later.")
    client.create_collection(JOURNAL, VectorConfig(2, "euclidean"))
    checkpoint = client.create_checkpoint(timeout_seconds=600)
    if checkpoint.size_bytes:
        size_mib = checkpoint.size_bytes / 1024**2
        console.print(
            f"Checkpoint: {size_mib:,.1f} MiB, written beside serving in {checkpoint.duration_ms / 1e3:.1f} s."
        )
    else:
        console.print("Checkpoint: the server had taken one of all this by itself.")


def _measure(console: Console, client: Client, dataset: Dataset) -> list[str]:
    """Recall and latency of plain queries."""
    row_of = {point_id: row for row, point_id in enumerate(dataset.ids)}
    latencies: list[float] = []
    found: list[list[int]] = []
    for _ in range(3):
        found.clear()
        for index in range(len(dataset.questions)):
            began_at = time.perf_counter()
            hits = _ask_one(client, dataset, index)
            latencies.append(time.perf_counter() - began_at)
            found.append([row_of[hit.id] for hit in hits])
    worst = worst_true_scores(dataset, dataset.question_vectors, K)
    reached = recall(dataset, dataset.question_vectors, worst, found, K)
    console.print(
        f"recall@{K} against exact search: [bold]{reached:.3f}[/bold]; latency with payloads, one caller: "
        f"p50 {percentile_ms(latencies, 50):.2f} ms, p95 {percentile_ms(latencies, 95):.2f} ms, "
        f"p99 {percentile_ms(latencies, 99):.2f} ms."
    )
    return [] if reached >= RECALL_MIN else [f"recall@{K} is {reached:.3f}, below {RECALL_MIN}"]


@dataclass
class _Journal:
    """A writer of single points that goes on until the server dies under it, and remembers what was acknowledged."""

    address: str
    acknowledged: list[str] = field(default_factory=list)
    _enough: threading.Event = field(default_factory=threading.Event)

    def run_until_killed(self, server: Server) -> None:
        """Write; after some points kill the server, in the middle of whatever it does."""
        writer = threading.Thread(target=self._write, name="journal", daemon=True)
        writer.start()
        self._enough.wait(60)
        server.kill()
        writer.join(60)

    def _write(self) -> None:
        with Client(self.address, retry=RetryPolicy(attempts_max=1)) as client:
            while True:
                point_id = f"entry-{len(self.acknowledged):06}"
                try:
                    client.upsert(JOURNAL, [Point(point_id, np.array([len(self.acknowledged), 1.0]))])
                except VecmemClientError:
                    # The kill: whether this last point exists is open, for it was not acknowledged.
                    self._enough.set()
                    return
                self.acknowledged.append(point_id)
                if len(self.acknowledged) >= JOURNAL_POINTS_BEFORE_KILL:
                    self._enough.set()


def _different(before: Answers, after: Answers) -> int:
    """Questions with other ids, scores, versions or payloads, or in another order."""
    return sum(_plain(one) != _plain(other) for one, other in zip(before, after, strict=True))


def _plain(hits: Hits) -> list[tuple[object, ...]]:
    return [(hit.id, hit.score, hit.version, hit.payload) for hit in hits]


def _compare(console: Console, client: Client, dataset: Dataset, before: AllAnswers, journal: _Journal) -> list[str]:
    failures: list[str] = []
    if not journal.acknowledged:
        failures.append("no point was acknowledged before the kill")
    after = _ask(client, dataset)
    count = len(dataset.questions)
    in_graph, exactly = _different(before.graph, after.graph), _different(before.exact, after.exact)
    failures += [
        f"{different} of {count} questions, asked {how}, have other answers than before"
        for different, how in ((in_graph, "as above"), (exactly, "exactly"))
        if different
    ]
    missing = set(dataset.ids) - {point.id for point in client.scroll(COLLECTION, page_size=5_000, with_payload=False)}
    missing |= set(journal.acknowledged) - {point.id for point in client.scroll(JOURNAL, page_size=5_000)}
    if missing:
        failures.append(f"{len(missing)} acknowledged points are missing, for instance {min(missing)}")
    console.print(
        f"{count - in_graph} of {count} questions, asked as above, have the same answers and scores as before; asked "
        f"exactly, {count - exactly} of {count}; "
        f"{len(missing)} of {len(dataset) + len(journal.acknowledged):,} acknowledged points are missing."
    )
    return failures
