"""The child process: one action, described by a document, in a clean directory.

The document is a JSON file that says all the rule needs (which rule, its params, where its
inputs, its output and its scratch folder are). What the rule says comes back as JSON lines:

    {"progress": {"step": 3, "steps": 45, "metrics": {"loss": 2.1}}}
    {"warning": "…"}
    {"verified": [[device, inode, size, mtime, ctime, digest], …]}
    {"done": {"adopted": {…}, "facts": {…}, "fragments": [160, 1]}}
    {"failed": {"code": "E0803", "what": "…", …}}
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

from ftbuild import keys
from ftbuild.digest import Digest, hash_file
from ftbuild.errors import FtbuildError, Problem, RuleError
from ftbuild.graph import RuleFacts
from ftbuild.kinds import KINDS_BY_NAME, Artifact
from ftbuild.outside import Function, Source, SourceFile, Variable
from ftbuild.registry import load_rule
from ftbuild.rule import Fragment, Piece, Rule
from ftbuild.store.actions import Record
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree
from ftbuild.store.trust import Trust


def run(document: dict[str, Any], events: IO[str]) -> int:
    """Run the action of `document`, say on `events` how it went, return the exit status."""

    def say(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    context = WorkerContext(document, say)
    try:
        rule = load_rule(Path(document["root"]), RuleFacts(**document["rule"]))
        params = rule.params.model_validate_json(json.dumps(document["params"]))
        inputs = rule.inputs.model_validate(rule_inputs(document["inputs"], rule))
        rule.function(context, inputs, params)
        say(done=context.result())
        return 0
    except FtbuildError as error:
        say(failed=[asdict(problem) for problem in error.problems])
    except Exception as error:
        # Not ours to mend: a library's own complaint. The log shows all of it.
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}".strip()
        say(failed=[asdict(Problem("E0701", what))])
    finally:
        if verified := context.verified():
            say(verified=verified)
        context.close()
    return 1


def rule_inputs(plain: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """Return the values of a rule's `Inputs` from their plain form in a document."""
    given = {name: _input(value) for name, value in plain.items()}
    for name, field in rule.input_fields.items():
        if field.outside == "variable" and field.shape == "one" and name in given:
            [given[name]] = given[name]  # the document holds variables as lists
    return given


def _input(plain: Any) -> Any:
    if "table" in plain:
        return {name: _input(value) for name, value in plain["table"].items()}
    if "list" in plain:
        return tuple(_input(value) for value in plain["list"])
    if "artifact" in plain:
        kind, path, digest, label = plain["artifact"]
        return KINDS_BY_NAME[kind](Path(path), Digest(digest), label)
    if "source" in plain:
        files = tuple(
            SourceFile(Path(path), relative, Digest(digest), name)
            for path, relative, digest, name in plain["source"]
        )
        return Source(files, plain["spec"])
    if "function" in plain:
        path, name, spec = plain["function"]
        return Function(Path(path), name, spec)
    name, value = plain["variable"]
    return Variable(name, value)


_MOST_SIBLINGS = 4
"""Of the latest fragments of one function, so many for each of the pieces now."""
_MOST_LOOKED_AT = 64
"""And so many for each missing piece: to look at one takes some thousandth of making one."""


class _Kept(NamedTuple):
    """What is needed of a fragment's record: thousands of them lie in memory."""

    tree: Tree
    value: Any

    @classmethod
    def of(cls, record: Record | None) -> "_Kept | None":
        return None if record is None else cls(record.tree, record.value)


