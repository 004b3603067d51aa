"""A tiny image-text model that knows colours: real ONNX graphs and a part of CLIP's real vocabulary, made where it is needed.

A picture becomes its mean colour, and so do the words red, green and blue; every other word is noise. Both are turned by the
same random matrix.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE_PX = 32
DIM = 8
CONTEXT = 77
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
COLOURS = {736: (1, -1, -1), 1901: (-1, 1, -1), 1746: (-1, -1, 1)}
"""Numbers of the words red, green and blue in CLIP's vocabulary."""

# Merges of CLIP's vocabulary (github.com/openai/CLIP, MIT) by their rank: all that the texts of the tests come near to.
_MERGES = """
1:t+h 3:r+e 6:th+e</w> 8:o+u 10:s+t 13:o+n</w> 19:t+o</w> 20:r+o 24:a+t</w> 26:e+d</w> 27:o+f</w> 28:c+h 31:i+l
34:a+c 42:l+i 46:ð+Ł 47:r+a 56:'+s</w> 59:b+e 64:e+n</w> 67:l+e</w> 73:i+t</w> 94:h+o 113:a+r</w> 122:c+h</w>
123:t+r 127:d+o 149:p+e 152:l+u 164:o+p 165:h+i 177:g+re 193:u+p</w> 197:g+r 200:p+l 224:re+d</w> 233:p+h
236:!+!</w> 260:c+a 285:h+e</w> 295:st+r 304:p+ho 321:b+l 361:f+e</w> 448:d+re 454:t+w 458:li+fe</w> 475:ac+h</w>
483:!+!!</w> 518:pe+op 535:peop+le</w> 572:d+r 613:pho+to</w> 678:u+e</w> 725:tw+o</w> 751:b+lu 821:ch+il 825:ch+i
910:n+e</w> 919:l+d 931:!+! 1070:gr+ou 1103:c+ar</w> 1107:p+le</w> 1234:blu+e</w> 1259:grou+p</w> 1351:o+t
1382:st+ra 1389:gre+en</w> 1417:do+g</w> 1562:ðŁ+Ĳ 1605:be+ach</w> 1623:chil+dre 1638:e+a 1641:childre+n</w>
1856:c+at</w> 2084:re+n</w> 2132:e+e 2452:r+ou 2612:à+¤ 4301:ã+ģ 6010:Ã+¼ 6898:à+¥ 7551:i+f 8043:o+g</w> 8770:re+e
10620:w+o</w> 12831:à¤+¾</w> 15542:e+o 15944:li+f 18765:æ+ľ 18877:à¥+į</w> 21063:ãģ+® 21753:æ+Ĺ 21766:il+d
22887:o+to</w> 23167:re+en</w> 24618:à¥+ĩ</w> 25151:op+le</w> 26751:à¤+¤</w> 27993:à¤+¸</w> 32303:ou+p</w>
38609:æĹ+¥ 38624:à¤+° 40557:ðŁĲ+ķ</w> 43841:æľ+¬ 44687:lu+e</w> 46797:dre+n</w> 47742:à¤+®
"""


