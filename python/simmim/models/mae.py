"""MAE: an encoder that sees the visible patches alone, and a decoder that predicts the hidden ones."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from simmim.errors import UserError
from simmim.models import published
from simmim.models.encoders import TimmEncoder
from simmim.models.masking import nothing_hidden
from simmim.models.simmim import SimMIM
from simmim.models.targets import outputs_of
from simmim_kernels import MaskedLastBlock, PatchMask, restore_tokens


class MAE(SimMIM):
    """A masked autoencoder (He et al., CVPR 2022): ``forward`` gives the loss.

    A ViT encodes the visible patches alone. A Swin, whose windows need a whole grid, gets the visible
    units of a uniform mask, one of every 2 x 2, as an image of half the side (UM-MAE, Li et al., 2022).
    The decoder sees all tokens: the encoder's in their places, a learnt mask token in all others.
    Of its last block, its norm and the head only hidden tokens are computed.

    Args:
        encoder: a timm ViT for images of ``img_size``, or a Swin or SwinV2 for half of it.
        img_size: ``(H, W)`` in pixels.
        unit: pixels a side of the mask's units; Swin's decoder has a token for each of them, a ViT's
            one for each patch.
        width, depth, heads: of the decoder, the published one by default.
        options: as ``SimMIM``'s; the published loss is ``loss="mse"``, ``target_norm=PatchNorm()``.

    Raises:
        UserError: an encoder of another family, sizes that do not fit.
    """

    eps = 0.0

    def __init__(
        self,
        encoder: TimmEncoder,
        *,
        img_size: tuple[int, int],
        unit: int,
        channels: int = 3,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        **options: object,
    ) -> None:
        super().__init__(encoder, channels=channels, **options)
        self.hierarchical = is_hierarchical(encoder)
        self.stride = unit if self.hierarchical else encoder.patch
        self.finer, rest = divmod(encoder.stride, self.stride)
        if rest or width % heads or width % 4:
            raise UserError(
                f"--mask-unit {unit} must divide the encoder's stride of {encoder.stride} pixels"
                if rest
                else f"--decoder-width {width} must be a multiple of 4 and of --decoder-heads {heads}"
            )
        self.prefix = 0 if self.hierarchical else encoder.backbone.num_prefix_tokens
        norm = partial(nn.LayerNorm, eps=encoder.backbone.norm.eps)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_embed = nn.Linear(encoder.width, width * self.finer**2)
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.decoder_norm = norm(width)
        self.head = nn.Linear(width, outputs_of(self.target, channels, self.stride))
        grid = img_size[0] // self.stride, img_size[1] // self.stride
        self.register_buffer("decoder_pos_embed", sine_cosine(grid, width, self.prefix))
        self._last = MaskedLastBlock(self.decoder_blocks[-1], prefix_tokens=self.prefix)
        self._initialize()

    def _initialize(self) -> None:
        """Weights as in the published code, in encoder and decoder; positions of a ViT are fixed."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        backbone = self.encoder.backbone
        nn.init.xavier_uniform_(backbone.patch_embed.proj.weight.flatten(1))
        tokens = (getattr(backbone, name, None) for name in ("cls_token", "reg_token"))
        for token in (self.mask_token, *tokens):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        # of use to Swin alone, under a secondary mask
        self.encoder.mask_token.requires_grad_(self.hierarchical)
        pos = getattr(backbone, "pos_embed", None)
        if pos is not None:
            grid = backbone.patch_embed.grid_size
            prefix = pos.shape[1] - grid[0] * grid[1]
            pos.requires_grad_(False).copy_(sine_cosine(grid, pos.shape[2], prefix))

    def no_weight_decay(self) -> set[str]:
        """Names of this module's own parameters that weight decay must leave alone."""
        return {"mask_token"}

    def forward(
        self,
        images: Tensor,
        mask: PatchMask,
        reduction: str = "mean",
        with_data: Tensor | None = None,
        second: PatchMask | None = None,
    ) -> Tensor:
        """Loss on the hidden pixels of images ``(B, C, H, W)``: a scalar, or ``(B,)``.

        Args:
            with_data: as ``SimMIM``'s.
            second: for Swin, a mask on the grid of visible units, whose tokens are replaced by the
                encoder's mask token (UM-MAE's secondary masking).
        """
        mask = mask.on_grid(self._grid(images))
        x = self._before_last(images, mask, second)
        if self.plain:
            whole = self._predict(self.decoder_blocks[-1](x))
            return self.score(whole, images, mask, reduction, with_data)
        hidden = self._head(self.decoder_norm(self._last(x, mask)))
        return self.score(hidden, images, mask, reduction, with_data)

    def predict_tokens(self, images: Tensor, mask: PatchMask) -> Tensor:
        """Predictions ``(B, L, N)`` of all tokens, as ``SimMIM``'s."""
        x = self._before_last(images, mask.on_grid(self._grid(images)), None)
        return self._predict(self.decoder_blocks[-1](x))

    def _predict(self, x: Tensor) -> Tensor:
        return self._head(self.decoder_norm(x)[:, self.prefix :])

    def _before_last(self, images: Tensor, mask: PatchMask, second: PatchMask | None) -> Tensor:
        """What the decoder's last block takes."""
        if self.hierarchical:
            visible = self._encode_small(images, mask, second)
        else:
            visible = self.decoder_embed(self.encoder.visible_tokens(images, mask))
        if self.plain:
            first, visible = visible.split((self.prefix, visible.shape[1] - self.prefix), 1)
            x = published.restore_tokens(visible, mask, self.mask_token)
            x = torch.cat((first, x), 1) + self.decoder_pos_embed
        else:
            x = restore_tokens(
                visible,
                mask,
                self.mask_token,
                pos_embed=self.decoder_pos_embed,
                prefix_tokens=self.prefix,
            )
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        return x

    def _encode_small(self, images: Tensor, mask: PatchMask, second: PatchMask | None) -> Tensor:
        """The decoder's tokens of visible units, ascending, from a Swin on the image they form."""
        rows, columns = mask.mask.shape[1] // 2, mask.mask.shape[2] // 2
        visible = mask.visible.long()
        # of each visible unit, its place in the small image
        place = visible // (2 * columns) // 2 * columns + visible % (2 * columns) // 2
        units = images.unflatten(3, (-1, self.stride)).unflatten(2, (-1, self.stride))
        units = units.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        chosen = visible.gather(1, place.argsort(1))
        units = units[torch.arange(units.shape[0], device=units.device)[:, None], chosen]
        small = units.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
        small = small.flatten(4).flatten(2, 3)
        x = self.encoder(small, nothing_hidden(small) if second is None else second)
        x = self.decoder_embed(x).transpose(1, 2)
        x = pixel_shuffle(x.unflatten(2, (rows // self.finer, -1)), self.finer).flatten(2)
        return x.gather(2, place[:, None].expand(-1, x.shape[1], -1)).transpose(1, 2)


def is_hierarchical(encoder: nn.Module) -> bool:
    """Whether it is a Swin; a ``UserError`` for what MAE cannot train."""
    kind = type(getattr(encoder, "family", None)).__name__
    if kind not in ("ViT", "Swin"):
        raise UserError(
            "--method mae leaves hidden patches out, which needs a ViT, Swin or SwinV2 for --encoder, "
            "for example vit_base_patch16_224: the others want all patches in their places"
        )
    return kind == "Swin"


def sine_cosine(grid: tuple[int, int], width: int, prefix: int) -> Tensor:
    """The published positions ``float32 (1, prefix + h*w, width)``: zeros for the prefix, then sines
    and cosines of the column, then of the row, ``10000^(-4i/width)`` times each."""
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    y, x = (torch.arange(side, dtype=torch.float64)[:, None] * frequency for side in grid)
    y, x = (torch.cat((angle.sin(), angle.cos()), 1) for angle in (y, x))
    both = x.expand(grid[0], -1, -1), y[:, None].expand(-1, grid[1], -1)
    table = torch.cat(both, 2).flatten(0, 1)
    return torch.cat((table.new_zeros(prefix, width), table)).float()[None]
