"""What a run reads, and what was decided of it: opened, judged, compared with what the run was started on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext

from attrs import Factory, field, frozen

from apr_train.checkpoint.apr.reader import AprReader
from apr_train.checkpoint.apr.shards import ShardedReader
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.data.bpe import train_bpe
from apr_train.data.corpus import Corpus, EncodingWanted, load_corpus
from apr_train.data.decided import default_row
from apr_train.data.look import Look, look_at
from apr_train.data.source import objective_of
from apr_train.data.split import SPLIT_RULE
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.data.unchanged import Unchanged
from apr_train.errors import ConfigError, PreflightError
from apr_train.model.acceleration import compiler_fault, make_deterministic
from apr_train.model.device import choose_device, default_precision
from apr_train.preflight import Report
from apr_train.preflight.growing import added_tokens, grown_source
from apr_train.preflight.machine_rules import device_findings
from apr_train.preflight.opening import open_source
from apr_train.preflight.report import Cleared, with_findings
from apr_train.preflight.run_rules import judge_run, open_run_source, tokenizer_is_lost
from apr_train.preflight.token_rules import corpus_findings, no_tokenizer
from apr_train.run.events import Say
from apr_train.run.identity import RunIdentity, check_identity, read_identity
from apr_train.run.progress import doing, stage_bars
from apr_train.run.resume import Resume
from apr_train.run.settings import RunSettings, Settings
from apr_train.training.defaults import Decided, decide
from apr_train.training.processes import Processes


@frozen(kw_only=True)
class Examined:
    """What a run would start from, open, and what the preflight says of it."""

    checkpoint: Checkpoint | None
    """None: the run starts from scratch."""
    header: Header | None
    """The checkpoint's, its tie decided."""
    report: Report
    unchanged: Unchanged = field(repr=False)
    """The readings of text that need not be read again: so a large corpus is gone through once."""


@frozen(kw_only=True)
class Inputs:
    """What a run reads, decided and compared with what it was started on, before anything of the run is made."""

    decided: Decided
    cleared: Cleared
    header: Header | None
    """Of the checkpoint that the weights come from: provenance is inherited from it."""
    tokenizer: Tokenizer
    corpus: Corpus
    identity: RunIdentity
    added: Mapping[str, int] = Factory(dict)
    """Tokens that the run adds to the vocabulary, with their ids."""
    processes: Processes = field(factory=Processes)
    """Those that share the run."""


@contextmanager
def examine(asked: Settings, resume: Resume | None = None) -> Iterator[Examined]:
    """Open the source of the weights and judge the run; the report may hold errors. The source is closed at the end.

    Asks torch for deterministic algorithms, where the run wants them: not every backend's operators are, and one that is
    tried out without would be refused at the first step.

    Raises:
        PreflightError: when the source cannot be opened, with all that can be known without it.
    """
    if asked.run.deterministic:
        make_deterministic()
    device, precision = _machine(asked.run)
    unchanged = Unchanged(believe=resume is None and not asked.data.rehash)
    look = look_at(asked.data, objective_of(asked), unchanged=unchanged)
    with ExitStack() as held:
        checkpoint, ungrown = grown_source(asked, _opened(asked, resume, device, look, held), resume)
        header, report = judge_run(
            asked,
            checkpoint,
            look=look,
            default_row=default_row(device),
            device=device,
            precision=precision,
            resume=resume,
        )
        yield Examined(checkpoint=checkpoint, header=header, report=with_findings(report, ungrown), unchanged=unchanged)


def _machine(run: RunSettings) -> tuple[str, str]:
    """Device and precision by name, as asked for or chosen; a device that is not here is left for the preflight to find."""
    if run.device is not None and device_findings(run.device):
        return run.device, run.precision or "fp32"
    device = choose_device(run.device)
    return str(device), run.precision or default_precision(device)


def _opened(asked: Settings, resume: Resume | None, device: str, look: Look, held: ExitStack) -> Checkpoint | None:
    checkpoint = open_run_source(asked, look=look, device=device, resume=resume)
    return None if checkpoint is None else held.enter_context(checkpoint)


def gather(
    asked: Settings,
    resume: Resume | None,
    examined: Examined,
    cleared: Cleared,
    say: Say,
    shown: bool,
    processes: Processes,
) -> Inputs:
    """Settle the settings, and find or make tokenizer and tokens."""
    device = choose_device(asked.run.device)
    decided = decide(
        asked,
        family=cleared.family.info,
        config=cleared.config,
        objective=cleared.objective,
        device=device,
        processes=processes.size,
    )
    decided = _compiled_if_possible(decided, asked, say, processes)
    _require_rows(decided.batch_size, processes)
    tokenizer = build_tokenizer(_tokenizer_for(decided.settings, cleared, resume, say))
    _verify_once(examined.checkpoint, processes)
    init = processes.once_a_machine("init", lambda: _init_hash(decided.settings, examined.checkpoint, resume, say, shown=shown))

    def identity(corpus: str) -> RunIdentity:
        return RunIdentity(corpus=corpus, tokenizer=tokenizer.fingerprint, init=init, split=SPLIT_RULE)

    def require_same(corpus: str) -> None:
        if resume is not None:
            check_identity(read_identity(resume.folder), identity(corpus), named=_places(decided.settings))

    corpus = _corpus(decided, cleared, tokenizer, examined, say, shown=shown, hashed=require_same)
    if tokenizer_is_lost(asked, examined.header, resume):
        say(f"{asked.model.tokenizer} is gone: the checkpoint holds the same tokenizer")
    return Inputs(
        decided=decided,
        cleared=cleared,
        header=examined.header,
        tokenizer=tokenizer,
        corpus=corpus,
        identity=identity(corpus.hash),
        added=added_tokens(asked, examined.checkpoint, resume),
        processes=processes,
    )


