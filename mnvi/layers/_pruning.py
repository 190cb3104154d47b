"""The pruned weights of a layer, as part of its state: a mask that every tool carries, and means that stay zero."""

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from .._torch.after_step import follow, unfollow
from .._torch.tracing import in_transform


class PrunableLayer(nn.Module):
    """Mixin before a torch layer with ``weight``, whose stored weight is 0 where the buffer ``pruned`` is not.

    ``pruned``, in the weight's shape, is part of the state from the start, so that checkpoints and averages of models
    carry it. It is floating-point, because averages take buffers for numbers, and of 16 bits. The stored weight is 0
    after every step of a torch optimiser, whatever its momentum. Something else may write into either in place:
    :meth:`settle_` puts that right. ``train()``, ``eval()``, loading, saving and a forward pass in eval mode call it.
    Where nothing is pruned, a forward pass costs nothing more.
    """

    weight: nn.Parameter
    pruned: Tensor

    def _register_pruned(self) -> None:
        self.register_buffer("pruned", torch.zeros(self.weight.shape, dtype=torch.float16, device=self.weight.device))
        self._is_pruned, self._seen = False, _identity(self.pruned)

    def _unregister_pruned(self) -> None:
        self._unfollow()
        for name in ("pruned", "_is_pruned", "_seen"):
            delattr(self, name)

    @property
    def is_pruned(self) -> bool:
        """Whether any weight is pruned, as of the last :meth:`settle_`."""
        return self._is_pruned

    def masked(self, weight: Tensor) -> Tensor:
        """``weight``, of the layer's weight's shape, with zeros where the layer is pruned."""
        return weight.masked_fill(self.pruned != 0, 0) if self._is_pruned else weight

    @torch.no_grad()
    def settle_(self) -> None:
        """Notice what was written into ``pruned``, and zero the stored mean where it is not 0.

        Called whenever something else may have written: by ``train()`` and ``eval()``, at the entry of
        :func:`mnvi.sampling` and :func:`mnvi.frozen_sample`, before saving and after loading.
        """
        mask = self.pruned
        if torch.compiler.is_compiling() or in_transform() or mask.is_meta:
            return
        version = _identity(mask)
        if version != self._seen:  # asking a device for numbers waits for it
            self._seen, self._is_pruned = version, bool((mask != 0).any())
        self._zero()

    def _notice(self) -> None:
        """:meth:`settle_` in eval mode, where an average may have got its mask after its last ``eval()``.

        While training it would ask the device at every forward pass for the buffers that DDP broadcasts.
        """
        if self.training or torch.compiler.is_compiling() or in_transform():
            return
        if _identity(self.pruned) != self._seen:
            self.settle_()

    def stepped(self, parameter: Tensor, optimiser: Optimizer) -> None:
        """After a step of an optimiser, whose momentum or weight noise may move pruned means."""
        self._zero()

    @torch.no_grad()
    def _zero(self) -> None:
        weight = self._parameters.get("weight")
        if not self._is_pruned or weight is None or weight.is_meta:
            return
        follow(weight, self)
        if torch.is_inference_mode_enabled() or not weight.is_inference():
            # Past the version counter: it would break the backward pass of a forward pass before, and needs not.
            weight.data.masked_fill_(_as_sharded(self.pruned != 0, weight), 0)

    def train(self, mode: bool = True):
        """As the torch layer's."""
        self.settle_()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._unfollow()
        super()._apply(fn, recurse)  # type: ignore[misc]
        weight = self._parameters.get("weight")
        if self._is_pruned and weight is not None:
            follow(weight, self)
        return self

    def _unfollow(self) -> None:  # torch swaps no tensors that are referred to weakly
        weight = self._parameters.get("weight")
        if weight is not None:
            unfollow(weight)

    def _save_to_state_dict(self, *args) -> None:
        self.settle_()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = prefix + "pruned"
        if key not in state_dict and (found := _earlier_mask(state_dict, prefix, self.pruned)) is not None:
            state_dict[key] = found
        self._unfollow()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._seen = None
        self.settle_()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_seen": None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if "pruned" not in self._buffers:  # pickled by the first version
            mask = self._buffers.pop("weight_mask", None)
            self._register_pruned()
            if mask is not None:
                self.pruned.copy_(mask == 0)
        self.settle_()


def _identity(tensor: Tensor) -> tuple[int, int | None]:
    """What changes when the tensor is written to or another takes its place."""
    return id(tensor), None if tensor.is_inference() else tensor._version


def _as_sharded(mask: Tensor, weight: Tensor) -> Tensor:
    """``mask`` as a tensor that goes with ``weight``: where FSDP2 shards the weight, every rank has the mask whole."""
    if not hasattr(weight, "device_mesh"):
        return mask
    from torch.distributed.tensor import DTensor, Replicate

    mesh = weight.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(mask, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _earlier_mask(state_dict: dict, prefix: str, like: Tensor) -> Tensor | None:
    """The buffer ``pruned`` of a layer's checkpoint that has none; None where there is nothing of a layer.

    The first version saved ``weight_mask``, 1 where a weight is left, with a pruned layer only. A torch layer says
    nothing of pruning: what there is stays. (``weight_mask`` beside ``weight_orig`` is that of torch's own pruning.)
    """
    own = [value for name, value in state_dict.items() if name.startswith(prefix + "posterior.")]
    if not own:
        return like if prefix + "weight" in state_dict else None
    if prefix + "weight_mask" in state_dict and prefix + "weight_orig" not in state_dict:
        return (state_dict.pop(prefix + "weight_mask") == 0).to(like.dtype)
    return torch.zeros_like(like, device=own[0].device)
