"""Small networks of many kinds, each with one place where a tensor may be left on the CPU.

Every network has a `planted` switch: off, it follows its input; on, one tensor stays on the CPU, the way it
happens in practice (``arange`` without ``device=``, a plain attribute where a buffer was meant, an initial
state, a mask). Both pass on the CPU. `BUGS` says in which module the planted one must be found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Plantable(nn.Module):
    def __init__(self, planted=False):
        super().__init__()
        self.planted = planted

    def near(self, x: torch.Tensor) -> torch.device:
        """Where a new tensor belongs; in a planted network, where it must not be."""
        return torch.device("cpu") if self.planted else x.device

    def constant(self, name: str, value: torch.Tensor) -> None:
        """A buffer; in a planted network a plain attribute, which ``to`` leaves behind."""
        if self.planted:
            setattr(self, name, value)
        else:
            self.register_buffer(name, value, persistent=False)


class Normalised(Plantable):
    """x - mean / std, with constants of the data set."""

    def __init__(self, planted: bool) -> None:
        super().__init__(planted)
        self.constant("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))

    def forward(self, x):
        return x - self.mean


class Scaled(Plantable):
    """x times a vector of the size of its last dimension."""

    def forward(self, x):
        return x * torch.linspace(0.5, 1, x.shape[-1], device=self.near(x), dtype=x.dtype)


class Mlp(nn.Module):
    def __init__(self, planted=False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.GELU(), Scaled(planted), nn.LayerNorm(16), nn.Dropout(), nn.Linear(16, 3)
        )

    def forward(self, x):
        return F.log_softmax(self.body(x), dim=-1)


class FaceNet(nn.Module):
    """Convolutions, BatchNorm, PReLU, two heads."""

    def __init__(self, planted=False):
        super().__init__()
        self.norm = Normalised(planted)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, 2), nn.PReLU()
        )
        self.face, self.box = nn.Linear(8 * 6 * 6, 1), nn.Linear(8 * 6 * 6, 4)

    def forward(self, x):
        x = self.body(self.norm(x)).flatten(1)
        return torch.sigmoid(self.face(x)), self.box(x)


class ResidualBlock(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.down = nn.Conv2d(inner, outer, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return y.relu_()


class ResNet(nn.Module):
    def __init__(self, planted=False):
        super().__init__()
        self.norm = Normalised(planted)
        self.layers = nn.Sequential(ResidualBlock(3, 3, 1), ResidualBlock(3, 8, 2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.pool(F.max_pool2d(self.layers(self.norm(x)), 2)).flatten(1))


class UNet(nn.Module):
    def __init__(self, planted=False):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.scale = Scaled(planted)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.scale(F.silu(self.down2(a)))
        c = torch.cat([a, self.up(b)], dim=1)
        return F.interpolate(self.out(c), scale_factor=2, mode="bilinear", align_corners=False)


class SqueezeExcite(Plantable):
    """Depthwise convolution and channel attention; the attention's temperature is a constant."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.constant("temperature", torch.full((8, 1, 1), 2.0))

    def forward(self, x):
        x = F.hardswish(self.depthwise(x))
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)) / self.temperature)


class MobileNet(nn.Module):
    def __init__(self, planted=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.blocks = nn.ModuleList([SqueezeExcite(False), SqueezeExcite(planted)])

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x.amax((2, 3))


class PositionsAdded(Plantable):
    """Embeddings of positions, looked up with indices made on the fly."""

    def __init__(self, length, width, planted):
        super().__init__(planted)
        self.table = nn.Embedding(length, width)

    def forward(self, x):
        return x + self.table(torch.arange(x.shape[1], device=self.near(x)))


class ViT(nn.Module):
    def __init__(self, planted=False):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))
        self.positions = PositionsAdded(17, 16, planted)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        )

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = self.positions(torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1))
        return self.blocks(x)[:, 0]


