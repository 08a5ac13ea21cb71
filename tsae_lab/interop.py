"""The TSAE as a module that other people's evaluations expect: one thin face over the functions.

2-D input is tokens that stand alone (an empty memory before each), 3-D input is sequences.
`decode(encode(x)) == forward(x)`, always: all that the decoder uses is in the features.
"""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import tsae
from tsae_lab.data.language_model import fast_dtype
from tsae_lab.jobs import checkpoint, schedules, sharing, training
from tsae_lab.jobs.training import Recipe, Trainer

NOT_TRAINED = "scale"  # the unit of the LSTMs; a buffer


@dataclass
class FaceConfig:
    """What a TSAE is and where it belongs; may be changed by who evaluates it."""

    d_in: int
    d_sae: int
    model_name: str
    hook_name: str
    hook_layer: int
    k: int
    window_size: int
    lstm_hidden_size: int
    """units of the decoder LSTM"""
    device: str = "cpu"
    dtype: str = "float32"
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    context_size: int | None = None
    """positions of the sequences it was trained on, where that is known"""
    prepend_bos: bool = True

    def architecture(self) -> str:
        """Its kind, as SAELens asks for it."""
        return "tsae"

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the architecture."""
        return asdict(self) | {"architecture": self.architecture()}


class TSAE(nn.Module):
    """A TSAE, or a static SAE as one, its tensors as parameters `W_enc`, `b_enc`, `W_dec` ..."""

    W_enc: nn.Parameter
    scale: Tensor

    def __init__(self, sae: tsae.Sae, *, model_name: str, hook_name: str) -> None:
        super().__init__()
        for name, tensor in tsae.tensors(sae.params).items():
            if name == NOT_TRAINED:
                self.register_buffer(name, tensor.clone())
            else:
                self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
        self._dials, self._threshold = sae.dials, "threshold" in dict(self.named_parameters())
        d_in, d_sae = sae.params.static.W_enc.shape
        layer = "".join(filter(str.isdigit, hook_name.split(".hook")[0])) or "-1"
        self.cfg = FaceConfig(
            d_in=d_in,
            d_sae=d_sae,
            model_name=model_name,
            hook_name=hook_name,
            hook_layer=int(layer),
            k=sae.dials.k,
            window_size=sae.dials.window,
            lstm_hidden_size=len(sae.params.temporal.dec_W_h),
        )
        self._say()

    @property
    def sae(self) -> tsae.Sae:
        """The same model for the functions of `tsae`, on the same tensors."""
        named = dict(self.named_parameters()) | dict(self.named_buffers())
        params = tsae.params_from(named)
        if self._threshold:
            static = tsae.Thresholded(**vars(params.static), threshold=named["threshold"])
            params = tsae.Params(static=static, temporal=params.temporal)
        return tsae.Sae(params=params, dials=self._dials)

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    def _say(self) -> None:
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self._say()
        return moved

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Dense features, at most `k` per token; ValueError unless 2-D or 3-D."""
        sae = self.sae
        codes, _ = tsae.encode(sae.params, _sequences(x), sae.dials)
        return tsae.dense(codes, sae.d_sae).view(*x.shape[:-1], sae.d_sae).to(x.dtype)

    def decode(self, features: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction from features, which may have been edited."""
        sae, dense = self.sae, _sequences(features)
        width = max(int((dense != 0).sum(-1).max()), 1) if dense.numel() else 1
        idx = dense.abs().topk(width, dim=-1).indices
        x_hat, _ = tsae.decode(sae.params, tsae.Codes(dense.gather(-1, idx), idx), sae.dials)
        return x_hat.view(*features.shape[:-1], self.cfg.d_in).to(features.dtype)

    def forward(
        self, x: Float[Tensor, "*batch d_in"], output_features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`decode(encode(x))`, and the features if they are wanted."""
        features = self.encode(x)
        x_hat = self.decode(features)
        return (x_hat, features) if output_features else x_hat

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TSAE":
        """What `save_pretrained` or a run wrote, or an SAE that `checkpoint.load_saelens` reads."""
        sae, cfg = checkpoint.load_sae(Path(folder))
        named = cfg | (cfg.get("metadata") or {})
        model, hook = (named.get(name) or "" for name in ("model_name", "hook_name"))
        face = TSAE(sae, model_name=model, hook_name=hook)
        face.cfg.context_size = named.get("context_size")
        return face

    def save_pretrained(self, folder: str | Path) -> None:
        """A folder as a run writes it, with a card; its static part in the SAELens format."""
        sae, cfg = tsae.to(self.sae, dtype=torch.float32), self.cfg
        checkpoint.save_sae(Path(folder), sae, model_name=cfg.model_name, hook_name=cfg.hook_name)
        sharing.write_card(Path(folder), {})


class CustomSAE(TSAE):
    """A TSAE that is not trained yet, by the arguments of the project's first sketch."""

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        hook_layer: int,
        model_name: str = "EleutherAI/pythia-70m-deduped",
        hook_name: str | None = None,
        window_size: int = 16,
        lstm_hidden_size: int = 256,
        *,
        k: int = 32,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        static = tsae.init_static(torch.zeros(d_in), d_sae, generator=generator)
        params = tsae.from_static(
            static, scale=1.0, hidden_dec=lstm_hidden_size, generator=generator
        )
        dials = tsae.Dials(k=min(k, d_sae), window=window_size)
        hook = hook_name or f"blocks.{hook_layer}.hook_resid_post"
        super().__init__(
            tsae.Sae(params=params, dials=dials), model_name=model_name, hook_name=hook
        )
        self.cfg.hook_layer = hook_layer


class CustomTrainer:
    """A run's recipe, step by step on activations that others hand over, by the arguments of the
    project's first sketch.

    `steps` is the whole of the training, static pretraining included, over which the schedules run.
    `l1_penalty` and `resample_steps` have no place in a top-k recipe: a warning says so.
    """

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        lr: float = Recipe.lr,
        l1_penalty: float | None = None,
        warmup_steps: int = Recipe.warmup,
        resample_steps: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        layer: int | None = None,
        lm_name: str = "",
        wandb_name: str = "CustomTrainer",
        submodule_name: str | None = None,
        window_size: int = Recipe.window,
        lstm_hidden_size: int = Recipe.hidden_dec,
        *,
        steps: int = 300,
        k: int = Recipe.k,
    ) -> None:
        for name, value, instead in (
            ("l1_penalty", l1_penalty, "k sets how many features are active"),
            ("resample_steps", resample_steps, "an auxiliary loss revives dead features"),
        ):
            if value:
                warnings.warn(f"{name}={value} does nothing here: {instead}", stacklevel=2)
        self.recipe = Recipe(
            k=k, d_sae=dict_size, window=window_size, hidden_dec=lstm_hidden_size, lr=lr,
            warmup=warmup_steps, k_aux=min(Recipe.k_aux, dict_size),
        )  # fmt: skip
        shares = {n: getattr(self.recipe, n) for n in ("pretrain", "settle", "introduce")}
        self._phases = schedules.phase_steps(steps, **shares)
        self._device, self._seed, self._next = torch.device(device), seed, 0
        self._trainer: Trainer | None = None
        hook = submodule_name or (f"blocks.{layer}.hook_resid_post" if layer is not None else "")
        self._names = {"model_name": lm_name, "hook_name": hook}
        self.config = asdict(self.recipe) | self._names
        self.config |= {"activation_dim": activation_dim, "steps": steps, "seed": seed}
        self.config |= {"wandb_name": wandb_name, "device": str(device), "layer": layer}

    def update(self, step: int, acts: Float[Tensor, "*batch d_in"]) -> dict[str, Any]:
        """Take the next step, on sequences (3-D) or on tokens that stand alone (2-D), which teach a
        memory nothing; what a run's log says of it.

        ValueError for another step than the next, one after the last, and another width.
        """
        if step != self._next or step >= self._phases.total:
            last = self._phases.total - 1
            raise ValueError(f"update needs step {self._next} next, of 0 to {last}; got {step}")
        if acts.shape[-1] != self.config["activation_dim"]:
            width = f"activation_dim={self.config['activation_dim']}"
            raise ValueError(f"update needs acts of {width}; got {tuple(acts.shape)}")
        if step == 0 and acts.ndim == 2:
            warnings.warn("acts are tokens that stand alone: they teach no memory", stacklevel=2)
        x = _sequences(acts).detach().to(self._device, torch.float32)
        trainer, low = self._started(x), fast_dtype(self._device)
        settings = {"recipe": self.recipe, "phases": self._phases, "low": low}
        self._trainer, info = training.train_step(trainer, x, x.new_ones(x.shape[:2]), step,
                                                  **settings)  # fmt: skip
        self._next += 1
        return training.fetched([info])[0]

    def _started(self, x: Tensor) -> Trainer:
        """The trainer before the next step: begun at the first, a TSAE after the pretraining."""
        generator = torch.Generator().manual_seed(self._seed)
        trainer = self._trainer
        if trainer is None:
            static = tsae.init_static(x.flatten(0, 1).mean(0), self.recipe.d_sae,
                                      generator=generator)  # fmt: skip
            trainer = training.start_trainer(tsae.tensors(static), self.recipe)
        if self._next == self._phases.pretrain:
            generator.manual_seed(1_000 + self._seed)
            scale = (x - trainer.named["b_dec"].detach()).square().mean().sqrt().item()
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            low = fast_dtype(self._device)
            return training.start_temporal(trainer, scale, x, valid, self.recipe, low, generator)
        return trainer

    @property
    def ae(self) -> TSAE:
        """The model as it is now, on tensors of its own; a static SAE during the pretraining.

        ValueError before the first step.
        """
        if self._trainer is None:
            raise ValueError("ae needs a step of update first: it begins at the acts' mean")
        if self._next <= self._phases.pretrain:
            sae = tsae.static_sae(training.static_of(self._trainer), self.recipe.k)
        else:
            params = training.params_of(self._trainer)
            sae = tsae.Sae(params=params, dials=training.final_dials(self.recipe))
        return TSAE(sae, **self._names)


def _sequences(x: Tensor) -> Tensor:
    """Sequences of one token for 2-D input; ValueError unless it is 2-D or 3-D."""
    if x.ndim not in (2, 3):
        raise ValueError(
            f"a TSAE needs (tokens, width) or (batch, seq, width); got {tuple(x.shape)}"
        )
    return x[:, None] if x.ndim == 2 else x
