"""The networks by name: ours and those of installed packages. A builder, a function or a class, takes the
number of classes; its keyword-only arguments are the options of `model:` in the YAML."""

from collections.abc import Callable

from torch import nn

from wsss.models.affinity_net import build_affinity_net
from wsss.models.cnn import build_cnn
from wsss.models.conformer import build_conformer
from wsss.models.deeplab import build_deeplab
from wsss.models.frozen import build_frozen
from wsss.models.pcm import build_pcm
from wsss.models.sam_decoder import build_sam_decoder
from wsss.models.segmenter import build_segmenter
from wsss.models.setr import SETR
from wsss.models.smp import build_smp
from wsss.models.toco import build_toco
from wsss.models.vit import build_vit
from wsss.registry import Registry, not_callable

OURS: dict[str, Callable[..., nn.Module]] = {
    "vit": build_vit,
    "cnn": build_cnn,
    "pcm": build_pcm,
    "conformer": build_conformer,
    "toco": build_toco,
    "frozen": build_frozen,
    "setr": SETR,
    "segmenter": build_segmenter,
    "deeplab": build_deeplab,
    "smp": build_smp,
    "sam_decoder": build_sam_decoder,
    "affinity_net": build_affinity_net,
}

MODELS = Registry("wsss.models", OURS, not_callable)