class WorkerContext:
    """What a rule may use; see `ftbuild.rule.Context`."""

    def __init__(self, document: dict[str, Any], say: Callable[..., None]) -> None:
        self.out = Path(document["out"])
        self.scratch = Path(document["scratch"])
        self.cpus: int = document["cpus"]
        self._document = document
        self._say = say
        self._facts: dict[str, Any] = {}
        self._adopted: dict[str, Digest] = {}
        self._fragments: list[int] = [0, 0]
        self._known: dict[str, dict[str, Digest]] = dict(document["known"])
        """Folders that may be linked from: their files' digests."""
        self._store: Store | None = None

    def log(self, text: str) -> None:
        """Write a line to the action's log."""
        print(text, flush=True)

    def warn(self, text: str) -> None:
        """Say something that the user should read at the end of the build."""
        print(f"warning: {text}", flush=True)
        self._say(warning=text)

    def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
        """Report how far the action is."""
        figures = {name: float(value) for name, value in metrics.items()}
        self._say(progress={"step": step, "steps": steps, "metrics": figures})

    def facts(self, **values: Any) -> None:
        """Record figures about the output in its provenance."""
        self._facts.update(values)

    def result(self) -> dict[str, Any]:
        """Return what the engine needs to know once the rule is done."""
        fragments = self._fragments if self._fragments[0] else None
        return {"adopted": self._adopted, "facts": self._facts, "fragments": fragments}

    def verified(self) -> list[list[Any]]:
        """Return which files of the store need not be hashed the next time."""
        return [] if self._store is None else self._store.take_verified()

    def close(self) -> None:
        """Let go of the store; what was published is durable."""
        if self._store is not None:
            self._store.close()

    def once(self, function: Callable[[Path], Any], name: str, *, of: str) -> Path:
        """Run `function(out)` if no earlier build has; return the directory that it wrote."""
        store = self._open_store()
        document = keys.fragment_document(
            self._document["document"], of=of, function=name, identity=None
        )
        record = store.find(keys.action_key(document))
        if record is None:
            out = store.workspace()
            function(out)
            record = Record(keys.action_key(document), store.put_tree(out), None, document, {})
            store.publish(record)
        return self._fragment(_Kept.of(record), was_built=False).path

    def digest(self, source: Path) -> Digest:
        """Return the digest of a file of a fragment or of an input; read only if not known."""
        return self._digest(source) or hash_file(source)

    def link(self, source: Path, name: str) -> None:
        """Put `source` at `out / name`, without a copy where it is an object of the store."""
        target = self.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = self._digest(source)
        if digest is not None:
            try:
                os.link(self._open_store().blob_path(digest), target)
            except OSError:  # another file system, or 65,000 links: then it is a copy
                pass
            else:
                self._adopted[name] = digest
                return
        import shutil

        shutil.copyfile(source, target)

    def _digest(self, source: Path) -> Digest | None:
        for parent in source.parents:
            files = self._known.get(str(parent))
            if files is not None:
                return files.get(source.relative_to(parent).as_posix())
        return None

    def _open_store(self) -> Store:
        if self._store is None:
            given = self._document["trust"]
            trust = given and Trust(
                given["project"], frozenset(given["trusted"]), given["is_required"]
            )
            self._store = Store(
                Path(self._document["store"]), StatCache(Path(self._document["statcache"])), trust
            )
        return self._store

    def fragments(
        self,
        function: Callable[[Piece, Path], Any],
        pieces: Iterable[Piece],
        *,
        of: str | tuple[str, ...],
        siblings: Callable[[list[Fragment]], None] | None = None,
    ) -> list[Fragment]:
        """Run `function(piece, out)` for each piece that no earlier build has done."""
        todo = list(pieces)
        store = self._open_store()
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        documents = [
            keys.fragment_document(
                self._document["document"], of=of, function=name, identity=piece.identity
            )
            for piece in todo
        ]
        digests = [keys.action_key(document) for document in documents]
        found = {key: _Kept.of(store.find(key)) for key in digests}
        # Two equal pieces are one fragment: the last of them stands for all.
        missing = list({key: i for i, key in enumerate(digests) if found[key] is None}.values())
        self._fragments[0] += len(todo)
        self._fragments[1] += len(missing)
        done = len(todo) - len(missing)
        if siblings is not None and missing:
            siblings(self._siblings(documents[0], len(todo), len(missing)))
        for i, tree, value, verified in self._run_pieces(function, todo, missing):
            store.learn(verified)
            record = Record(digests[i], tree, value, documents[i], {})
            store.publish(record)
            if siblings is not None:
                store.note_siblings(_family(record.document), [record.key])
            if self._document["trust"]:
                self._say(published=record.key)
            found[record.key] = _Kept(tree, value)
            done += 1
            self.progress(done, len(todo))
        built = {digests[i] for i in missing}
        return [self._fragment(found[key], key in built) for key in digests]

    def _siblings(self, document: keys.Document, total: int, missing: int) -> list[Fragment]:
        """Return fragments that differ from that of `document` in their piece alone.

        So many are looked for that it takes no longer than a part of what they may save.
        """
        from ftbuild.store.blobs import MissingBlob

        store, family = self._open_store(), keys.family_document(document)
        room = min(_MOST_SIBLINGS * total, _MOST_LOOKED_AT * missing)
        made: list[Fragment] = []
        for key in store.siblings(_family(document)):
            if len(made) == room:
                break
            record = store.find(key)
            if record is None or not _is_of(record, family):
                continue
            with suppress(MissingBlob):  # then its piece is made again where it is needed
                made.append(self._fragment(_Kept.of(record), was_built=False))
        return made

    def _fragment(self, kept: "_Kept | None", was_built: bool) -> Fragment:
        assert kept is not None
        path = self._open_store().lay_out(kept.tree)
        self._known[str(path)] = {entry.path: entry.digest for entry in kept.tree.entries}
        return Fragment(path, kept.value, was_built)

    def _run_pieces(
        self, function: Callable[[Piece, Path], Any], pieces: list[Piece], missing: list[int]
    ) -> Iterable[tuple[int, Any, Any, list[list[Any]]]]:
        """Yield index, tree, value and verified files of each missing piece, as they come."""
        store = self._open_store()
        if self.cpus == 1 or len(missing) < 2:
            for i in missing:
                yield i, *_run_piece(function, pieces[i], store)
            return
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from concurrent.futures.process import BrokenProcessPool
        from multiprocessing import get_context

        global _pool_work
        _pool_work = (function, pieces, store)
        workers = min(self.cpus, len(missing))
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            futures = {pool.submit(_run_pooled, i): i for i in missing}
            failed: dict[int, BaseException] = {}
            try:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if error is None:
                        yield futures[future], *future.result()
                    else:  # those that run are kept; the first in order is told of
                        failed[futures[future]] = error
                        for waiting in futures:
                            waiting.cancel()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        if failed:
            error = failed[min(failed)]
            if isinstance(error, BrokenProcessPool):
                raise RuleError(
                    "a process that worked on a part of the data was killed",
                    code="E0704",
                    why="likely by the system for want of memory",
                    fix="give the target fewer cores: resources = { cpus = 1 }",
                ) from error
            raise error


