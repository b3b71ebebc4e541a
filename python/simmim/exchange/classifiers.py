"""Fine-tuned classifiers of others: their heads, their pooling and the names of their classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmim.config.exchange import ImportConfig
from simmim.config.images import BROUGHT, ENCODER, values_of
from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.exchange.files import Source
from simmim.exchange.settings import family_of
from simmim.exchange.timm import arguments_in
from simmim.models.build import encoder_of
from simmim.models.classifier import Classifier

State = dict[str, Tensor]
#: names of a classifier's head and norm in the files of others, with ours
HEADS = {
    "encoder.backbone.head.fc.": "head.",
    "encoder.backbone.head.": "head.",
    "encoder.backbone.fc_norm.": "fc_norm.",
    "classifier.": "head.",
    "encoder.backbone.classifier.": "head.",
    # mmpretrain's LinearClsHead and VisionTransformerClsHead
    "head.fc.": "head.",
    "head.layers.head.": "head.",
}


def finish_classifier(config: ImportConfig, trained: PretrainConfig, ours: State, source: Source):
    """The model to fill, the tensors for it, its settings and kind, and what there is to tell.

    Raises:
        UserError: no classifier, or one that does not classify by a mean over patches.
    """
    if source.project == "simmim":
        raise UserError(
            f"{config.source} is simmim's own: of simmim finetune all commands take it as it is"
        )
    renamed = {}
    for name, value in ours.items():
        head = next((h for h in HEADS if name.startswith(h)), None)
        renamed[HEADS[head] + name.removeprefix(head) if head else name] = value
    fc_norm = "fc_norm.weight" in renamed
    if renamed.get("head.weight", torch.empty(0)).dim() != 2 or "encoder.mask_token" in renamed:
        raise UserError(f"{config.source} holds no classifier: leave out --classifier")
    family = family_of(encoder_of(trained))
    _check_pooling(config, source, unknown=family in ("vit", "beit") and not fc_norm)
    settings = FinetuneConfig(**values_of(trained, (*ENCODER, *BROUGHT)), fc_norm=fc_norm)
    model = Classifier(encoder_of(trained), len(renamed["head.weight"]), fc_norm=fc_norm)
    renamed["encoder.mask_token"] = model.encoder.mask_token.detach()
    classes = model.head.out_features
    notes = [f"a classifier of {classes} classes; its mask token, which is not used, is new"]
    if family == "vit" and fc_norm and source.project == "timm" and source.timm is None:
        notes.append("taken for one by the mean over its patches (timm's global_pool='avg')")
    return model, renamed, settings.to_json(), "finetune", notes


def _check_pooling(config: ImportConfig, source: Source, unknown: bool) -> None:
    """Refuse a classifier that sees something else than the mean over its patches.

    Args:
        unknown: whether the tensors leave open what it sees.
    """
    ours = "simmim's classifiers see the mean over the patches"
    alone = "take its encoder alone with --encoder-only"
    if source.timm is not None:
        given = arguments_in(source.timm)
        pooling = given.get("global_pool", source.timm.get("global_pool", "avg"))
        if pooling != "avg" or given.get("pool_include_prefix"):
            how = repr(pooling) if pooling != "avg" else "'avg' with pool_include_prefix"
            raise UserError(f"{config.source} has global_pool {how}, but {ours}: {alone}")
        return
    if not unknown or (source.project == "timm" and config.pool == "mean"):
        return
    if source.project != "timm":
        raise UserError(
            f"{config.source} holds a ViT that classifies by its class token, but {ours}: {alone}"
        )
    raise UserError(
        f"{config.source} holds a ViT without fc_norm, and no config.json of timm's beside it says what it "
        f"classifies by, but {ours}: if it was made with global_pool='avg', add --pool mean; if by "
        f"its class token, {alone}"
    )


def class_names(config: ImportConfig, source: Source, ours: State) -> list[str]:
    """The names that the configuration of transformers or timm gives the classes of a classifier."""
    if not config.classifier:
        return []
    said: Any = (source.transformers or {}).get("id2label")
    said = (source.timm or {}).get("label_names", said)
    numbers = [str(number) for number in range(len(ours["head.weight"]))]
    if isinstance(said, list) and len(said) == len(numbers):
        said = dict(zip(numbers, said, strict=True))
    if not isinstance(said, dict) or said.keys() != set(numbers):
        return []
    return [str(said[number]) for number in numbers]