class CausalAttention(Plantable):
    """Scaled-dot-product attention with a mask of its own."""

    def __init__(self, width, heads, planted):
        super().__init__(planted)
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=self.near(x)).tril()
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Gpt(nn.Module):
    """Tied input and output embeddings."""

    def __init__(self, planted=False):
        super().__init__()
        self.embed, self.positions = nn.Embedding(50, 16), PositionsAdded(32, 16, False)
        self.blocks = nn.ModuleList([CausalAttention(16, 2, False), CausalAttention(16, 2, planted)])
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.positions(self.embed(tokens))
        for block in self.blocks:
            x = x + block(F.layer_norm(x, (16,)))
        return self.head(x)


class RotaryAttention(Plantable):
    """Rotary positions, grouped queries."""

    def __init__(self, planted):
        super().__init__(planted)
        self.q, self.kv, self.o = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 32)

    def rotate(self, x):
        angles = torch.arange(x.shape[-2], device=self.near(x))[:, None] / 10 ** torch.arange(
            4, device=x.device
        )
        a, b = x.float().chunk(2, dim=-1)
        turned = torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)
        return turned.to(x.dtype)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 1, 8)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(2))


class Llama(nn.Module):
    """In bfloat16, as such models are kept."""

    def __init__(self, planted=False):
        super().__init__()
        self.embed, self.attention = nn.Embedding(50, 32), RotaryAttention(planted)
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm = nn.Parameter(torch.ones(32))
        self.to(torch.bfloat16)

    def rms(self, x):
        return self.norm * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(
            x.dtype
        )

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.rms(x))
        x = x + self.down(F.silu(self.gate(self.rms(x))) * self.up(x))
        return x @ self.embed.weight.T


class Bert(nn.Module):
    """nn.TransformerEncoder, with its fast path, and a padding mask."""

    def __init__(self, planted=False):
        super().__init__()
        self.embed, self.positions = nn.Embedding(50, 16), PositionsAdded(32, 16, planted)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, tokens, mask):
        return self.encoder(self.positions(self.embed(tokens)), src_key_padding_mask=~mask).mean(1)


class Translator(Plantable):
    """nn.Transformer with a causal mask."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.embed = nn.Embedding(50, 16)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=self.near(target))
        return self.transformer(self.embed(source), self.embed(target), tgt_mask=mask)


class Tagger(Plantable):
    """A bidirectional LSTM whose initial state the model makes itself."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.embed, self.lstm = nn.Embedding(50, 8), nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(12, 4)

    def forward(self, tokens):
        state = torch.zeros(4, len(tokens), 6, device=self.near(tokens))
        x, _ = self.lstm(self.embed(tokens), (state, state))
        return self.out(x)


class GruAttention(nn.Module):
    def __init__(self, planted=False):
        super().__init__()
        self.gru, self.scale = nn.GRU(8, 8, batch_first=True), Scaled(planted)

    def forward(self, x):
        x, last = self.gru(x)
        weights = torch.einsum("bth,bh->bt", self.scale(x), last[0]).softmax(-1)
        return torch.einsum("bt,bth->bh", weights, x)


class CrossAttention(Plantable):
    def __init__(self, planted=False):
        super().__init__(planted)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.cell = nn.GRUCell(16, 16)

    def forward(self, query, memory):
        bias = torch.zeros(query.shape[1], memory.shape[1], device=self.near(query))
        out, weights = self.attention(query, memory, memory, attn_mask=bias)
        return self.cell(out[:, 0], query[:, 0]), weights


class Vae(Plantable):
    def __init__(self, planted=False):
        super().__init__(planted)
        self.encode, self.decode = nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x):
        mean, log_variance = self.encode(x).chunk(2, dim=-1)
        noise = torch.randn(mean.shape, device=self.near(mean))
        return {
            "x": self.decode(mean + noise * (log_variance / 2).exp()),
            "prior": torch.distributions.Normal(mean, 1.0),
        }


