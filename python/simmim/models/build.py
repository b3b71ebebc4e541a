"""From a configuration to the model and the masks that it describes."""

from __future__ import annotations

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.models.encoders import ConvEncoder, TimmEncoder, build_encoder
from simmim.models.masking import Masking
from simmim.models.simmim import SimMIM, channel_statistics
from simmim_kernels import PatchNorm, WindowNorm

#: arguments of an encoder that do not come from --encoder-args
_GIVEN = {
    *("name", "img_size", "channels", "mean", "std", "drop_path"),
    *("in_chans", "num_classes", "global_pool", "drop_path_rate", "pretrained", "features_only"),
}
_WHY_GIVEN = "sizes, channels and drop path have flags of their own, and no weights are downloaded"


def build_masking(config: PretrainConfig) -> Masking:
    """The masks of ``config``; raises ``UserError`` where sizes do not fit."""
    return Masking(config.mask, config.mask_unit, config.mask_ratio, config.size)


def encoder_of(config: PretrainConfig) -> TimmEncoder | ConvEncoder:
    """A newly initialised encoder; raises ``UserError`` where settings do not fit together."""
    mean, std = _statistics(config)
    given = _GIVEN & config.encoder_args.keys()
    if given:
        raise UserError(f"--encoder-args cannot have {', '.join(sorted(given))}: {_WHY_GIVEN}")
    return build_encoder(
        config.encoder,
        img_size=config.size,
        channels=config.channels,
        mean=mean,
        std=std,
        pixels=not (config.mean and config.normalize),
        drop_path=config.drop_path,
        **{name: _argument(name, value) for name, value in config.encoder_args.items()},
    )


def build_model(config: PretrainConfig) -> SimMIM:
    """A newly initialised model; raises ``UserError`` where settings do not fit together."""
    mean, std = _statistics(config)
    encoder = encoder_of(config)
    if config.mask_unit % encoder.patch:
        raise UserError(
            f"--mask-unit {config.mask_unit} is no multiple of the encoder's patch, "
            f"{encoder.patch} pixels: use {encoder.patch} or {2 * encoder.patch}"
        )
    target_norm = {
        "none": lambda: None,
        "window": lambda: WindowNorm(config.target_window),
        "patch": PatchNorm,
    }[config.target_norm]
    return SimMIM(
        encoder,
        channels=config.channels,
        loss=config.loss,
        mean=mean if config.normalize else None,
        std=std if config.normalize else None,
        target_norm=target_norm(),
        sigmoid=not config.normalize,
        plain=config.plain,
    )


def _statistics(config: PretrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation as the kernels take them: of 8-bit images those of the numbers by 255."""
    if not config.mean:
        return channel_statistics(config.channels)
    unit = 255 if config.pixel_type == "uint8" else 1
    return tuple(m / unit for m in config.mean), tuple(s / unit for s in config.std)


def _argument(name: str, value: int | float | bool | str) -> object:
    """An encoder argument as timm takes it: ``"2,2"`` is a tuple of numbers."""
    if not isinstance(value, str) or "," not in value:
        return value
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise UserError(
            f"--encoder-args {name} {value}: between commas belong whole numbers"
        ) from None