def _corpus(
    decided: Decided,
    cleared: Cleared,
    tokenizer: Tokenizer,
    examined: Examined,
    say: Say,
    *,
    shown: bool,
    hashed: Callable[[str], None],
) -> Corpus:
    """The text as tokens; `hashed` is called with its hash, before a text that the run was not started on is tokenised.

    Raises:
        PreflightError: for an id that the model has no row for.
    """
    told = {f"warning: {finding}" for finding in examined.report.warnings}
    with stage_bars() if shown else nullcontext() as progress:
        corpus = load_corpus(
            decided.settings.data,
            tokenizer,
            objective=cleared.objective,
            options=encoding_wanted(decided, cleared),
            unchanged=examined.unchanged,
            hashed=hashed,
            progress=progress,
            notice=_unless(told, say),
        )
    if findings := corpus_findings(corpus.max_token_id, cleared.config):
        raise PreflightError(findings)
    return corpus


def _verify_once(checkpoint: Checkpoint | None, processes: Processes) -> None:
    """Compare a file's checksum, once a machine, where each process will read only its part of the file."""
    if processes.several and isinstance(checkpoint, AprReader | ShardedReader):
        processes.once_a_machine("checksum", checkpoint.verify_once)
        checkpoint.count_as_verified()


def _compiled_if_possible(decided: Decided, asked: Settings, say: Say, processes: Processes) -> Decided:
    """The same, not compiled where torch.compile does not work; says so, or what it was decided to do."""
    if not decided.settings.run.compile:
        return decided
    fault = processes.once_a_machine("compiler", lambda: compiler_fault(decided.device))
    if fault is not None:
        say(f"{fault}: the run goes on without --compile")
        return decided.uncompiled()
    if asked.run.compile is None:
        say("a run of so many operations is compiled, which takes the first step longer; --no-compile says no")
    return decided


def _require_rows(rows: int, processes: Processes) -> None:
    if rows < processes.size:
        expected = f"at least {processes.size}, one for each process"
        raise ConfigError("fewer rows than processes", where="--batch-size", expected=expected, found=rows)


def encoding_wanted(decided: Decided, cleared: Cleared) -> EncodingWanted:
    """What decides the ids of a run beside its text, its tokenizer and the settings of the data."""
    return EncodingWanted(
        sequence_length=decided.sequence_length,
        seed=decided.settings.run.seed,
        fim_tokens=cleared.family.info.fim_tokens,
    )


def _places(settings: Settings) -> dict[str, str]:
    """Where the inputs of an identity lie."""
    model = settings.model
    paths = [path for item in settings.data.source for path in item.path]
    return {
        "corpus": ", ".join([*settings.data.data, *paths, *settings.data.val_data]),
        "tokenizer": model.tokenizer or "",
        "init": model.init or "",
    }


def _unless(told: Collection[str], say: Say) -> Say:
    """Says what is not among `told`."""
    return lambda text: None if text in told else say(text)


def _tokenizer_for(settings: Settings, cleared: Cleared, resume: Resume | None, say: Say) -> TokenizerSpec:
    """The tokenizer that the preflight has seen; without any, a byte-level BPE of the model's vocabulary from the corpus.

    Raises:
        DataError: when there is no text to learn from.
        PreflightError: PREFLIGHT-017; pretrained weights know nothing of the ids of a new tokenizer.
    """
    if cleared.tokenizer is not None:
        return cleared.tokenizer
    if settings.model.init is not None:
        raise PreflightError([no_tokenizer(needed=True)])
    size = cleared.config.vocab_size
    say(f"no tokenizer given: a byte-level BPE of {size:,} tokens is made from the corpus, once")
    return train_bpe(
        settings.data,
        size,
        objective=cleared.objective,
        encoder=cleared.family.info.kind == "encoder",
        believe=resume is None,
        notice=say,
    )


def _init_hash(settings: Settings, source: Checkpoint | None, resume: Resume | None, say: Say, *, shown: bool) -> str | None:
    """The content hash of the file of `--init`; of a resumed run's, as far as the file is still there."""
    path = settings.model.init
    if path is None:
        return None
    if resume is None and source is not None:
        with doing(_HASHING, shown=shown):
            return source.content_hash()
    if resume is not None and resume.lost("init", path):
        say(f"{path} is gone: whether it is still what the run started from cannot be checked")
        return read_identity(resume.folder).init
    with doing(_HASHING, shown=shown), open_source(path) as checkpoint:
        return checkpoint.content_hash()


_HASHING = "hashing the weights that the run starts from"
