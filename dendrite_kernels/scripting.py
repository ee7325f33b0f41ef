"""Modules that torch.jit.script refuses with a sentence."""


class NotScriptable:
    """A module whose forward pass is more Python than TorchScript knows."""

    def __prepare_scriptable__(self):
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script can't compile it (keyword-only arguments, KSparse or Tensor); "
            "use torch.compile, torch.export or torch.jit.trace"
        )