def tokenizer() -> dict[str, object]:
    """A tokenizer.json with CLIP's own numbers: 256 bytes, 256 bytes that end a word, then a number for each merge."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(value) for value in own] + [chr(0x100 + index) for index in range(256 - len(own))]
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, *(symbol + "</w>" for symbol in symbols)])}
    merges = []
    for entry in _MERGES.split():
        rank, _, pair = entry.partition(":")
        first, _, second = pair.partition("+")
        vocabulary[first + second] = 512 + int(rank)
        merges.append(f"{first} {second}")
    return {
        "added_tokens": [{"id": 49406, "content": "<|startoftext|>"}, {"id": 49407, "content": "<|endoftext|>"}],
        "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocabulary, "merges": merges},
    }


def write_open_clip(folder: Path, *, dim: int = DIM, seed: int = 1) -> Path:
    """As Immich publishes models: numbers of 32 bits, a batch of one."""
    for half in ("visual", "textual"):
        (folder / half).mkdir(parents=True, exist_ok=True)
    onnx.save(visual_graph("image", "embedding", dim, seed, batch=1), folder / "visual" / "model.onnx")
    onnx.save(textual_graph("text", "embedding", dim, seed, TensorProto.INT32, batch=1), folder / "textual" / "model.onnx")
    _write(folder / "textual" / "tokenizer.json", tokenizer())
    _write(folder / "textual" / "tokenizer_config.json", {"pad_token": "<|endoftext|>"})
    _write(folder / "config.json", {"embed_dim": dim, "text_cfg": {"context_length": CONTEXT}})
    preparation = {"size": [SIDE_PX, SIDE_PX], "mode": "RGB", "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    _write(folder / "visual" / "preprocess_cfg.json", {**preparation, "resize_mode": "shortest", "fill_color": 0})
    return folder


def write_transformers(folder: Path, *, dim: int = DIM, seed: int = 1) -> Path:
    """As transformers.js reads models: numbers of 64 bits, any batch, an attention mask."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    onnx.save(visual_graph("pixel_values", "image_embeds", dim, seed), folder / "onnx" / "vision_model.onnx")
    text = textual_graph("input_ids", "text_embeds", dim, seed, TensorProto.INT64, masked=True)
    onnx.save(text, folder / "onnx" / "text_model.onnx")
    _write(folder / "tokenizer.json", tokenizer())
    preparation = {"crop_size": {"height": SIDE_PX, "width": SIDE_PX}, "size": {"shortest_edge": SIDE_PX}, "resample": 3}
    _write(folder / "preprocessor_config.json", {**preparation, "do_center_crop": True, "image_mean": MEAN, "image_std": STD})
    return folder


def visual_graph(
    input_name: str, output_name: str, dim: int, seed: int, *, batch: int | str = "n", side_px: int | str = SIDE_PX
) -> onnx.ModelProto:
    return _model(
        [
            helper.make_node("ReduceMean", [input_name, "axes"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "turn"], [output_name]),
        ],
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, 3, side_px, side_px])],
        helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, dim]),
        {"turn": _turn(dim, seed), "axes": np.array([2, 3])},
    )


def textual_graph(
    input_name: str,
    output_name: str,
    dim: int,
    seed: int,
    number: int,
    *,
    batch: int | str = "n",
    context: int | str = CONTEXT,
    masked: bool = False,
) -> onnx.ModelProto:
    """`masked`: tokens beyond the mask do not count; else the end mark, which also fills up, is nothing."""
    words = np.random.default_rng(seed).normal(0, 0.01, (49408, 3)).astype(np.float32)
    for token, colour in COLOURS.items():
        words[token] = colour
    inputs = [helper.make_tensor_value_info(input_name, number, [batch, context])]
    nodes = [helper.make_node("Gather", ["words", input_name], ["looked_up"])]
    if masked:
        inputs.append(helper.make_tensor_value_info("attention_mask", number, [batch, context]))
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["counts"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["counts", "last"], ["counts_each"]),
            helper.make_node("Mul", ["looked_up", "counts_each"], ["meant"]),
        ]
    else:
        words[49407] = 0
        nodes.append(helper.make_node("Identity", ["looked_up"], ["meant"]))
    nodes += [
        helper.make_node("ReduceSum", ["meant", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "turn"], [output_name]),
    ]
    output = helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, dim])
    constants = {"words": words, "turn": _turn(dim, seed), "axes": np.array([1]), "last": np.array([2])}
    return _model(nodes, inputs, output, constants)


def _turn(dim: int, seed: int) -> npt.NDArray[np.float32]:
    """(3, D), so that lengths and angles stay."""
    square, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return np.asarray(square[:3], dtype=np.float32)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    constants: dict[str, npt.NDArray[np.generic]],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, [output], kept), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.checker.check_model(model)
    return model


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
