"""`apr_train.load` and `apr_train.generate`: any checkpoint as a model and its tokenizer, ready to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from attrs import field, frozen

from apr_train.api.options import LoadOptions, Place, WritingOptions, check_names, wanted_model
from apr_train.errors import ConfigError
from apr_train.run.events import Say
from apr_train.run.progress import no_bar, progress_bar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from apr_train.checkpoint.header import Kind
    from apr_train.data.tokenizer import Tokenizer
    from apr_train.inference.fill import Filler
    from apr_train.inference.generate import Continuation, Ends, Sampling
    from apr_train.inference.ready import Ready, Wanted


@frozen(kw_only=True)
class LoadedModel:
    """A model in evaluation mode, without gradients, with the tokenizer of its file; call it with a text for its logits."""

    path: str
    """What was loaded."""
    family: str
    kind: Kind
    """`decoder` or `encoder`."""
    device: str
    ready: Ready = field(repr=False)
    """What the commands know of it: config, header, objective, precision, attention, report of the load."""

    @property
    def model(self) -> nn.Module:
        """The module: an `apr_train.model.LanguageModel`."""
        return self.ready.model

    @property
    def tokenizer(self) -> Tokenizer:
        """`encode`, `decode`, `size`, and `backend`, which is the Hugging Face tokenizer."""
        return self.ready.tokenizer

    @property
    def positions(self) -> int:
        """Tokens that the model takes at most."""
        return self.ready.config.usable_positions

    def __call__(self, text: str | Sequence[int]) -> Tensor:
        """Logits `[length, vocab]`, in float32 on the CPU, of a text (with its bos and eos) or of ids.

        Raises:
            ConfigError: no ids, more than the model has positions, or one outside its vocabulary.
        """
        from apr_train.inference.logits import logits_of

        return logits_of(self.ready, self.tokenizer.encode(text, special=True) if isinstance(text, str) else text)

    def generate(self, prompt: str, **how: Unpack[WritingOptions]) -> Continuation:
        """Continue a text, as `apr-train generate --prompt` does: `text`, `tokens`, `prompt_tokens`, `stopped_by`.

        Raises:
            DataError: an empty prompt, or one that is no Unicode text.
            ConfigError: a value out of range, more than the positions take, or an encoder, which continues nothing.
        """
        from apr_train.inference.generate import continue_text

        sampling, ends = self._how(how, "generate")
        return continue_text(self.ready, prompt, sampling=sampling, ends=ends, emit=how.get("emit"))

    def infill(self, prefix: str, suffix: str, *, fim_tokens: str | None = None, **how: Unpack[WritingOptions]) -> Continuation:
        """Write what stands between two texts, as `apr-train generate --prefix --suffix` does.

        Raises:
            TokenizerError: the tokenizer has no tokens around a hole (FIM-001, FIM-002).
            DataError: both texts are empty, or one is no Unicode text.
            ConfigError: as `generate`.
        """
        from apr_train.inference.infill import infill, tokens_for

        sampling, ends = self._how(how, "infill")
        tokens = tokens_for(self.ready, fim_tokens)
        return infill(self.ready, prefix, suffix, tokens=tokens, sampling=sampling, ends=ends, emit=how.get("emit"))

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Filler]]:
        """The likeliest tokens for each mask of a text, as `apr-train generate --fill-mask` gives them.

        Raises:
            DataError: the text has no mask.
            ConfigError: the text is too long, or the model is a decoder, which fills none.
        """
        from apr_train.inference.fill import fill_mask

        self._require("encoder", "fill_mask")
        return fill_mask(self.ready, text, count=top_k)

    def _how(self, given: WritingOptions, where: str) -> tuple[Sampling, Ends]:
        from apr_train.inference.generate import Ends, Sampling, ends_of_text

        check_names(given, WritingOptions, where=where)
        self._require("decoder", where)
        chosen: Mapping[str, Any] = given
        draws = {name: chosen[name] for name in ("temperature", "top_p", "top_k", "seed") if chosen.get(name) is not None}
        stop, most = given.get("stop", ()), given.get("max_tokens")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            raise ConfigError("an empty text is everywhere", where="stop", expected="a text to end before")
        if most is not None and most < 1:
            raise ConfigError("too small", where="max_tokens", expected="at least 1", found=most)
        return Sampling(**draws), Ends(max_tokens=most, stop=stops, tokens=ends_of_text(self.ready))

    def _require(self, kind: Kind, what: str) -> None:
        if self.kind != kind:
            raise ConfigError(f"{what} is nothing for this model", where=self.path, expected=kind, found=self.kind)


def load(path: Place, *, notice: Say | None = None, progress: bool = False, **how: Unpack[LoadOptions]) -> LoadedModel:
    """Load any checkpoint: .apr, safetensors, GGUF, a Hugging Face folder, a run's folder.

    Args:
        path: the checkpoint.
        notice: called with each warning.
        progress: whether a bar is drawn on standard error.
        how: see `LoadOptions`.

    Raises:
        AprTrainError: for whatever is wrong; all faults at once.
    """
    return load_model(wanted_model(path, how, where="load"), say=notice or _unheard, progress=progress)


def load_model(wanted: Wanted, *, kind: Kind | None = None, say: Say, progress: bool) -> LoadedModel:
    """Load a model to write with; `kind`: what it must be.

    Raises:
        AprTrainError: for whatever is wrong; all faults at once.
    """
    from apr_train.inference.generate import writing_precision
    from apr_train.inference.ready import make_ready, opened

    bar = progress_bar if progress else no_bar
    with opened(wanted, kind=kind, say=say) as examined, bar("loading", examined.total_bytes) as advance:
        ready = make_ready(examined, precision=writing_precision(examined.device), progress=advance)
    info = ready.family.info
    return LoadedModel(path=ready.path, family=info.name, kind=info.kind, device=str(ready.device), ready=ready)


def generate(
    model: Place | LoadedModel, prompt: str, *, load_options: LoadOptions | None = None, **how: Unpack[WritingOptions]
) -> Continuation:
    """Continue a text with a decoder: one that `load` gave, or a checkpoint, which is loaded for this.

    Args:
        model: what goes on.
        prompt: the start of the text.
        load_options: how a checkpoint is loaded, as the keywords of `load`.
        how: see `WritingOptions`.

    Raises:
        AprTrainError: for whatever is wrong.
    """
    check_names(how, WritingOptions, where="generate")
    if not isinstance(model, LoadedModel):
        wanted = wanted_model(model, load_options or {}, where="generate")
        model = load_model(wanted, kind="decoder", say=_unheard, progress=False)
    return model.generate(prompt, **how)


def _unheard(text: str) -> None:
    """Nobody asked for notices."""