_pool_work: tuple[Callable[[Piece, Path], Any], list[Piece], Store]
"""What forked children inherit: functions and payloads need no pickling that way."""


def _run_pooled(i: int) -> tuple[Any, Any, list[list[Any]]]:
    function, pieces, store = _pool_work
    return _run_piece(function, pieces[i], store)


def _run_piece(
    function: Callable[[Piece, Path], Any], piece: Piece, store: Store
) -> tuple[Any, Any, list[list[Any]]]:
    out = store.workspace()
    value = function(piece, out)
    return store.put_tree(out), value, store.take_verified()


def _is_of(record: Record, family: keys.Document) -> bool:
    return "fragment" in record.document and keys.family_document(record.document) == family


def _family(document: keys.Document) -> Digest:
    return keys.action_key(keys.family_document(document))


def artifact_from(plain: list[str]) -> Artifact:
    """Return an artifact from its plain form: kind, path, digest, label."""
    kind, path, digest, label = plain
    return KINDS_BY_NAME[kind](Path(path), Digest(digest), label)


def main() -> int:
    """Show or compare artifacts: `python -m ftbuild.worker`, one JSON request on standard input.

    The answer is one JSON line on the standard output that the process was started with;
    what libraries print there goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    from importlib import import_module

    viewer = import_module(request["module"])
    artifacts = [artifact_from(plain) for plain in request["artifacts"]]
    try:
        view = getattr(viewer, request["function"])(*artifacts, *request["arguments"])
        answer: dict[str, Any] = {"view": asdict(view)}
    except FtbuildError as error:
        answer = {"failed": [asdict(problem) for problem in error.problems]}
    answers.write(json.dumps(answer))
    answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
