"""Building the model and the masks of a configuration."""

from __future__ import annotations

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.models.encoders import CNN, ConvEncoder, TimmEncoder, build_encoder, is_swin
from simmim.models.initial import initialize_as_published
from simmim.models.mae import MAE
from simmim.models.masking import Masking
from simmim.models.simmim import SimMIM, channel_statistics
from simmim.models.targets import TARGETS
from simmim_kernels import PatchNorm, WindowNorm

#: arguments of an encoder that do not come from --encoder-args
_GIVEN = {
    *("name", "img_size", "channels", "mean", "std", "drop_path"),
    *("in_chans", "num_classes", "global_pool", "drop_path_rate", "pretrained", "features_only"),
}
_WHY_GIVEN = "sizes, channels and drop path have flags of their own, and no weights are downloaded"


def build_masking(config: PretrainConfig) -> Masking:
    """The masks of ``config``; raises ``UserError`` where sizes do not fit."""
    return Masking(
        config.mask, config.mask_unit, config.mask_ratio, config.size, config.second_ratio
    )


def encoder_size(config: PretrainConfig) -> tuple[int, int]:
    """``(H, W)`` of the images that the encoder of ``config`` sees."""
    halved = config.method == "mae" and config.mask == "uniform" and is_swin(config.encoder)
    return (config.size[0] // 2, config.size[1] // 2) if halved else config.size


def encoder_of(config: PretrainConfig) -> TimmEncoder | ConvEncoder:
    """A newly initialised encoder; raises ``UserError`` where settings do not fit together."""
    mean, std = statistics(config)
    given = _GIVEN & config.encoder_args.keys()
    if given:
        raise UserError(f"--encoder-args cannot have {', '.join(sorted(given))}: {_WHY_GIVEN}")
    return build_encoder(
        config.encoder,
        img_size=encoder_size(config),
        channels=config.channels,
        mean=mean,
        std=std,
        pixels=not (config.mean and config.normalize),
        drop_path=config.drop_path,
        **{name: _argument(name, value) for name, value in config.encoder_args.items()},
    )


def build_model(config: PretrainConfig) -> SimMIM:
    """A newly initialised model; raises ``UserError`` where settings do not fit together."""
    mean, std = statistics(config)
    encoder = encoder_of(config)
    if config.mask_unit % encoder.patch:
        raise UserError(
            f"--mask-unit {config.mask_unit} is no multiple of the encoder's patch, "
            f"{encoder.patch} pixels: use {encoder.patch} or {2 * encoder.patch}"
        )
    _check_method(config)
    norms = {"window": WindowNorm(config.target_window), "patch": PatchNorm()}
    target = TARGETS[config.target]
    cell = getattr(target, "cell", 1)
    if config.mask_unit % cell:
        raise UserError(
            f"--target {config.target} has cells of {cell} pixels, and --mask-unit "
            f"{config.mask_unit} cuts them: use a multiple of {cell}"
        )
    options = {}
    if config.method == "mae":
        depth = 2 if is_swin(config.encoder) else 8
        options = {
            "img_size": config.size,
            "unit": config.mask_unit,
            "width": config.decoder_width,
            "depth": depth if config.decoder_depth == "auto" else config.decoder_depth,
            "heads": config.decoder_heads,
        }
    model = (MAE if options else SimMIM)(
        encoder,
        channels=config.channels,
        loss=config.loss,
        mean=mean if config.normalize else None,
        std=std if config.normalize else None,
        target_norm=norms.get(config.target_norm),
        target=target,
        sigmoid=not config.normalize,
        plain=config.plain,
        **options,
    )
    if config.init == "published" and config.method == "simmim":
        initialize_as_published(model)
    return model


def _check_method(config: PretrainConfig) -> None:
    swin = is_swin(config.encoder)
    uniform = config.mask == "uniform" and config.mask_ratio == 0.75
    if config.method == "mae" and swin and not uniform:
        raise UserError(
            f"--method mae leaves hidden patches out, and {config.encoder} needs a whole grid of them: "
            "give --mask uniform --mask-ratio 0.75, whose visible units form one, or a ViT"
        )
    if config.init == "published" and config.encoder == CNN:
        raise UserError("--init published is for transformers: leave it out")
    if config.second_ratio and not (config.method == "mae" and swin):
        raise UserError("--second-ratio is for --method mae with a Swin: leave it out")


def statistics(config: PretrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
