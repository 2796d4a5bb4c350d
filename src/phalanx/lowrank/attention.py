# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention whose projections are of low rank."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from phalanx.core._torch_private import NoFusedAttention
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import LowRank, Ranks, empty_pair
from phalanx.lowrank.linear import LowRankLinear
from phalanx.lowrank.macs import attention_products, words_of

_INPUTS = ("q_proj", "k_proj", "v_proj")
_PROJECTIONS = (*_INPUTS, "out_proj")


class LowRankAttention(NoFusedAttention, LowRank):
    """`nn.MultiheadAttention` with factors of the whole q, k, v and output matrices, not of each head.

    The projections are layers `q_proj`, `k_proj`, `v_proj`, `out_proj`, each of low rank or full. The biases stay in
    `in_proj_bias`. If one tensor is query, key and value, one product computes all three thin projections.

    Shapes: as `nn.MultiheadAttention`, with its masks, dropout, `bias_k`, `add_zero_attn` and returned weights.
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, section 2.4. As in its published code; the parameter count
        in the text is that of factors for each head. Differs: `is_causal` needs no mask.
    """

    kind = "attention"

    def __init__(self, dense: nn.MultiheadAttention, projections: dict[str, nn.Module]) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = dense.embed_dim, dense.num_heads, dense.head_dim
        self.kdim, self.vdim = dense.kdim, dense.vdim
        self.dropout, self.batch_first, self.add_zero_attn = dense.dropout, dense.batch_first, dense.add_zero_attn
        self.q_proj, self.k_proj, self.v_proj = (projections[name] for name in _INPUTS)
        self.out_proj = projections["out_proj"]
        self.in_proj_bias, self.bias_k, self.bias_v = dense.in_proj_bias, dense.bias_k, dense.bias_v

    @classmethod
    def dense_factors(cls, dense: nn.Module) -> tuple[Factor, ...]:
        old = cast(nn.MultiheadAttention, dense)
        return _factors(old.embed_dim, old.kdim, old.vdim)

    @classmethod
    def like(cls, dense: nn.Module, ranks: Ranks) -> Self:
        old, projections = cast(nn.MultiheadAttention, dense), {}
        for factor in cls.dense_factors(old):
            weight, rank = old.get_parameter(factor.weight), ranks[factor.name]
            bias = old.out_proj.bias if factor.name == "out_proj" else None
            if rank is None:
                full: Any = nn.Linear(factor.columns, factor.rows, bias=False, device="meta")
                part = factor.matrices(weight.detach())[0]
                # a copy, because other layers get the other rows of a packed weight
                full.weight = weight if part.shape == weight.shape else nn.Parameter(part.clone(), weight.requires_grad)
                full.bias = bias
                projections[factor.name] = full
            else:
                alone = Factor("", "weight", factor.shape)
                u, v = empty_pair(alone, rank, weight)
                projections[factor.name] = LowRankLinear(alone, u, v, bias, nn.Linear)
        return cls(old, projections)

    @property
    def factors(self) -> tuple[Factor, ...]:
        every = _factors(self.embed_dim, self.kdim, self.vdim)
        return tuple(f for f in every if isinstance(getattr(self, f.name), LowRankLinear))

    def parts(self) -> list[tuple[Factor, Tensor]]:
        every = _factors(self.embed_dim, self.kdim, self.vdim)
        return [(factor, getattr(self, factor.name).weight) for factor in every]

    def dense_like(self) -> nn.Module:
        dense = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            bias=self.in_proj_bias is not None,
            add_bias_kv=self.bias_k is not None,
            add_zero_attn=self.add_zero_attn,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device="meta",
        )
        dense.in_proj_bias, dense.bias_k, dense.bias_v = self.in_proj_bias, self.bias_k, self.bias_v
        out = NonDynamicallyQuantizableLinear(self.embed_dim, self.embed_dim, bias=False, device="meta")
        out.bias = cast(nn.Linear, self.out_proj).bias
        dense.out_proj = out
        return dense

    def macs(self, inputs: tuple[Any, ...], output: Any) -> int:
        query, key, value = inputs[:3]
        sources = zip(_PROJECTIONS, (query, key, value, query), strict=True)
        sizes = {name: sum(p.numel() for p in getattr(self, name).parameters() if p.dim() > 1) for name in _PROJECTIONS}
        return sum(sizes[name] * words_of(x) for name, x in sources) + attention_products(self, query, key)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the attention weights if `need_weights`, as `nn.MultiheadAttention` returns them."""
        alone, first = query.dim() == 2, self.batch_first
        q, k, v = self._project(query, key, value)
        if alone:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        length, known = q.shape[1], k.shape[1]
        k, v = self._lengthen(k, self.bias_k), self._lengthen(v, self.bias_v)
        added = k.shape[1] - known
        if is_causal and attn_mask is None and (added or need_weights or key_padding_mask is not None):
            attn_mask = torch.ones(length, known, dtype=torch.bool, device=q.device).triu(1)
        mask = self._mask(attn_mask, key_padding_mask, q, added)
        causal = is_causal and not need_weights and not added and key_padding_mask is None
        q, k, v = (t.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        dropped = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.mT
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, dim=-1), dropped)
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropped, causal)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if alone:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if first else out.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        layers, inputs = [self.q_proj, self.k_proj, self.v_proj], (query, key, value)
        thin = [layer for layer in layers if isinstance(layer, LowRankLinear)]
        if query is key and key is value and len(thin) == 3:
            parts = F.linear(query, torch.cat([layer.u for layer in thin])).split([l.v.shape[1] for l in thin], dim=-1)
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            return [F.linear(part, layer.v, bias) for part, layer, bias in zip(parts, thin, biases, strict=True)]
        out = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        if self.in_proj_bias is None:
            return out
        return [x + bias for x, bias in zip(out, self.in_proj_bias.chunk(3), strict=True)]

    def _lengthen(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Appends the learnt and the zero position, if the layer has them. Shapes: (B, S, width) -> (B, S', width)."""
        more = [] if bias is None else [bias.to(x.dtype).expand(x.shape[0], 1, -1)]
        more += [x.new_zeros(x.shape[0], 1, x.shape[2])] if self.add_zero_attn else []
        return torch.cat([x, *more], dim=1) if more else x

    def _mask(self, attn: Tensor | None, padding: Tensor | None, q: Tensor, added: int) -> Tensor | None:
        """The mask to add to the scores (B, heads, L, S), in a shape that broadcasts to them; None if there is none."""
        batch, masks = q.shape[0], []
        if attn is not None:
            attn = _additive(attn, q.dtype)
            masks.append(attn if attn.dim() == 2 else attn.reshape(batch, self.num_heads, *attn.shape[1:]))
        if padding is not None:
            masks.append(_additive(padding, q.dtype)[:, None, None, :])
        if not masks:
            return None
        mask = masks[0] if len(masks) == 1 else masks[0] + masks[1]
        return F.pad(mask, (0, added)) if added else mask

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _factors(width: int, kdim: int, vdim: int) -> tuple[Factor, ...]:
    """The four matrices of an attention; q, k and v are rows of one weight if they have equal widths."""
    packed, factors = kdim == width and vdim == width, []
    for i, (name, columns) in enumerate(zip(_INPUTS, (width, kdim, vdim), strict=True)):
        weight = "in_proj_weight" if packed else f"{name}_weight"
        start = i * width if packed else 0
        factors.append(Factor(name, weight, (width, columns), f"{name}.u", f"{name}.v", start=start))
    return (*factors, Factor("out_proj", "out_proj.weight", (width, width), "out_proj.u", "out_proj.v"))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of numbers to add to scores; True, which excludes a position, becomes minus infinity."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