class TemporalNet(nn.Module):
    """Dilated convolutions, weight normalisation."""

    def __init__(self, planted=False):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, dilation=2**i, padding=2**i))
            for i in range(3)
        )
        self.scale = Scaled(planted)

    def forward(self, x):
        for conv in self.convs:
            x = x + F.elu(conv(x))
        return self.scale(x)


class GraphNet(Plantable):
    """Messages summed over edges."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.message, self.update = nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, nodes, edges):
        source, target = edges
        summed = torch.zeros(nodes.shape, device=self.near(nodes)).index_add_(
            0, target, self.message(nodes)[source]
        )
        degree = torch.zeros(len(nodes), device=nodes.device).scatter_add_(
            0, target, torch.ones_like(target).float()
        )
        return self.update(torch.cat([nodes, summed / degree.clamp(min=1)[:, None]], dim=-1))


class Router(Plantable):
    """Two of four experts, mixed without looking at values."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.gate, self.experts = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 8, 8))
        self.constant("bias", torch.zeros(4))

    def forward(self, x):
        weights, chosen = (self.gate(x) + self.bias).softmax(-1).topk(2, dim=-1)
        mixed = torch.zeros_like(self.gate(x)).scatter(-1, chosen, weights)
        return torch.einsum("be,eio,bi->bo", mixed, self.experts, x)


class StateSpace(Plantable):
    """A scan that writes its states in place."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.decay, self.inwards = nn.Parameter(torch.rand(8)), nn.Linear(4, 8)

    def forward(self, x):
        states = torch.empty(*x.shape[:2], 8, device=x.device)
        state = torch.zeros(x.shape[0], 8, device=self.near(x))
        for step in range(x.shape[1]):
            state = state * self.decay.sigmoid() + self.inwards(x[:, step])
            states[:, step] = state
        return states.cumsum(1)


class TimeEmbedding(Plantable):
    def forward(self, t):
        frequencies = torch.exp(-math.log(1e4) * torch.arange(4, device=self.near(t)) / 4)
        return torch.cat([(t[:, None] * frequencies).sin(), (t[:, None] * frequencies).cos()], dim=-1)


class Diffusion(nn.Module):
    """Time steps, GroupNorm, attention and an autocast region."""

    def __init__(self, planted=False):
        super().__init__()
        self.time = TimeEmbedding(planted)
        self.into, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm, self.attention = nn.GroupNorm(2, 8), CausalAttention(8, 2, False)

    def forward(self, x, t):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            x = F.silu(self.norm(self.into(x) + self.time(t)[..., None, None]))
            x = x + self.attention(x.flatten(2).mT).mT.reshape(x.shape)
            return self.out(x)


class Spectral(Plantable):
    """A spectrogram: complex numbers, a window."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.constant("window", torch.hann_window(64))
        self.out = nn.Linear(33, 4)

    def forward(self, sound):
        spectrum = torch.stft(sound, 64, window=self.window, return_complex=True)
        back = torch.istft(spectrum, 64, window=self.window)
        return self.out((spectrum.abs() + 1e-3).log().mean(-1)), back


class Anchors(Plantable):
    """Boxes on a grid, made where they are needed, written into slices."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.head = nn.Conv2d(3, 4, 3, 4, 1)

    def forward(self, x):
        boxes = self.head(x)
        rows, columns = (torch.arange(size, device=self.near(x)) for size in boxes.shape[2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
        boxes = boxes.clone()
        boxes[:, :2] += grid
        boxes[:, 2:].exp_().clamp_(max=10)
        return boxes.flatten(2).mT


class Recommender(Plantable):
    """Bags of tokens, several inputs by name, a loss."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.users, self.items = nn.Embedding(20, 8), nn.EmbeddingBag(30, 8, mode="mean")

    def forward(self, user, items):
        scores = (self.users(user) * self.items(items)).sum(-1)
        labels = torch.ones(len(scores), device=self.near(scores))
        return scores, F.binary_cross_entropy_with_logits(scores, labels)


