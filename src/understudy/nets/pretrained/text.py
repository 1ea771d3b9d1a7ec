"""Pretrained text networks of the package transformers, sentence-transformers and CLIP among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core import Unsupported, UserError
from ..linear import Linear
from ..text_encoder import TextEncoder
from .files import PretrainedFiles, PretrainedNet, import_extra, load_pretrained, transformers_model

_POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {  # (tokens, width) to (width,)
    "mean": lambda h: h.mean(0), "cls": lambda h: h[0], "max": lambda h: h.amax(0), "lasttoken": lambda h: h[-1]}
_MAX_SENTENCES = 10_000  # embeddings that a module remembers


@dataclass(frozen=True)
class TransformersText(TextEncoder):
    """A frozen text network of transformers. Each distinct sentence is embedded once, then a linear layer is trained.

    How the tokens of a sentence become one vector follows from the files:

    - A model of sentence-transformers is used as its ``modules.json`` says, without that package.
    - Of a network for images and texts (CLIP, SigLIP), the part for texts is used, and its pooled token.
    - Otherwise the vector is the mean over the tokens.

    Needs the extra `transformers`. Only safetensors are read, and no code from the hub. It cannot be exported to ONNX,
    which has no tokenizer.

    Args:
        weights: A folder that ``save_pretrained`` wrote, or ``"hf://OWNER/NAME[@REVISION]"`` such as
            ``"hf://sentence-transformers/all-MiniLM-L6-v2"`` or ``"hf://openai/clip-vit-base-patch32"``, which
            huggingface_hub downloads. A checkpoint of the policy needs neither.

    References:
        Reimers and Gurevych (2019), Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, arXiv:1908.10084.
        Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
    """

    weights: str

    def build(self, width):
        return _TransformersTextNet(self, width)


class _TransformersTextNet(PretrainedNet):
    model: Any  # a module of transformers
    tokenizer: Any

    def __init__(self, config: TransformersText, width: int):
        super().__init__()
        field_name = "TransformersText.weights"
        transformers = import_extra("transformers", "transformers", "TransformersText")
        self.files = files = PretrainedFiles.open(config.weights, field_name)

        def read():
            architecture = transformers.AutoConfig.from_pretrained(files.folder)
            part = getattr(architecture, "text_config", architecture)
            if getattr(part, "is_encoder_decoder", False):
                raise Unsupported(f"Networks with a decoder ({part.model_type}) cannot be read.",
                                  where=f"{field_name}, {config.weights}", hint="Use an encoder of texts, such as "
                                  "sentence-transformers/all-MiniLM-L6-v2 or the CLIP text encoder.")
            tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder)
            model = transformers_model(transformers.AutoModel, files, part, ("pooler.", "text_model.head."))
            return part is not architecture, tokenizer, getattr(model, "text_model", model)
        has_images, self.tokenizer, model = load_pretrained(read, config.weights, field_name)
        self.model = model.requires_grad_(False).eval()
        pooling, self.normalize, self.max_tokens = _sentence_options(files, field_name)
        self.pooling = pooling or ("pooled" if has_images else "mean")
        longest = getattr(model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.max_tokens = min(self.max_tokens or longest, longest, self.tokenizer.model_max_length)
        self.embeddings: dict[bytes, Tensor] = {}
        self.leave = Linear(model.config.hidden_size, width)

    def train(self, mode=True):
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise Unsupported("ONNX has no tokenizer, so a policy that reads texts with a pretrained network cannot be "
                              "exported.", where="TransformersText", hint="Use ByteEncoder, or run the checkpoint.")
        sentences = [row.tobytes().rstrip(b"\0") for row in x.cpu().numpy()]
        if new := [s for s in dict.fromkeys(sentences) if s not in self.embeddings]:
            if len(self.embeddings) + len(new) > _MAX_SENTENCES:
                self.embeddings, new = {}, list(dict.fromkeys(sentences))
            vectors = self.embed([s.decode("utf-8", "replace") for s in new])
            self.embeddings.update(zip(new, vectors.cpu(), strict=True))
        return self.leave(torch.stack([self.embeddings[s] for s in sentences]).to(x.device))

    @torch.no_grad()
    def embed(self, sentences: list[str]) -> Tensor:
        """Embed sentences one by one, (n, hidden size), so that no sentence changes the result of another."""
        device = next(self.model.parameters()).device
        vectors = []
        for sentence in sentences:
            tokens = self.tokenizer(sentence, truncation=True, max_length=self.max_tokens, return_tensors="pt")
            inputs = {k: v.to(device) for k, v in tokens.items() if k in ("input_ids", "attention_mask",
                                                                          "token_type_ids")}
            with torch.autocast(device.type, enabled=False):
                out = self.model(**inputs)
            hidden = out.last_hidden_state[0]  # without padding: every token counts
            vector = out.pooler_output[0] if self.pooling == "pooled" else _POOLINGS[self.pooling](hidden)
            vectors.append(vector / vector.norm().clamp(min=1e-12) if self.normalize else vector)
        return torch.stack(vectors).float()


def _sentence_options(files: PretrainedFiles, where: str) -> tuple[str | None, bool, int | None]:
    """What a model of sentence-transformers does with the tokens: the pooling (None if the files are of another
    library), whether vectors are normalized, and the largest number of tokens."""
    modules = files.json("modules.json")
    if modules is None:
        return None, False, None
    pooling, normalize = "mean", False
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(files.json(f"{module['path']}/config.json") or {}, where)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise Unsupported(f"Models of sentence-transformers with a module {kind} cannot be read.",
                              where=f"{where}, {files.weights}",
                              hint="Use one that consists of Transformer, Pooling and Normalize, such as "
                                   "sentence-transformers/all-MiniLM-L6-v2.")
    return pooling, normalize, (files.json("sentence_bert_config.json") or {}).get("max_seq_length")


def _pooling(settings: dict, where: str) -> str:
    names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
             "pooling_mode_lasttoken": "lasttoken"}
    chosen = settings.get("pooling_mode")
    chosen = [chosen] if isinstance(chosen, str) else list(chosen or ())
    chosen += [names.get(k, k) for k, v in settings.items() if k.startswith("pooling_mode_") and v is True]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise UserError(f"The pooling {', '.join(chosen) or 'none'} is not one of {', '.join(_POOLINGS)}.",
                        where=where, hint="Use another model.")
    return chosen[0]