class Movie(nn.Module):
    """Three-dimensional convolutions in half precision."""

    def __init__(self, planted=False):
        super().__init__()
        self.conv, self.norm, self.scale = nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), Scaled(planted)
        self.half()

    def forward(self, x):
        return self.scale(self.norm(self.conv(x.half()))).mean((2, 3, 4))


class Flow(Plantable):
    """Determinants, a triangular solve, an orthogonal parametrisation."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.mix = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4, bias=False))
        self.lower = nn.Parameter(torch.eye(4))

    def forward(self, x):
        matrix = self.lower.tril() + torch.eye(4, device=self.near(x))
        return torch.linalg.solve_triangular(matrix, self.mix(x).T, upper=False).T, torch.linalg.slogdet(
            matrix
        )[1]


class Mover(nn.Module):
    """Moves tensors itself, in every spelling; the last one is forgotten in a planted network."""

    def __init__(self, planted=False):
        super().__init__()
        self.planted = planted
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ones = torch.ones(4).to(device) + torch.ones(4).to(x.device) + torch.ones(4).to(x) + x.new_ones(4)
        if x.is_cuda:
            ones = ones + torch.ones(4).cuda() + torch.ones(4).to("cuda", torch.float32)
        last = torch.ones(4)
        return self.linear(x) + ones + (last if self.planted else last.type_as(x)) + torch.tensor(3.0)


class Energy(Plantable):
    """Forces are the gradient of an energy, taken inside forward."""

    def __init__(self, planted=False):
        super().__init__(planted)
        self.body = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.body(x - torch.zeros(3, device=self.near(x))).sum()
            return energy, -torch.autograd.grad(energy, x)[0]


@dataclass(frozen=True)
class Exhibit:
    kind: type[nn.Module]
    inputs: Any
    bug: str
    """Path of the module in which the planted tensor is met."""


ZOO = {
    exhibit.kind.__name__: exhibit
    for exhibit in (
        Exhibit(Mlp, "2x8", "body.2"),
        Exhibit(FaceNet, "2x3x16x16", "norm"),
        Exhibit(ResNet, "2x3x16x16", "norm"),
        Exhibit(UNet, "2x3x16x16", "scale"),
        Exhibit(MobileNet, "2x3x16x16", "blocks.1"),
        Exhibit(ViT, "2x3x16x16", "positions.table"),
        Exhibit(Gpt, "2x12:int64<50", "blocks.1"),
        Exhibit(Llama, "2x12:int64<50", "attention"),
        Exhibit(Bert, ["2x12:int64<50", "2x12:bool"], "positions.table"),
        Exhibit(Translator, ["2x9:int64<50", "2x7:int64<50"], "transformer.decoder.layers.0.self_attn"),
        Exhibit(Tagger, "2x9:int64<50", "lstm"),
        Exhibit(GruAttention, "2x9x8", "scale"),
        Exhibit(CrossAttention, ["2x5x16", "2x7x16"], "attention"),
        Exhibit(Vae, "2x8", ""),
        Exhibit(TemporalNet, "2x4x20", "scale"),
        Exhibit(GraphNet, ["6x8", "2x10:int64<6"], ""),
        Exhibit(Router, "5x8", ""),
        Exhibit(StateSpace, "2x6x4", ""),
        Exhibit(Diffusion, {"x": "2x3x8x8", "t": "2:int64<1000"}, "time"),
        Exhibit(Spectral, "2x400", ""),
        Exhibit(Anchors, "2x3x16x16", ""),
        Exhibit(Recommender, {"user": "3:int64<20", "items": "3x5:int64<30"}, ""),
        Exhibit(Movie, "1x3x8x8x8", "scale"),
        Exhibit(Flow, "5x4", ""),
        Exhibit(Mover, "2x4", ""),
        Exhibit(Energy, "5x3", ""),
    )
}
